"""Programs of a backend that computes at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from helios.backends.backend import Dispatch, Shape


class Marks(threading.local):
    """When the phases of this thread's replay under way began; nothing where none is."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, float]] | None = None  # in seconds

    def __call__(self, phase: str) -> None:
        if self.starts is not None:
            self.starts.append((phase, time.perf_counter()))


class EagerProgram:
    """A Program that records nothing: `submit` calls a function of the inputs, and waits for it."""

    kernels: Sequence[str] = ()
    dispatches = barriers = arena_bytes = 0

    def __init__(self, run: Callable[[Sequence[np.ndarray]], tuple[np.ndarray, ...]], shapes: Sequence[Shape],
                 marks: Marks) -> None:
        self.run, self.shapes, self.marks = run, list(shapes), marks
        self.phases: dict[str, float] = {}

    def submit(self, inputs: Sequence[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
        """Call the function. Raises ValueError for inputs of other shapes than it was recorded for."""
        given = [x.shape for x in inputs]
        if given != self.shapes:
            raise ValueError(f"recorded for inputs of shapes {self.shapes}, got {given}")
        marks = self.marks
        outer, marks.starts = marks.starts, [("fwd", time.perf_counter())]
        try:
            outputs = self.run(inputs)
            starts = [*marks.starts, ("", time.perf_counter())]
        finally:
            marks.starts = outer
        self.phases = {}
        for (phase, start), (_, end) in itertools.pairwise(starts):
            self.phases[phase] = self.phases.get(phase, 0.0) + (end - start) * 1000
        return lambda: outputs

    def profile(self) -> list[Dispatch]:
        return []
