"""Backends: the same primitives on numpy (the oracle) and on Vulkan."""

from __future__ import annotations

from functools import cache
from threading import RLock

from helios.backends.backend import PRECISIONS, Backend
from helios.errors import UserError

NAMES = ("vulkan", "cpu_ref")
_lock = RLock()  # one thread at a time opens a backend


@cache
def _make(name: str, device: str | None, precision: str) -> Backend:
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; there are {' and '.join(PRECISIONS)}")
    if name == "cpu_ref":
        from helios.backends.cpu_ref import CpuRef

        return CpuRef(precision=precision)
    if name == "vulkan":
        from helios.backends.vulkan import selfcheck
        from helios.backends.vulkan.backend import VulkanBackend

        backend = VulkanBackend(device, precision=precision)
        selfcheck.check(backend)
        return backend
    raise UserError(f"unknown backend {name!r}; there are {' and '.join(NAMES)}")


def get_backend(name: str | Backend, device: str | None = None, precision: str = PRECISIONS[0]) -> Backend:
    """Return the backend of that name and precision (see backend.py), made once a process, or the Backend given.

    device: chooses a Vulkan device by index or part of its name. Raises UserError for unknown names and for a device
    that computes wrongly, NoDevice where there is no device.
    """
    if not isinstance(name, str):
        return name
    with _lock:
        return _make(name, device, precision)


def forget() -> None:
    """Let the next `get_backend` make its backend anew, as it must be where a device was lost."""
    _make.cache_clear()
