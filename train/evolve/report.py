"""The report of an experiment: report.md with its plots, summary.json and winner.toml, made from the journal alone."""

from __future__ import annotations

import json
from pathlib import Path

from helios.files import write_files
from helios.train.evolve import page, winner
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.opening import opened
from helios.train.evolve.state import State
from helios.train.evolve.summary import summary

PAGE, SUMMARY = "report.md", "summary.json"


def write_from(folder: Path, plots: bool = True) -> list[str]:
    """Write the report of the experiment in a directory, finished or not, as `write` does. Raises UserError where there
    is none, or its journal is damaged."""
    return write(folder, *opened(folder), plots)


def write(folder: Path, experiment: Experiment, state: State, plots: bool = True) -> list[str]:
    """Write report.md with, if asked, its plots, summary.json and, where there is a winner, winner.toml into the
    experiment's directory. Return what to tell: the verdict and where the files are. Raises UserError where they cannot
    be written."""
    found = summary(experiment, state)
    pictures: dict[str, bytes] = {}
    if plots:
        from helios.train.evolve.plots import draw
        pictures = draw(experiment, state, found)
    files = pictures | {PAGE: page.page(experiment, state, found, pictures, folder).encode(),
                        SUMMARY: (json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()}
    if found["verdict"] and found["leader"]:
        files[winner.FILE] = winner.text(experiment, state, found["leader"]).encode()
    write_files(folder, files)
    told = [page.headline(state, found), *page.sentences(found)[1:]]
    if winner.FILE in files:
        told.append(f"settings of the winner: {folder / winner.FILE}")
    return [*told, f"report: {folder / PAGE}"]
