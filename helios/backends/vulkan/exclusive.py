"""Who may use a backend: one thread at a time, of the process that opened it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from helios.errors import DeviceLost


def check_process(pid: int, what: str) -> None:
    """Raise RuntimeError where this is not the process `pid`, which opened `what`, but one forked from it."""
    if os.getpid() != pid:
        raise RuntimeError(f"{what} was opened in process {pid}, and this process, {os.getpid()}, was forked from it: "
                           "no Vulkan device survives that. Start processes by spawn, as "
                           "multiprocessing.get_context('spawn') does, or open the device after the fork alone")


def at_exit(call: Callable[..., object], *args: Any) -> None:
    """Call at the end of this process, but of none that is forked from it."""
    pid = os.getpid()
    atexit.register(lambda: call(*args) if os.getpid() == pid else None)


def exclusive(*names: str) -> Callable[[type], type]:
    """Let one thread at a time into these methods of a class whose objects have a Queue as `queue`.

    A thread that is in may call them again. Who comes in after an interrupt settles first what that left open.
    """
    def decorate(cls: type) -> type:
        for name in names:
            setattr(cls, name, _exclusive(getattr(cls, name)))
        return cls
    return decorate


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        queue = self.queue
        check_process(queue.pid, queue.device.profile.name)
        with queue.lock:
            if queue.device.lost:
                raise DeviceLost(queue.device.lost)
            if queue.unsettled is not None:
                queue.unsettled()
            return method(self, *args, **kwargs)
    return call


def functions(cls: type) -> Iterable[str]:
    """Return the names of the public functions that a class itself defines."""
    return (name for name, value in vars(cls).items() if callable(value) and not name.startswith("_"))
