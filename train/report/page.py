"""The report of a run, or of several side by side: which sections there are, and the files they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

from helios.errors import UserError
from helios.files import write_atomic
from helios.train.report import facts, gradients, losses, reading, speed
from helios.train.report.facts import name_of
from helios.train.report.reading import RunData

MARKDOWN = "report.md"


class Section(NamedTuple):
    """A section of a page; one without lines and pictures is left out."""

    title: str
    lines: Callable[[RunData], Iterable[str]]
    pictures: tuple[str, ...] = ()  # names of files, those that there are


SECTIONS = (
    Section("Overview", lambda run: facts.compared(facts.OVERVIEW, [run])),
    Section("Model", lambda run: _joined(facts.settings(run, "model"), facts.derived(run))),
    Section("Training", lambda run: facts.settings(run, "train")),
    Section("Search", lambda run: _joined(facts.budget(run), facts.settings(run, "search"))),
    Section("Monitors", lambda run: facts.settings(run, "monitor", all_of_them=False)),
    Section("Infrastructure", lambda run: facts.compared(facts.MACHINE, [run])),
    Section("Training data", facts.texts),
    Section("Loss by range", lambda run: _joined(losses.summary(run), losses.ranges(run)), ("loss.png",)),
    Section("Loss at milestones", losses.at_milestones, ("lr.png",)),
    Section("Validation", losses.evaluations),
    Section("Gradient norms", gradients.norms, ("gradients.png",)),
    Section("Clipping", gradients.clipping),
    Section("Throughput", speed.throughput, ("throughput.png",)),
    Section("Step time", speed.breakdown, ("steps.png",)),
    Section("Alerts", gradients.alerts),
    Section("Weights", gradients.weights, ("weights.png",)),
    Section("Gradient norms by layer", gradients.layers, ("layers.png",)),
    Section("Samples", facts.samples),
    Section("Events of note", facts.events),
    Section("Records", facts.records),
)


def body(run: RunData, pictures: Mapping[str, bytes], sections: Sequence[Section] = SECTIONS) -> Iterator[str]:
    """Yield the lines of a run's report below its title."""
    for section in sections:
        lines = list(section.lines(run))
        shown = [name for name in section.pictures if name in pictures]
        if any(lines) or shown:
            yield from ("", f"## {section.title}", "", *lines)
            for name in shown:
                yield from ("", f"![{section.title}]({name})")


def _joined(*parts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of several parts, with an empty line between those that have any."""
    before = False
    for part in parts:
        lines = list(part)
        if lines:
            yield from ([""] if before else [])
            yield from lines
            before = True


def write(paths: Sequence[Path], folder: Path) -> Path:
    """Write the report of the run directory in `paths` into a folder; return the page's path. Raises UserError."""
    runs = [reading.read(path) for path in paths]
    files = {MARKDOWN: "\n".join([f"# Run {name_of(runs[0])}", *body(runs[0], {})]).encode() + b"\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, methodcaller("write", content))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return folder / MARKDOWN
