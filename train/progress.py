"""What the user sees of a run: a live line on a terminal, plain lines elsewhere, only the last line if quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

WIDEST = 1000  # characters in a row of a table
SHORTEST, LONGEST = 8, 24  # characters of a progress bar
PLAIN_SECONDS = 10.0  # between lines where there is no terminal


class Output:
    """A text file whose content may get lost: after a write fails (its reader has gone, the disk is full), all further
    output is discarded, what Python writes at exit included."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, text: str) -> int:
        try:
            return self.file.write(text)
        except OSError:
            self.discard()
            return len(text)

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError:
            self.discard()

    def discard(self) -> None:
        """Let all further output go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def show(console: Console, table: Table) -> None:
    """Print a table, its cells uncut and its rows unbroken: where a terminal is too narrow, it becomes several tables,
    each with the first column and as many others as there is room for."""
    options, terminal = console.options.update(width=WIDEST), console.width
    width = lambda part: Measurement.get(console, options, part).maximum
    first, *rest = table.columns
    while True:
        n = len(rest)
        while console.is_terminal and n > 1 and width(_part(table, [first, *rest[:n]])) > terminal:
            n -= 1
        part = _part(table, [first, *rest[:n]])
        console.width = max(terminal, width(part))
        console.print(part)
        console.width = terminal
        if not (rest := rest[n:]):
            return


def _part(table: Table, columns: Sequence[Column]) -> Table:
    """Return a table of some columns of another."""
    part = copy(table)
    part.columns = [replace(column, _index=i) for i, column in enumerate(columns)]
    return part


class Line(ProgressColumn):
    """The live line: label, step, a bar, values and the time left. What a terminal has no room for is left out: first
    the bar, then the values after loss and val, then the end of the label."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self.console, self.time = console, TimeRemainingColumn()

    def render(self, task: Task) -> RenderableType:
        label, values, width = task.description, list(task.fields["values"]), self.console.width - 1
        step, left = f"{task.completed:.0f}/{task.total:.0f}", f"ETA {self.time.render(task)}"
        text = lambda: "  ".join(filter(None, (label, step, *values, left)))
        while len(text()) > width and len(values) > 2:
            values.pop()
        if (over := len(text()) - width) > 0 and label:
            label = f"{label[:-over - 1]}…" if len(label) > over + 1 else ""
        if (room := width - len(text()) - 2) < SHORTEST:
            return Text(text())
        grid = Table.grid(padding=(0, 2, 0, 0))
        bar = BarColumn(min(LONGEST, room)).render(task)
        grid.add_row(*map(Text, filter(None, (label, step))), bar, *map(Text, (*values, left)))
        return grid


class Display:
    """Shows metrics, messages and samples on a console."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.first, self.steps, self.label = 0, 0, ""
        file = cast(TextIO, Output(sys.stdout)) if sys.stdout else None
        self.console = console or Console(file=file, highlight=False, soft_wrap=True)
        self.said = 0.0
        self.bar: Progress | None = None

    def start(self, first: int, steps: int, done: int = 0, label: str = "") -> None:
        """Begin to show a stage of `steps` steps, which follows the run's step `first`; `done` of them are done."""
        self.first, self.steps, self.label = first, steps, label and f"{label}: "
        self.val, self.val_step = "–", 0
        self.rate: float | None = None  # tokens/s, a running mean, since single steps vary
        if self.quiet or not self.console.is_terminal:
            return
        self.bar = Progress(Line(self.console), console=self.console, refresh_per_second=4)
        self.task = self.bar.add_task(self.label.rstrip(), total=self.steps, completed=done,
                                      values=["first step: preparing kernels"])
        self.bar.start()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a recorded step."""
        step = row["step"] - self.first
        if row["val_loss"] is not None:
            self.val, self.val_step = f"{row['val_loss']:.4f}", step
        speed = row["tokens_per_sec"]
        self.rate = speed if self.rate is None or step < 4 else 0.9 * self.rate + 0.1 * speed
        old = self.bar is None and 0 < self.val_step < step
        val = f"{self.val}@{self.val_step}" if old else self.val
        values = [f"loss {row['loss']:.4f}", f"val {val}", f"lr {row['lr']:.2e}", f"norm {row['grad_norm']:.2f}",
                  f"{self.rate:,.0f} tok/s"]
        if self.bar is not None:
            self.bar.update(self.task, completed=step, values=values)
        elif not self.quiet:
            now = time.monotonic()
            if step in (1, self.steps) or row["val_loss"] is not None or now - self.said >= PLAIN_SECONDS:
                left = (self.steps - step) * row["ms_per_iter"] / 1000 * speed / self.rate
                # The first step has prepared the kernels, and is no measure of the others.
                left_text = f"ETA {int(left) // 60}:{int(left) % 60:02d}" if step > 1 else "ETA –"
                self._print(f"{self.label}step {step}/{self.steps}  {'  '.join(values)}  {left_text}")
                self.said = now

    def say(self, text: str) -> None:
        """Print a message, unless quiet."""
        if not self.quiet:
            self._print(text)

    def show(self, what: Table) -> None:
        """Print a table, unless quiet."""
        if not self.quiet:
            show(self.console, what)

    def warn(self, text: str) -> None:
        """Print a warning on standard error, quiet or not."""
        if sys.stderr:
            print(text, file=Output(sys.stderr), flush=True)

    def final(self, text: str) -> None:
        """Print a message, quiet or not."""
        self._print(text)

    def stop(self) -> None:
        """End the live line, if there is one."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        if self.bar is not None:
            self.bar.refresh()  # else an older line would be drawn again below the text
        self.console.print(Text(text))  # in a str, what a model says could be taken for markup
