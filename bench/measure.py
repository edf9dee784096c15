"""Measurements of primitives: each is recorded once and replayed in turn with its peer; medians count."""

from __future__ import annotations

import importlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from helios.backends.backend import Array, Backend, Program
from helios.bench.registry import REF, Row
from helios.errors import UserError, nearest

PEERS = ("numpy", "torch", "none")
PAUSE_S = 0.01  # before each sample, since a peer's idle threads go on spinning for some milliseconds


class Effort(NamedTuple):
    rounds: int  # each gives one sample of ours and one of the peer's
    sample_ms: float  # work is repeated until a sample lasts about so long
    warmup: int  # runs before the first sample


FULL, QUICK = Effort(9, 10.0, 2), Effort(3, 0.0, 1)
MAX_REPEATS = 64  # in one sample
ROUNDED = ("matmul", "linear", "attention", "attention_backward")  # what mixed precision gives float16 inputs


class Peaks(NamedTuple):
    """The most that a device reaches, of arithmetic and of memory traffic."""

    gflops: float
    gbps: float

    def fraction(self, gflops: float, gbps: float) -> float:
        """Return which share of the roofline such work reaches: of the peak that limits it."""
        return max(gflops / self.gflops, gbps / self.gbps)


class Sample(NamedTuple):
    device_ms: float  # one repetition by the device's clock, or by the host's where it has none
    wall_ms: float


class Result(NamedTuple):
    row: Row
    variant: str  # the kernels that compute it
    ours: Sample
    gflops: float
    gbps: float
    peer_ms: float | None
    best: float | None  # ratio of both sides' fastest samples, which other load on the machine disturbs least

    def json(self, dtype: str, peaks: Peaks, peer: str | None) -> dict[str, Any]:
        """Return the entry of "rows" in the JSON."""
        return {"op": self.row.op, "shape": self.row.shape, "dtype": dtype, "variant": self.variant,
                "median_ms": self.ours.device_ms, "gflops": self.gflops, "gbps": self.gbps,
                "fraction_of_peak": peaks.fraction(self.gflops, self.gbps), "peer": peer, "peer_ms": self.peer_ms,
                "ratio": None if self.peer_ms is None else self.peer_ms / self.ours.device_ms}


class Timed:
    """The samples of one side's work; `run(times)` does it that often and returns the milliseconds of one."""

    def __init__(self, run: Callable[[int], Sample], effort: Effort) -> None:
        self.run, self.samples = run, list[Sample]()
        once = min(run(1).wall_ms for _ in range(effort.warmup))
        self.times = max(1, min(MAX_REPEATS, math.ceil(effort.sample_ms / max(once, 1e-6))))
        run(self.times)

    def sample(self) -> None:
        time.sleep(PAUSE_S)
        self.samples.append(self.run(self.times))

    def median(self) -> Sample:
        return self._each(statistics.median)

    def best(self) -> Sample:
        return self._each(min)

    def _each(self, fn: Callable[[Iterable[float]], float]) -> Sample:
        return Sample(*(fn(x) for x in zip(*self.samples, strict=True)))


def time_replays(be: Backend, work: Callable[[], Any]) -> Callable[[int], Sample]:
    """Return `work`, which computes on `be`, in the form that Timed takes: a submit holds all repetitions."""
    programs: dict[int, Program] = {}

    def run(times: int) -> Sample:
        def repeat() -> Sequence[Array]:
            be.mark("work")
            for _ in range(times):
                work()
            return []

        if times not in programs:
            programs[times] = be.record(repeat, [])
            programs[times].submit([])()
        start = time.perf_counter()
        programs[times].submit([])()
        wall = (time.perf_counter() - start) * 1e3 / times
        return Sample(programs[times].phases["work"] / times if programs[times].phases else wall, wall)
    return run


def time_calls(work: Callable[[], Any], finish: Callable[[], Any] = lambda: None) -> Callable[[int], Sample]:
    """Return work that starts at once in the form that Timed takes; `finish` waits for its end."""
    def run(times: int) -> Sample:
        start = time.perf_counter()
        for _ in range(times):
            work()
        finish()
        wall = (time.perf_counter() - start) * 1e3 / times
        return Sample(wall, wall)
    return run


def exponent(sizes: Sequence[float], figures: Sequence[float], least: float = 1e-9) -> float:
    """Return the power of the sizes, which rise, by which figures grow: the slope between logarithms, over the three
    largest; NaN of fewer than two. least: what a figure counts as at least."""
    if len(sizes) < 2:
        return math.nan
    slope, _ = np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(figures[-3:], least)), 1)
    return float(slope)


# -- peers -----------------------------------------------------------------------------------------------------------

def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def busy() -> str:
    """Return a warning where other work is running, else "".

    Such work slows threads that wait for one another more than others, so ratios change as well; with one thread a side
    (LP_NUM_THREADS=1 OMP_NUM_THREADS=1) they change least.
    """
    load = os.getloadavg()[0]
    return f"load average {load:.1f} on {cores()} cores before the start: figures are not to be trusted" \
        if load > cores() / 4 else ""


def torch_module() -> Any:
    """Return PyTorch, set to OMP_NUM_THREADS threads, or to cores(). Raises UserError where it is missing."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"--peer torch needs PyTorch ({error}); install it, or choose another --peer") from None
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())
    torch.set_float32_matmul_precision("highest")  # some images round float32 products to TF32 by default
    return torch


def torch_device(be: Backend) -> str:
    """Return PyTorch's name of the kind of device that `be` computes on: "cuda" or "cpu"."""
    return "cuda" if be.device_type != "cpu" and torch_module().cuda.is_available() else "cpu"


def torch_finish(device: str) -> Callable[[], Any]:
    """Return a function that waits for PyTorch's work on a device."""
    return torch_module().cuda.synchronize if device == "cuda" else lambda: None


def time_graph(work: Callable[[], Any]) -> Callable[[int], Sample]:
    """Return work of PyTorch on a GPU in the form that Timed takes: a CUDA graph launches all repetitions at once."""
    torch, graphs = torch_module(), dict[int, Any]()

    def run(times: int) -> Sample:
        if times not in graphs:
            work()  # cuBLAS cannot set itself up within a graph
            torch.cuda.synchronize()
            graphs[times] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[times]):
                for _ in range(times):
                    work()
            graphs[times].replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        graphs[times].replay()
        end.record()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3 / times
        return Sample(begin.elapsed_time(end) / times, wall)
    return run


def peer_work(name: str, row: Row, arguments: Sequence[np.ndarray], device: str = "cpu", precision: str = "f32"
              ) -> Callable[[], Any]:
    """Return the peer's work, whose results are a prefix of the row's. In mixed precision PyTorch's is in float16."""
    if name == "numpy":
        arrays = [REF.array(x) for x in arguments]
        return lambda: row.call(REF, *arrays)
    torch = torch_module()
    real = torch.float16 if precision == "mixed" and row.primitive in ROUNDED else torch.float32
    tensors = [torch.from_numpy(x.copy()).to(device, torch.int64 if x.dtype == np.int32 else real) for x in arguments]
    return row.torch(torch, *tensors)


def peer_side(name: str, row: Row, arguments: Sequence[np.ndarray], device: str, precision: str
              ) -> Callable[[int], Sample]:
    """Return the peer's work in the form that Timed takes."""
    work = peer_work(name, row, arguments, device, precision)
    if device == "cuda" and row.primitive == "matmul":
        return time_graph(work)
    return time_calls(work, torch_finish(device))


# -- rows ------------------------------------------------------------------------------------------------------------

def choose(table: Iterable[Row], only: Sequence[str]) -> list[Row]:
    """Return the rows whose op or primitive is in `only`, all if that is empty. Raises UserError for other names."""
    table = list(table)
    names = {row.op for row in table} | {row.primitive for row in table}
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: no such op{nearest(name, names)}; there are {', '.join(sorted(names))}")
    return [row for row in table if not only or row.op in only or row.primitive in only]


def measure(be: Backend, table: Iterable[Row], peer: str, effort: Effort) -> Iterator[Result]:
    """Measure each row in turn with the peer, and yield its result."""
    device = torch_device(be) if peer == "torch" else "cpu"
    for row in table:
        arguments = row.arguments()
        arrays = [be.array(x) for x in arguments]
        outputs = row.outputs(row.call(be, *arrays))
        be.numpy(outputs[0])
        sides = [Timed(time_replays(be, partial(row.call, be, *arrays)), effort)]
        if peer != "none":
            sides.append(Timed(peer_side(peer, row, arguments, device, be.precision), effort))
        for _ in range(effort.rounds):
            for side in sides:
                side.sample()
        ours, *theirs = (side.median() for side in sides)
        best, *their_best = (side.best().device_ms for side in sides)
        yield Result(row, variant(be, row, arrays), ours, row.flops / ours.device_ms / 1e6,
                     row.bytes(arguments, outputs) / ours.device_ms / 1e6, theirs[0].device_ms if theirs else None,
                     their_best[0] / best if their_best else None)


def variant(be: Backend, row: Row, arrays: Sequence[Array]) -> str:
    """Return the names of the kernels that compute a row, joined by +."""
    program = be.record(lambda: [row.call(be, *arrays)][:0], [])
    return "+".join(dict.fromkeys(program.kernels)) or be.name
