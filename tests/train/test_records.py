"""The run directory: who may have it, and what is written in it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train import directory
from helios.train.records import layout
from helios.train.records.layout import CONFIG, EVENTS, LOCK, METRICS, SAMPLES
from helios.train.records.records import COLUMNS, Records


class Vocabulary:
    def save(self, path: Path) -> None:
        path.write_text("{}")


def records(path: Path, keep: int = 0) -> Records:
    return Records(path, {"run_id": "r"}, Vocabulary(), keep)


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "clip_coef": 1.0} | more


def strict(path: Path) -> list[dict[str, Any]]:
    """As a reader that knows no NaN."""
    def refuse(literal: str) -> None:
        raise AssertionError(literal)
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_run_id() -> None:
    assert re.fullmatch(r"historic_chat_\d{14}_[0-9a-z]{4}", directory.run_id("/a/historic-chat.txt"))
    assert re.fullmatch(r"synth_2MB_\d{14}_[0-9a-z]{4}", directory.run_id("synth:2MB"))
    assert directory.run_id("../ä.txt").startswith("run_")
    assert len(directory.run_id("x" * 250 + ".txt")) == 120


def test_every_row_has_every_column(tmp_path: Path) -> None:
    log = records(tmp_path)
    log.metrics(row(1, lr=0.1))
    log.metrics(row(2, skipped=True, val_loss=2.0))
    first, second = strict(tmp_path / METRICS)
    assert list(first) == list(COLUMNS)
    assert first["lr"] == 0.1 and first["val_loss"] is None
    assert second["skipped"] is True and second["val_loss"] == 2.0


def test_not_finite_is_null_and_an_event_and_one_row(tmp_path: Path) -> None:
    log = records(tmp_path)
    log.metrics(row(1, loss=float("nan"), grad_norm=float("inf"), clip_coef=float("nan")))
    log.metrics(row(2))
    rows, events = strict(tmp_path / METRICS), strict(tmp_path / EVENTS)
    assert [r["step"] for r in rows] == [1, 2]
    assert rows[0]["loss"] is rows[0]["grad_norm"] is rows[0]["clip_coef"] is None
    (event,) = events
    assert event["kind"] == "non_finite" and event["step"] == 1
    assert event["values"] == {"loss": "nan", "grad_norm": "inf", "clip_coef": "nan"}


def test_clip_pct_is_of_the_last_hundred(tmp_path: Path) -> None:
    log = records(tmp_path)
    got = [log.metrics(row(i, clip_coef=0.5 if i <= 60 else 1.0))["clip_pct"] for i in range(1, 181)]
    assert got[0] == got[59] == 100 and got[99] == 60 and got[129] == 30 and got[179] == 0
    log.close()
    # the same after a resume at step 120
    again = records(tmp_path, keep=120)
    assert [again.metrics(row(i))["clip_pct"] for i in range(121, 181)] == got[120:]


def test_resume_drops_what_came_after_and_half_lines(tmp_path: Path) -> None:
    log = records(tmp_path)
    for step in range(1, 10):
        log.metrics(row(step))
        log.event(step, "x", "y")
    log.sample(5, text="<|user|> ä\nb")
    log.sample(9, text="b")
    log.close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 10, "lo')
    log = records(tmp_path, keep=6)
    log.metrics(row(7))
    assert [r["step"] for r in strict(tmp_path / METRICS)] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["step"] for r in strict(tmp_path / EVENTS)] == [1, 2, 3, 4, 5, 6]
    assert [r["text"] for r in strict(tmp_path / SAMPLES)] == ["<|user|> ä\nb"]


def test_no_half_line_on_a_full_disk(tmp_path: Path) -> None:
    log = records(tmp_path)
    log.metrics(row(1))
    size = (tmp_path / METRICS).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl"):
            log.metrics(row(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / METRICS).stat().st_size == size
    log.metrics(row(2))
    assert [r["step"] for r in strict(tmp_path / METRICS)] == [1, 2]


def test_one_process_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    with directory.locked(path, new=True):
        for new in (True, False):
            with pytest.raises(UserError, match="is in use by another process"), directory.locked(path, new=new):
                pass
        records(path)
    assert (path / CONFIG).exists()
    with directory.locked(path, new=False):
        pass


def test_a_run_that_did_not_begin_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError), directory.locked(tmp_path / "run", new=True):
        raise UserError("bad data")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with directory.locked(tmp_path / "mine", new=True):
        pass
    assert (tmp_path / "mine").exists()
    with directory.locked(tmp_path / "mine", new=True):
        pass


def test_directories_that_a_new_run_may_not_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "run" / CONFIG).touch()
    for name, message in (("file", "is a file"), ("other", "is not empty"), ("run", "continue it with --resume"),
                          ("file/run", "file is a file")):
        with pytest.raises(UserError, match=message), directory.locked(tmp_path / name, new=True):
            pass
    assert not (tmp_path / "other" / LOCK).exists()


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    config = {"model": {}, "train": {}, "data": {}, "run_id": "r"}
    for name in ("first", "second"):
        with directory.locked(tmp_path, new=True, anew=True):
            (tmp_path / "checkpoints" / ".partial-000001").mkdir(parents=True, exist_ok=True)
            log = Records(tmp_path, config, Vocabulary())
            log.event(0, "run_start", name)
            log.metrics(row(1))
            log.close()
    assert [e["message"] for e in strict(tmp_path / EVENTS)] == ["second"]
    assert len(strict(tmp_path / METRICS)) == 1
    with pytest.raises(UserError, match="without a checkpoint"), directory.locked(tmp_path, new=True):
        pass  # unless that is asked for


KILLED = """
import os, sys
from pathlib import Path
from helios.train import directory
from helios.train.records.layout import CONFIG
from helios.files import write_text
os.fsync = lambda file: os._exit(9)
with directory.locked(Path(sys.argv[1]), new=True):
    write_text(Path(sys.argv[1]) / CONFIG, "{}")
"""


def test_killed_while_its_config_is_written_a_run_begins_there(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-P", "-c", KILLED, tmp_path]).returncode == 9
    assert [path.suffix for path in tmp_path.iterdir() if path.name != LOCK] == [".tmp"]
    with directory.locked(tmp_path, new=True):
        pass
    (tmp_path / ".other.tmp").touch()
    with pytest.raises(UserError, match="not empty"), directory.locked(tmp_path, new=True):
        pass


@pytest.mark.parametrize(("text", "message"), [
    (None, "no run directory"), ("{", "damaged"), ("[]", "foreign"), ("{}", "foreign"),
    ('{"model": {}, "train": 1, "data": {}, "run_id": "r"}', "foreign")])
def test_config_json_of_others(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / CONFIG).write_text(text)
    with pytest.raises(UserError, match=message):
        layout.read_config(tmp_path)


def test_lines_are_whole_when_a_method_returns(tmp_path: Path) -> None:
    log = records(tmp_path)
    log.event(0, "x", "é, and a name that is no UTF-8: \udcff")
    assert os.stat(tmp_path / EVENTS).st_size == len((tmp_path / EVENTS).read_bytes()) > 0
    assert (tmp_path / EVENTS).read_bytes().endswith(b"\n")
    assert strict(tmp_path / EVENTS)[0]["message"].endswith("UTF-8: \udcff")
