"""What is trained: a model on a device, its optimizer, and the recordings of a step and an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from helios import ops, random
from helios.backends.backend import STATS, Backend
from helios.capture import Capture
from helios.model import GPT, GPTConfig, Sampler
from helios.model.gpt import initial_state
from helios.optim import AdamW
from helios.tensor import Tensor
from helios.train.config import TrainConfig
from helios.train.device import MIB
from helios.train.records.events import skip_reason

MEMORY = {"vram_used": "used", "vram_total": "total", "mem_pool": "pool"}  # columns, gpu_…_mb, and the backend's words
KEPT = 2  # recordings of a step that are kept, where the batch size changes


class Stopped(Exception):
    """A step or an evaluation was given up between two of its parts. signal: the one that another loop heard."""

    def __init__(self, signal: int | None = None) -> None:
        super().__init__(signal)
        self.signal = signal


class TrainState:
    """A model with the initial weights of `seed`, its optimizer and its recordings.

    A step is `accum` micro-steps, the last of which also updates the weights.
    """

    def __init__(self, model: GPTConfig, train: TrainConfig, backend: Backend, seed: int) -> None:
        self.backend, self.accum = backend, train.accum
        self.model = GPT(model, device=backend, seed=seed)
        self.opt = AdamW(self.model.named_parameters(), lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps,
                         weight_decay=train.weight_decay, grad_clip=train.grad_clip,
                         spike_threshold=train.spike_threshold, loss_scaling=backend.precision == "mixed",
                         no_decay=self.model.config.no_decay)
        self.total = Tensor(backend.zeros(()), backend)  # the step's loss so far, over its micro-steps
        self.micro = Capture(self._micro, backend, keep=KEPT)
        self.last = Capture(self._last, backend, keep=KEPT)
        self.evaluation = Capture(self._evaluation, backend)
        self.probe = Capture(self._probe, backend)
        self.sampler = Sampler(self.model)
        if self.accum > 1:
            self.opt.zero_grad(fill=True)

    def prepare(self, batch_size: int, evaluated: int, probed: int = 0) -> None:
        """Record a step of `batch_size` sequences and, unless they are 0, an evaluation of `evaluated` sequences and
        the representations of `probed` ones. Nothing is computed, but all memory is taken. Raises UserError where there
        is not enough."""
        ids = lambda n: np.zeros((n, self.model.config.block_size), np.int32)
        inputs = ids(batch_size), ids(batch_size), random.state(0, 0)
        if self.accum > 1:
            self.micro.prepare(*inputs)
        self.last.prepare(*inputs, np.zeros(1, np.float32))
        if evaluated:
            self.evaluation.prepare(ids(evaluated), ids(evaluated))
        if probed:
            self.probe.prepare(ids(probed))

    def restart(self, seed: int) -> None:
        """Begin anew with the initial weights of `seed`, keeping the recordings."""
        self.model.load_state_dict(initial_state(self.model.config, seed))
        self.opt.reset()

    def limit(self, grad_clip: float, spike_threshold: float) -> None:
        """Clip and skip by other limits from the next step on, which is recorded anew if they are others."""
        if (grad_clip, spike_threshold) != (self.opt.grad_clip, self.opt.spike_threshold):
            self.opt.grad_clip, self.opt.spike_threshold = grad_clip, spike_threshold
            self.last.programs.clear()  # which have the limits in them

    def submit(self, inputs: list[tuple[np.ndarray, ...]], stop: Callable[[], bool] = lambda: False
               ) -> Callable[[], tuple[np.ndarray, ...]]:
        """Start a step; the function returned waits for the loss, a scalar, and the optimizer's stats [len(STATS)].
        Raises Stopped where `stop`, which is asked between micro-steps, says so; no weight has changed then.

        inputs: for each micro-step tokens and targets, int32 [B, T] each, and rng, int32 [3]; for the last one also the
        learning rate, float32 [1].
        """
        waits = []
        for micro in inputs[:-1]:
            waits.append(self.micro.submit(*micro))
            if stop():
                raise Stopped
        last = self.last.submit(*inputs[-1])

        def wait() -> tuple[np.ndarray, ...]:
            for done in waits:  # else their buffers would never be released
                done()
            return last()

        return wait

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]], stop: Callable[[], bool] = lambda: False
                 ) -> float:
        """Return the mean loss in nats over (tokens, targets) batches, without dropout; training is not affected.
        Raises Stopped where `stop`, which is asked between batches, says so."""
        losses = []
        for batch in batches:
            if stop():
                raise Stopped
            losses.append(float(self.evaluation(*batch)[0]))
        return sum(losses) / len(losses)

    def columns(self, stats: np.ndarray, given: TrainConfig) -> dict[str, Any]:
        """Return what a row tells of the last step on the device. stats: the optimizer's, [len(STATS)]. given: the
        settings, whose limits are told where others hold."""
        s, opt = dict(zip(STATS, stats.tolist(), strict=True)), self.opt
        row: dict[str, Any] = {"grad_norm": s["grad_norm"], "clip_coef": s["clip_coef"], **self.timings()}
        if self.backend.name == "cpu_ref":
            row["gpu_ops_count"] = None
        else:
            memory = self.backend.memory()
            row |= {f"gpu_{name}_mb": memory[what] / MIB for name, what in MEMORY.items()}
        row |= {name: now for name in ("grad_clip", "spike_threshold")
                if (now := getattr(opt, name)) != getattr(given, name)}
        if opt.loss_scaling:
            row["loss_scale"] = s["loss_scale"]
        if s["skipped"]:
            row |= {"skipped": True, "skip_reason": skip_reason(s, opt.loss_scaling)}
        return row

    def timings(self) -> dict[str, float]:
        """Return the last step's dispatches, "gpu_ops_count", and milliseconds by phase, "timing_<phase>_ms"."""
        row: dict[str, float] = {}
        # A recording has the timings of its last replay only; the micro-steps before the last are taken to be alike.
        for capture, calls in ((self.micro, self.accum - 1), (self.last, 1)):
            for program in list(capture.programs.values())[-1:]:
                row["gpu_ops_count"] = row.get("gpu_ops_count", 0) + calls * program.dispatches
                for phase in ("fwd", "bwd", "grad_norm", "optim"):
                    name = f"timing_{phase}_ms"
                    if phase in program.phases:
                        row[name] = row.get(name, 0.0) + calls * program.phases[phase]
        return row

    def weights(self) -> dict[str, np.ndarray]:
        """Return the parameters by name, as views of one copy on the host."""
        return self._slab(self.opt.weights)

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the last step's gradients by name, before clipping; in mixed precision times the loss scale."""
        return self._slab(self.opt.grads)

    def representations(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return embeddings [N, D], final hidden values [N, D] and logits [N, V] of int32 tokens [B, T]; N = B·T."""
        inputs, hidden, logits = (x.reshape(tokens.size, -1) for x in self.probe(tokens))
        return inputs, hidden, logits

    def _slab(self, slab: object) -> dict[str, np.ndarray]:
        values = self.backend.numpy(slab)
        return {name: values[start:start + p.size].reshape(p.shape)
                for (name, p), start in ((item, self.opt.start[item[0]]) for item in self.opt.parameters.items())}

    # -- on the device ------------------------------------------------------------------------------------------------
    def _gradients(self, tokens: Tensor, targets: Tensor, rng: Tensor) -> Tensor:
        loss = self.model.train().loss(tokens, targets, rng=rng)
        if self.accum > 1:
            loss = loss / self.accum
        loss.backward(self.opt.loss_scale)
        return loss

    def _micro(self, tokens: Tensor, targets: Tensor, rng: Tensor) -> tuple[Tensor]:
        """Compute a micro-step that adds to the step's gradients and loss."""
        self.backend.assign(self.total.data, self._sum(self._gradients(tokens, targets, rng)).data)
        return (self.total,)

    def _sum(self, loss: Tensor) -> Tensor:
        return Tensor(self.backend.axpby(self.total.data, loss.data, 1.0, 1.0), self.backend)

    def _last(self, tokens: Tensor, targets: Tensor, rng: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the last or only micro-step, and update the weights."""
        if self.accum == 1:
            self.opt.zero_grad()
        loss = self._gradients(tokens, targets, rng)
        if self.accum > 1:
            loss = self._sum(loss)
        self.opt.step(lr, loss)
        if self.accum > 1:  # so that the next step's first micro-step is like any other
            self.opt.zero_grad(fill=True)
            self.backend.assign(self.total.data, self.backend.zeros(()), take=True)
        return loss, self.opt.stats

    def _probe(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.model.no_grad():
            weights, hidden = self.model.weights, self.model.eval().hidden(tokens)
            return (ops.embedding(weights["wte.weight"], tokens, weights["wpe.weight"]), hidden,
                    self.model.head(hidden))

    def _evaluation(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor]:
        with self.model.no_grad():
            return (self.model.eval().loss(tokens, targets),)
