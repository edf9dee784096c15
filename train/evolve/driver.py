"""An experiment under way: its directory, its journal, and the trainings that it asks an executor for."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.files import obstacle
from helios.host import cache_dir
from helios.train import checkpoint, data, directory
from helios.train.evolve import cost, plan, report, shipping, warm
from helios.train.evolve.config import Asked
from helios.train.evolve.executors import Executor
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import Entry, Journal
from helios.train.evolve.opening import experiment_of, opened
from helios.train.evolve.state import Result, State
from helios.train.evolve.terms import chosen_by, count, seeds
from helios.train.evolve.training import begun
from helios.train.evolve.trainings import Job
from helios.train.progress import Display
from helios.train.records.journal import EVOLVED, JOURNAL, RUNS
from helios.train.records.layout import LOCK
from helios.train.run import Run


class Driver:
    """An experiment in the directory `folder`; `create` and `resume` make one. Nothing is written before `run`."""

    def __init__(self, folder: Path, experiment: Experiment, display: Display) -> None:
        self.folder, self.experiment, self.display = folder.absolute(), experiment, display
        self.state = State()  # that `run` has come to

    @classmethod
    def create(cls, asked: Asked, folder: Path, display: Display) -> Driver:
        """Return a new experiment. Raises UserError where it cannot be made as asked, before any work."""
        folder = folder.absolute()
        if found := obstacle(folder):
            raise UserError(f"--dir {folder}: {found}; give a new or empty directory")
        if any(Journal(folder / JOURNAL).read()):  # else a kill came before its first line
            raise UserError(f"{folder} holds an experiment already; go on with it with --resume {folder}, or give "
                            "another --dir")
        if folder.exists() and set(os.listdir(folder)) - {LOCK, JOURNAL}:
            raise UserError(f"{folder} is not empty; give a new or empty --dir")
        experiment = experiment_of(asked, secrets.token_hex(4))
        run = Run.create(asked.base, folder / RUNS / "preset")
        run.preview()  # raises UserError where a text, a vocabulary or weights are not there
        m = run.config.model
        longest = max((m.block_size, *(x for one in experiment.space.genes for x in one.ends("block_size"))))
        data.load(run.config.data, m.vocab_size, longest, cache_dir() / "data", experiment.seed,
                  warn=display.warn)
        asked = dataclasses.replace(asked, base=run.config)  # whose paths hold anywhere
        return cls(folder, dataclasses.replace(experiment, asked=asked, texts=_digest(asked)), display)

    @classmethod
    def resume(cls, folder: Path, display: Display) -> Driver:
        """Return the experiment in a directory, to go on with. Raises UserError where there is none, or its journal is
        damaged or its texts are others now."""
        experiment, state = opened(folder)
        if experiment.texts and state.verdict is None and experiment.texts != _digest(experiment.asked):
            raise UserError(f"{' or '.join(shipping.needed(experiment.asked.base.data))} is no longer what the "
                            "experiment began with, and its results would not compare; restore it, or begin anew in "
                            "another --dir")
        return cls(folder, experiment, display)

    def preview(self) -> str:
        """Return in words what `run` would do. Raises UserError where it cannot be done."""
        return "\n".join([*in_words(self.experiment), f"experiment in {self.folder}"])

    def run(self, executor: Executor, together: int = 1) -> bool:
        """Make the experiment, or the rest of it. Return False where a signal came; everything up to then is kept.
        together: results that are written at a time; with 1 each outlasts a power cut before the next training starts.
        Raises UserError for what a user can put right."""
        with directory.held(self.folder, True, "directory", "--dir"):
            journal = Journal(self.folder / JOURNAL)
            self.state = State()
            self.state.take(journal.read(mend=True))
            self.display.say(f"experiment {self.experiment.id} in {self.folder}")
            if self.state.verdict is not None:
                self.display.say(f"it is finished after {count(len(self.state.results), 'training')}; only its report "
                                 "is written again")
            else:
                for line in in_words(self.experiment):
                    self.display.say(line)
                if self.state.results:
                    self.display.say(f"{count(len(self.state.results), 'training')} over; going on")
            try:
                while moves := plan.next_move(self.experiment, self.state):
                    if isinstance(moves[0], Job):
                        self._train(journal, executor, moves, together)
                    else:
                        journal.append(moves)
                        self.state.take(moves)
                        for move in moves:
                            self._say(move)
            except KeyboardInterrupt:
                self.display.final(f"interrupted; go on with --resume {self.folder}")
                return False
            for line in report.write(self.folder, self.experiment, self.state):
                self.display.final(line)
        return True

    def _say(self, line: Entry) -> None:
        """Show a line that was decided."""
        if line["kind"] == "generation":
            random = " and as many random ones" if self.experiment.asked.evolve.random_control else ""
            preset = "the preset, " * (not line["generation"])
            self.display.say(f"generation {line['generation']}: {preset}{line['size']} candidates{random}, "
                             f"{line['why']}")
        if line["kind"] == "dropped":
            arm = self.state.born[line["id"]].arm
            self.display.say(f"{line['id']}{_marked(arm)} goes no further: {line['why']}")

    def _train(self, journal: Journal, executor: Executor, jobs: Sequence[Job], together: int) -> None:
        """Have trainings made, and write their results in the order of `jobs`, whoever is first."""
        jobs = [self._placed(job) for job in jobs]
        self._check_parents(jobs)
        waiting: dict[int, Result] = {}
        lines = list[Entry]()
        done, over, most = 0, {*self.state.results}, sum(cost.trainings(self.experiment))
        try:
            with closing(executor(jobs)) as results:  # so that nothing trains on where a line cannot be written
                for at, result in results:
                    waiting[at] = result
                    while done in waiting:
                        lines.append(entry(waiting.pop(done), self.experiment, jobs[done]))
                        job, done = jobs[done], done + 1
                        over |= {(job.id, job.phase, job.replicate)} if job.phase != "speed" else set()
                        self.display.say(f"{_said(lines[-1], job)}; {len(jobs) - done} to come in this round, "
                                         f"{len(over):,} of at most {most:,} made")
                    if len(lines) >= together:
                        self._write(journal, lines)
        finally:
            self._write(journal, lines)
        if done < len(jobs):
            raise UserError(f"{len(jobs) - done} trainings came to nothing; go on with --resume {self.folder}")

    def _placed(self, job: Job) -> Job:
        """Return the training with the path of the checkpoint that it begins with, if it does with one."""
        place = job.config.train.init_from
        return job if place is None else job._replace(
            config=job.config.replaced("train", init_from=str(self.folder / place)))

    def _check_parents(self, jobs: Sequence[Job]) -> None:
        """Raise UserError where weights that a training is to begin with are missing or damaged."""
        needed = {t.init_from: job.name for job in jobs if (t := job.config.train).init_from
                  and not begun(self.folder / RUNS / job.name)}
        for place, name in needed.items():
            try:
                checkpoint.load(Path(place))
            except checkpoint.Damaged as error:
                raise UserError(f"{name} is to begin with the last weights of its parent, and {error}; put them back, "
                                "or begin anew in another --dir") from error

    def _write(self, journal: Journal, lines: list[Entry]) -> None:
        if lines:
            now = lines.copy()
            lines.clear()  # first, lest what a full disk refuses is written twice
            journal.append(now)
            self.state.take(now)


def _digest(asked: Asked) -> str:
    """Return what names the content of all texts, and of a vocabulary that is given."""
    return shipping.digest("".join(map(shipping.digest, shipping.needed(asked.base.data).values())).encode())


def entry(result: Result, experiment: Experiment, job: Job) -> dict[str, Any]:
    """Return the line of a result."""
    if job.phase != "speed":
        value = experiment.value(result) if experiment.asked.evolve.fitness else None
        inherited = {"inherited": job.inherited} if experiment.asked.evolve.warm_start != warm.FRESH else {}
        return {"kind": "result", **vars(result), "fitness": None if value is None else -value, **inherited}
    t = job.config.train
    each = t.batch_size * t.accum * job.config.model.block_size / result.tokens_per_sec_mean if (
        result.tokens_per_sec_mean) else experiment.asked.evolve.per_candidate
    return {"kind": "speed", "id": job.id, "steps": max(1, int(experiment.asked.evolve.per_candidate / each)),
            "seconds": each}


def _marked(arm: str) -> str:
    return "" if arm == EVOLVED else f" ({arm})"


def _said(line: Mapping[str, Any], job: Job) -> str:
    """Return in words what a training came to."""
    name = job.name + _marked(job.about["arm"])
    if line["kind"] == "speed":
        return f"{name}: {line['steps']:,} steps in the budget"
    loss = "no validation loss" if line["val_loss"] is None else f"val {line['val_loss']:.4f}"
    speed = "" if line["tokens_per_sec_mean"] is None else f", {line['tokens_per_sec_mean']:,.0f} tok/s"
    why = f", {line['status']}: {line['why']}" if line["status"] != "complete" else ""
    part = f" at {job.share:.0%}" if job.share < 1 else ""
    return f"{name}{part}: {loss}{speed}{why}"


def in_words(experiment: Experiment) -> list[str]:
    """Return in words what is asked of the experiment, and what it may come to, a line each."""
    evolve = experiment.asked.evolve
    search, end = cost.trainings(experiment)
    genes = [*(one.name for one in experiment.space.genes), *["activation"][:len(experiment.space.pool)]]
    sizes = " to ".join(map(str, dict.fromkeys(evolve.bounds)))
    steps = lambda factor: "as many steps as are in the time" if evolve.budget == "seconds" else " to ".join(
        f"{max(1, int(evolve.per_candidate * factor / n)):,}" for n in dict.fromkeys(cost.steps(experiment)[::-1])
        ) + " steps"
    apart = {"seconds": ", starts, evaluations and a training of some steps for each candidate's speed not counted",
             "tokens": ""}[evolve.budget]
    return [f"genes: {', '.join(genes)}", *seeds(experiment), f"chosen by {chosen_by(experiment)}",
            f"at most {count(evolve.generations, 'generation')} of {sizes}"
            f"{' and as many random ones' if evolve.random_control else ''}, "
            f"{count(evolve.replicates, 'training')} each of {evolve.per_candidate:,.0f} {evolve.budget}",
            f"at most {count(search, 'training')} of {steps(1)}, and {end:,} of {steps(evolve.validation_factor)} at "
            "the end, of the best on fresh seeds",
            f"at most {cost.at_most(experiment):,.0f} {evolve.budget} in all, "
            f"{cost.of_validation(experiment):,.0f} of them at the end{apart}",
            f"at most {cost.disk(experiment) / 1e6:,.0f} MB of disk, two checkpoints of 12 bytes a parameter for each "
            "training, where models are as large as the preset's", *warm.told(experiment)]
