"""Reports a run to a board while it trains: a thread that reads the run's own files, for which training never waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helios.errors import UserError
from helios.train.records.client import BoardError, Client, patiently, waits
from helios.train.records.log import Cut
from helios.train.records.push import Push

POLL, GATHER = 0.5, 1.0  # seconds between looks at the files, and after a post
SLOWLY = 60.0  # seconds between tries at a board that refuses
LAST = 10.0  # seconds that the end of a training waits for what is still to be sent
BREATH = 1e-4  # seconds for which a long reading lets the training have the interpreter, again and again

Warn = Callable[[str], object]


@contextmanager
def reporting(path: Path, url: str, warn: Warn) -> Iterator[Callable[[], None]]:
    """Report the run in the directory `path` to the board at `url` ("none": to nobody), from the call of what is
    yielded on. At the end, wait at most LAST seconds, and say what is still to be sent.

    warn: shows a warning. Raises UserError where `url` is no address or there is no token, and nothing else.
    """
    if url == "none":
        yield lambda: None
        return
    reporter = Reporter(path, Client(url), warn)
    try:
        yield reporter.begin
    except Exception:
        reporter.end(LAST)
        raise
    except BaseException:  # the user wants it to end at once
        reporter.end(0)
        raise
    reporter.end(LAST)


class Reporter(threading.Thread):
    """Sends what is new in the run directory `path`, until `end`. What goes wrong is told once, and tried again."""

    def __init__(self, path: Path, client: Client, warn: Warn) -> None:
        super().__init__(name="reporter", daemon=True)
        self.client, self.path, self.warn = client, path, warn
        self.push = Push(path, client, warn, lambda: time.sleep(BREATH))
        self.wake, self.ending, self.over = threading.Event(), threading.Event(), threading.Event()
        self.told: set[object] = set()

    def begin(self) -> None:
        """Start, unless that was done."""
        if not self.is_alive():
            self.start()

    def end(self, seconds: float) -> None:
        """Send the rest, for at most that many seconds; then say what is still to be sent, and how."""
        if not self.is_alive():
            return
        self.ending.set()
        self.wake.set()
        try:
            self.join(seconds)
        finally:  # Ctrl-C ends the wait
            if self.is_alive() or not self.push.agreed:
                self.over.set()
                seen = self.push.left  # of those that were read; more may have come since
                left = f"at least {seen:,} rows are" if seen > 1 else "the end of the run is"
                self.warn(f"warning: {left} still to be sent to {self.client.url}: helios-report push {self.path} --to "
                          f"{self.client.url}")

    def run(self) -> None:
        pauses, checked = waits(), False
        while not self.over.is_set():
            if self.ending.is_set() and not checked:
                self.push.agreed, checked = False, True  # and so all is compared with the board once more
            last, sent = checked, self.push.sent
            try:
                more = self.push.round()
                if last and not more:
                    break
                pauses, pause = waits(), 0.0 if more else POLL if self.push.sent == sent else GATHER
            except Exception as error:  # whatever it is, training goes on
                self._tell(error)
                refused = isinstance(error, BoardError) and not error.passing
                if last and refused:
                    break
                pause = SLOWLY if refused else next(pauses)
            self.wake.wait(min(pause, 1) if last else pause)
            self.wake.clear()
        self.push.close()

    def _tell(self, error: Exception) -> None:
        kind = error.status if isinstance(error, BoardError) else type(error)
        if kind not in self.told:
            self.told.add(kind)
            what = str(error) if isinstance(error, BoardError | UserError) else f"{type(error).__name__}: {error}"
            self.warn(f"warning: not reported for now: {what}; the training goes on, and this is tried again")


def push(path: Path, url: str, seconds: float, warn: Warn, progress: Callable[[int, int], object]) -> int:
    """Send what the board at `url` lacks of the run in the directory `path`; return how many rows that were.

    seconds: for which a board that does not answer is tried again. progress: called with the rows that were sent, and
    those to be sent in all. Raises UserError where the directory holds no run, or the board does not take it.
    """
    sent = Push(path, Client(url), warn)
    for _ in range(2):  # the second time all is compared with the board once more
        sent.agreed = False
        try:
            while patiently(sent.round, seconds):
                progress(sent.sent, sent.sent + sent.left)
        except (BoardError, Cut) as error:
            raise UserError(f"{error}; {sent.left:,} rows of {path} are still to be sent: give the same command "
                            f"again") from error
    sent.close()
    return sent.sent
