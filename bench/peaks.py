"""The peaks of a device, measured: by an fma and a copy kernel, or by a product and a copy in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from helios.backends.backend import Backend
from helios.backends.vulkan.backend import VulkanBackend
from helios.bench.measure import Effort, Peaks, Timed, time_replays

# Pairs that are tried in turn: chains of fma in a lane, enough to hide an fma's latency and few enough for the
# registers, and their length in a round. The driver decides whether an fma is one instruction; in lavapipe it is two.
CHAINS = ((8, 8), (16, 8), (10, 64))
LANES, ROUNDS = {"cpu": 1 << 12, "gpu": 1 << 20}, {"cpu": 4096, "gpu": 256}
COPY_BYTES = {"cpu": 64 << 20, "gpu": 512 << 20}  # more than fit in caches


def peaks(be: Backend, effort: Effort, small: bool = False) -> Peaks:
    """Measure the device's peaks. small: with a thousandth of the work, for a quick look."""
    shrink = 1024 if small else 1
    work = _vulkan(be, shrink) if isinstance(be, VulkanBackend) else _numpy(shrink)
    gflops, gbps = 0.0, 0.0
    for kind, amount, run in work:
        side = Timed(time_replays(be, run), effort)
        for _ in range(effort.rounds):
            side.sample()
        rate = amount / side.best().device_ms / 1e6  # a peak, not a median
        gflops, gbps = (max(gflops, rate), gbps) if kind == "fma" else (gflops, max(gbps, rate))
    return Peaks(gflops, gbps)


Work = list[tuple[str, float, Callable[[], Any]]]  # (fma or copy, operations or bytes, the function that does it)


def _vulkan(be: VulkanBackend, shrink: int) -> Work:
    kind = "cpu" if be.profile.profile == "cpu" else "gpu"
    n, rounds, work = LANES[kind], max(1, ROUNDS[kind] // shrink), Work()
    numbers = be.array(np.array([0.999, 0.001], np.float32))
    for width, depth in CHAINS:
        kernel = be.kernel("helios.bench/peak_fma", be.lanes, WIDTH=width, DEPTH=depth)
        run = lambda kernel=kernel: be.dispatch(kernel, -(-n // be.lanes), x=numbers, o=be.empty((n,)), n=n,
                                                rounds=rounds)
        work.append(("fma", 2.0 * width * depth * rounds * n, run))
    count = COPY_BYTES[kind] // shrink // 4
    source = be.array(np.ones(count, np.float32))
    copy = be.kernel("helios.bench/peak_copy", be.lanes, SPAN=be.span)
    groups = -(-count // (be.lanes * be.span))
    work.append(("copy", 8.0 * count, lambda: be.dispatch(copy, groups, x=source, o=be.empty((count,)), n=count)))
    return work


def _numpy(shrink: int) -> Work:
    side, count = max(256, 2048 // shrink), COPY_BYTES["cpu"] // shrink // 4
    a, source = np.ones((side, side), np.float32), np.ones(count, np.float32)
    return [("fma", 2.0 * side**3, lambda: a @ a), ("copy", 8.0 * count, source.copy)]
