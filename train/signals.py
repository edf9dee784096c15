"""The signals that ask for an end of what is under way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def caught(stop: Callable[[int], object]) -> Iterator[None]:
    """Call `stop` with the number of each of SIGNALS that comes, between any two instructions of the main thread."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handler
        yield
        return
    # What is ignored stays so: SIGHUP under nohup, SIGINT in a shell's background job.
    before = {number: signal.signal(number, lambda number, frame: stop(number)) for number in SIGNALS
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told(text: str) -> None:
    """Say on standard error, from within `stop`, that a signal was understood: past Python's own buffer, in whose use
    it may have come."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
