"""The report of a run, or of several side by side: which sections there are, and the files they make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from helios.files import write_files
from helios.train.history import Historic
from helios.train.markdown import plain
from helios.train.report import against, facts, findings, gradients, html, losses, plots, searching, side_by_side, speed
from helios.train.report.reading import RunData

STEM, MARKDOWN, HTML = "report", ".md", ".html"
SEARCH_SPEED = f"{searching.PREFIX}speed.png"
CAPTIONS = {SEARCH_SPEED: "Of the steps of the search alone:"}


class Section(NamedTuple):
    """A section of a page; one without lines and pictures is left out."""

    title: str
    lines: Callable[[RunData], Iterable[str]]
    pictures: tuple[str, ...] = ()  # file names of those below the lines, where they are drawn


def sections(pictures: Collection[str]) -> tuple[Section, ...]:
    """Return the sections of a run's report. pictures: the names of those that there are."""
    return (
        Section("Overview", lambda run: facts.compared(facts.OVERVIEW, [run])),
        Section("What to look at", findings.section),
        Section("Loss", lambda run: _joined(losses.summary(run), losses.ranges(run)), ("loss.png",)),
        Section("Milestones", losses.at_milestones, ("lr.png",)),
        Section("Validation", losses.evaluations),
        Section("Search", lambda run: searching.section(run, pictures)),
        Section("Gradient norms", gradients.norms, ("gradients.png",)),
        Section("Clipping", gradients.clipping),
        Section("Throughput", speed.throughput, ("throughput.png", SEARCH_SPEED)),
        Section("Step time", speed.breakdown, ("steps.png",)),
        Section("Alerts", gradients.alerts),
        Section("Weights", gradients.weights, ("weights.png",)),
        Section("Gradient norms by layer", gradients.layers, ("layers.png",)),
        Section("Samples", facts.samples),
        Section("Checkpoints", facts.checkpoints),
        Section("Model", lambda run: _joined(facts.settings(run, "model"), facts.derived(run))),
        Section("Training", lambda run: facts.settings(run, "train")),
        Section("Settings of the search", lambda run: _joined(facts.budget(run), facts.settings(run, "search"))),
        Section("Settings of the monitors", lambda run: facts.settings(run, "monitor")),
        Section("Training data", facts.texts),
        Section("Infrastructure", lambda run: facts.compared(facts.MACHINE, [run])),
        Section("Events of note", facts.events),
        Section("Records", facts.records),
        Section("How “What to look at” is found", lambda run: findings.rules([run])),
    )


def write(runs: Sequence[RunData], folder: Path, as_html: bool = False, beside: Historic | None = None) -> Path:
    """Write the report of a run, or of several side by side, into a folder; return the page's path.
    as_html: one HTML file with all pictures in it, instead of Markdown beside them. beside: the historic run whose
    figures are compared with theirs instead. Raises UserError."""
    stem = f"against-{beside.name}" if beside else STEM
    if beside:
        pictures, named = plots.overlaid(runs, beside), against.named(runs)
        title, lines = against.title(beside, named), against.lines(beside, named, pictures=pictures)
    elif len(runs) == 1:
        pictures = plots.draw(runs[0]) | searching.draw(runs[0])
        title, lines = f"Run {facts.names(runs)[0]}", of_one(runs[0], pictures)
    else:
        pictures = plots.overlaid(runs)
        title, lines = f"{len(runs)} runs side by side", of_several(runs, pictures)
    text = "\n".join([f"# {title}", *lines]) + "\n"
    if as_html:
        head = plain(runs[0].about["run_id"]) if len(runs) == 1 else title
        files = {stem + HTML: html.page(text, pictures, head).encode()}
    else:
        files = pictures | {stem + MARKDOWN: text.encode()}
    write_files(folder, files)
    return folder / (stem + (HTML if as_html else MARKDOWN))


def of_one(run: RunData, pictures: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the lines of a run's report below its title. pictures: by file name, those that there are."""
    for section in sections(pictures):
        yield from titled(section.title, section.lines(run), [name for name in section.pictures if name in pictures])


def of_several(runs: Sequence[RunData], pictures: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the lines of the comparison of several runs below its title."""
    yield from titled("Overview", facts.compared(facts.OVERVIEW, runs))
    yield from titled("What differs", facts.differences(runs) or ["No setting, device or version differs."])
    yield from titled("Loss", side_by_side.at_milestones(runs), list(pictures))
    yield from titled("Validation loss", side_by_side.evaluations(runs))
    yield from titled("Figures", facts.compared(side_by_side.FIGURES, runs))
    each = [[f"### {name}", "", *findings.section(run)] for name, run in zip(facts.names(runs), runs, strict=True)]
    yield from titled("What to look at", _joined(*each))
    yield from titled("How that is found", findings.rules(runs))


def titled(title: str, lines: Iterable[str], pictures: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of a section, none where it has neither lines nor pictures."""
    content = list(lines)
    if any(content) or pictures:
        yield from ("", f"## {title}", *(["", *content] if content else []))
        for name in pictures:
            yield from ("", *([CAPTIONS[name], ""] if name in CAPTIONS else []), f"![{title}]({name})")


def _joined(*parts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of several parts, with an empty line between those that have any."""
    for n, lines in enumerate(filter(None, map(list, parts))):
        yield from (*([""] if n else []), *lines)
