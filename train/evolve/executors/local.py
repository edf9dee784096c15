"""Trainings in this process, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helios.train.evolve.training import train
from helios.train.evolve.trainings import Job, Results
from helios.train.progress import Display


class Local:
    """Makes trainings in this process, one after another, in `folder`."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder, self.display = folder, display

    def __call__(self, jobs: Sequence[Job]) -> Results:
        for i, job in enumerate(jobs):
            yield i, train(job, self.folder, self.display)
