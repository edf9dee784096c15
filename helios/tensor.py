"""Tensor: an array on a device, and the gradient that flows to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from helios import tape
from helios.backends import get_backend
from helios.backends.backend import Array, Backend, Shape


class Tensor:
    """A float32 or int32 array on a backend. `+`, `-`, `*` take equal shapes; only `*` and `/` take a Python number."""

    __slots__ = ("backend", "data", "grad", "grad_home", "node", "requires_grad")

    def __init__(self, data: Array, backend: Backend, requires_grad: bool = False, node: tape.Node | None = None
                 ) -> None:
        self.data, self.backend, self.requires_grad, self.node = data, backend, requires_grad, node
        self.grad: Tensor | None = None
        self.grad_home: Array | None = None  # where an optimizer wants the gradient to be

    @property
    def shape(self) -> Shape:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the device."""
        return self.backend.numpy(self.data)

    def item(self) -> float:
        return self.numpy().item()

    def backward(self, scale: Tensor | None = None) -> None:
        """Add d(self·scale)/d(leaf) to every leaf's grad. self is a scalar, its tape can be run once; scale, a scalar
        (1 where left out), is AdamW's loss_scale."""
        tape.backward(self, scale)

    def accumulate(self, grad: Array, take: bool = False) -> None:
        """grad += `grad`, in grad_home where there is one. `take`: nothing else will use `grad`."""
        if self.grad is not None:
            grad, take = self.backend.axpby(self.grad.data, grad, 1.0, 1.0), True
        if self.grad_home is not None:
            self.backend.assign(self.grad_home, grad, take)
            grad = self.grad_home
        self.grad = Tensor(grad, self.backend)

    def reshape(self, *shape: int) -> Tensor:
        return ops.reshape(self, shape)

    def sum(self) -> Tensor:
        return ops.sum(self)

    def __add__(self, other: Tensor) -> Tensor:
        return ops.add(self, other)

    def __sub__(self, other: Tensor) -> Tensor:
        return ops.sub(self, other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return ops.mul(self, other) if isinstance(other, Tensor) else ops.scale(self, float(other))

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Tensor:
        return ops.scale(self, 1.0 / other)

    def __neg__(self) -> Tensor:
        return ops.scale(self, -1.0)

    def __matmul__(self, other: Tensor) -> Tensor:
        return ops.matmul(self, other)

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype}, device={self.backend.name})"


def tensor(value: Any, device: str | Backend = "vulkan", requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of `value` (anything numpy takes; floats become float32, integers int32)."""
    backend = get_backend(device)
    return Tensor(backend.array(np.asarray(value)), backend, requires_grad)


from helios import ops  # noqa: E402  (ops builds Tensors, Tensor's operators call ops)
