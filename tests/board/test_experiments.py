"""Experiments on the board: their journals as they grow, are cut, and are no journals."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from helios.train.board import journals, queries, schema
from helios.train.board.store import Store
from helios.train.board.watch import Watcher
from helios.train.records.journal import Glance, objectives

from .boards import Board, board, lines, until
from .experiments import add, journal, write


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def held(of: Board, id_: str = "exp") -> list[Any]:
    answer = of.client.get(f"/api/experiments/{id_}/journal")
    return answer.json()["rows"] if answer.status_code == 200 else []


def test_experiments_are_found_where_runs_are_and_their_runs_are_tied_to_them(runs: Path) -> None:
    rows = list(journal(60, "one", end=True))
    write(runs / "a" / "b" / "deep", rows, trained=3)  # as deep as runs are found
    write(runs / "flat", list(journal(30, "two")), trained=2)
    write(runs / "a" / "b" / "c" / "below", list(journal(3, "three")))  # deeper
    with board(runs) as b:
        until(lambda: held(b, "one") == rows and len(b.get("runs", experiment="one")["runs"]) == 3)
        until(lambda: {e["experiment"] for e in b.get("experiments")["experiments"]} == {"one", "two"})
        found = b.get("experiments/one")
        entry = found["overview"]
        values = {}
        for each in rows:
            if each["kind"] == "result" and each["phase"] == "search":
                values.setdefault(each["id"], []).append(each["val_loss"] if each["status"] == "complete" else None)
        out = {each["id"] for each in rows if each["kind"] == "dropped" or each.get("arm") in ("random", "preset")}
        best = min((mean(v), id_) for id_, v in values.items() if id_ not in out and None not in v)
        assert entry["best"]["id"] == best[1] and entry["best"]["value"] == pytest.approx(best[0])
        assert (entry["name"], entry["generation"], entry["candidates"]) == ("deep", 2, 60)
        assert entry["ended"] and entry["sentences"] == rows[-1]["verdict"]["sentences"]
        assert [o["more"] for o in entry["objectives"]] == [False, True, False]
        assert found["measures"]["instability"] == {"field": "trouble", "share": True, "more": False, "clock": False,
                                                          "settled": False}
        run = b.get("runs", experiment="one")["runs"][0]
        result = next(r for r in rows if r["kind"] == "result" and run["run_id"].endswith(r["run"]))
        assert (run["candidate"], run["replicate"], run["phase"]) == (result["id"], result["replicate"], "search")
        assert b.get("experiments/two")["overview"]["ended"] is False
        assert b.client.get("/api/experiments/none").status_code == 404
        assert b.client.get("/api/experiments/none/journal").status_code == 404
        assert b.get("experiments/one/journal", **{"from": len(rows) - 1})["rows"] == rows[-1:]


def test_a_board_on_an_experiment_itself(tmp_path: Path) -> None:
    rows = list(journal(10))
    with board(write(tmp_path / "mine", rows, trained=2)) as b:
        until(lambda: held(b) == rows and len(b.entries()) == 2)
        assert b.get("experiments/exp")["overview"]["name"] == "mine"


def test_a_directory_whose_name_is_no_text(runs: Path, store: Store) -> None:
    write(runs / os.fsdecode(b"mine\xff"), list(journal(3)))
    watcher = Watcher(runs, store)
    watcher.start()
    until(lambda: all(reader.whole for reader in watcher.journals.values()))
    watcher.stop()
    with store.reading() as db:
        assert [entry["name"] for entry in journals.entries(db)] == ["mine\ufffd"]


def test_a_journal_that_grows_and_is_cut_and_replaced(runs: Path) -> None:
    rows = list(journal(700, replicates=1))
    path = write(runs / "grows", rows[:5])
    with board(runs) as b:
        until(lambda: held(b) == rows[:5])
        response = b.client.send(b.client.build_request(
            "GET", f"{b.url}/api/stream?experiment=exp", timeout=30), stream=True)
        told, holds = response.iter_lines(), list[Any]()

        def follow(wanted: int) -> list[Any]:
            """What a page holds that hears the stream, as soon as it has so many lines."""
            event = None
            for line in told:
                name, _, value = line.partition(": ")
                event = value if name == "event" else event
                if name == "data" and event == "journal":
                    data = json.loads(value)
                    if data["from"] == 0 and not data["rows"]:
                        holds[:] = held(b)
                    holds.extend(data["rows"][len(holds) - data["from"]:])
                    if len(holds) >= wanted:
                        break
            return holds

        until(lambda: "hello" in next(told))
        holds += rows[:5]
        half = lines(rows[5:6])
        add(path, half[:40])  # a line that is being written
        time.sleep(0.6)
        assert held(b) == rows[:5] and not b.errors
        add(path, half[40:] + lines(rows[6:]))
        assert follow(len(rows)) == rows
        assert b.get("experiments/exp")["overview"]["candidates"] == 700
        other = rows[:100] + [r | {"name": "X"} for r in rows[100:130]]
        (path / "new").write_text(lines(other))
        os.replace(path / "new", path / "journal.jsonl")
        until(lambda: held(b) == other)
        add(path, lines(rows[130:140]))
        until(lambda: held(b) == other + rows[130:140])
        response.close()


def test_a_journal_that_grew_or_was_cut_or_went_while_no_board_ran(runs: Path, store: Store) -> None:
    rows = list(journal(30))
    path = write(runs / "exp", rows[:40])

    def known() -> list[Any]:
        watcher = Watcher(runs, store)
        watcher.start()
        until(lambda: all(reader.whole for reader in watcher.journals.values()))
        watcher.stop()
        with store.reading() as db:
            return [json.loads(line) for line in queries.rows(db, "exp", "journal")[0]]

    assert known() == rows[:40]
    add(path, lines(rows[40:]))
    assert known() == rows
    (path / "journal.jsonl").write_text(lines(rows[:20]))
    assert known() == rows[:20]
    (path / "journal.jsonl").write_text(lines([*rows[:10], *rows[30:35]]))
    assert known() == [*rows[:10], *rows[30:35]]
    shutil.rmtree(path)
    assert known() == [*rows[:10], *rows[30:35]]  # what the board knows stays, as of runs


def test_reading_again_changes_nothing(runs: Path, store: Store) -> None:
    rows = list(journal(300))
    write(runs / "same", rows)

    def state() -> Any:
        with store.reading() as db:
            return (db.execute("SELECT count(*), min(n), max(n) FROM journal_lines").fetchall(),
                    db.execute("SELECT kind, count(*) FROM changes WHERE kind IN ('journal', 'experiment') GROUP BY 1"
                               ).fetchall(), journals.entries(db))

    for _ in range(2):
        watcher = Watcher(runs, store)
        watcher.start()
        until(lambda read=watcher.journals[str(runs / "same")]: read.whole)
        watcher.stop()
        assert state()[0] == [(len(rows), 0, len(rows) - 1)] and dict(state()[1])["experiment"] == 1
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM journal WHERE kind = 'birth'").fetchone() == (300,)


def test_what_is_no_journal_or_twice_there_is_left_out_with_a_warning(runs: Path) -> None:
    rows = list(journal(5))
    for name, text in {"a": lines(rows), "b": lines(rows), "c": '{"kind": "birth", "id": "x"}\n', "d": "[]\n",
                       "e": lines([rows[0] | {"id": "../x"}]), "f": "", "g": '{"kind": "experi'}.items():
        (runs / name).mkdir()
        (runs / name / "journal.jsonl").write_text(text)
    odd = [rows[0] | {"id": "odd", "settings": [1], "genes": 3}, {"kind": ["x"]}, {"kind": "birth", "id": 7}, {},
           {"kind": "result", "id": "x", "status": "complete", "replicate": {}, "fitness": 10**400},
           {"kind": "generation", "generation": "two"}, {"kind": "end", "verdict": 5}]
    write(runs / "h", odd)
    with board(runs) as b:
        until(lambda: held(b) == rows and held(b, "odd") == odd)
        shutil.rmtree(runs / "a")
        add(runs / "b", lines(list(journal(6))[6:7]))
        until(lambda: len(held(b)) == len(rows) + 1)  # now the other one counts
        assert {e["experiment"] for e in b.get("experiments")["experiments"]} == {"exp", "odd"}
        assert b.get("experiments/odd")["overview"]["ended"] is True
    for words in (("b is left out", "of the same experiment, exp"), ("c is left out", "names no experiment"),
                  ("e is left out", "names no experiment"), ("d/journal.jsonl", "1 damaged line")):
        assert sum(all(word in line for word in words) for line in b.errors) == 1, (words, b.errors)


def test_a_database_of_an_earlier_board_is_brought_up(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "board.sqlite") as db:
        db.executescript(f"{schema.TABLES} PRAGMA application_id = {schema.APPLICATION}; PRAGMA user_version = 1;"
                         "DROP VIEW metrics; CREATE VIEW metrics AS SELECT run_id, n, step, line FROM metrics_lines;")
    store = Store(tmp_path / "board.sqlite")
    with store.reading() as db:
        assert journals.entries(db) == [] and queries.entries(db, {}) == []
        assert db.execute("SELECT action_reason, cusum_flush FROM metrics").fetchall() == []
        assert db.execute("SELECT verdict FROM windows").fetchall() == []
    store.close()


@pytest.mark.parametrize(("first", "names"), [
    ({"settings": {"objectives": "val_loss, tokens_per_sec"}}, ["val_loss", "tokens_per_sec"]),
    ({"settings": {"fitness": "-val_loss", "objectives": "val_loss"}}, ["fitness"]),
    ({"objectives": ["a", 3, "a"], "settings": {"objectives": "b"}}, ["a"]), ({"settings": 3}, ["fitness"])])
def test_objectives(first: Any, names: list[str]) -> None:
    assert objectives(first) == names


@pytest.mark.parametrize(("less", "best"), [
    ({}, "b"), ({"share": 0.25}, "a"), ({"val_loss": None}, "a"), ({"status": "stopped"}, "a"),
    ({"phase": "validation"}, "a")])
def test_who_may_be_the_best(less: dict[str, Any], best: str) -> None:
    glance = Glance()
    glance.take({"kind": "experiment", "id": "e", "objectives": ["instability"]})
    for name, trouble in (("a", 2), ("b", 1)):
        glance.take({"kind": "birth", "id": name})
        glance.take({"kind": "result", "id": name, "replicate": 0, "phase": "search", "status": "complete",
                     "share": 1.0, "val_loss": 3.0, "trouble": trouble, "steps": 4} | (less if name == "b" else {}))
    found = glance.best()
    assert found and (found["id"], found["value"]) == (best, {"a": 0.5, "b": 0.25}[best])


def test_a_training_that_is_measured_several_times_is_one() -> None:
    glance = Glance()
    for phase, replicate, share in (("search", 0, 0.25), ("search", 0, 1), ("search", 1, 1), ("validation", 0, 1)):
        glance.take({"kind": "result", "id": "a", "replicate": replicate, "phase": phase, "share": share})
    assert glance.entry()["results"] == 3


def test_the_best_one_where_more_is_better() -> None:
    glance = Glance()
    for line in journal(40):
        glance.take(line | ({"objectives": ["tokens_per_sec"]} if line["kind"] == "experiment" else {}))
    best = glance.best()
    assert best and best["value"] == max(
        mean(filter(None, by.values())) for id_, by in glance.values.items()
        if glance.births[id_][1] == "evolved" and id_ not in glance.dropped and None not in by.values())
