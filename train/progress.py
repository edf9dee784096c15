"""What the user sees of a run: a live line on a terminal, plain lines elsewhere, the last one only if quiet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines where there is no terminal


class Display:
    """Rows of metrics, messages and samples, on a console."""

    def __init__(self, steps: int, quiet: bool = False, console: Console | None = None) -> None:
        self.steps, self.quiet = steps, quiet
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.val = "–"
        self.rate: float | None = None  # a running mean: single steps jump about
        self.said = 0.0
        self.bar: Progress | None = None

    def start(self, step: int) -> None:
        if self.quiet or not self.console.is_terminal:
            return
        bar = [BarColumn(min(24, self.console.width - 90))] if self.console.width > 95 else []
        self.bar = Progress(MofNCompleteColumn(), *bar, TextColumn("{task.fields[values]}"), TextColumn("ETA"),
                            TimeRemainingColumn(), console=self.console, refresh_per_second=4)
        self.task = self.bar.add_task("", total=self.steps, completed=step, values="first step: preparing kernels")
        self.bar.start()

    def row(self, row: Mapping[str, Any]) -> None:
        """A recorded step."""
        if row["val_loss"] is not None:
            self.val = f"{row['val_loss']:.4f}"
        speed = row["tokens_per_sec"]
        self.rate = speed if self.rate is None or row["step"] < 4 else 0.9 * self.rate + 0.1 * speed
        values = (f"loss {row['loss']:.4f}  val {self.val}  lr {row['lr']:.2e}  norm {row['grad_norm']:.2f}  "
                  f"{self.rate:,.0f} tok/s")
        if self.bar is not None:
            self.bar.update(self.task, completed=row["step"], values=values)
        elif not self.quiet:
            now, step = time.monotonic(), row["step"]
            if step in (1, self.steps) or row["val_loss"] is not None or now - self.said >= PLAIN_SECONDS:
                left = (self.steps - step) * row["ms_per_iter"] / 1000
                self._print(f"step {step}/{self.steps}  {values}  ETA {int(left) // 60}:{int(left) % 60:02d}")
                self.said = now

    def say(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def final(self, text: str) -> None:
        self._print(text)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        if self.bar is not None:
            self.bar.refresh()  # or the line redrawn below the text would be an older one
        self.console.print(Text(text))  # not a str: what a model says may look like markup
