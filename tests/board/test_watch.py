"""Run directories are shown as they grow: real trainings, killed and resumed, and directories that are damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helios.train.board import ingest, queries, watch
from helios.train.board.store import Store
from helios.train.board.watch import Watcher
from helios.train.records.overview import STALE

from .boards import CONFIG, Board, Stream, board, event, lines, row, until

TEXT = "".join(f"<|user|> Who are you? <|assistant|> I am number {i}. <|end_of_text|>\n" for i in range(400))


def train(*args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "helios.cli.train", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def begin(folder: Path, text: Path, steps: int) -> subprocess.Popen[bytes]:
    text.write_text(TEXT)
    return train("--data", text, "--preset", "tiny", "--backend", "cpu_ref", "--vocab-size", 300, "--steps", steps,
                 "--checkpoint-interval", 50, "--eval-interval", 50, "--run-dir", folder)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(of: Board, run_id: str) -> list[Any]:
    return of.get(f"runs/{run_id}/rows", limit=10_000)["rows"]


def same(of: Board, path: Path) -> bool:
    """Whether the board has what is in the directory's files."""
    run_id = read_config(path)["run_id"]
    if of.client.get(f"/api/runs/{run_id}").status_code != 200:
        return False
    return rows(of, run_id) == read(path / "metrics.jsonl") and all(
        of.get(f"runs/{run_id}/{kind}")["rows"] == read(path / name) for kind, name in
        (("events", "events.jsonl"), ("samples", "samples.jsonl"), ("candidates", "search/candidates.jsonl")))


def read_config(path: Path) -> Any:
    return json.loads((path / "config.json").read_text())


def directory(path: Path, run_id: str, count: int = 3, end: str = "run_complete") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | {"run_id": run_id}))
    (path / "metrics.jsonl").write_text(lines([row(i + 1) for i in range(count)]))
    (path / "events.jsonl").write_text(lines([event(0, "run_start"), event(count, end)]))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_training_that_is_killed_and_resumed(runs: Path) -> None:
    path = runs / "experiment" / "candidates" / "a"
    with board(runs) as b:
        training = begin(path, runs.parent / "text.txt", 100_000)
        until(lambda: (path / "checkpoints" / "step-000100").exists() and len(read_metrics(path)) > 120)
        run_id = read_config(path)["run_id"]
        until(lambda: len(rows(b, run_id)) > 100)
        assert b.entry(run_id)["status"] == "active"
        stream = Stream(b, run_id)
        training.send_signal(signal.SIGKILL)
        training.wait()
        until(lambda: same(b, path))
        until(lambda: b.entry(run_id)["status"] == "interrupted")
        assert b.entry(run_id)["reason"] == "its process ended without a word"
        saved = max(int(p.name.removeprefix("step-")) for p in (path / "checkpoints").glob("step-*"))
        listed = b.get(f"runs/{run_id}/checkpoints")["rows"]
        assert [c["step"] for c in listed][-1] == saved and listed[-1]["bytes"] > 10_000 and listed[-1]["files"] == []
        assert listed[-1]["val_loss"] == next(r for r in rows(b, run_id) if r["step"] == saved)["val_loss"]

        training = train("--resume", path, "--steps", saved + 60)
        assert training.wait() == 0
        until(lambda: b.entry(run_id)["status"] == "completed")
        until(lambda: same(b, path))
        assert b.entry(run_id)["step"] == b.get(f"runs/{run_id}")["rows"]["metrics"] == saved + 60
        assert b.entry(run_id)["best_val_loss"] == min(r["val_loss"] for r in rows(b, run_id) if r["val_loss"])
        while stream.next()[1:] != ("run", b.entry(run_id)):
            pass
        assert stream.holds[run_id]["metrics"] == read(path / "metrics.jsonl")
        assert stream.holds[run_id]["events"] == read(path / "events.jsonl")
        assert "cut" in [kind for _, kind, _ in stream.events]
        stream.close()


def read_metrics(path: Path) -> list[bytes]:
    return (path / "metrics.jsonl").read_bytes().splitlines() if (path / "metrics.jsonl").exists() else []


def test_a_search(runs: Path) -> None:
    with board(runs) as b:
        (runs.parent / "text.txt").write_text(TEXT)
        path = runs / "searched"
        training = train(
            "--data", runs.parent / "text.txt", "--preset", "tiny", "--backend", "cpu_ref", "--vocab-size", 300,
            "--search", "ffn-activation", "--steps", 6, "--run-dir", path, *(part for key, value in {
                "activation_pool": "gelu,relu", "population_size": 2, "generations": 1, "replicates": 1,
                "steps_per_candidate": 4}.items() for part in ("--set", f"{key}={value}")))
        assert training.wait() == 0
        until(lambda: same(b, path))
        run_id = read_config(path)["run_id"]
        about = until(lambda: (found := b.get(f"runs/{run_id}"))["summary"] and found)
        assert about["summary"] == json.loads((path / "search" / "summary.json").read_text())
        assert about["rows"]["candidates"] == 2 and about["overview"]["symbio"] is True
        metrics = read(path / "metrics.jsonl")
        for key, segments in about["segments"].items():
            wanted, last = [], None
            for r in metrics:
                if r.get(key) != last:
                    last = r.get(key)
                    wanted.append([r["step"], last])
            assert segments == wanted and segments
        assert {key for key in about["keys"] if key.startswith("activation_distribution.")} == {
            "activation_distribution.gelu", "activation_distribution.relu"}


def test_what_happened_while_no_board_ran(runs: Path) -> None:
    kept = directory(runs / "kept", "kept", 2000)
    cut = directory(runs / "cut", "cut", 2000)
    gone = directory(runs / "gone", "gone")
    with board(runs) as b:
        until(lambda: all(same(b, path) for path in (kept, cut, gone)))
    shutil.rmtree(gone)
    with open(kept / "metrics.jsonl", "a") as file:
        file.write(lines([row(2001)]))
    # As a resumed run does it: anew, and renamed.
    (cut / "new").write_text(lines([row(i + 1, **({"loss": 7.5} if i >= 1500 else {})) for i in range(2500)]))
    os.replace(cut / "new", cut / "metrics.jsonl")
    (cut / "new").write_text(lines([event(0, "run_start"), event(1500, "resumed")]))
    os.replace(cut / "new", cut / "events.jsonl")
    with board(runs) as b:
        assert b.said.startswith("board of 3 runs")
        until(lambda: same(b, kept) and same(b, cut))
        assert b.entry("gone")["status"] == "completed" and len(rows(b, "gone")) == 3
        assert b.get("runs/cut/series", keys="loss", px=1, **{"from": 1501})["series"]["loss"]["min"] == [7.5]
        assert b.entry("cut")["coverage"] == 1


def test_what_is_damaged_foreign_or_twice_there_is_left_out_with_a_warning(runs: Path) -> None:
    good = directory(runs / "a", "one")
    directory(runs / "b", "one", 9)
    directory(runs / "c", "../x")
    (runs / "d").mkdir()
    (runs / "d" / "config.json").write_text("{}")
    (runs / "e").symlink_to(runs)
    (runs / "f").symlink_to(runs / "nowhere")
    damaged = directory(runs / "g", "damaged")
    with open(damaged / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4}\n\xff\xfe\n[]\n{"step"\n' + lines([row(5)]).encode() + b'{"step": 6')
    with board(runs) as b:
        until(lambda: same(b, good) and len(rows(b, "damaged")) == 5)
        with open(damaged / "metrics.jsonl", "ab") as file:
            file.write(b', "loss": 1}\n')
        until(lambda: len(rows(b, "damaged")) == 6)
        assert rows(b, "damaged")[-1] == {"step": 6, "loss": 1}
        (runs / "d" / "config.json").write_text(json.dumps(CONFIG | {"run_id": "mended"}))
        until(lambda: b.client.get("/api/runs/mended").status_code == 200)
        assert {entry["run_id"] for entry in b.entries()} == {"one", "damaged", "mended"}
        shutil.rmtree(runs / "a")  # now the other one counts
        until(lambda: len(rows(b, "one")) == 9)
    for words in (("b is left out", "of the same run, one"), ("c is left out", "no id"), ("d/config.json", "foreign"),
                  ("g/metrics.jsonl", "3 damaged lines")):
        assert sum(all(word in line for word in words) for line in b.errors) == 1, b.errors
    assert all(line.startswith("warning: ") for line in b.errors)


def test_rows_that_were_sent_and_are_in_a_directory_are_one_run(runs: Path) -> None:
    with board(runs) as b:
        sent = [row(i + 1) for i in range(30)]
        b.run("one")
        b.post("one", "metrics", 0, sent)
        path = directory(runs / "a", "one", 20)  # behind: what was sent stays
        until(lambda: b.get("runs/one")["rows"]["events"] == 2)
        assert rows(b, "one") == sent
        with open(path / "metrics.jsonl", "a") as file:
            file.write(lines([*sent[20:], row(31)]))
        until(lambda: len(rows(b, "one")) == 31)
        b.cut("one", 10)  # the directory's own are read again
        with open(path / "metrics.jsonl", "a") as file:
            file.write(lines([row(32)]))
        until(lambda: same(b, path))


def test_directories_that_are_renamed_onto_others(runs: Path) -> None:
    one, two = directory(runs / "one", "one"), directory(runs / "two", "two", 5)
    with board(runs) as b:
        until(lambda: same(b, one) and same(b, two))
        one.rename(runs / "old")
        two.rename(one)
        with open(one / "metrics.jsonl", "a") as file:
            file.write(lines([row(6)]))
        with open(runs / "old" / "metrics.jsonl", "a") as file:
            file.write(lines([row(4)]))
        until(lambda: same(b, one) and same(b, runs / "old"))
        assert len(rows(b, "one")) == 4 and len(rows(b, "two")) == 6


def test_a_checkpoint_that_is_made_again(runs: Path) -> None:
    path = directory(runs / "one", "one")

    def save(loss: float) -> None:
        partial = path / "checkpoints" / ".partial"
        partial.mkdir(parents=True)
        (partial / "state.json").write_text(json.dumps({"val_loss": loss}))
        shutil.rmtree(path / "checkpoints" / "step-000003", ignore_errors=True)
        partial.rename(path / "checkpoints" / "step-000003")

    with board(runs) as b:
        for loss in (2.5, 1.25):
            save(loss)
            until(lambda loss=loss: [c["val_loss"] for c in b.get("runs/one/checkpoints")["rows"]] == [loss])


def test_no_warning_is_so_important_that_it_ends_the_watch(
        store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "damaged").mkdir()
    (runs / "damaged" / "config.json").write_text("{}")
    with monkeypatch.context() as patch:  # as where the terminal is closed
        patch.setattr(sys, "stderr", SimpleNamespace(write=lambda text: os.write(-1, text.encode())))
        watcher = Watcher(runs, store)
        watcher.thread.start()
        until(lambda: watcher.warned)
        directory(runs / "one", "one")

        def known() -> Any:
            with store.reading() as db:
                return queries.entries(db, {}, "one")

        until(known, 10)
        watcher.stop()


def test_a_run_that_was_quiet_is_read_at_once(runs: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WARM", 3600.0)  # and so nothing is looked through for so long
    path = directory(runs / "one", "one")
    for place in (path, *path.iterdir()):
        os.utime(place, (0, 0))
    watcher = Watcher(runs, store)
    watcher.start()
    for n in (3, 4):

        def there(n: int = n) -> bool:
            with store.reading() as db:
                return ingest.count(db, "one", "metrics") == n

        until(there)
        until(lambda: watcher.runs[str(path)].seen)
        with open(path / "metrics.jsonl", "a") as file:
            file.write(lines([row(n + 1)]))
    watcher.stop()


def test_rows_that_were_cut_before_the_board_ended_are_read_again(runs: Path, store: Store) -> None:
    path = directory(runs / "one", "one", 30)

    def count() -> int:
        with store.reading() as db:
            return ingest.count(db, "one", "metrics")

    for _ in range(2):
        watcher = Watcher(runs, store)
        watcher.start()
        until(lambda: count() == 30)
        watcher.stop()
        store.write(lambda db: ingest.cut(db, "one", 10, 0.0))
    assert len(read(path / "metrics.jsonl")) == 30 and count() == 10


def test_many_runs(runs: Path) -> None:
    for i in range(150):
        directory(runs / f"r{i:03}", f"r{i:03}")
    with board(runs) as b:
        assert b.said.startswith("board of 150 runs")
        read = lambda: [e for e in b.entries() if e["status"] == "completed" and e["step"] == 3]
        until(lambda: len(read()) == 150)
        with open(runs / "r077" / "events.jsonl", "a") as file:
            file.write(lines([event(3, "resumed")]))
        until(lambda: b.entry("r077")["status"] == "interrupted")


def test_a_run_grows_stale_while_one_looks(store: Store, tmp_path: Path) -> None:
    store.write(lambda db: ingest.about(db, "quiet", CONFIG, None, [], time.time() - STALE + 1))
    watcher = Watcher(tmp_path / "none", store)
    with store.reading() as db:
        assert queries.entries(db, {})[0]["status"] == "active"
        since = queries.cursor(db)
    watcher.start()

    def told() -> list[str]:
        with store.reading() as db:
            return [json.loads(message.data)["status"] for message in queries.changes(db, {}, since, ())[0]]

    assert until(told) == ["stale"]
    watcher.stop()
