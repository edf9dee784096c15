"""Runs of the preset tiny on a text of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.model.activations import activation
from helios.train import checkpoint
from helios.train.data import Dataset
from helios.train.loop import Loop
from helios.train.monitors.cusum import Monitor
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.records.records import Records
from helios.train.search import report
from helios.train.tokenizer import Tokenizer

from . import made_up
from .runs import SMALL, Make, configured


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    text = "".join(f"<|user|> Who are you? <|assistant|> I am number {i}. <|end_of_text|>\n" for i in range(400))
    tokenizer = Tokenizer.train(text, 300)
    ids = tokenizer.encode(text)
    return Dataset(tokenizer, ids[1000:], ids[:1000], "hash")


@pytest.fixture
def make(tmp_path: Path, dataset: Dataset) -> Make:
    """A run of that name, with these settings; it goes on where one of the name has left a checkpoint."""
    def make(backend: Backend, name: str = "run", **settings: Any) -> Loop:
        path, config, display = tmp_path / name, configured(**settings), Display(quiet=True)
        path.mkdir(exist_ok=True)
        found = checkpoint.latest(path)[0]
        records = Records(path, {"run_id": name}, dataset.tokenizer, found.state["step"] if found else 0)
        return Loop(config, planned(config), backend, dataset, records, display, found)

    return make


@pytest.fixture
def search(make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A run with a search of SMALL, without its report, whose plots take longer; tests/cli/test_search.py has them."""
    monkeypatch.setattr(report, "write", lambda run: None)
    return lambda *args, **settings: make(*args, **SMALL | settings)


@pytest.fixture
def crippled(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """relu learns next to nothing: its gradients are nearly all clipped away."""
    init = Loop._prepare

    def prepare(self: Loop, **more: Any) -> None:
        init(self, **more)
        if activation("relu") in self.state.model.config.activations:
            rate = self.stage.rate
            object.__setattr__(self.stage, "rate", lambda step: 1e-3 * rate(step))

    monkeypatch.setattr(Loop, "_prepare", prepare)
    yield "relu"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """{how many times a monitor was asked: the alerts it gives then}"""
    alarms: dict[int, int] = {}
    reasons = lambda found: "; ".join(["planted"] * found.bit_count()) or None
    init, update, state, restore = Monitor.__init__, Monitor.update, Monitor.state, Monitor.restore

    def start(self: Any, *args: Any) -> None:
        init(self, *args)
        self.asked = 0

    def alarm(self: Any, *args: Any) -> dict[str, Any]:
        self.asked += 1
        found = alarms.get(self.asked, 0)
        return update(self, *args) | {"cusum_alerts": found, "cusum_alert_reason": reasons(found)}

    def restored(self: Any, kept: dict[str, Any]) -> None:
        self.asked = kept.pop("asked")
        restore(self, kept)

    monkeypatch.setattr(Monitor, "__init__", start)
    monkeypatch.setattr(Monitor, "update", alarm)
    monkeypatch.setattr(Monitor, "state", lambda self: state(self) | {"asked": self.asked})
    monkeypatch.setattr(Monitor, "restore", restored)
    return alarms


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps of a training that take a minute; all others take a second."""
    steps, real = {1}, Loop._row
    monkeypatch.setattr(Loop, "_row", lambda self, stage, loss, stats, rate, ms: real(
        self, stage, loss, stats, rate, 60_000 if self.done in steps else 1000))
    return steps


@pytest.fixture
def made(tmp_path: Path) -> made_up.Make:
    return lambda *args, **more: made_up.MadeUp(tmp_path / "run", *args, **more)
