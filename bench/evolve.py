"""What an experiment itself costs (births, choice, journal, state), with trainings that are not made; and, with a few
that are, what a training's start and end cost beside its steps."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from helios.bench.measure import exponent
from helios.bench.planted import Planted, experiment, question
from helios.bench.plot import save
from helios.train import data, run
from helios.train.config import resolve
from helios.train.evolve import breeding, driver, plan, training, trainings
from helios.train.evolve.driver import Driver
from helios.train.evolve.executors import local
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import Journal
from helios.train.evolve.opening import opened
from helios.train.evolve.state import State
from helios.train.evolve.trainings import Job, Results
from helios.train.loop import Loop
from helios.train.markdown import figure
from helios.train.progress import Display
from helios.train.records.journal import JOURNAL
from helios.train.search import selection

Parts = Mapping[str, Sequence[tuple[Any, str]]]
FULL, QUICK = (100, 1000, 10_000, 100_000), (20, 60)  # births
OBJECTIVES = "val_loss,instability,max_grad_norm"
TOGETHER = 1000  # results written at a time, since none of them cost anything
SECONDS, MEMORY = 60.0, 1000.0  # wanted of the largest at most; in MB
MB = 1e6
# An experiment grows by more generations, or by larger ones; as many random candidates are born as evolved ones.
SHAPES: Mapping[str, Callable[[int], tuple[int, int]]] = {  # births → candidates of a generation, generations
    "50 births a generation": lambda births: (min(25, births // 4), max(2, births // 50)),
    "10 generations": lambda births: (max(2, births // 20), min(10, max(2, births // 4))),
}
# By part, the functions whose time it is, without that of those below that they call.
PARTS: Parts = {
    "breeding": ((breeding, "first_generation"), (breeding, "following_generation")),
    "selection": ((selection, "best_first"), (selection, "hypervolume"), (selection, "novelty"), (Experiment, "of"),
                  (plan, "finalists")),
    "planning": ((trainings, "due"),),
    "journal": ((Journal, "append"), (driver, "entry")),
    "state": ((State, "take"),),
    "planted": ((Planted, "result"),),  # in the place of trainings: no part of the sum
}


# Of real trainings, alike; steps and evaluations are what a training is for.
OF_TRAINING: Parts = {
    "decisions, journal": (*(place for part in ("breeding", "selection", "planning", "journal", "state")
                             for place in PARTS[part]),),
    "directory": ((local, "train"),),
    "device": ((run, "open_backend"),),
    "texts": ((data, "load"),),
    "model, recording": ((Loop, "__init__"),),
    "steps": ((Loop, "_train"),),
    "evaluations": ((Loop, "evaluate"),),
    "checkpoint": ((Loop, "_checkpoint"),),
    "measuring": ((training, "result"),),
}
DRIVER, USEFUL = "decisions, journal", ("steps", "evaluations")
BUDGET = 60.0  # seconds of a training, of which the rest is told as a share


class Clock:
    """Seconds by part, each without what its functions spend in others; and those that the processor waits in fsync."""

    def __init__(self, parts: Parts, now: Callable[[], float]) -> None:
        self.table, self.now, self.parts = parts, now, dict.fromkeys(parts, 0.0)
        self.disk, self._of, self._since = 0.0, "", 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure what runs inside."""
        with ExitStack() as stack:
            for part, places in self.table.items():
                for owner, name in places:
                    stack.enter_context(patch.object(owner, name, self._timed(part, vars(owner)[name])))
            stack.enter_context(patch.object(os, "fsync", self._waiting(os.fsync)))
            yield

    def _turn(self, part: str) -> str:
        now, before = self.now(), self._of
        if before:
            self.parts[before] += now - self._since
        self._of, self._since = part, now
        return before

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*given: Any, **more: Any) -> Any:
            before = self._turn(part)
            try:
                return function(*given, **more)
            finally:
                self._turn(before)
        return timed

    def _waiting(self, fsync: Callable[[Any], None]) -> Callable[[Any], None]:
        def waiting(file: Any) -> None:
            began, busy = time.perf_counter(), time.process_time()
            fsync(file)
            self.disk += time.perf_counter() - began - (time.process_time() - busy)
        return waiting


class Row(NamedTuple):
    """An experiment: its births, seconds of the processor's by part, and what it takes."""

    shape: str
    births: int
    generations: int
    lines: int  # of the journal
    parts: Mapping[str, float]
    disk: float  # seconds in which the processor waited for it
    reading: float  # seconds of the processor's to read the journal back
    bytes: int  # of the journal
    memory: float  # at most, MB

    @property
    def seconds(self) -> float:
        """Return the seconds of the processor's of the experiment itself."""
        return sum(x for part, x in self.parts.items() if part != "planted")

    def json(self) -> dict[str, Any]:
        return {**self._asdict(), "seconds": self.seconds}


def measured(shape: str, births: int, together: int = TOGETHER) -> Row:
    """Return what an experiment of about so many births costs, made in this process in a new directory."""
    size, generations = SHAPES[shape](births)
    found = experiment(population_size=size, generations=generations, replicates=1, objectives=OBJECTIVES,
                       validation_replicates=0, max_cost=1e12)
    clock = Clock(PARTS, time.process_time)
    with tempfile.TemporaryDirectory(prefix="helios-evolve-") as folder:
        path = Path(folder) / "experiment"
        made = Driver(path, found, Display(quiet=True))
        with clock.running(), patch.object(driver.report, "write", return_value=[]):  # the report is no part of it
            made.run(Planted(found.space), together)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
        began = time.process_time()
        _, state = opened(path)
        reading = time.process_time() - began
        text = (path / JOURNAL).read_bytes()
        assert state.born.keys() == made.state.born.keys()
        return Row(shape, len(state.born), generations, text.count(b"\n"), clock.parts, clock.disk, reading, len(text),
                   memory)


def growth(sizes: Sequence[int], say: Callable[[str], None]) -> list[Row]:
    """Return what experiments of these sizes cost, each made in a process of its own, for its memory is measured."""
    rows = []
    for shape in SHAPES:
        for births in sizes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(measured, shape, births).result())
            say(f"{shape}: {rows[-1].births:,} births in {rows[-1].seconds:.2f} s")
    return rows


class Training(NamedTuple):
    """Real trainings: how many, and by part the mean seconds that each took, by the wall clock."""

    preset: str
    trainings: int
    steps: int
    parts: Mapping[str, float]

    @property
    def around(self) -> float:
        """Return the seconds of a training's start and end."""
        return sum(x for part, x in self.parts.items() if part not in (DRIVER, *USEFUL))

    def share(self, seconds: float) -> float:
        """Return the share that these are of a training of BUDGET seconds with all around it."""
        return seconds / (BUDGET + self.around + self.parts[DRIVER])

    def json(self) -> dict[str, Any]:
        return {**self._asdict(), "around": self.around, "share_of_driver": self.share(self.parts[DRIVER])}


def trained(preset: str, steps: int, count: int = 4) -> Training:
    """Return what real trainings on the default device cost, made in turn in this process; the first one, which
    prepares texts and kernels, does not count."""
    settings: dict[str, Any] = {
        "population_size": 2, "generations": count // 2, "replicates": 1, "validation_replicates": 0,
        "random_control": "false", "mutation_rate": 1, "evaluations": 2}
    clock = Clock(OF_TRAINING, time.perf_counter)
    with tempfile.TemporaryDirectory(prefix="helios-evolve-") as folder:
        base = resolve(preset)
        tokens = steps * base.train.batch_size * base.train.accum * base.model.block_size
        found = driver.experiment_of(question("lr,beta2,weight_decay", preset=preset, per_candidate=tokens, **settings),
                                     "cost")
        display = Display(quiet=True)
        made = Driver(Path(folder) / "experiment", found, display)
        each = list[dict[str, float]]()

        def executor(jobs: Sequence[Job]) -> Results:
            for pair in local.Local(made.folder, display)(jobs):
                each.append(dict(clock.parts))
                yield pair

        with clock.running(), patch.object(driver.report, "write", return_value=[]):
            made.run(executor)
        count = len(each) - 1
        return Training(preset, count, steps,
                        {part: (clock.parts[part] - first) / count for part, first in each[0].items()})


# -- how it is shown ---------------------------------------------------------------------------------------------------

COST = tuple(part for part in PARTS if part != "planted")
TITLES = ("it grows by", "births", *COST, "all, s", "disk, s", "read back, s", "journal, MB", "memory, MB")


def cells(rows: Iterable[Row]) -> list[list[str]]:
    """Return the rows of the table of the experiments, under TITLES."""
    return [[r.shape, f"{r.births:,}", *(figure(r.parts[part]) for part in COST), figure(r.seconds), figure(r.disk),
             figure(r.reading), figure(r.bytes / MB), f"{r.memory:,.0f}"] for r in rows]


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return by shape the powers of the births by which parts, their sum, reading and the journal grow."""
    of = {part: partial(_part, part) for part in COST} | {
        "all": lambda row: row.seconds, "read back": lambda row: row.reading, "journal": lambda row: row.bytes}
    grown = lambda shape: sorted((row for row in rows if row.shape == shape), key=lambda row: row.births)
    return {shape: {name: exponent([row.births for row in grown(shape)], [*map(figure, grown(shape))])
                    for name, figure in of.items()} for shape in dict.fromkeys(row.shape for row in rows)}


def _part(part: str, row: Row) -> float:
    return row.parts[part]


def training_cells(found: Training) -> list[list[str]]:
    """Return the rows of a table of the parts of a training, under what, s, share of BUDGET."""
    named = [*found.parts.items(), ("start and end together", found.around)]
    return [[part, f"{x:.4f}", "" if part in USEFUL else f"{found.share(x):.2%}"] for part, x in named]


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw the seconds by part over the births, and those in all, to a PNG file. Raises UserError."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row.shape for row in rows))
    drawn = Figure(figsize=(11, 5))
    for shape, axes in zip(shapes, drawn.subplots(1, len(shapes), sharey=True, squeeze=False)[0], strict=True):
        mine = sorted((row for row in rows if row.shape == shape), key=lambda row: row.births)
        births = [row.births for row in mine]
        for part, marker in zip(COST, "os^Dv", strict=True):
            axes.plot(births, [row.parts[part] for row in mine], label=part, marker=marker, linewidth=1)
        axes.plot(births, [row.seconds for row in mine], label="all", color="black", marker="o")
        axes.plot(births, [mine[0].seconds * n / births[0] for n in births], label="in proportion to births",
                  color="black", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="births", ylabel="seconds of a core", title=shape)
        axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    save(path, drawn)
