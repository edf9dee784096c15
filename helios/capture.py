"""Record a function once, replay it: on Vulkan, one queue submit a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from helios.backends.backend import Array, Backend, Program
from helios.tensor import Tensor, replaced


class Capture:
    """A function of tensors as a function of numpy arrays.

    fn: runs once for each new set of input shapes; later calls replay the device work it did and nothing else, so what
    it does in Python happens once. It returns a tuple of tensors, whose values every call returns. Inputs are float or
    int32. keep: how many recordings to hold, the latest used ones (0: all).
    """

    def __init__(self, fn: Callable[..., Sequence[Tensor]], backend: Backend, keep: int = 0) -> None:
        self.fn, self.backend, self.keep = fn, backend, keep
        self.programs: dict[tuple, Program] = {}  # the one of the last call at the end

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.submit(*inputs)()

    def submit(self, *inputs: np.ndarray) -> Callable[[], tuple[np.ndarray, ...]]:
        """Start a call; the returned function waits for it and gives the values."""
        return self.prepare(*inputs).submit(inputs)

    def prepare(self, *inputs: np.ndarray) -> Program:
        """Return the recording for inputs of these shapes, which is made if it is not there; nothing is computed."""
        key = tuple((x.shape, x.dtype) for x in inputs)
        program = self.programs.pop(key, None)
        if program is None:
            if self.keep and len(self.programs) >= self.keep:
                del self.programs[next(iter(self.programs))]  # first, for it may be its memory that the new one needs
            try:
                program = self.backend.record(self._arrays, key)
            except BaseException:
                for tensor, grad in replaced.grads.values():
                    tensor.grad = grad
                raise
            finally:
                replaced.grads = {}
        self.programs[key] = program
        return program

    def _arrays(self, *inputs: Array) -> list[Array]:
        return [out.data for out in self.fn(*(Tensor(x, self.backend) for x in inputs))]
