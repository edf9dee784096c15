"""The counts and sums that a candidate's training is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from helios.train import fitness
from helios.train.config import Config
from helios.train.monitors.trouble import Trouble
from helios.train.records.rows import clipped
from helios.train.search.births import Replicate


class Tally:
    """The counts and sums of a training under way, all plain values, which a checkpoint keeps."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.steps = self.tokens = self.spikes = self.skipped = self.clipped = self.alerts = self.trouble = 0
        self.seconds = self.max_grad_norm = 0.0
        self.losses: list[float | None] = []  # None: not finite
        self.evaluations: list[tuple[int, float | None]] = []  # step, loss
        self.norms: list[float] = []  # the last gradient norms, for Trouble
        self.timed = 0  # tokens of the steps that are in `seconds`
        self.over: str | None = None  # why the training ended
        vars(self).update(state or {})

    def step(self, row: Mapping[str, Any], tokens: int, timed: bool) -> None:
        """Count the row of a step that read so many tokens. timed: whether its time is that of computing alone."""
        self.steps += 1
        self.tokens += tokens
        if timed:
            self.seconds += row["ms_per_iter"] / 1000
            self.timed += tokens
        self.losses.append(row["loss"] if math.isfinite(row["loss"]) else None)
        self.skipped += bool(row.get("skipped"))
        self.clipped += clipped(row)
        if math.isfinite(row["grad_norm"]):
            self.max_grad_norm = max(self.max_grad_norm, row["grad_norm"])

    def observe(self, row: Mapping[str, Any]) -> None:
        """Count the same step's columns of the monitors, and its validation loss if there is one."""
        found = Trouble.of(row, self.norms)
        self.spikes += found.spike
        self.alerts += found.alert
        self.trouble += found.any
        if row["val_loss"] is not None:
            self.evaluations.append((self.steps, row["val_loss"] if math.isfinite(row["val_loss"]) else None))

    def replicate(self, seed: int, parameters: int, config: Config, entropy: Callable[[], float]) -> Replicate:
        """Return the measurements of the training, which is over. entropy: gives that of the weights, in bits; it is
        asked where the fitness needs it."""
        values = [v for _, v in self.evaluations if v is not None]
        tail = self.losses[-max(1, len(self.losses) // 10):]
        train_loss = math.nan if None in tail or not tail else math.fsum(x for x in tail if x is not None) / len(tail)
        speed = self.timed / self.seconds if self.seconds else math.nan
        share = lambda n: n / max(1, self.steps)
        name, energy = config.search.fitness, None
        if "free_energy" in fitness.FITNESS[name].needs:
            energy = fitness.free_energy(train_loss, entropy(), config.monitor.free_energy_beta)
        measured = fitness.Measurements(
            best_val_loss=min(values, default=math.nan), tokens_per_sec=speed, clip_rate=share(self.clipped),
            max_grad_norm=self.max_grad_norm, parameters=parameters, free_energy=energy,
            instability=share(self.trouble))
        return Replicate(
            seed=seed, val_loss=self.evaluations[-1][1] if self.evaluations else None,
            best_val_loss=measured.best_val_loss, train_loss=train_loss,
            fitness=fitness.fitness(name, measured, config.search.coefficients), steps=self.steps,
            tokens=self.tokens, evaluations=[(step, loss) for step, loss in self.evaluations], spikes=self.spikes,
            skipped=self.skipped, clip_rate=share(self.clipped), max_grad_norm=self.max_grad_norm,
            tokens_per_sec_mean=speed, cusum_alerts=self.alerts, trouble=self.trouble, seconds=self.seconds)
