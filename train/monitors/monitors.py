"""All monitors and controls of a run, which are asked once after every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from helios.train import fitness
from helios.train.config import Config
from helios.train.monitors import weights
from helios.train.monitors.actions import Acted, Actions
from helios.train.monitors.controls import AdaptiveBatch, DynamicLR, HeatCapacity, Plateau
from helios.train.monitors.cusum import CHANNELS, CLIP, GRAD, MACHINE, TPS, VAL, Monitor
from helios.train.rules import PLATEAU
from helios.train.state import TrainState

PARTS = ("heat", "cusum", "plateau", "batch", "lr", "actions")  # attributes of Monitors that a checkpoint keeps


class Run(Protocol):
    """The part of a run that monitors use."""

    state: TrainState
    done: int  # steps of the stage

    @property
    def over(self) -> bool:
        """Return whether the stage is over."""
        ...

    def fits(self, batch_size: int) -> bool:
        """Return whether a step of `batch_size` sequences fits in memory."""
        ...

    def probe(self) -> np.ndarray:
        """Return the tokens [B, T] that representations are measured on."""
        ...


class Monitors:
    """The monitors of a run: `observe` returns a step's columns; the other properties are for the next step.

    acted: what rules did at the last step.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Begin anew, as for another model."""
        m, batch = self.config.monitor, self.config.train.batch_size
        self.untimed = True  # whether the next step is recorded first, so that its time is no measure of speed
        self.heat = HeatCapacity()
        self.cusum = (Monitor(m.cusum_sensitivity, m.cusum_slack, m.cusum_window, m.cusum_grace) if m.cusum else None)
        self.plateau = Plateau(m.plateau_evals, m.plateau_delta) if m.plateau_evals else None
        self.batch = (AdaptiveBatch(batch, m.batch_min, m.batch_max, m.batch_step, m.calm_steps_before_restore)
                      if m.adaptive_batch else None)
        self.lr = DynamicLR(m.dynamic_lr, m.calm_steps_before_restore) if m.dynamic_lr != "none" else None
        self.actions = Actions(self.config)
        self.acted: list[Acted] = []

    @property
    def batch_size(self) -> int:
        """Return the next step's batch, in sequences."""
        return self.batch.batch if self.batch else int(self.actions.value("batch"))

    @property
    def lr_factor(self) -> float:
        """Return the factor on the next step's learning rate."""
        return self.lr.factor if self.lr else self.actions.value("lr")

    @property
    def limits(self) -> tuple[float, float]:
        """Return the gradient norm that larger ones are scaled to and the one above which an update is skipped; 0: none
        is."""
        return self.actions.value("clip"), self.actions.value("guard")

    @property
    def stopped(self) -> str:
        """Return why a rule ends the training; "" where none does."""
        return self.actions.stopped

    @property
    def wanted(self) -> str | None:
        """Return the change that a branch is to make which a rule asked for at the last step, such as lr*0.5: "" for
        none; None where no branch was asked for."""
        return self.actions.wanted

    @property
    def why_wanted(self) -> str:
        """Return why that branch was asked for."""
        return next((f"{acted.alert}: {acted.reason}" for acted in self.acted if acted.action.startswith("branch")), "")

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {name: part.state() for name in PARTS if (part := getattr(self, name))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; a part that is new begins anew."""
        for name in PARTS:
            if name in state and (part := getattr(self, name)):
                part.restore(state[name])

    def observe(self, row: Mapping[str, Any], run: Run) -> dict[str, Any]:
        """Return the monitors' columns for the row of a step."""
        m, columns, alerts, usual = self.config.monitor, dict[str, Any](), 0, None
        size, limits = self.batch_size, self.limits
        if self.cusum:
            usual = self.cusum.usual_norm()
            timed = lambda name: None if self.untimed else row.get(name)
            overflow = row.get("skip_reason") == "overflow"  # loss scaling expects it
            columns |= self.cusum.update(
                None if overflow else row["grad_norm"], None if overflow else row["clip_coef"],
                timed("tokens_per_sec"), row["val_loss"], timed("timing_flush_ms"), row.get("gpu_mem_pool_mb"))
            alerts = columns["cusum_alerts"] & (GRAD | CLIP | TPS | VAL)  # all that the older controls go by
        if self.plateau and row["val_loss"] is not None and self.plateau.update(row["val_loss"]):
            columns["plateau"] = f"no better validation loss in {m.plateau_evals} evaluations"
        columns["heat_capacity"] = self.heat.update(row["loss"], row["lr"])
        if self.batch:
            columns |= self._batch(self.batch, alerts, run)
        if self.lr:
            _, columns["lr_change_reason"] = self.lr.update(alerts, row.get("population_entropy"))
        columns |= self._act(columns, usual, run)
        if m.varies_batch:
            columns["adaptive_batch_size"] = size
        self.untimed = (size, limits) != (self.batch_size, self.limits)
        if self.cusum:  # another batch has another speed, another clip other coefficients
            self.cusum.forget(MACHINE * (size != self.batch_size) | CLIP * (limits[0] != self.limits[0]))
        if m.metrics_interval and (run.done % m.metrics_interval == 0 or run.over):
            columns |= self._weights(row, run)
        return columns

    def _batch(self, batch: AdaptiveBatch, alerts: int, run: Run) -> dict[str, Any]:
        before = self.batch_size
        size, reason = batch.update(alerts)
        if size > before and not run.fits(size):
            batch.batch, reason = before, f"no memory for a batch of {size}"
        return {"batch_change_reason": reason}

    def _act(self, columns: Mapping[str, Any], usual: float | None, run: Run) -> dict[str, Any]:
        """Let the rules act on a step's alerts. columns: of its monitors. usual: as Actions.update takes it."""
        raised = [c.column for c in CHANNELS if c.bit & columns.get("cusum_alerts", 0)]
        # Each has its own reason, lest what is said depends on the clock where what is done does not.
        alerts = dict(zip(raised, columns["cusum_alert_reason"].split("; "), strict=True)) if raised else {}
        if columns.get("plateau"):
            alerts[PLATEAU] = columns["plateau"]
        self.acted = self.actions.update(alerts, usual, run.fits)
        return {"action_reason": "; ".join(map(str, self.acted)) or None}

    def _weights(self, row: Mapping[str, Any], run: Run) -> dict[str, Any]:
        m, state, columns = self.config.monitor, run.state, dict[str, Any]()
        if m.track_weight_entropy or m.track_effective_rank or m.track_free_energy:
            found = weights.weight_metrics(state.weights())
            entropy = found["weight_entropy"]
            energy = fitness.free_energy(row["loss"], entropy, m.free_energy_beta)
            if m.track_weight_entropy:
                columns["weight_entropy"] = entropy
            if m.track_effective_rank:
                columns["effective_rank"] = found["effective_rank"]
            if m.track_free_energy:
                columns |= {"free_energy": energy, "fitness_score": fitness.fitness(
                    "inverse", fitness.Measurements(free_energy=energy), {})}
            columns["complexity_score"] = fitness.complexity(m.complexity, state.model.num_parameters(), entropy)
        if m.track_layer_grads and state.accum == 1:  # with more, gradients are zero after a step
            norms = weights.layer_norms(state.gradients())
            total = math.sqrt(sum(x * x for x in norms.values()))
            # These gradients are multiplied by the loss scale; the norm in the row is not.
            scale = row["grad_norm"] / total if state.opt.loss_scaling and total else 1.0
            columns["per_layer_grad_norms"] = {name: scale * x for name, x in norms.items()}
        if m.track_mi_profiles:
            columns |= weights.mi_profile(*state.representations(run.probe()))
        return columns
