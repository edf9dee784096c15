"""One training of an experiment, interrupted where it is to pause."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from helios.bench.planted import Planted, experiment, flat, run
from helios.train.evolve.state import State
from helios.train.evolve.training import train
from helios.train.evolve.trainings import job
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records.layout import read_config

CLOCKED = ("seconds", "tokens_per_sec_mean", "memory_mb")


@pytest.mark.parametrize("where", ["_eval_batch", "_record"])
def test_a_signal_at_a_pause_ends_the_experiment_and_changes_no_result(where: str, tmp_path: Path) -> None:
    found = experiment("lr", per_candidate=512, generations=1, validation_replicates=0, backend="cpu_ref")
    state = run(found, Planted(found.space, flat))
    asked = job(found, State(born=state.born), "gen0_gelu_1", 0, 0.25, "search")
    was = getattr(Loop, where)

    def signalled(self: Loop, *given: Any) -> Any:
        if self.step == 2:  # of 8
            os.kill(os.getpid(), signal.SIGINT)
        return was(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, where, signalled)
        with pytest.raises(KeyboardInterrupt):
            train(asked, tmp_path / "a", Display(quiet=True))
    one, other = (vars(train(asked, tmp_path / folder, Display(quiet=True))) for folder in "ab")
    assert other["val_loss"] is not None and other["steps"] == 2
    assert {k: v for k, v in one.items() if k not in CLOCKED} == {k: v for k, v in other.items() if k not in CLOCKED}


@pytest.mark.parametrize("lr", [1e-3, 3e38])
def test_a_signal_at_its_end_ends_the_experiment(lr: float, tmp_path: Path) -> None:
    """Though the training is over then, or comes to nothing."""
    found = experiment("lr", per_candidate=128, generations=1, validation_replicates=0, backend="cpu_ref")
    asked = job(found, run(found, Planted(found.space, flat)), "gen0_gelu_1", 0, 1.0, "search")
    asked = asked._replace(config=asked.config.replaced("train", lr=lr, weight_decay=100.0, warmup=0))
    was = Loop._save

    def signalled(self: Loop, folder: Path) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return was(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_save", signalled)
        with pytest.raises(KeyboardInterrupt):
            train(asked, tmp_path, Display(quiet=True))
    assert train(asked, tmp_path, Display(quiet=True)).status == ("complete" if lr < 1 else "diverged")


def test_ended_before_its_first_checkpoint_it_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a board would hold another one, which nobody goes on with."""
    found = experiment("lr", per_candidate=128, generations=1, validation_replicates=0, backend="cpu_ref")
    asked = job(found, run(found, Planted(found.space, flat)), "gen0_gelu_1", 0, 1.0, "search")

    def ended(self: Loop) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", ended)
        with pytest.raises(KeyboardInterrupt):
            train(asked, tmp_path, Display(quiet=True))
    before = read_config(tmp_path / "runs" / asked.name)["run_id"]
    assert train(asked, tmp_path, Display(quiet=True)).status == "complete"
    assert read_config(tmp_path / "runs" / asked.name)["run_id"] == before
