"""What the display shows fits its terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from helios.train.progress import Display, show


def terminal(width: int) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, highlight=False, soft_wrap=True, color_system=None)
    return console, file


@pytest.mark.parametrize("width", [60, 80, 110, 160])
def test_the_live_line_of_a_search_keeps_what_matters(width: int) -> None:
    console, file = terminal(width)
    display = Display(console=console)
    display.start(1000, 300, 0, "gen 0 Amber-Falcon (kan_spline) seed 1/3")
    for step in range(1, 31):
        display.row({"step": 1000 + step, "loss": 5.12345, "val_loss": 5.4, "lr": 1.7e-3, "grad_norm": 1.19,
                     "tokens_per_sec": 10_746.0, "ms_per_iter": 90.0})
    assert display.bar
    display.bar.refresh()
    display.stop()
    last = [line for line in re.split(r"[\n\r]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())) if line][-1]
    assert len(last) < width
    for words in ("30/300", "loss 5.1235", "val 5.4000", r"ETA \d:\d\d:\d\d", "gen 0 Amber"):
        assert re.search(words, last), last
    assert ("tok/s" in last and "━" in last) == (width == 160)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_row_of_a_table_is_broken(width: int) -> None:
    console, file = terminal(width)
    table = Table("name", "activation", "val loss", "parameters", box=None, pad_edge=False)
    table.add_row("Amber", "kan_spline", "5.4321 ± 0.01", "44,608")
    table.add_row("Blue", "gelu", "5.1 ± 0.01", "44,608")
    show(console, table)
    lines = file.getvalue().splitlines()
    parts = {20: 3, 40: 2, 80: 1}[width]
    assert len(lines) == 3 * parts and all(len(line) <= width for line in lines)
    assert sum(line.startswith("Amber ") for line in lines) == parts
    for cell in ("kan_spline", "5.4321 ± 0.01", "44,608"):
        assert cell in file.getvalue()
