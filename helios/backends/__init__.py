"""Backends: the same primitives on numpy (the oracle) and on Vulkan."""

from __future__ import annotations

from functools import cache

from helios.backends.backend import Backend
from helios.errors import UserError

NAMES = ("vulkan", "cpu_ref")


@cache
def _make(name: str, device: str | None) -> Backend:
    if name == "cpu_ref":
        from helios.backends.cpu_ref import CpuRef

        return CpuRef()
    if name == "vulkan":
        from helios.backends.vulkan.backend import VulkanBackend

        return VulkanBackend(device)
    raise UserError(f"unknown backend {name!r}; there are {' and '.join(NAMES)}")


def get_backend(name: str | Backend, device: str | None = None) -> Backend:
    """The backend of that name, made once a process; `device` chooses a Vulkan device by index or part of its name."""
    return _make(name, device) if isinstance(name, str) else name
