"""What the Vulkan backend computes with."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np

from helios.backends.backend import Shape
from helios.backends.vulkan.memory import Handle
from helios.backends.vulkan.stream import Range

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int32)


def not_pickled(thing: object) -> NoReturn:
    """Stand in for `__reduce__`, by which things are pickled and copied."""
    raise TypeError("what is on a Vulkan device is neither pickled nor copied: pass on what Tensor.numpy() or a "
                    "model's state_dict() gives, and let get_backend() open the device there")


class VkArray:
    """A shape over contiguous bytes of a block, of float32 or int32."""

    __slots__ = ("dtype", "handle", "offset", "shape")
    __reduce__ = not_pickled

    def __init__(self, handle: Handle, offset: int, shape: Shape, dtype: np.dtype) -> None:
        self.handle, self.offset, self.shape, self.dtype = handle, offset, shape, dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    def range(self, access: str) -> Range:
        """Return its bytes, to be used as `access` says."""
        return Range(self.handle.block, self.offset, self.nbytes, access)
