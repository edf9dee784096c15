"""The steps of a run: each replays a recording, and the host does its own work while the device computes."""

from __future__ import annotations

import gc
import json
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helios import random
from helios.backends.backend import Backend
from helios.errors import Diverged, UserError
from helios.train import checkpoint, data
from helios.train.checkpoint import Checkpoint, Evaluation
from helios.train.config import Config
from helios.train.data import EVAL, TRAIN, Dataset
from helios.train.device import check_memory, device_kind
from helios.train.monitors.actions import Acted
from helios.train.monitors.monitors import Monitors
from helios.train.progress import Display
from helios.train.records.events import evaluations
from helios.train.records.layout import SAMPLES, finished
from helios.train.records.records import Records
from helios.train.records.rows import rows
from helios.train.signals import caught, told
from helios.train.stage import SEED_STRIDE, Plan, Stage
from helios.train.state import Stopped, TrainState
from helios.train.telling import Teller


class Loop:
    """A run under way: its stage, what is trained in it, and how many of its steps are done.

    plan: gives the stages in turn, and begins here. resumed: the checkpoint to go on from. until: the step of the run
    to pause after; None: none. weights: those that a new run begins with; None: the seed's. Raises UserError where
    memory does not suffice for a step and an evaluation.
    """

    def __init__(self, config: Config, plan: Plan, backend: Backend, dataset: Dataset, records: Records,
                 display: Display, resumed: Checkpoint | None = None, until: int | None = None,
                 weights: Mapping[str, np.ndarray] | None = None) -> None:
        self.config, self.plan, self.backend, self.dataset = config, plan, backend, dataset
        self.records, self.display, self.until = records, display, until
        self.best: Evaluation | None = None  # the stage's lowest validation loss
        self.latest: Evaluation | None = None  # its last finite one
        self.elapsed = 0.0  # seconds that earlier processes took
        self.done = 0  # steps of the stage that are done
        self.saved = 0  # step of the last checkpoint
        self.signal: int | None = None  # the one that asked the run to stop
        self.pending: dict[str, Any] | None = None  # the row of the last step, if a signal cut its evaluation short
        self.teller = Teller(records, display)
        self.state: TrainState
        plan.begin(records, backend.device_name, display, resumed and resumed.state["search"])
        self.stage = plan.stage()
        self.monitors = Monitors(self._settings())
        # Steps of the run and batches drawn before the stage began.
        self.first, self.offset = (self.stage.first, self.stage.offset) if self.stage else (0, 0)
        self._prepare(resumes=resumed is not None)
        if resumed is not None:
            self._resume(resumed)
        elif weights is not None:
            self.state.model.load_state_dict(weights)
        self.began = time.perf_counter()

    def _prepare(self, resumes: bool = False) -> None:
        """Make what the stage trains, or restart what the stage before trained where the model is the same."""
        stage, t = self.stage, self.config.train
        if stage is None:
            return
        if hasattr(self, "state") and self.state.model.config == stage.model:
            self.state.restart(stage.init_seed)
        else:
            if hasattr(self, "state"):
                del self.state
                gc.collect()  # frees its memory before more is taken
            self.state = TrainState(stage.model, stage.train or t, self.backend, stage.init_seed)
        # Takes all memory now, so that a run too large is refused before its first step, not at its first evaluation.
        m = self.config.monitor
        evaluated = self.config.eval_batch
        self.state.prepare(self.monitors.batch_size, evaluated if t.eval_interval else 0,
                           evaluated if m.track_mi_profiles and m.metrics_interval else 0)
        if stage.start is not None and not resumes:
            found = checkpoint.load(stage.start)
            self._load(found)
            self.done, kept = stage.done, found.state["monitors"]
            self.monitors.restore({name: kept[name] for name in stage.monitors if name in kept})

    def _settings(self) -> Config:
        """Return the settings of the present stage's training."""
        return replace(self.config, train=self.stage.train) if self.stage and self.stage.train else self.config

    def _load(self, found: Checkpoint) -> None:
        self.state.model.load_state_dict(found.model)
        if found.optimizer:  # else it begins anew
            self.state.opt.load_state_dict(found.optimizer)

    def _resume(self, found: Checkpoint) -> None:
        state = found.state
        self.elapsed, self.saved, self.done = state["elapsed_ms"] / 1000, state["step"], state["step"] - self.first
        if self.stage is None:
            return
        self._load(found)
        self.best = state["best_val"]
        self.pending = json.loads(state["pending"]) if "pending" in state else None
        # Derived, since the run may go on with another accum than the stage began with.
        self.offset = state["position"] - self.done * self.config.train.accum
        self.monitors.restore(state["monitors"])
        if not (self.over and finished(self.records.path)):  # one that has ended keeps what it has
            self._prune()  # what a kill may have left after the checkpoint

    @property
    def step(self) -> int:
        """Return how many steps of the run are done."""
        return self.first + self.done

    @property
    def over(self) -> bool:
        """Return whether the stage is over: after its last step, or earlier by the plan's decision or a rule's."""
        assert self.stage is not None
        return self.done >= self.stage.steps or bool(self.plan.over or self.monitors.stopped)

    @property
    def why(self) -> tuple[str, str]:
        """Return in a word and in a sentence why the run ended before its last step; empty texts where it did not."""
        if self.plan.over:
            return self.plan.over, self.plan.why
        short = self.stage is not None and self.done < self.stage.steps and self.monitors.stopped
        return ("actions", self.monitors.stopped) if short else ("", "")

    @property
    def paused(self) -> bool:
        """Return whether the run is to make no further step for now, though its stage is not over."""
        return self.until is not None and self.step >= self.until and not self.over

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> bool:
        """Train to the last step and return True, to a pause or a signal and return False; all leave a checkpoint."""
        # Whether numbers are finite is judged once a step, and not by numpy's warnings, which cpu_ref would cause.
        with caught(self._stop), np.errstate(all="ignore"):
            try:
                while self.stage is not None:
                    self.display.start(self.stage.first, self.stage.steps, self.done, self.stage.label)
                    self._train(self.stage)
                    self.display.stop()
                    if not self.over or self.pending is not None:
                        if self.signal is None:
                            self.records.event(self.step, "paused", f"at step {self.step}, asked to go to {self.until}")
                        else:
                            name = signal.Signals(self.signal).name
                            self.records.event(self.step, "interrupted", f"{name} at step {self.step}")
                        if self.saved != self.step:
                            self._checkpoint()
                        return False
                    if self.stage.final:
                        break
                    self._next()
            finally:
                self.display.stop()
            said = lambda: any(s["step"] == self.step for s in rows(self.records.path / SAMPLES))
            if self.plan.samples and self.stage is not None and not self.plan.over and not said():
                self.sample()
            return True

    def _train(self, stage: Stage) -> None:
        """Make steps until the stage is over, or a signal or a pause comes."""
        row, self.pending = self.pending, None
        if row is not None:
            row = self._evaluated(stage, row)
        batches = self._batches(stage)
        while not (self.over or self.paused) and self.signal is None:
            if self.plan.due(self.step):
                before, stage = stage, self._decide(stage)
                if stage is not before:  # whose batches may have another size
                    batches = self._batches(stage)
                continue
            start = time.perf_counter()
            rate = stage.rate(self.done) * self.monitors.lr_factor
            micro, data_ms = batches
            self.state.limit(*self.monitors.limits)
            try:
                wait = self.state.submit([*micro[:-1], (*micro[-1], np.array([rate], np.float32))], self._stopped)
            except Stopped:
                break
            # Done while the device computes: the row of the step before, the batches of the next.
            if row is not None:
                self._record(row)
            if not self.config.monitor.varies_batch and self.done + 1 < stage.steps:
                batches = self._batches(stage, 1)
            idle = time.perf_counter()
            loss, stats = wait()
            end = time.perf_counter()
            self.done += 1
            row = self._row(stage, loss, stats, rate, 1000 * (end - start)) | {
                "timing_data_ms": data_ms, "timing_flush_ms": 1000 * (end - idle)}
            row = self._after_step(stage, row)
            if self.config.monitor.varies_batch:
                batches = self._batches(stage)
        if row is not None:
            self._record(row)

    def _batches(self, stage: Stage, ahead: int = 0) -> tuple[list[tuple[np.ndarray, ...]], float]:
        """Return the inputs of each micro-step of the step `ahead` of the next, and the milliseconds that took."""
        start, at = time.perf_counter(), self.done + ahead
        micro: list[tuple[np.ndarray, ...]] = []
        for position in range(self._position(at), self._position(at + 1)):
            if self._stopped():  # and so this step is not begun
                break
            batch = data.batch(self.dataset.train, position, self.monitors.batch_size, self.config.model.block_size,
                               stage.data_seed, TRAIN)
            micro.append((*batch, random.state(stage.data_seed, position)))
        return micro, 1000 * (time.perf_counter() - start)

    def _position(self, done: int) -> int:
        """Return how many batches were drawn before this 0-based step of the stage; dropout is keyed by it, too."""
        return done * self.config.train.accum + self.offset

    def _stopped(self) -> bool:
        return self.signal is not None

    def _after_step(self, stage: Stage, row: dict[str, Any]) -> dict[str, Any] | None:
        """Count a step, then as `_evaluated`."""
        self.plan.step(row, self._tokens(), timed=not self.monitors.untimed)
        return self._evaluated(stage, row)

    def _evaluated(self, stage: Stage, row: dict[str, Any]) -> dict[str, Any] | None:
        """Evaluate, observe, checkpoint and sample after a step, as due; return its row, None if that was written, or
        where a signal came during the evaluation: then the row waits in `pending`, with what rules did as `acted` where
        it was observed."""
        t = self.config.train
        due = lambda interval, n: interval > 0 and n % interval == 0
        acted = row.pop("acted", None)
        if acted is None:
            regular = (self.over and t.eval_interval) or due(stage.eval_interval, self.done)
            if (regular or (self.paused and stage.final and t.eval_interval)) and not self._measure(row):
                return None
            # What they do must not depend on where a run was paused.
            seen = self.monitors.observe(row if regular else row | {"val_loss": None}, self)
            row |= {name: value for name, value in seen.items() if value is not None}
        else:  # but for the evaluation that a stop adds all was done; the clock's alerts would not be seen again
            self.monitors.acted = [Acted(*one) for one in acted]
        stops = acted is not None or self.monitors.stopped
        if stops and t.eval_interval and row["val_loss"] is None and not self._measure(row):
            self.pending = row | {"acted": self.monitors.acted}
            return None
        self.plan.observe(row)  # may end the stage
        if not self.monitors.stopped:
            if self.monitors.wanted is not None:
                self.plan.branch(self.step, self.monitors.wanted, self.monitors.why_wanted, self.monitors.actions.usual)
            self.plan.opens(row)
        end, sampled = self.over and stage.final, stage.final and due(t.sample_interval, self.step)
        if not (end or sampled or self.paused or due(t.checkpoint_interval, self.step) or self.plan.saves(self.step)):
            return row
        self._record(row)
        self._checkpoint()  # before the samples, which may fail
        if sampled and not end:
            self.sample()
        return None

    def _measure(self, row: dict[str, Any]) -> bool:
        """Evaluate after a step; return False where a signal came meanwhile: then its row waits in `pending`."""
        try:
            row["val_loss"] = self.evaluate()
        except Stopped:
            self.pending = row
            return False
        if math.isfinite(row["val_loss"]):
            self.latest = {"step": self.step, "loss": row["val_loss"]}
            if self.best is None or self.latest["loss"] < self.best["loss"]:
                self.best = self.latest
        return True

    def _decide(self, stage: Stage) -> Stage:
        """Let the plan decide, and go on with what it chose; return the present stage."""
        try:
            chosen = self.plan.decide(self.dataset, self.evaluate, self._stopped)
        except Stopped as error:
            self.signal = self.signal or error.signal
            return stage
        if chosen is None:
            return stage
        found, self.stage = checkpoint.load(chosen), self.plan.stage()
        assert self.stage is not None
        del self.state
        gc.collect()
        self.monitors = Monitors(self._settings())
        self.monitors.restore(found.state["monitors"])
        self._prepare(resumes=True)
        self._load(found)
        own = found.state["val_loss"]
        assert own is not None  # else it would not have won
        loss, step = min([(own, self.step), *evaluations(self.records.path)])
        self.best, self.latest = {"step": step, "loss": loss}, {"step": self.step, "loss": own}
        self._checkpoint()
        return self.stage

    def fits(self, batch_size: int) -> bool:
        """Return whether a step of `batch_size` sequences fits in memory once the present recording is given back."""
        try:
            check_memory(self.state.model.config, batch_size, self.backend, self.backend.memory()["pool"])
        except UserError:
            return False
        return True

    def _next(self) -> None:
        """Finish the stage and go to the next one."""
        self.plan.finish(self.state, self._save)
        self.stage = self.plan.stage()
        if self.stage is None:
            self._checkpoint()
            return
        self.first, self.offset, self.done = self.stage.first, self.stage.offset, 0
        self.best = self.latest = None
        self.monitors.reset()
        self._prepare()

    def evaluate(self) -> float:
        """Return the mean loss in nats over the evaluation batches, the same ones each time. Raises Stopped."""
        return self.state.evaluate((self._eval_batch(i) for i in range(self.config.train.eval_iters)), self._stopped)

    def probe(self) -> np.ndarray:
        """Return the tokens [B, T] that representations are measured on: the first evaluation batch."""
        return self._eval_batch(0)[0]

    def _eval_batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        return data.batch(self.dataset.val, i, config.eval_batch, config.model.block_size, config.train.seed, EVAL)

    def sample(self) -> None:
        """Let the model continue the dataset's prompts; record and show what it says."""
        seed = self.config.train.seed * SEED_STRIDE + self.step
        self.teller.sample(self.step, self.done, self.state.sampler, self.dataset, seed)

    # -- records and checkpoints --------------------------------------------------------------------------------------
    def _checkpoint(self) -> None:
        self.records.sync()
        try:
            path = self._save(self.records.path)
        except Diverged:
            if self.plan.over:  # the run has ended, and an event says why
                return
            raise
        self.saved = self.step
        self.records.event(self.step, "checkpoint", f"checkpoint {path.name}")
        self._prune()
        self.plan.saved()

    def _prune(self) -> None:
        checkpoint.prune(self.records.path, self.step, self.config.train.keep, self.config.train.keep_every)

    def _save(self, folder: Path) -> Path:
        t, model = self.config.train, self.state.model
        weights = model.state_dict()
        if self.stage is not None and self.stage.final and (wrong := checkpoint.not_finite(weights)):
            before = [path.name for path in checkpoint.directories(folder)]
            raise Diverged(f"the training diverged: at step {self.step} the weights are not finite ({wrong}), and no "
                           f"checkpoint of them is written; the last from before: {before[-1] if before else 'none'}; "
                           "lower --lr")
        pending = {} if self.pending is None else {"pending": json.dumps(self.pending)}
        return checkpoint.save(folder, self.step, weights, self.state.opt.state_dict(), pending | {
            "seed": t.seed, "position": self._position(self.done), "best_val": self.best,
            "val_loss": self.latest["loss"] if self.latest and self.latest["step"] == self.step else None,
            "elapsed_ms": self._elapsed_ms(), "config_hash": self._fingerprint(),
            "model": model.config.to_dict(), "tokenizer": self.dataset.tokenizer.fingerprint,
            "text_hash": self.dataset.text_hash, "monitors": self.monitors.state(), "search": self.plan.state()})

    def _fingerprint(self) -> str:
        init = self.records.about.get("init") or {}
        return self.config.fingerprint(device_kind(self.backend), init.get("begun_with", ""))

    def _tokens(self) -> int:
        """Return how many tokens a step reads."""
        return self.monitors.batch_size * self.config.model.block_size * self.config.train.accum

    def _elapsed_ms(self) -> float:
        return 1000 * (self.elapsed + time.perf_counter() - self.began)

    def _row(self, stage: Stage, loss: np.ndarray, stats: np.ndarray, rate: float, ms: float) -> dict[str, Any]:
        return {"step": self.step, "loss": float(loss), "val_loss": None, "lr": rate, "elapsed_ms": self._elapsed_ms(),
                "ms_per_iter": ms, "tokens_per_sec": 1000 * self._tokens() / ms,
                **self.state.columns(stats, self.config.train), **stage.columns}

    def _record(self, row: dict[str, Any]) -> None:
        assert self.stage is not None
        self.teller.step(row, self.stage, self.monitors.acted)

    def _stop(self, number: int) -> None:
        """Let the first signal end the run after its step, and a SIGINT after that end it at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        told("stopping after this step; Ctrl-C ends at once, without a checkpoint")
