"""The training loop: one replay a step, and everything the host does hidden behind it."""

from __future__ import annotations

import gc
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from helios import random
from helios.backends.backend import STATS, Backend
from helios.errors import UserError
from helios.model import GPT
from helios.optim import AdamW
from helios.train import checkpoint, data, leg
from helios.train.checkpoint import Checkpoint
from helios.train.config import Config, model_dict
from helios.train.data import EVAL, TRAIN, Dataset
from helios.train.device import MIB, check_memory
from helios.train.learner import Learner
from helios.train.monitors.monitors import Monitors
from helios.train.progress import Display
from helios.train.samples import PROMPTS, SAMPLE_TOKENS, TEMPERATURE, TOP_K, answer, chat_prompt
from helios.train.search.search import Search
from helios.train.telemetry import Records

# What a row says in these columns is also an event.
EVENT_COLUMNS = {"cusum_alert_reason": "alert", "batch_change_reason": "batch", "lr_change_reason": "lr",
                 "plateau": "plateau"}


class Trainer:
    """A run in progress: the leg it is on, that leg's learner, and the number of the leg's steps done."""

    def __init__(self, config: Config, backend: Backend, dataset: Dataset, records: Records, display: Display,
                 resumed: Checkpoint | None = None) -> None:
        self.config, self.backend, self.dataset = config, backend, dataset
        self.records, self.display = records, display
        t = config.train
        if t.precision != backend.precision:
            raise ValueError(f"the run computes in {t.precision} and its backend in {backend.precision}")
        self.search = Search(config, records.path, backend.device_name, display) if config.search else None
        self.monitors = Monitors(config)
        self.best: dict[str, float] | None = None  # {"step", "loss"} of the leg's lowest validation loss
        self.elapsed = 0.0  # seconds of the run before this process
        self.done = 0  # steps of the leg
        self.saved = 0
        self.signal: int | None = None  # that asked the run to stop
        self.learner: Learner
        state = resumed.state if resumed else None
        if self.search and state:
            self.search.restore(state["search"])
        elif state is None:  # what a run left here that never came to a checkpoint
            shutil.rmtree(records.path / "search", ignore_errors=True)
            if self.search:
                self.search.write()
        self.leg = self.search.leg() if self.search else leg.training(config)
        self.offset = self.leg.offset  # of batches
        self._prepare(resumes=state is not None)
        if resumed is not None and state is not None and not self._searched():
            self.model.load_state_dict(resumed.model)
            self.opt.load_state_dict(resumed.optimizer)
            self.done, self.best = state["step"] - self.leg.first, state["best_val"]
            self.elapsed = state["elapsed_ms"] / 1000
            self.offset = state["position"] - self.done * t.accum  # not the leg's if it went on with another accum
            self.monitors.restore(state["monitors"])
            self.saved = self.step
        self.began = time.perf_counter()

    @property
    def step(self) -> int:
        """Steps of the run done."""
        return self.leg.first + self.done

    @property
    def model(self) -> GPT:
        return self.learner.model

    @property
    def opt(self) -> AdamW:
        return self.learner.opt

    def _prepare(self, resumes: bool = False) -> None:
        """The learner for the leg; the one of the leg before serves again if its model is the same."""
        wanted = self.leg
        if hasattr(self, "learner") and self.model.config == wanted.model:
            self.learner.restart(wanted.init_seed)
        else:
            if hasattr(self, "learner"):
                del self.learner
                gc.collect()  # its memory, before more is taken
            self.learner = Learner(wanted.model, self.config.train, self.backend, wanted.init_seed)
        if wanted.start is not None and not resumes:
            found = checkpoint.load(wanted.start)
            self.model.load_state_dict(found.model)
            self.opt.load_state_dict(found.optimizer)

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> bool:
        """Train to the last step; False if a signal ended it before. Either way a checkpoint is there."""
        if self._searched():
            return True
        with self._signals():
            try:
                while True:
                    self.display.start(self.leg.first, self.leg.steps, self.done, self.leg.label)
                    self._train()
                    self.display.stop()
                    if not self.over() or self.leg.final:
                        break
                    if not self._advance():
                        return True
                if not self.over():
                    assert self.signal is not None
                    name = signal.Signals(self.signal).name
                    self.records.event(self.step, "interrupted", f"{name} at step {self.step}")
                if self.saved != self.step:
                    self._checkpoint()
            finally:
                self.display.stop()
        return self.over()

    def _searched(self) -> bool:
        """Whether a search is over after which nothing is trained."""
        return self.search is not None and self.search.at is None and self.config.search.after == "none"

    def over(self) -> bool:
        """Whether the leg is."""
        return self.done >= self.leg.steps or (not self.leg.final and self.search is not None and self.search.over)

    def _train(self) -> None:
        """Steps, until the leg is over or a signal came."""
        row: dict[str, Any] | None = None
        batches = self._batches()
        while not self.over() and self.signal is None:
            start = time.perf_counter()
            rate = self.leg.rate(self.done) * self.monitors.lr_factor
            micro, data_ms = batches
            wait = self.learner.submit([*micro[:-1], (*micro[-1], np.array([rate], np.float32))])
            # While the device computes: the row of the step before, the batches of the next.
            if row is not None:
                self._record(row)
            if not self.config.monitor.adaptive_batch and self.done + 1 < self.leg.steps:
                batches = self._batches(1)
            idle = time.perf_counter()
            loss, stats = wait()
            end = time.perf_counter()
            self.done += 1
            row = self._row(loss, stats, rate, 1000 * (end - start)) | {
                "timing_data_ms": data_ms, "timing_flush_ms": 1000 * (end - idle)}
            row = self._look(row)
            if self.config.monitor.adaptive_batch:
                batches = self._batches()
        if row is not None:
            self._record(row)

    def _batches(self, ahead: int = 0) -> tuple[list[tuple[np.ndarray, ...]], float]:
        """What each micro-step reads, of the next step or the one `ahead` of it; and the milliseconds it took."""
        start, at = time.perf_counter(), self.done + ahead
        seed, size = self.leg.data_seed, self.monitors.batch_size
        micro: list[tuple[np.ndarray, ...]] = []
        for position in range(self._position(at), self._position(at + 1)):
            batch = data.batch(self.dataset.train, position, size, self.config.model.block_size, seed, TRAIN)
            micro.append((*batch, random.state(seed, position)))
        return micro, 1000 * (time.perf_counter() - start)

    def _position(self, done: int) -> int:
        """How many batches were drawn before the leg's 0-based step; also counts the dropout masks."""
        return done * self.config.train.accum + self.offset

    def _look(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """What follows a step, with the device at rest; None if the row is written already."""
        t, run = self.config.train, self.leg
        if self.search and not run.final:
            self.search.step(row, timed=not self.monitors.recorded)
        over = self.over()
        due = lambda interval, n: interval > 0 and n % interval == 0
        if (over and t.eval_interval) or due(run.eval_interval, self.done):
            row["val_loss"] = self.evaluate()
            if math.isfinite(row["val_loss"]) and (self.best is None or row["val_loss"] < self.best["loss"]):
                self.best = {"step": self.step, "loss": row["val_loss"]}
        seen = self.monitors.observe(row, self)
        row |= {name: value for name, value in seen.items() if value is not None}
        if self.search and not run.final:
            self.search.observe(row)  # which may end the leg
            over = self.over()
        end = over and run.final
        samples, saves = end or (run.final and due(t.sample_interval, self.step)), due(t.checkpoint_interval, self.step)
        if not (samples or saves or end):
            return row
        self._record(row)
        try:
            if samples:
                self.sample()
        except BaseException:  # as where its program does not fit in memory: no step is lost by it
            self._checkpoint()
            raise
        if saves or end:
            self._checkpoint()
        return None

    def fits(self, batch_size: int) -> bool:
        """Whether a step of so many sequences fits in memory."""
        try:
            check_memory(self.leg.model, batch_size, self.backend)
        except UserError:
            return False
        return True

    def _advance(self) -> bool:
        """From a leg of the search that is over to the next; False if there is none."""
        assert self.search is not None
        self.search.finish(self.learner, self._save(self.search.folder) if self.search.keeps else None)
        if self.search.at is None:
            found = self.search.summary()
            self.records.config(symbio_winner=found["winner_activation"])
            self.records.event(self.step, "search_complete", " ".join(found["reasons"]), winner=found["winner"])
            self.display.say("\n".join(found["reasons"]))
            if self._searched():
                self._checkpoint()
                return False
        self.leg = self.search.leg()
        self.done, self.best, self.offset = 0, None, self.leg.offset
        self.monitors.reset()
        self._prepare()
        return True

    def evaluate(self) -> float:
        """Mean loss over the evaluation batches, the same ones each time; touches nothing that training reads."""
        return self.learner.evaluate(self._eval_batch(i) for i in range(self.config.train.eval_iters))

    def probe(self) -> np.ndarray:
        """Tokens [B, T] to look at the model's representations with: the first evaluation batch."""
        return self._eval_batch(0)[0]

    def _eval_batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        t = self.config.train
        return data.batch(self.dataset.val, i, t.batch_size, self.config.model.block_size, t.seed, EVAL)

    def sample(self) -> None:
        """Let the model answer the prompts; the draws depend on seed and step alone."""
        prompts = [chat_prompt(p) for p in PROMPTS]
        seed = self.config.train.seed * 1_000_003 + self.step
        texts = answer(self.learner.sampler, self.dataset.tokenizer, prompts, SAMPLE_TOKENS, TEMPERATURE, TOP_K, seed)
        self.display.say(f"samples at step {self.step}:")
        for prompt, text in zip(prompts, texts, strict=True):
            self.records.sample(self.step, prompt=prompt, text=text, temperature=TEMPERATURE, top_k=TOP_K, seed=seed)
            self.display.say(f"  {prompt} {' '.join(text.split())}")

    def _checkpoint(self) -> None:
        self.records.sync()
        path = self._save(self.records.path)
        self.saved = self.step
        self.records.event(self.step, "checkpoint", f"checkpoint {path.name}")

    def _save(self, folder: Path) -> Path:
        t = self.config.train
        return checkpoint.save(folder, self.step, self.model.state_dict(), self.opt.state_dict(), {
            "seed": t.seed, "position": self._position(self.done), "best_val": self.best,
            "elapsed_ms": 1000 * (self.elapsed + time.perf_counter() - self.began), "config_hash": self.config.hash,
            "model": model_dict(self.leg.model), "tokenizer": self.dataset.tokenizer.fingerprint,
            "text_hash": self.dataset.text_hash, "monitors": self.monitors.state(),
            "search": self.search.state() if self.search else None})

    # -- records ------------------------------------------------------------------------------------------------------
    def _row(self, loss: np.ndarray, stats: np.ndarray, rate: float, ms: float) -> dict[str, Any]:
        t, s = self.config.train, dict(zip(STATS, stats.tolist(), strict=True))
        row: dict[str, Any] = {
            "step": self.step, "loss": float(loss), "val_loss": None, "lr": rate,
            "grad_norm": s["grad_norm"], "clip_coef": s["clip_coef"],
            "elapsed_ms": 1000 * (self.elapsed + time.perf_counter() - self.began), "ms_per_iter": ms,
            "tokens_per_sec": 1000 * self.monitors.batch_size * self.config.model.block_size * t.accum / ms,
            **self.learner.timings(), **self.leg.columns,
        }
        if self.backend.name == "cpu_ref":
            row["gpu_ops_count"] = None
        else:
            memory = self.backend.memory()
            row |= {"gpu_vram_used_mb": memory["used"] / MIB, "gpu_vram_total_mb": memory["total"] / MIB,
                    "gpu_mem_pool_mb": memory["pool"] / MIB}
        if self.opt.loss_scaling:
            row["loss_scale"] = s["loss_scale"]
        if s["skipped"]:
            row |= {"skipped": True, "skip_reason": self._reason(s)}
        return row

    def _reason(self, stats: dict[str, float]) -> str:
        if not math.isfinite(stats["loss"]):
            return "loss not finite"
        if math.isfinite(stats["grad_norm"]):
            return "spike"
        return "overflow" if self.opt.loss_scaling else "gradient not finite"

    def _record(self, row: dict[str, Any]) -> None:
        if row.get("skipped"):
            reason = row["skip_reason"]
            scale = f", loss scale now {row['loss_scale']:g}" if reason == "overflow" else ""
            self.records.event(row["step"], "skipped", f"update skipped: {reason}, gradient norm "
                               f"{row['grad_norm']:.4g}, loss {row['loss']:.4g}{scale}", reason=reason)
        for column, kind in EVENT_COLUMNS.items():
            if row.get(column):
                self.records.event(row["step"], kind, str(row[column]))
        self.display.row(self.records.metrics(row) | {k: row[k] for k in ("loss", "val_loss", "grad_norm")})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after the step; a second SIGINT at once."""
        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
