"""AdamW over all parameters at once: a few dispatches a step, however many tensors there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from helios.backends.backend import SCALE_START, STATS, Array, Shape
from helios.errors import UserError
from helios.tensor import Tensor

ALIGN = 64  # elements; every parameter starts at a multiple, so that kernels may load vectors anywhere
TINY = float(np.finfo(np.float32).tiny)  # devices may take less for 0


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019), a global-norm clip and a spike guard on the device.

    All parameters move into one flat array; gradients, first and second moments are three more of the same layout: the
    decaying ones first, each at a multiple of ALIGN elements, the gaps zero for ever. A parameter's data and its
    gradient become views into them, so that a gradient held across zero_grad() changes. Matrices decay; vectors and
    those named in `no_decay` do not.

    A step is skipped, weights and moments untouched, where the loss or the gradient's norm is not finite, or where the
    norm before clipping exceeds `spike_threshold` (0: never). `grad_clip` 0: no clipping.

    Raises ValueError, naming the argument, for numbers that are negative or not finite, also where only float32 makes
    them 0, infinite or (`betas`) 1.

    With `loss_scaling`, which float16 needs, gradients are those of the loss times `loss_scale`: a value on the device
    that is halved where they overflow (the step is skipped) and doubles after many good steps.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], lr: float = 3e-4,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 grad_clip: float = 1.0, spike_threshold: float = 0.0, loss_scaling: bool = False,
                 no_decay: Collection[str] = ()) -> None:
        given = list(parameters)
        self.parameters: dict[str, Tensor] = dict(given)
        if not given or len(self.parameters) < len(given) or len({id(p) for _, p in given}) < len(given):
            raise ValueError("AdamW: expected at least one parameter, each under one name of its own")
        for name, p in given:
            if p.grad_home is not None:
                raise ValueError(f"AdamW: {name} already belongs to an optimizer")
            if p.backend is not given[0][1].backend:
                raise ValueError(f"AdamW: {given[0][0]} is on {given[0][1].backend.name}, {name} on another backend, "
                                 f"{p.backend.name}; an optimizer takes parameters of one")
        beta1, beta2 = betas
        check_float("betas", beta1, below=1.0)
        check_float("betas", beta2, below=1.0)
        check_float("eps", eps, zero=False)
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("grad_clip", grad_clip),
                            ("spike_threshold", spike_threshold)):
            check_float(name, value)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.grad_clip, self.spike_threshold, self.loss_scaling = grad_clip, spike_threshold, loss_scaling

        decays = {name: len(p.shape) > 1 and name not in no_decay for name, p in given}
        self.n_decay, end = 0, 0
        self.start: dict[str, int] = {}  # name → first element
        for name in sorted(decays, key=lambda name: not decays[name]):
            self.start[name] = end
            end += -(-self.parameters[name].size // ALIGN) * ALIGN
            if decays[name]:
                self.n_decay = end
        be = self.backend = given[0][1].backend
        self.weights, self.grads, self.exp_avg, self.exp_avg_sq = (be.zeros((end,)) for _ in range(4))
        for name, start in self.start.items():
            p = self.parameters[name]
            home = be.view(self.weights, start, p.shape)
            be.assign(home, p.data)
            p.data, p.grad, p.grad_home = home, None, be.view(self.grads, start, p.shape)
        self.stats = Tensor(be.array(self._scaled(np.zeros(len(STATS)))), be)
        self._lr, self._lr_there = be.zeros((1,)), 0.0  # on the device, and what it holds

    @property
    def loss_scale(self) -> Tensor | None:
        """Return the scale for backward(), a scalar; None without loss scaling."""
        at = STATS.index("loss_scale")
        return Tensor(self.backend.view(self.stats.data, at, ()), self.backend) if self.loss_scaling else None

    def _scaled(self, stats: np.ndarray) -> np.ndarray:
        """Stats with a loss scale that fits: 1 without loss scaling, and the start's where there was none before."""
        at, stats = STATS.index("loss_scale"), stats.copy()
        if not self.loss_scaling:
            stats[at] = 1.0
        elif stats[at] <= 1.0:
            stats[at] = SCALE_START
        return stats

    def step(self, lr: Tensor | None = None, loss: Tensor | None = None) -> None:
        """Update the parameters from their gradients, at the rate `lr`, a tensor [1], or else `self.lr`.

        loss: the update is skipped where it is not finite. Raises RuntimeError where a parameter has no gradient, or
        where `lr` is left out in a function that is being recorded: its replays would all have the rate of now.
        """
        be = self.backend
        if lr is None and be.recording:
            raise RuntimeError("AdamW.step: a recorded function would repeat the rate of now; take lr, float32 [1], as "
                               "an input of the function and give it to step()")
        for name, p in self.parameters.items():
            if p.grad is None:
                raise RuntimeError(f"AdamW.step: {name} has no gradient; the loss does not depend on it")
            if p.grad.data is not p.grad_home:
                be.assign(p.grad_home, p.grad.data)
        if lr is None and self._lr_there != self.lr:
            check_float("lr", self.lr)
            be.upload(self._lr, np.full(1, self.lr, be.float_dtype))
            self._lr_there = self.lr
        beta1, beta2 = self.betas
        be.mark("grad_norm")
        be.clip_stats(self.grads, self.stats.data, None if loss is None else loss.data, clip=self.grad_clip,
                      spike=self.spike_threshold, beta1=beta1, beta2=beta2, scaling=self.loss_scaling)
        be.mark("optim")
        be.adamw(self.weights, self.grads, self.exp_avg, self.exp_avg_sq, self.stats.data,
                 self._lr if lr is None else lr.data, beta1=beta1, beta2=beta2, eps=self.eps,
                 weight_decay=self.weight_decay, n_decay=self.n_decay)

    def zero_grad(self, fill: bool = False) -> None:
        """Forget the gradients; with `fill`, make them zeros instead, to which later backward passes add."""
        if fill:
            self.backend.assign(self.grads, self.backend.zeros(self.grads.shape), take=True)
        for p in self.parameters.values():
            p.grad = Tensor(p.grad_home, self.backend) if fill else None

    def reset(self) -> None:
        """Forget moments and counts, as if new."""
        for _, slab in self._moments():
            self.backend.upload(slab, np.zeros(slab.shape, self.backend.float_dtype))
        self.backend.upload(self.stats.data, self._scaled(np.zeros(len(STATS), self.backend.float_dtype)))

    def last(self) -> dict[str, float]:
        """Return what the last step saw and decided (see backend.STATS), after waiting for the device."""
        return dict(zip(STATS, self.stats.numpy().tolist(), strict=True))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return exp_avg.<name> and exp_avg_sq.<name> of every parameter, and stats, as copies on the host."""
        state = {"stats": self.stats.numpy()}
        for kind, slab in self._moments():
            values = self.backend.numpy(slab)
            for name, p in self.parameters.items():
                start = self.start[name]
                state[f"{kind}.{name}"] = values[start:start + p.size].reshape(p.shape).copy()
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave, in place. Raises UserError where names or shapes are not exactly those."""
        shapes = {f"{kind}.{name}": p.shape for kind, _ in self._moments() for name, p in self.parameters.items()}
        check_state(state, {"stats": self.stats.shape, **shapes}, "optimizer state")
        be = self.backend
        for kind, slab in self._moments():
            values = np.zeros(slab.shape, be.float_dtype)
            for name, p in self.parameters.items():
                start = self.start[name]
                values[start:start + p.size] = np.ravel(state[f"{kind}.{name}"])
            be.upload(slab, values)
        be.upload(self.stats.data, self._scaled(np.asarray(state["stats"], be.float_dtype)))

    def _moments(self) -> tuple[tuple[str, Array], ...]:
        return ("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)


def check_float(name: str, value: float, zero: bool = True, below: float = np.inf) -> None:
    """Raise ValueError unless an argument of AdamW is 0, where that is allowed, or rounded to float32 at least TINY and
    less than `below`."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    if not (TINY <= rounded < below or (zero and value == 0)):
        raise ValueError(f"AdamW: {name}: expected a number {'from' if zero else 'above'} 0 to below {below:g}, in "
                         f"float32 too, got {value}")


def check_state(given: Mapping[str, Any], shapes: Mapping[str, Shape], what: str) -> None:
    """Raise UserError, naming the tensors, unless `given` holds exactly those of `shapes`."""
    wrong = {
        "missing": [name for name in shapes if name not in given],
        "unexpected": [name for name in given if name not in shapes],
        "of the wrong shape": [f"{name} (given {np.shape(given[name])}, expected {shape})"
                               for name, shape in shapes.items() if name in given and np.shape(given[name]) != shape],
    }
    found = [f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''} {kind}"
             for kind, names in wrong.items() if names]
    if found:
        raise UserError(f"{what} does not fit: {'; '.join(found)}")
