"""Trainings in this process, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helios.errors import UserError
from helios.train.evolve.training import train
from helios.train.evolve.trainings import Job, Results
from helios.train.progress import Display


class Local:
    """Makes trainings in this process, one after another, in `folder`."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder, self.display = folder, display

    def __call__(self, jobs: Sequence[Job]) -> Results:
        widths = sorted({job.config.train.simd_width for job in jobs})
        if len(widths) > 1:
            raise UserError(f"candidates differ in simd_width ({', '.join(widths)}), which cannot change within a "
                            f"process; give --executor processes")
        for i, job in enumerate(jobs):
            yield i, train(job, self.folder, self.display)
