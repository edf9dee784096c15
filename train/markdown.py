"""Markdown pages: sections, tables and the figures in them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from tabulate import tabulate

YES_NO = {None: "–", True: "yes", False: "no"}
MARKUP = re.compile(r"[\\`*\[\]<>&~]|(?<!\w)_|_(?!\w)|^[-+=#](?![\d.])")
NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


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
    return _whole(x) if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 1 else f"{x:.3f}"


def loss(x: float | None) -> str:
    """Return a loss in nats."""
    return number(x, ".3f")


def exact(x: float) -> str:
    """Return a figure with the digits that it was given with."""
    return f"{x:,.10g}"


def norm(x: float | None) -> str:
    """Return a gradient norm."""
    return "–" if x is None else _whole(x) if x >= 100 else f"{x:.2f}"


def _whole(x: float) -> str:
    return f"{x:,.0f}" if abs(x) < 1e9 else f"{x:.2e}"


def percent(x: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if x is None else f"{100 * x:.1f} %"


def share_of(part: int, whole: int) -> str:
    """Return a share in words, as "52 of 283, 18.4 %"."""
    return f"{part:,} of {whole:,}" + (f", {percent(part / whole)}" if part else "")


def of_steps(part: int, whole: int) -> str:
    """Return a number of steps in words, as "52 of 283 steps (18.4 %)"."""
    return f"{part:,} of {whole:,} steps" + (f" ({percent(part / whole)})" if part else "")


def listed(words: Sequence[str]) -> str:
    """Return a list in words, as "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def duration(seconds: float | None) -> str:
    """Return a time in words, as "4 h 10 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


# -- texts that others wrote -------------------------------------------------------------------------------------------

def plain(text: object) -> str:
    """Return a text in one line, with a substitute for each character that shows nothing or turns others around."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)


def escaped(text: object) -> str:
    """Return a text in one line of which nothing is markup, in a paragraph as in a cell of a table."""
    return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", plain(text)))


def words(text: str) -> str:
    """Return the line of Markdown as a terminal shows it, without the marks of what was escaped or is code."""
    return re.sub(r"\\([!-/:-@\[-`{-~])|`", r"\1", text)


def block(lines: Iterable[str]) -> list[str]:
    """Return the lines as a block of code, which nothing in them ends."""
    shown = [line.rstrip() for line in lines]
    fence = "`" * max(3, 1 + max((len(run) for line in shown for run in re.findall("`+", line)), default=0))
    return [fence, *shown, fence]
