"""Tensor: an array on a device, and the gradient that flows to it; its arithmetic.

An operation checks its arguments, computes through a primitive of its tensors' backend and is recorded on the tape.
Shapes that do not fit raise ValueError, wrong dtypes TypeError, both before any device work.
"""

from __future__ import annotations

import numbers
import threading
from typing import Any, NoReturn

import numpy as np

from helios import tape
from helios.backends import get_backend
from helios.backends.backend import Array, Backend, Shape

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Tensor:
    """A float32 or int32 array on a backend. `+`, `-`, `*` take a Tensor of equal shape or a number, `/` a number."""

    __slots__ = ("backend", "data", "grad", "grad_home", "node", "requires_grad")
    __array_ufunc__ = None  # numpy leaves arithmetic to the operators below
    __hash__ = object.__hash__

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
        """Return a copy on the host, after waiting for the device."""
        return self.backend.numpy(self.data)

    def item(self) -> float:
        """Return the only element. Raises ValueError where there are several."""
        if self.size != 1:
            raise ValueError(f"expected one element, but this tensor has shape {self.shape}; numpy() gives all")
        return self.numpy().item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("numpy cannot share a tensor's memory, only copy it")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of shape () has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError("a tensor has no indices: take numpy()[…], or rows of it with ops.embedding(tensor, rows)")

    def __iter__(self) -> NoReturn:
        raise TypeError("a tensor has no iterator: go through numpy()")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("tensors have no ==: compare what numpy() gives, or tell objects apart by `is`")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a copy on the same device, with neither gradient nor tape."""
        return Tensor(self.backend.array(self.numpy()), self.backend, self.requires_grad)

    def backward(self, scale: Tensor | None = None) -> None:
        """Add d(self·scale)/d(leaf) to every leaf's grad. self is a scalar, its tape can be run once; scale, a scalar
        (1 where left out), is AdamW's loss_scale."""
        tape.backward(self, scale)

    def accumulate(self, grad: Array, take: bool = False) -> None:
        """Add `grad` to self.grad, in grad_home where there is one. take: nothing else will use `grad`."""
        if self.backend.recording:
            replaced.grads.setdefault(id(self), (self, self.grad))
        if self.grad is not None:
            grad, take = self.backend.axpby(self.grad.data, grad, 1.0, 1.0), True
        if self.grad_home is not None:
            self.backend.assign(self.grad_home, grad, take)
            grad = self.grad_home
        self.grad = Tensor(grad, self.backend)

    def reshape(self, *shape: int) -> Tensor:
        """Return the same elements in row-major order under another shape; one length may be -1."""
        if -1 in shape:
            rest = -int(np.prod(shape, dtype=np.int64))
            shape = tuple(self.size // rest if n == -1 and rest else n for n in shape)
        if int(np.prod(shape, dtype=np.int64)) != self.size or min(shape, default=1) < 0:
            raise ValueError(f"reshape: {self.shape} does not fit {shape}")
        return record("reshape", (self,), (self.backend.reshape(self.data, shape),))

    def sum(self) -> Tensor:
        """Return the sum of all elements, in a fixed order, of shape ()."""
        check("sum", self)
        return record("sum", (self,), (self.backend.sum(self.data),))

    def matmul(self, other: Tensor, ta: bool = False, tb: bool = False) -> Tensor:
        """Return op(self)·op(other), op transposing the last two axes where ta, tb; self [..., M, K], other [K, N] or
        with self's leading axes."""
        check("matmul", self, other)
        a, b = self.shape, other.shape
        what = f"matmul: {a}{'ᵀ' * ta} · {b}{'ᵀ' * tb}"
        if len(a) < 2 or len(b) < 2:
            raise ValueError(f"{what}: both need at least two axes")
        if a[-2 if ta else -1] != b[-1 if tb else -2]:
            raise ValueError(f"{what}: the inner lengths differ")
        if b[:-2] not in ((), a[:-2]) or (ta and b[:-2] != a[:-2]):
            raise ValueError(f"{what}: the leading axes differ")
        return record("matmul", (self, other), (self.backend.matmul(self.data, other.data, ta, tb),), ta=ta, tb=tb)

    def __add__(self, other: Tensor | float) -> Tensor:
        other = self._filled("add", other)
        check_same("add", self, other)
        return record("add", (self, other), (self.backend.axpby(self.data, other.data, 1.0, 1.0),))

    __radd__ = __add__

    def __sub__(self, other: Tensor | float) -> Tensor:
        other = self._filled("sub", other)
        check_same("sub", self, other)
        return record("sub", (self, other), (self.backend.axpby(self.data, other.data, 1.0, -1.0),))

    def __rsub__(self, other: float) -> Tensor:
        return self._filled("sub", other) - self

    def _filled(self, op: str, value: Tensor | float) -> Tensor:
        """Return a tensor as it is, a number in this one's shape."""
        if isinstance(value, Tensor):
            return value
        be = self.backend
        return Tensor(be.expand(be.array(np.asarray(number(op, value))), self.shape), be)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return elementwise("mul", self, other) if isinstance(other, Tensor) else elementwise(
            "scale", self, alpha=number("mul", other))

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Tensor:
        return self * (1.0 / number("div", other, "a number"))

    def __rtruediv__(self, other: Any) -> NoReturn:
        raise TypeError("div: nothing is divided by a tensor; divide by what numpy() or item() gives")

    def __neg__(self) -> Tensor:
        return self * -1.0

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matmul(other)

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype}, device={self.backend.name})"


class Replaced(threading.local):
    """The gradients that tensors had before the function that this thread records changed them. Where it fails they
    have them again, for the others will not be computed."""

    def __init__(self) -> None:
        self.grads: dict[int, tuple[Tensor, Tensor | None]] = {}


replaced = Replaced()


def tensor(value: Any, device: str | Backend = "vulkan", requires_grad: bool = False) -> Tensor:
    """Return a Tensor with a copy of `value` (anything numpy takes; floats become float32, integers int32)."""
    backend = get_backend(device)
    return Tensor(backend.array(np.asarray(value)), backend, requires_grad)


def number(op: str, value: Any, expected: str = "a Tensor or a number") -> float:
    """Return what `op` is given as a float. Raises TypeError for what is no real number, ValueError for one that
    float32 does not hold."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: expected {expected}, got {type(value).__name__}; tensor(value, device) makes a Tensor")
    if FLOAT32_MAX < abs(found := float(value)) < np.inf:
        raise ValueError(f"{op}: {value} is more than float32 holds")
    return found


# -- what operations are made of --------------------------------------------------------------------------------------
def record(op: str, tensors: tuple[Tensor | None, ...], outputs: tuple[Array, ...], **attrs: Any) -> Tensor:
    """Return the first output as a tensor, on the tape if one of `tensors` requires a gradient."""
    backend = next(t.backend for t in tensors if t is not None)
    node = None
    if any(t is not None and t.requires_grad for t in tensors):
        inputs = tuple(None if t is None else t.data for t in tensors)
        node = tape.Node(op, tensors, inputs, outputs, attrs)
    return Tensor(outputs[0], backend, node is not None, node)


def check(op: str, *tensors: Tensor | None) -> None:
    """Raise unless all that are given are on one backend, and floating point."""
    given = [t for t in tensors if t is not None]
    for t in given:
        if t.backend is not given[0].backend:
            raise ValueError(f"{op}: tensors on {given[0].backend.name} and on {t.backend.name}")
        if not np.issubdtype(t.dtype, np.floating):
            raise TypeError(f"{op}: expected floating point, got {t.dtype}")


def check_same(op: str, *tensors: Tensor) -> None:
    """Raise unless check() passes and the shapes are equal."""
    check(op, *tensors)
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"{op}: shapes must be equal, got {', '.join(str(t.shape) for t in tensors)}")


def elementwise(op: str, *tensors: Tensor, **attrs: Any) -> Tensor:
    """Compute the primitive `op` of tensors of one shape."""
    check_same(op, *tensors)
    out = getattr(tensors[0].backend, op)(*(t.data for t in tensors), **attrs)
    return record(op, tensors, (out,), **attrs)
