"""What the tests of the Vulkan backend share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.profile import CLUSTERED, REQUIRED, SUBGROUP, DeviceProfile
from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import split
from helios.train.config import TrainConfig
from helios.train.state import TrainState

# An activation of each kind: in the products, gated, with coefficients, both, and the B-spline.
KINDS = "gelu|swiglu|universal|kan_spline|a*silu(g)*u+b*sin(u); a=1, b=0.1|kan_bspline"
STEADY: dict[str, Any] = {
    "norm": "rms", "qk_norm": True, "logit_softcap": 5.0, "resid_dropout": 0.0, "embd_dropout": 0.1}
# Of a device that is not there.
PROFILE = DeviceProfile(
    index=0, name="a device", type="discrete", profile="simt", driver="1.0", api="1.3.0", subgroup_size=32, fragment=16,
    max_groups=65535, max_lanes=1024, max_push_bytes=128, shared_bytes=49152, timestamp_ns=1.0, timestamp_bits=64,
    memory_bytes=1 << 30, max_allocation=1 << 30, missing=(),
    features=(*REQUIRED["features12"], *REQUIRED["features13"], *SUBGROUP, *CLUSTERED, "shaderInt64"))
GUARANTEED = {"max_lanes": 128, "shared_bytes": 16384}  # the least that Vulkan allows


def make(**options: object) -> VulkanBackend:
    """A backend of its own; without a device the test is skipped with the reason, or fails under CI."""
    try:
        return VulkanBackend(**options)  # type: ignore[arg-type]
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Vulkan device: {error}")


class Training:
    """A tiny GPT's training step, as a run records it."""

    def __init__(self, be: VulkanBackend, activation: str = KINDS, dropout: float = 0.2, n_embd: int = 24,
                 **settings: Any) -> None:
        config = GPTConfig(vocab_size=61, block_size=19, n_layer=len(split(activation)), n_head=2, n_embd=n_embd,
                           activation=activation, dropout=dropout, softcap=5.0, **settings)
        self.state = TrainState(config, TrainConfig(lr=1e-2), be, seed=1)
        self.model, self.optimizer, self.capture = self.state.model, self.state.opt, self.state.last
        self.steps = 0

    def inputs(self) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(self.steps)
        x, y = draw.integers(0, 61, (2, 3, 17)).astype(np.int32)
        return x, y, random.state(7, self.steps), np.array([1e-2], np.float32)

    def step(self) -> tuple[np.ndarray, ...]:
        out = self.capture(*self.inputs())
        self.steps += 1
        return out

    @property
    def program(self):  # type: ignore[no-untyped-def]
        return next(iter(self.capture.programs.values()))

    def bits(self) -> bytes:
        """Weights and moments."""
        o = self.optimizer.state_dict() | self.model.state_dict()
        return b"".join(o[name].tobytes() for name in sorted(o))
