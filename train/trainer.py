"""The training loop: one replay a step, and everything the host does hidden behind it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from helios import random
from helios.backends import get_backend
from helios.backends.backend import STATS, Backend
from helios.capture import Capture
from helios.errors import UserError
from helios.model import GPT, Sampler
from helios.model.config import MLPS, GPTConfig
from helios.optim import AdamW
from helios.tensor import Tensor
from helios.train import checkpoint, data
from helios.train.checkpoint import Checkpoint
from helios.train.config import Config, model_dict
from helios.train.data import EVAL, TRAIN, Dataset
from helios.train.progress import Display
from helios.train.schedule import learning_rate
from helios.train.telemetry import Records
from helios.train.tokenizer import ASSISTANT, END, USER, Tokenizer

PROMPTS = ("Who are you?", "Socrates, what is virtue?", "Tell me about your childhood.", "What did you do in the war?",
           "Give me a word on wisdom.")
SAMPLE_TOKENS, TEMPERATURE, TOP_K = 80, 0.8, 40
MIB = 2**20


def open_backend(name: str, device: str | None, say: Callable[[str], None], precision: str = "f32") -> Backend:
    """The backend of that name; "auto": vulkan where it has a device, else cpu_ref, saying so. Raises UserError."""
    if name == "cpu_ref" and device is not None:
        raise UserError(f"--device {device} chooses a Vulkan device, and cpu_ref has none; leave it out")
    if name != "auto":
        return get_backend(name, device, precision)
    try:
        return get_backend("vulkan", device, precision)
    except UserError as error:
        if device is not None:
            raise
        say(f"warning: no Vulkan device ({error}): computing on cpu_ref, which is slow")
        return get_backend("cpu_ref", precision=precision)


def memory_needed(model: GPTConfig, batch_size: int) -> int:
    """Bytes, roughly: weights, gradients and two moments exactly, and the values that wait for the backward pass."""
    b, t, d = batch_size, model.block_size, model.n_embd
    # A block keeps two norms, qkv (3), attention and its projection, two residual sums: 9·D; and F for each product.
    kept = sum(9 * d + (1 + len(MLPS[name].matrices) - (name in ("universal", "kan_spline"))) * f
               for name, f in zip(model.activations, model.ffn_dims, strict=True))
    return 4 * (4 * model.parameters() + b * t * (kept + model.n_layer * model.n_head + 2 * model.vocab_size))


def check_memory(model: GPTConfig, batch_size: int, backend: Backend) -> None:
    """Raises UserError where the model cannot be trained in what the device has left, or gives at once."""
    needed, available = memory_needed(model, batch_size), backend.memory()["available"]
    if needed > available:
        raise UserError(f"training {model.parameters():,} parameters at batch {batch_size} needs about "
                        f"{needed / MIB:,.0f} MiB, but {backend.device_name} has {available / MIB:,.0f} MiB left; "
                        f"choose a smaller model, batch or block")
    profile: Any = getattr(backend, "profile", None)  # of a Vulkan device
    rows = batch_size * model.block_size
    largest = 4 * max(model.parameters(), rows * max(model.vocab_size, 3 * model.n_embd, *model.ffn_dims))
    if profile is not None and largest > profile.max_allocation:
        raise UserError(f"at batch {batch_size} the largest array takes {largest / MIB:,.0f} MiB, but "
                        f"{backend.device_name} gives {profile.max_allocation / MIB:,.0f} MiB at once; "
                        f"choose a smaller model, vocabulary, batch or block")


def chat_prompt(text: str) -> str:
    """`<|user|> text <|assistant|>`, unless the text brings its own marks."""
    return text if USER in text or ASSISTANT in text else f"{USER} {text.strip()} {ASSISTANT}"


def answer(sampler: Sampler, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int, temperature: float,
           top_k: int | None, seed: int) -> list[str]:
    """What the model says after each prompt, up to the user's next turn or the end of the conversation."""
    rows = sampler([tokenizer.encode(p).tolist() for p in prompts], tokens, temperature, top_k, seed,
                   stop={tokenizer.id(END), tokenizer.id(USER)})
    return [tokenizer.decode(row).removesuffix(END).removesuffix(USER).strip() for row in rows]


class Trainer:
    """A run in progress: model, optimizer, recorded steps, and the number of steps done."""

    def __init__(self, config: Config, backend: Backend, dataset: Dataset, records: Records, display: Display,
                 resumed: Checkpoint | None = None) -> None:
        self.config, self.backend, self.dataset = config, backend, dataset
        self.records, self.display = records, display
        t = config.train
        if t.precision != backend.precision:
            raise ValueError(f"the run computes in {t.precision} and its backend in {backend.precision}")
        self.model = GPT(config.model, device=backend, seed=t.seed)
        self.opt = AdamW(self.model.named_parameters(), lr=t.lr, betas=(t.beta1, t.beta2), eps=t.eps,
                         weight_decay=t.weight_decay, grad_clip=t.grad_clip, spike_threshold=t.spike_threshold,
                         loss_scaling=t.precision == "mixed")
        self.step = 0
        self.best: dict[str, float] | None = None  # {"step", "loss"} of the lowest validation loss
        self.elapsed = 0.0  # seconds of the run before this process
        self.offset = 0  # of batches; other than 0 where a run was resumed with another accum
        if resumed is not None:
            self.model.load_state_dict(resumed.model)
            self.opt.load_state_dict(resumed.optimizer)
            self.step, self.best = resumed.state["step"], resumed.state["best_val"]
            self.elapsed = resumed.state["elapsed_ms"] / 1000
            self.offset = resumed.state["position"] - self.step * t.accum
        self.saved = self.step
        self.signal: int | None = None  # that asked the run to stop
        self.began = time.perf_counter()
        self.total = Tensor(backend.zeros(()), backend)  # loss of a step, summed over its micro-steps
        self.micro = Capture(self._micro, backend)
        self.last = Capture(self._last, backend)
        self.evaluation = Capture(self._evaluation, backend)
        self.sampler = Sampler(self.model)
        if t.accum > 1:
            self.opt.zero_grad(fill=True)

    # -- on the device ------------------------------------------------------------------------------------------------
    def _gradients(self, tokens: Tensor, targets: Tensor, rng: Tensor) -> Tensor:
        loss = self.model.train().loss(tokens, targets, rng=rng)
        if self.config.train.accum > 1:
            loss = loss / self.config.train.accum
        loss.backward(self.opt.loss_scale)
        return loss

    def _micro(self, tokens: Tensor, targets: Tensor, rng: Tensor) -> tuple[Tensor]:
        """Add to the gradients and the loss of a step."""
        self.backend.assign(self.total.data, self._sum(self._gradients(tokens, targets, rng)).data)
        return (self.total,)

    def _sum(self, loss: Tensor) -> Tensor:
        return Tensor(self.backend.axpby(self.total.data, loss.data, 1.0, 1.0), self.backend)

    def _last(self, tokens: Tensor, targets: Tensor, rng: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """The last, or only, micro-step and the update."""
        accum = self.config.train.accum > 1
        if not accum:
            self.opt.zero_grad()
        loss = self._gradients(tokens, targets, rng)
        if accum:
            loss = self._sum(loss)
        self.opt.step(lr, loss)
        if accum:  # for the next step, whose first micro-step then is like any other
            self.opt.zero_grad(fill=True)
            self.backend.assign(self.total.data, self.backend.zeros(()), take=True)
        return loss, self.opt.stats

    def _evaluation(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor]:
        with self.model.no_grad():
            return (self.model.eval().loss(tokens, targets),)

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> bool:
        """Train to the last step; False if a signal ended it before. Either way a checkpoint is there."""
        t = self.config.train
        row: dict[str, Any] | None = None
        with self._signals():
            self.display.start(self.step)
            try:
                inputs, data_ms = self._inputs(self.step)
                while self.step < t.steps and self.signal is None:
                    start = time.perf_counter()
                    used_ms = data_ms
                    wait = self._submit(inputs)
                    # While the device computes: the row of the step before, the inputs of the next.
                    if row is not None:
                        self._record(row)
                    if self.step + 1 < t.steps:
                        inputs, data_ms = self._inputs(self.step + 1)
                    idle = time.perf_counter()
                    loss, stats = wait()
                    end = time.perf_counter()
                    self.step += 1
                    row = self._row(loss, stats, 1000 * (end - start)) | {
                        "timing_data_ms": used_ms, "timing_flush_ms": 1000 * (end - idle)}
                    if any(self._due(interval) for interval in (t.eval_interval, t.sample_interval,
                                                                t.checkpoint_interval)) or self.step == t.steps:
                        self._pause(row)
                        row = None
                if row is not None:
                    self._record(row)
                if self.signal is not None and self.step < t.steps:
                    name = signal.Signals(self.signal).name
                    self.records.event(self.step, "interrupted", f"{name} at step {self.step}")
                if self.saved != self.step:
                    self._checkpoint()
            finally:
                self.display.stop()
        return self.step >= t.steps

    def _inputs(self, step: int) -> tuple[list[tuple[np.ndarray, ...]], float]:
        """What each micro-step of the 0-based `step` reads, the last with the learning rate; and the time it took."""
        start, t = time.perf_counter(), self.config.train
        micro: list[tuple[np.ndarray, ...]] = []
        for position in range(self._position(step), self._position(step + 1)):
            batch = data.batch(self.dataset.train, position, t.batch_size, self.config.model.block_size, t.seed, TRAIN)
            micro.append((*batch, random.state(t.seed, position)))
        micro[-1] = (*micro[-1], np.array([self._lr(step)], np.float32))
        return micro, 1000 * (time.perf_counter() - start)

    def _lr(self, step: int) -> float:
        t = self.config.train
        return learning_rate(step, steps=t.steps, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)

    def _position(self, step: int) -> int:
        """How many batches were drawn before the 0-based `step`; also counts the dropout masks."""
        return step * self.config.train.accum + self.offset

    def _submit(self, inputs: list[tuple[np.ndarray, ...]]) -> Callable[[], tuple[np.ndarray, ...]]:
        for micro in inputs[:-1]:
            self.micro.submit(*micro)
        return self.last.submit(*inputs[-1])

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def _pause(self, row: dict[str, Any]) -> None:
        """What follows some steps, with the device at rest."""
        t, done = self.config.train, self.step == self.config.train.steps
        if t.eval_interval and (self._due(t.eval_interval) or done):
            row["val_loss"] = self.evaluate()
            if math.isfinite(row["val_loss"]) and (self.best is None or row["val_loss"] < self.best["loss"]):
                self.best = {"step": self.step, "loss": row["val_loss"]}
        self._record(row)
        try:
            if self._due(t.sample_interval) or done:
                self.sample()
        except BaseException:  # as where its program does not fit in memory: no step is lost by it
            self._checkpoint()
            raise
        if self._due(t.checkpoint_interval) or done:
            self._checkpoint()

    def evaluate(self) -> float:
        """Mean loss over the evaluation batches, the same ones each time; touches nothing that training reads."""
        t, losses = self.config.train, []
        for i in range(t.eval_iters):
            batch = data.batch(self.dataset.val, i, t.batch_size, self.config.model.block_size, t.seed, EVAL)
            losses.append(float(self.evaluation(*batch)[0]))
        return sum(losses) / len(losses)

    def sample(self) -> None:
        """Let the model answer the prompts; the draws depend on seed and step alone."""
        prompts = [chat_prompt(p) for p in PROMPTS]
        seed = self.config.train.seed * 1_000_003 + self.step
        texts = answer(self.sampler, self.dataset.tokenizer, prompts, SAMPLE_TOKENS, TEMPERATURE, TOP_K, seed)
        self.display.say(f"samples at step {self.step}:")
        for prompt, text in zip(prompts, texts, strict=True):
            self.records.sample(self.step, prompt=prompt, text=text, temperature=TEMPERATURE, top_k=TOP_K, seed=seed)
            self.display.say(f"  {prompt} {' '.join(text.split())}")

    def _checkpoint(self) -> None:
        t = self.config.train
        self.records.sync()
        path = checkpoint.save(self.records.path, self.step, self.model.state_dict(), self.opt.state_dict(), {
            "seed": t.seed, "position": self._position(self.step), "best_val": self.best,
            "elapsed_ms": 1000 * (self.elapsed + time.perf_counter() - self.began), "config_hash": self.config.hash,
            "model": model_dict(self.config.model), "tokenizer": self.dataset.tokenizer.fingerprint,
            "text_hash": self.dataset.text_hash})
        self.saved = self.step
        self.records.event(self.step, "checkpoint", f"checkpoint {path.name}")

    # -- records ------------------------------------------------------------------------------------------------------
    def _row(self, loss: np.ndarray, stats: np.ndarray, ms: float) -> dict[str, Any]:
        t, s = self.config.train, dict(zip(STATS, stats.tolist(), strict=True))
        row: dict[str, Any] = {
            "step": self.step, "loss": float(loss), "val_loss": None, "lr": self._lr(self.step - 1),
            "grad_norm": s["grad_norm"], "clip_coef": s["clip_coef"],
            "elapsed_ms": 1000 * (self.elapsed + time.perf_counter() - self.began), "ms_per_iter": ms,
            "tokens_per_sec": 1000 * t.batch_size * self.config.model.block_size * t.accum / ms,
        }
        # A replay's timings are those of its last call; the micro-steps before the last are alike.
        for capture, calls in ((self.micro, t.accum - 1), (self.last, 1)):
            for program in capture.programs.values():
                row["gpu_ops_count"] = row.get("gpu_ops_count", 0) + calls * program.dispatches
                for phase in ("fwd", "bwd", "grad_norm", "optim"):
                    name = f"timing_{phase}_ms"
                    if phase in program.phases:
                        row[name] = row.get(name, 0.0) + calls * program.phases[phase]
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
