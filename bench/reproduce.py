"""Two historic runs, run again: their settings, how a run directory is read, and the parts of a page.

bench/page_5ke3.py and bench/page_4kwo.py make the pages; bench/original.py has the original's figures.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helios.bench import original
from helios.train.config import Config, resolve
from helios.train.markdown import exact, figure, listed, loss, percent, section
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, METRICS, SAMPLES, finished, read_config
from helios.train.records.rows import rows as rows_of
from helios.train.run import Run
from helios.train.samples import TEMPERATURE, TOP_K
from helios.train.search import files
from helios.train.search.evolution import Candidate
from helios.train.search.ranking import Summary
from helios.train.tokenizer import ASSISTANT, USER

Row = Mapping[str, Any]
# The ways to run 5ke3 again. With evaluations every 40 steps some are at the original's, 200 and 400.
WAYS: Mapping[str, tuple[str, ...]] = {
    "faithful": ("candidate_schedule=run", "shared_init=false", "shared_batches=false", "reuse=false", "replicates=1",
                 "after=restart", "after_schedule=run", "diversity_bonus=0", "eval_interval=40"),
    "fair": ("replicates=2", "eval_interval=40"),
}
AGAIN = "again"  # the one way to run 4kwo
NAMES: Mapping[str, tuple[str, ...]] = {"5ke3": tuple(WAYS), "4kwo": (AGAIN,)}  # of the folders of their runs
# The steps of 4kwo's warm-up, in which the learning rate depends on the step alone: a shorter run has the same rates.
LONGEST = 500
SAME_LOSS = 0.1  # nats, by which losses of single batches differ anyway
SAME_RATE = 0.05  # of a learning rate that is known to two digits


# -- what is run ------------------------------------------------------------------------------------------------------

class Plan(NamedTuple):
    """A run to make, in a folder of this name."""

    name: str
    config: Config


def plans(run: str, ways: Sequence[str], flags: Mapping[str, Any], steps: int = 300, more: Iterable[str] = ()
          ) -> list[Plan]:
    """Return the runs that repeat the historic `run` in these `ways`, which are in NAMES. steps: of 4kwo.

    flags: {setting: value}, None where not given. more: "key=value" each, which win over all but the flags, for models
    that train in seconds. Raises UserError.
    """
    settings = {**WAYS, AGAIN: (f"steps={steps}", "eval_interval=100", "checkpoint_interval=100")}
    return [Plan(name, resolve(f"run-{run}", assignments=(*settings[name], *more), flags=flags)) for name in ways]


def run(planned: Sequence[Plan], folder: Path, display: Display) -> bool:
    """Run or continue each plan in a folder of its own; return False where a signal came.
    Raises UserError where a folder holds another run."""
    for plan in planned:
        begun = Run.open(plan.config, folder / plan.name)
        if not begun.finished and not begun.train(display).finished:
            return False
        gc.collect()  # frees its memory before the next one takes its own
    return True


# -- what a run says --------------------------------------------------------------------------------------------------

class Here(NamedTuple):
    """What the directory of a finished run holds."""

    about: Mapping[str, Any]  # config.json
    rows: Mapping[int, Row]  # by step
    events: Sequence[Row]
    samples: Sequence[Row]
    candidates: Sequence[Candidate]
    summary: Summary

    @property
    def last(self) -> int:
        return max(self.rows, default=0)

    def phase(self, name: str) -> list[Row]:
        """Return the rows of the phase "search" or "after"."""
        return [row for row in self.rows.values() if row.get("symbio_phase") == name]

    def at(self, step: int, column: str) -> float | None:
        return self.rows.get(step, {}).get(column)

    @property
    def winner(self) -> str | None:
        return self.summary["winner"] and next(c.activation for c in self.candidates if c.id == self.summary["winner"])


def read(path: Path) -> Here:
    """Return the content of a run directory. Raises UserError where it is none, or damaged."""
    rows = {row["step"]: row for row in rows_of(path / METRICS) if "step" in row}
    return Here(read_config(path), dict(sorted(rows.items())), rows_of(path / EVENTS), rows_of(path / SAMPLES),
                *files.read(path))


def found(name: str, folder: Path) -> dict[str, Here]:
    """Return the finished runs in `folder` that repeat the historic run `name`, by their way."""
    return {way: read(folder / way) for way in NAMES[name] if finished(folder / way)}


def values(rows: Iterable[Row], column: str) -> list[float]:
    """Return the known values of a column."""
    return [row[column] for row in rows if row.get(column) is not None]


def mean(numbers: Sequence[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def median(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None


def share(rows: Sequence[Row], what: Callable[[Row], bool]) -> float | None:
    return sum(map(what, rows)) / len(rows) if rows else None


def above(norm: float) -> Callable[[Row], bool]:
    return lambda row: row.get("grad_norm") is not None and row["grad_norm"] > norm


def between(here: Here, first: int, past: int) -> list[Row]:
    """Return the rows of the steps first ≤ step < past."""
    return [row for step, row in here.rows.items() if first <= step < past]


def steady(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without the first one of each training, in which kernels are prepared."""
    key = lambda row: [row.get(f"symbio_{name}") for name in ("phase", "candidate_id", "replicate")]
    return [row for _, training in itertools.groupby(rows, key) for row in list(training)[1:]]


# -- how it is written ------------------------------------------------------------------------------------------------

def each_way(figures: Mapping[str, str]) -> str:
    """Return "5.41 (faithful) and 5.40 (fair)", without the names where all figures are equal."""
    if len(set(figures.values())) == 1:
        return next(iter(figures.values()))
    return listed([f"{text} ({name})" for name, text in figures.items()])


def distance(figures: Mapping[str, float], reference: float) -> str:
    """Return the distances from the reference in words, as "1.85 (faithful) and 1.86 (fair) below"."""
    sides = {name: "below" if x < reference else "above" for name, x in figures.items()}
    amounts = {name: loss(abs(x - reference)) for name, x in figures.items()}
    if len(set(sides.values())) == 1:
        return f"{each_way(amounts)} {next(iter(sides.values()))}"
    return each_way({name: f"{amounts[name]} {side}" for name, side in sides.items()})


# -- what both pages have ---------------------------------------------------------------------------------------------

def run_rows(historic: original.Run, runs: Mapping[str, Here]) -> Iterator[list[str]]:
    """Yield the first rows of the table of what was run."""
    facts: Mapping[str, tuple[str, Callable[[Here], str]]] = {
        "device": (historic.device, lambda h: h.about["device"]["name"]),
        "driver": (historic.driver, lambda h: h.about["device"]["driver"]),
        "begun": (historic.date, lambda h: h.events[0]["time"][:10] if h.events else "–"),
        "training text": (historic.text, lambda h: Path(h.about["data"]["data"]).name),
        "steps": (exact(historic.steps), lambda h: exact(h.last)),
        "steps in the records": (exact(historic.recorded), lambda h: exact(len(h.rows))),
        "wall clock, s": (exact(historic.seconds), lambda h: figure(seconds(h))),
        "ms a step": (exact(historic.ms), lambda h: figure(milliseconds(h))),
        "tokens/s": (exact(historic.tokens_per_sec), lambda h: figure(speed(h.rows.values()))),
    }
    for name, (there, here) in facts.items():
        yield [name, there, *map(here, runs.values())]


def seconds(here: Here) -> float | None:
    """Return the seconds of the run, without those of steps that an interruption undid."""
    elapsed = here.at(here.last, "elapsed_ms")
    return None if elapsed is None else elapsed / 1000


def milliseconds(here: Here, column: str = "ms_per_iter") -> float | None:
    """Return the median of a column of milliseconds."""
    return median(values(steady(here.rows.values()), column))


def speed(rows: Iterable[Row]) -> float | None:
    """Return the median of the steps' tokens a second."""
    return median(values(steady(rows), "tokens_per_sec"))


def comparable(historic: original.Run, runs: Mapping[str, Here]) -> str:
    """Return in words what a comparison of speeds means."""
    name = next(iter(runs.values())).about["device"]["name"]
    means = "The original's speeds are means, those here medians of single steps, without the first of each training."
    if historic.device.removeprefix("NVIDIA ") in name.split():
        return f"Both ran on an {historic.device}. {means}"
    return (f"The devices differ, {historic.device} there and {name} here: wall clock and speed compare whole systems, "
            f"not the code alone. {means}")


def samples(runs: Mapping[str, Here]) -> Iterator[str]:
    """Yield the section of what the models said at the end."""
    title = "What the models say" if len(runs) > 1 else "What the model says"
    yield from section(title, f"Drawn at temperature {TEMPERATURE:g} from the {TOP_K} likeliest tokens.")
    for name, here in runs.items():
        if name != next(iter(runs)):
            yield ""
        last = max((s["step"] for s in here.samples), default=0)
        yield from (f"After {last:,} steps{f', {name}' if len(runs) > 1 else ''}:", "", "```")
        for sample in (s for s in here.samples if s["step"] == last):
            question = sample["prompt"].replace(USER, "").replace(ASSISTANT, "").strip()
            # Indented, so that nothing a model says can end the block.
            yield from (question, *textwrap.wrap(sample["text"], 110, initial_indent="    ", subsequent_indent="    "))
        yield "```"


class Finding(NamedTuple):
    """A sentence on where the runs agree with the original, or differ."""

    agrees: bool
    topic: str
    text: str


def findings(found: Iterable[Finding]) -> Iterator[str]:
    """Yield the sections of what agrees and what differs."""
    kept = list(found)
    for agrees, title in ((True, "What agrees"), (False, "What differs, and why")):
        yield from section(title)
        yield from [f"* **{f.topic}.** {f.text}" for f in kept if f.agrees == agrees] or ["Nothing."]


def starts(historic: original.Run, runs: Mapping[str, Here]) -> Iterator[Finding]:
    """Yield the finding on the first step's loss."""
    first = {name: h.at(1, "loss") for name, h in runs.items()}
    size = next(iter(runs.values())).about["model"]["vocab_size"]
    same = all(x is not None and abs(x - historic.first_loss) <= SAME_LOSS for x in first.values())
    yield Finding(same, "Start", f"The first step's loss was {loss(historic.first_loss)} and is "
                  f"{each_way({name: loss(x) for name, x in first.items()})}; an even guess among {size:,} tokens has "
                  f"ln {size:,} = {math.log(size):.3f}.")


def rates(historic: original.Run, here: Here, whose: str) -> Iterator[Finding]:
    """Yield the finding on learning rates."""
    pairs = [(p.lr, x) for p in historic.points if (x := here.at(p.step, "lr")) is not None]
    if pairs:
        most = max(abs(b / a - 1) for a, b in pairs)
        yield Finding(most <= SAME_RATE, "Learning rate", f"At the {len(pairs)} steps at which the original's is "
                      f"known, to two or three digits, {whose} differs by {percent(most)} at most.")


def records_kept(historic: original.Run, runs: Mapping[str, Here], why: str = "") -> Iterator[Finding]:
    """Yield the finding on how many steps the records hold."""
    kept = each_way({name: f"{len(h.rows):,} of {h.last:,} steps" for name, h in runs.items()})
    yield Finding(False, "Records", f"They hold {kept} here and {historic.recorded:,} of {historic.steps:,} "
                  f"there{why}. The original's means and shares are over what is left.")
