"""A run's rows for TensorBoard, in the folder tensorboard/ of its directory: numbers as scalars, samples as text.

To import this raises UserError where the library that writes them is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.records.layout import METRICS, SAMPLES
from helios.train.records.rows import lines

try:
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
except ModuleNotFoundError as error:
    raise UserError("--log tensorboard needs the package tensorboardX; install it: pip install tensorboardX") from error

FOLDER = "tensorboard"
FLUSH = 5.0  # seconds between writes to the disk


class TensorBoard:
    """Hears the rows that Records writes; a new folder begins with those that there are.

    first: the step from which on the rows of earlier files are void, since the run goes on before it. What goes wrong
    ends this log, not the run: `warn` is told, once.
    """

    def __init__(self, run: Path, first: int, warn: Callable[[str], object]) -> None:
        self.warn, self.flushed = warn, 0.0
        self.writer: Any = None
        folder = run / FOLDER
        old = () if folder.exists() else WRITTEN
        self._guarded(self._open, folder, first)
        for name in old:
            for _, row in lines(run / name):
                self.row(name, row)

    def row(self, name: str, row: Mapping[str, Any]) -> None:
        """Write a row of the file `name`; one of events is left out."""
        if self.writer and name in WRITTEN:
            self._guarded(lambda: self._event(row["step"], summary=WRITTEN[name](row)))

    def close(self) -> None:
        """Close the file."""
        if self.writer:
            self._guarded(self.writer.close)

    def _open(self, folder: Path, first: int) -> None:
        folder.mkdir(exist_ok=True)
        # A file for each start. The library's SummaryWriter would write in a thread that ends at the first error, and
        # then have the training wait for ever.
        self.writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._event(first, session_log=SessionLog(status=SessionLog.START))  # readers drop what comes after

    def _event(self, step: int, **content: Any) -> None:
        self.writer.write_event(Event(wall_time=time.time(), step=step, **content))
        if time.monotonic() - self.flushed > FLUSH:
            self.writer.flush()
            self.flushed = time.monotonic()

    def _guarded(self, work: Callable[..., object], *args: Any, **more: Any) -> None:
        try:
            work(*args, **more)
        except Exception as error:  # of the file system, or of a library that is not ours
            self.writer = None
            self.warn(f"warning: the log for TensorBoard ends here: {error}")


def numbers(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Yield a row's numbers by their columns; one within a column after that one's name and a slash."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{key}/")
        elif isinstance(value, int | float):
            yield f"{above}{key}", float(value)


def _scalars(row: Mapping[str, Any]) -> Any:
    return Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in numbers(row) if tag != "step"])


def _said(row: Mapping[str, Any]) -> Any:
    """Return the text by its prompt; indented, it is shown as it is, and not as Markdown."""
    return summary.text(f"samples/{row['prompt']}", "".join(f"    {line}\n" for line in row["text"].splitlines()))


WRITTEN: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {METRICS: _scalars, SAMPLES: _said}
