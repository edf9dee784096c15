"""One training of an experiment, wherever it is made."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from helios.errors import Diverged, TooLarge, UserError
from helios.train import checkpoint
from helios.train.config import Config, TrainConfig
from helios.train.evolve.measure import measure
from helios.train.evolve.state import Result
from helios.train.evolve.stops import Stopping, StopsConfig
from helios.train.evolve.trainings import Job
from helios.train.progress import Display
from helios.train.records.journal import RUNS
from helios.train.records.layout import CONFIG, finished, read_object
from helios.train.run import Run
from helios.train.stage import Stage
from helios.train.state import Stopped

KEPT = 1  # checkpoints of a training besides the best, unless `keep` asks for another number than by default


def train(job: Job, folder: Path, display: Display) -> Result:
    """Make a training, or go on with it from its last checkpoint, and return what it came to.

    folder: the experiment's. Raises KeyboardInterrupt where a signal ended it, and UserError for what is not the
    candidate's fault, such as a text that is not there.
    """
    path, plan = folder / RUNS / job.name, partial(_Training, job.stops, job.batches)
    until = None if job.share == 1 else max(1, round(job.share * job.config.train.steps))
    there = read_object(path / CONFIG) or {}
    if there and there.get("evolve", {}).get("experiment") != job.about["experiment"]:
        raise UserError(f"{path} is of another experiment; give --resume the directory as helios-evolve left it, or "
                        "begin anew in another --dir")
    own = job.config.train.keep
    keep = there["train"].get("keep", own) if "train" in there else KEPT if own == TrainConfig.keep else own
    config = job.config.replaced("train", keep=keep)
    if begun(path):  # and needs its parent no more, which had another path if the experiment has moved since
        config = config.replaced("train", init_from=there.get("train", {}).get("init_from"))
    try:
        train_on(Run.open(config, path, "candidate", plan=plan, about={"evolve": dict(job.about)}), display, until)
    except Stopped:
        raise KeyboardInterrupt from None
    except TooLarge as error:
        return failed(job, str(error))
    except Diverged:  # which its directory tells, too
        pass
    return result(job, path)


def train_on(run: Run, display: Display, until: int | None = None) -> None:
    """Train to the run's end, unless it has come to it, or to the step `until`.

    Raises TooLarge, Diverged, and Stopped where a signal came meanwhile, though what it came to stays.
    """
    if run.finished:
        return
    try:
        signal = run.train(Silent(display), until).signal
    except Diverged as error:
        if error.signal is None:
            raise
        signal = error.signal
    if signal is not None:
        raise Stopped(signal)


def begun(path: Path) -> bool:
    """Return whether the training in the directory `path` has a checkpoint to go on from, or has ended."""
    return finished(path) or bool(checkpoint.directories(path))


class _Training(Stopping):
    """offset: batches that were drawn for those whose weights it begins with, which it is not given again."""

    samples = False

    def __init__(self, stops: StopsConfig, offset: int, config: Config) -> None:
        super().__init__(stops, config)
        self.offset = offset

    def stage(self) -> Stage | None:
        stage = super().stage()
        return stage and replace(stage, offset=self.offset)


class Silent(Display):
    """Shows nothing but warnings, on the console of another."""

    def __init__(self, display: Display) -> None:
        super().__init__(quiet=True, console=display.console)

    def final(self, text: str) -> None:
        """Show nothing, for the experiment goes on."""


def result(job: Job, path: Path) -> Result:
    """Return what the training in the directory `path` came to, as far as the job asked for it."""
    found = {**vars(measure(path)), "fitness": None}  # which is a search's; the driver knows the experiment's
    if found["status"] == "unfinished":  # it paused where it was to
        found |= {"status": "complete", "why": None}
    return Result(**found, id=job.id, replicate=job.replicate, phase=job.phase, share=job.share, run=job.name)


def failed(job: Job, why: str) -> Result:
    """Return the result of a training that could not be made."""
    return Result(seed=job.config.train.seed, val_loss=None, best_val_loss=None, train_loss=None, fitness=None, steps=0,
                  tokens=0, evaluations=[], spikes=0, skipped=0, clip_rate=0.0, max_grad_norm=None,
                  tokens_per_sec_mean=None, cusum_alerts=0, seconds=0.0, id=job.id, replicate=job.replicate,
                  phase=job.phase, share=job.share, run=job.name, status="failed", why=why)
