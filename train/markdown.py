"""Markdown pages: sections, tables and the figures in them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

from tabulate import tabulate

YES_NO = {None: "–", True: "yes", False: "no"}


def section(title: str, *paragraphs: str) -> Iterator[str]:
    """Yield the lines of a section; empty paragraphs are left out."""
    yield from ("", f"## {title}", "")
    for paragraph in filter(None, paragraphs):
        yield from (paragraph, "")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, words: Collection[str] = ()
          ) -> list[str]:
    """Return the lines of a table; none where there are no rows. The first `left` columns and those titled in `words`
    are aligned to the left, the others, of numbers, to the right."""
    head, *cells = [[" ".join(cell.replace("|", "\\|").split()) for _, cell in zip(titles, row, strict=True)]
                    for row in (titles, *rows)]
    align = ["left" if i < left or title in words else "right" for i, title in enumerate(titles)]
    return tabulate(cells, head, "pipe", colalign=align, disable_numparse=True).splitlines() if cells else []


def number(x: float | None, form: str) -> str:
    """Return a number in a format; "–" for None, "not finite" where it is not."""
    return "–" if x is None else format(x, form) if math.isfinite(x) else "not finite"


def with_error(x: float | None, error: float | None, form: str) -> str:
    """Return a number and, where it is known, its standard error, in a format."""
    return number(x, form) + ("" if error is None else f" ± {number(error, form.lstrip('+'))}")


def figure(x: float | None) -> str:
    """Return a figure with three digits or more, "–" for None."""
    if x is None:
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 1 else f"{x:.3f}"
