"""What the tests of reports share: a run of each kind, and how their pages and rows are read."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios.train.config import resolve
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.report import page, reading
from helios.train.run import Run
from helios.train.search import report as search_report

from ..train.runs import SMALL

Rows = list[dict[str, Any]]
PLAIN = {"steps": 60, "metrics_interval": 5, "eval_interval": 5, "sample_interval": 20, "lr": 3e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": PLAIN, "other": PLAIN | {"steps": 40, "lr": 1e-3, "activation": "relu"},
    "search": SMALL, "only": SMALL | {"after": "none", "generations": 1, "replicates": 1},
    "diverged": {"lr": 1e30, "warmup": 0, "grad_clip": 0}, "one": {"steps": 1},
    "mixed": {"precision": "mixed", "spike_threshold": 1.1},
}


class Stop(Display):
    """Asks the run to stop at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.step = step

    def row(self, row: Any) -> None:
        if row["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


class Runs:
    """A run of each kind, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, kind: str) -> Path:
        path = self.folder / kind
        if not path.exists():
            OTHERS.get(kind, _trained)(self, path)
        return path

    def text(self, kind: str) -> str:
        """The Markdown of the run's report, without pictures."""
        return text_of(self[kind])


def text_of(path: Path) -> str:
    return "\n".join(page.of_one(reading.read(path), {}))


def _run(path: Path, settings: dict[str, Any]) -> Run:
    assignments = [f"{key}={value}" for key, value in ({"backend": "cpu_ref"} | settings).items()]
    return Run.create(resolve("tiny", assignments=assignments), path, plan=planned)


def _trained(runs: Runs, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_report, "write", lambda run: None)  # whose plots take longer than the search
        assert _run(path, SETTINGS[path.name]).train(Display(quiet=True)).finished


def _interrupted(runs: Runs, path: Path) -> None:
    assert not _run(path, {"steps": 14}).train(Stop(7)).finished


def _searching(runs: Runs, path: Path) -> None:
    assert not _run(path, SMALL).train(Stop(20)).finished


def _resumed(runs: Runs, path: Path) -> None:
    shutil.copytree(runs["interrupted"], path)
    assert Run.resume(path).train(Display(quiet=True)).finished


def _killed(runs: Runs, path: Path) -> None:
    command = [sys.executable, "-m", "helios.cli.train", "--preset", "tiny", "--backend", "cpu_ref", "--quiet",
               "--steps", "100000", "--run-dir", str(path)]
    process = subprocess.Popen(command)
    try:
        while not (path / "metrics.jsonl").exists() or len(lines(path)) < 8:
            assert process.poll() is None
            time.sleep(0.05)
        assert reading.read(path).entry["status"] == "active"
    finally:
        process.kill()
        process.wait()


def _empty(runs: Runs, path: Path) -> None:
    """As a run is before its first step."""
    shutil.copytree(runs["plain"], path, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl", "samples.jsonl"))
    (path / "events.jsonl").write_text(lines(path, "events.jsonl")[0])


def _old(runs: Runs, path: Path) -> None:
    """As a version wrote it that knew less."""
    shutil.copytree(runs["plain"], path)
    edit_config(path, lambda about: [about.pop(key) for key in ("host", "created", "chat", "versions", "monitor")])
    edit(path, lambda kept: [{k: v for k, v in row.items() if not k.startswith(("timing", "cusum", "weight"))}
                             for row in kept])


OTHERS: dict[str, Callable[[Runs, Path], None]] = {
    "interrupted": _interrupted, "searching": _searching, "resumed": _resumed, "killed": _killed, "empty": _empty,
    "old": _old}
KINDS = [*SETTINGS, *OTHERS]


# -- rows and pages ----------------------------------------------------------------------------------------------------

def lines(path: Path, name: str = "metrics.jsonl") -> list[str]:
    return (path / name).read_text().splitlines(keepends=True)


def rows(path: Path, name: str = "metrics.jsonl") -> Rows:
    return [json.loads(line) for line in lines(path, name)]


def edit(path: Path, change: Callable[[Rows], Rows], name: str = "metrics.jsonl") -> None:
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in change(rows(path, name))))


def edit_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((path / "config.json").read_text())
    change(about)
    (path / "config.json").write_text(json.dumps(about))


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.partition(f"# {title}\n")[2], maxsplit=1, flags=re.M)[0]


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text: str, title: str, number: int = 0) -> list[dict[str, str]]:
    """A section's table, its rows by column."""
    found = [block.splitlines() for block in re.findall(r"(?:^\|.*\n?)+", section(text, title), re.M)]
    head, _, *body = map(cells, found[number])
    return [dict(zip(head, row, strict=True)) for row in body]


def facts(text: str, title: str) -> dict[str, str]:
    """A table of two columns."""
    return {first: second for first, second in (row.values() for row in table(text, title))}


def change(**columns: Callable[[int, dict[str, Any]], Any]) -> Callable[[Rows], Rows]:
    return lambda kept: [row | {name: of(row["step"], row) for name, of in columns.items()} for row in kept]
