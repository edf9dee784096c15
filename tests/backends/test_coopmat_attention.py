"""The attention kernels for matrix units, also without: emulated (emulation.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from helios import random
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.backends.vulkan.audit import audit
from helios.backends.vulkan.backend import VulkanBackend

from .emulation import matrix_units
from .test_attention import of_their_own
from .test_shaders import Dry

ORACLE = CpuRef(np.float64, "mixed")
LENGTHS = (1, 7, 16, 17, 64, 100)
BATCHES = ((1, 1), (2, 3), (3, 2))  # sequences, heads


class Variant(NamedTuple):
    """What the kernels are compiled for."""

    head: int
    cap: float
    p: float
    block: int  # BK


# Both at once, cap and dropout: in test_coopmat.py's training step.
VARIANTS = [Variant(16, 2.0, 0.0, 32), Variant(48, 0.0, 0.2, 16)]


@pytest.fixture(scope="module")
def units() -> Iterator[VulkanBackend]:
    with matrix_units(chunk_size=1 << 16) as be:
        yield be


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join(map(str, v)))
def variant(request: pytest.FixtureRequest, units: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> Variant:
    monkeypatch.setattr(units, "attention_block", lambda *_: request.param.block)
    return request.param


def arrays(v: Variant, b: int, t: int, heads: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """qkv, the gradient of what attention gives, and the random state."""
    draw = np.random.default_rng([b, t, heads, v.head])
    qkv, g = draw.standard_normal((b, t, 3 * heads * v.head)) * spread, draw.standard_normal((b, t, heads * v.head))
    return qkv.astype(np.float32), g.astype(np.float32), random.state(11, t)


def run(be: Backend, v: Variant, heads: int, qkv: object, g: object, state: object) -> tuple[object, ...]:
    """out, lse, dqkv."""
    out, lse = be.attention(qkv, state, heads, v.cap, v.p, 7)
    return out, lse, be.attention_backward(qkv, out, lse, g, state, heads, v.cap, v.p, 7)


def largest_score(v: Variant, heads: int, qkv: np.ndarray) -> float:
    q, k, _ = qkv.reshape(*qkv.shape[:2], 3, heads, v.head).transpose(2, 0, 3, 1, 4)
    largest = float(np.abs(q @ k.swapaxes(-1, -2)).max()) / math.sqrt(v.head)
    return min(largest, v.cap) if v.cap else largest


def check(units: VulkanBackend, v: Variant, b: int, t: int, heads: int, spread: float = 1.0) -> None:
    """By the tolerance of the registry of operations: that of kernels which round the inputs alone to float16."""
    given = arrays(v, b, t, heads, spread)
    got, expected = ([be.numpy(x) for x in run(be, v, heads, *map(be.array, given))] for be in (units, ORACLE))
    tolerance = (32 + largest_score(v, heads, given[0]) + math.sqrt(max(t, v.head)) / 2) * 2.0**-23
    for name, ours, theirs in zip(("out", "lse", "dqkv"), got, expected, strict=True):
        worst = np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())
        assert worst <= tolerance, f"{name} of {b} × {heads} × {t}: {worst / 2.0**-23:.1f} EPS"


def test_any_shape(units: VulkanBackend, variant: Variant) -> None:
    for t, (b, heads) in zip(LENGTHS, itertools.cycle(BATCHES), strict=False):
        check(units, variant, b, t, heads)
    names = {key[0] for key in units.pipelines.kernels}
    assert {"attention_coopmat", "attention_backward_coopmat"} <= names
    assert not names & {"attention", "attention_backward"}


def test_large_scores(units: VulkanBackend, variant: Variant) -> None:
    """Without a cap beyond 100, where e^score overflows unless the largest is taken off first."""
    check(units, variant, 1, 33, 2, spread=6.0)


def test_q_and_k_of_their_own(units: VulkanBackend, variant: Variant) -> None:
    of_their_own(units, 3, variant.head, variant.cap, variant.p)


def test_only_what_is_declared_is_touched(units: VulkanBackend, variant: Variant) -> None:
    """In the audit, poison lies beyond the sequences, and nothing is written there; the bits are those of any run."""
    given = arrays(variant, 2, 37, 3)
    program = units.record(lambda *x: run(units, variant, 3, *x), [(x.shape, x.dtype) for x in given])
    faults, outputs = audit(program, given)
    assert faults == []
    for audited, again in zip(outputs, program.submit(given)(), strict=True):
        assert np.isfinite(audited).all()
        np.testing.assert_array_equal(audited, again)


@pytest.mark.parametrize(("head", "forward", "backward", "changes"), [
    (16, 32, 32, {}), (64, 32, 32, {}), (128, 16, 16, {}), (128, 32, 32, {"shared_bytes": 49152}),
    (64, 16, 16, {"shared_bytes": 27000}), (128, 16, 0, {"shared_bytes": 20480}), (16, 0, 0, {"subgroup_size": 128}),
    (128, 32, 32, {"subgroup_size": 8, "fragment": 8}), (16, 0, 0, {"subgroup_size": 64, "fragment": 8}),
    (8, 0, 0, {}), (40, 0, 0, {}), (144, 0, 0, {"shared_bytes": 65536}), (16, 0, 0, {"profile": "simt"})])
def test_choice(head: int, forward: int, backward: int, changes: dict[str, object]) -> None:
    dry = Dry("coopmat", 32, "mixed")
    dry.profile = replace(dry.profile, **{"shared_bytes": 32768} | changes)
    aligned, other = SimpleNamespace(offset=32), SimpleNamespace(offset=36)
    assert [dry.attention_block(head, back, aligned) for back in (False, True)] == [forward, backward]
    assert not dry.attention_block(head, True, aligned, other)
    dry.precision = "f32"
    assert not dry.attention_block(head, False, aligned)
