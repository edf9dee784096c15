"""One training of an experiment, wherever it is made."""

from __future__ import annotations

from pathlib import Path

from helios.errors import Diverged, TooLarge
from helios.train.evolve.state import Result
from helios.train.evolve.trainings import Job
from helios.train.progress import Display
from helios.train.run import Run

RUNS = "runs"  # folder of an experiment's run directories


def train(job: Job, folder: Path, display: Display) -> Result:
    """Make a training, or go on with it from its last checkpoint, and return what it came to.

    folder: the experiment's. Raises KeyboardInterrupt where a signal ended it, and UserError for what is not the
    candidate's fault, such as a text that is not there.
    """
    path = folder / RUNS / job.name
    steps, why = job.config.train.steps, None
    until = None if job.share == 1 else max(1, round(job.share * steps))
    try:
        run = Run.open(job.config, path, "candidate", about={"evolve": dict(job.about)})
        ended = run.train(display, until)
        if not ended.finished and (until is None or ended.step < until):
            raise KeyboardInterrupt
    except (Diverged, TooLarge) as error:
        why = str(error)
        if isinstance(error, TooLarge):
            return failed(job, why)
    return measured(job, path, why)


def failed(job: Job, why: str) -> Result:
    """Return the result of a training that could not be made."""
    return Result(seed=job.config.train.seed, val_loss=None, best_val_loss=None, train_loss=None, fitness=None, steps=0,
                  tokens=0, evaluations=[], spikes=0, skipped=0, clip_rate=0.0, max_grad_norm=None,
                  tokens_per_sec_mean=None, cusum_alerts=0, seconds=0.0, id=job.id, replicate=job.replicate,
                  phase=job.phase, share=job.share, run=job.name, status="failed", why=why)
