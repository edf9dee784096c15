"""Trainings that are not made: their results follow from a candidate's settings, a known best, and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from helios.train.evolve import plan
from helios.train.evolve.config import Asked, asked
from helios.train.evolve.driver import entry, experiment_of
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.state import Result, State
from helios.train.evolve.trainings import Job, Results
from helios.train.search.operators import Space

GENES = "lr,beta2,weight_decay,grad_clip,softcap"
BEST = {"lr": 0.3, "beta2": 0.7, "weight_decay": 0.5, "grad_clip": 0.4, "softcap": 0.6}  # places


def experiment(genes: str = GENES, seed: int = 0, **settings: Any) -> Experiment:
    return experiment_of(question(genes, seed, **settings), "planted")


def question(genes: str = GENES, seed: int = 0, preset: str = "tiny", **settings: Any) -> Asked:
    given = {"per_candidate": 1000, "population_size": 8, "generations": 4, "replicates": 2} | settings
    return asked(preset, None, None, [f"{key}={value}" for key, value in given.items()],
                 {"val_data": "synth:64KB:1", "seed": str(seed)}, genes)


def bowl(job: Job, space: Space) -> float:
    """The loss without noise: 3, and more with the square of the distance from the best place of each gene."""
    config = job.config.model.to_dict() | job.config.train.to_dict()
    places = [(one.place(one.of(config)), BEST.get(one.name, 0.5)) for one in space.genes]
    return 3.0 + sum((0.5 if place is None else place - best) ** 2 for place, best in places)


def flat(job: Job, space: Space) -> float:
    return 3.0


class Planted:
    """An executor. noise: of each training, and as much of each seed, which all candidates share. gain: by which the
    loss is lower where a training begins with weights that have read as much as it reads itself."""

    def __init__(self, space: Space, loss: Callable[[Job, Space], float] = bowl, noise: float = 0.02,
                 seed: int = 0, gain: float = 0.2) -> None:
        self.space, self.loss, self.noise, self.seed, self.gain = space, loss, noise, seed, gain
        self.made: list[str] = []

    def __call__(self, jobs: Sequence[Job]) -> Results:
        for i, job in enumerate(jobs):
            self.made.append(job.name)
            yield i, self.result(job)

    def result(self, job: Job) -> Result:
        t = job.config.train
        own = np.random.default_rng([self.seed, t.seed, *job.id.encode()]).standard_normal(4)
        shared = np.random.default_rng([self.seed, t.seed]).standard_normal()
        loss = self.loss(job, self.space) + self.noise * (own[0] + shared) + 0.5 * (1 - job.share)
        tokens = round(job.share * t.steps) * t.batch_size * t.accum * job.config.model.block_size
        loss -= self.gain * math.log2(1 + job.inherited / tokens) if job.inherited else 0
        return Result(
            seed=t.seed, val_loss=loss, best_val_loss=loss, train_loss=loss, fitness=None, steps=t.steps, tokens=tokens,
            evaluations=[(t.steps, loss)], spikes=0, skipped=0, clip_rate=0.1, max_grad_norm=1.0 + abs(own[1]),
            tokens_per_sec_mean=1000.0, cusum_alerts=0, seconds=tokens / 1000, trouble=int(abs(own[2]) * 3), id=job.id,
            replicate=job.replicate, phase=job.phase, share=job.share, run=job.name, parameters=1000, memory_mb=10.0)


def run(found: Experiment, executor: Planted, state: State | None = None) -> State:
    """Make an experiment, without a directory."""
    state = state or State()
    while moves := plan.next_move(found, state):
        state.take([entry(result, found, moves[i]) for i, result in executor(moves)] if isinstance(moves[0], Job)
                   else moves)
    return state
