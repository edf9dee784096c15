"""What windows may take: trainings, tokens, memory and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.cli import sample
from helios.errors import UserError
from helios.model.activations import split
from helios.train import checkpoint, texts
from helios.train.challenge import journal
from helios.train.plans import planned
from helios.train.records.layout import TOKENIZER
from helios.train.run import Run
from helios.train.state import TrainState

from ...backends.vulkan import make
from ...commands import invoke
from .runs import QUIET, config_of, trained


def test_the_cost_is_said_and_bounded(tmp_path: Path) -> None:
    config = config_of(challenge_replicates=4, challengers=2)
    most = max(config.model.replaced(n_layer=16, activation=text).parameters() for text in split(
        config.search.activation_pool))
    said = ("challengers: at most 3 windows of 11 trainings of 4 steps, 8,448 tokens in all; by their genes they may "
            f"come to {most:,} parameters, 6.4 times the model's")
    assert said in Run.create(config, tmp_path / "run", plan=planned).preview().splitlines()
    with pytest.raises(UserError, match=r"3 windows of 2,816 tokens, 8,448 in all, more than --max-cost 5e\+03"):
        Run.create(config.replaced("search", max_cost=5e3), tmp_path / "run", plan=planned)
    config = config_of(challenge_on="cusum", challenge_genes="lr")
    assert planned(config).cost().startswith("challengers: at most 4 windows") and "genes" not in planned(config).cost()
    config = config_of(challenge_interval=12, challenge_steps=1, challenge_genes="lr", steps=20)
    assert planned(config).cost() == "challengers: at most 1 window of 3 trainings of 1 step, 192 tokens in all"
    config = config_of(challenge_interval=4)
    assert "at most 2 windows" in planned(config).cost()  # at 4 and 12: at 8 one is open, and 20 + 4 is the end


def test_branches_and_windows_by_the_step_count_together(tmp_path: Path) -> None:
    config = config_of(actions="cusum_grad: branch lr*0.5")
    with pytest.raises(UserError, match="may take 4 windows of 768 tokens"):
        Run.create(config.replaced("search", max_cost=3000), tmp_path / "run", plan=planned)


def test_memory_is_checked_for_two_models(tmp_path: Path, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from helios.train.device import memory_needed

    config = config_of()
    once = memory_needed(config.model, 4)
    monkeypatch.setattr(type(cpu_ref), "memory", lambda self: {"available": 1.5 * once, "pool": 0, "used": 0,
                                                               "total": 2 * once})
    with pytest.raises(UserError, match="twice, with a challenger beside the model"):
        Run.create(config, tmp_path / "run", plan=planned).train(QUIET)


def test_after_a_switch_it_is_checked_for_the_champion(tmp_path: Path, cpu_ref: Backend,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from helios.train.challenge import window
    from helios.train.device import memory_needed

    monkeypatch.setattr(window, "judge", lambda model, challengers, rate: ([None], 0))
    run = trained(config_of(challenge_genes="n_layer=2|4", challenge_interval=18), tmp_path / "run", 23)
    four = run.config.model.replaced(n_layer=4)
    plan = planned(run.config)
    assert plan.models() == [run.config.model] == [plan.beside()]
    plan.check_resumed(checkpoint.find(run.path)[0], {})
    assert plan.models() == [four] == [plan.beside()]
    twice = memory_needed(four, 4, four)
    monkeypatch.setattr(type(cpu_ref), "memory", lambda self: {"available": twice - 1, "pool": 0, "used": 0,
                                                               "total": twice})
    with pytest.raises(UserError, match="twice, with a challenger beside the model"):
        Run.resume(run.path, plan=planned).train(QUIET)


def test_a_challenger_for_which_the_driver_has_no_memory_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                     ) -> None:
    backend = make()
    vk, prepare = backend.device.vk, TrainState.prepare

    def full(*given: Any) -> None:
        raise vk.VkErrorOutOfDeviceMemory

    def prepared(self: TrainState, *sizes: int) -> None:
        with monkeypatch.context() as patch:
            if self.model.config.n_layer > 2:
                patch.setattr(vk, "vkAllocateMemory", full)
            prepare(self, *sizes)

    monkeypatch.setattr(TrainState, "prepare", prepared)
    run = trained(config_of(challenge_genes="n_layer=2|3", challenge_interval=18, backend="vulkan"), tmp_path / "run")
    (line,) = journal.read(run.path)
    (c,) = line["challengers"]
    assert run.finished and line["verdict"] == "kept" and c["losses"] == [None, None]
    assert c["why"].startswith("out of memory on ") and None not in line["losses"]


def test_texts_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the run and all trainings beside it, whose directories are as those of other runs."""
    read, seen = texts.read, list[str]()
    monkeypatch.setattr(texts, "read", lambda name, *more: (seen.append(name), read(name, *more))[1])
    run = trained(config_of(steps=12, challenge_genes="lr"), tmp_path / "run")
    assert seen == [run.config.data.data]
    (there,) = (run.path / "search" / "w1").glob("gen1*.r0")
    assert (there / TOKENIZER).read_bytes() == (run.path / TOKENIZER).read_bytes()
    assert checkpoint.states(there)[-1]["text_hash"] == checkpoint.states(run.path)[-1]["text_hash"]
    assert invoke(sample.main, "--run", there, "--prompt", "Who", "--tokens", "2", "--backend", "cpu_ref"
                  ).exit_code == 0
