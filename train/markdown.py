"""Pages of Markdown: sections, tables, and the figures in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence


def section(title: str, *paragraphs: str) -> Iterator[str]:
    """Its lines; empty paragraphs are left out."""
    yield from ("", f"## {title}", "")
    for paragraph in filter(None, paragraphs):
        yield from (paragraph, "")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, words: Collection[str] = (),
          aligned: bool = True) -> Iterator[str]:
    """Its lines, none where there are no rows.

    The first `left` columns, and those whose title is in `words`, hold words, the others numbers. aligned: also where
    nothing renders it.
    """
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (titles, *rows)]
    numbers = [i >= left and title not in words for i, title in enumerate(titles)]
    widths = [max(3, *map(len, column)) if aligned else 0 for column in zip(*cells, strict=True)]
    rule = [(":" if number else "-").rjust(max(3, width), "-") for number, width in zip(numbers, widths, strict=True)]
    if len(cells) > 1:
        for row in (cells[0], rule, *cells[1:]):
            line = (cell.rjust(width) if number else cell.ljust(width)
                    for cell, number, width in zip(row, numbers, widths, strict=True))
            yield f"| {' | '.join(line)} |"


def figure(x: float | None) -> str:
    """Three digits or more."""
    if x is None:
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 1 else f"{x:.3f}"
