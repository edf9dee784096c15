"""helios-evolve: evolve the configs of runs, go on with it, or report on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from helios.cli.common import DefaultGroup, Given, HeliosCommand, interrupted, new_folder, setting_options, whole
from helios.errors import UserError
from helios.model.settings import declared
from helios.train.config import BY_KEY, presets
from helios.train.evolve import report
from helios.train.evolve.config import EvolveConfig, asked, experiments
from helios.train.evolve.driver import Driver
from helios.train.evolve.executors import EXECUTORS, executor
from helios.train.progress import Display

VAL_DATA = BY_KEY["val_data"]._replace(
    help="validation text, by which candidates are chosen; to be given, here or in a file")
RUNS = ("data", VAL_DATA, "format", "tokenizer", "vocab_size", "backend", "device", "precision", "seed")


@click.group(cls=DefaultGroup, no_args_is_help=False)
def main() -> None:
    """Evolve the configs of runs, or report on an experiment."""


@main.command("run", cls=HeliosCommand, epilog="helios-evolve report DIR writes an experiment's report again, also "
              "while it goes on; helios-evolve report --help tells more.")
@click.option("--preset", type=Given(), metavar="NAME", help=f"Run to start from: {', '.join(presets())}.")
@click.option("--experiment", type=Given(), metavar="NAME",
              help=f"Genes and settings to start from: {', '.join(experiments())}.")
@click.option("--config", "file", type=Given(), metavar="FILE.toml",
              help="File of settings, with the tables [evolve], [stops] and [genes], too; they win over the preset's.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting that wins over the file's.")
@click.option("--genes", type=Given(), metavar="NAME[=LOW..HIGH|=A|B],…",
              help="What varies: settings, and the values they may have, where not all that docs/settings.md says.")
@click.option("--seed-from", multiple=True, type=Given(Path), metavar="RUN",
              help="Run whose settings one of the first candidates has; may be given several times.")
@setting_options(*RUNS, *(s for s in declared(EvolveConfig) if s.flag))
@click.option("--executor", "where", default="local", show_default=True, metavar=f"[{'|'.join(EXECUTORS)}[://ADDRESS]]",
              help="Where trainings are made: here, one after another; in processes; or on a Ray cluster.")
@click.option("--workers", type=whole(1), metavar="N",
              help="Trainings at a time. Default: one for each device, or as many as a cluster has room for.")
@click.option("--dir", "folder", type=Given(Path), metavar="DIR",
              help="New or empty directory. Default: runs/evolve-<time>.")
@click.option("--resume", type=Given(Path), metavar="DIR", help="Directory of an experiment to go on with.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what it comes to; train and write nothing.")
@click.option("--quiet", is_flag=True, help="Print only errors, warnings and the result.")
def run_(preset: str | None, experiment: str | None, file: str | None, assignments: tuple[str, ...], genes: str | None,
         seed_from: tuple[Path, ...], where: str, workers: int | None, folder: Path | None, resume: Path | None,
         dry_run: bool, quiet: bool, **flags: Any) -> None:
    """Evolve the configs of runs: train candidates, choose, cross, mutate, and train the best again on fresh seeds.

    Writes DIR/journal.jsonl, runs/, report.md, summary.json and winner.toml, with which helios-train --config goes on.
    After an interruption, --resume DIR goes on where it was. docs/evolve.md explains it.
    """
    display = Display(quiet)
    if resume is not None:
        given = [name for name, value in {"preset": preset, "experiment": experiment, "config": file, "genes": genes,
                                          "set": assignments, "seed-from": seed_from, "dir": folder,
                                          **{key.replace("_", "-"): value for key, value in flags.items()}}.items()
                 if value]
        if given:
            raise click.UsageError(f"--{given[0]} cannot be given with --resume, which goes on as it was asked for")
        driver = Driver.resume(resume, display)
    else:
        found = asked(preset, experiment, file, assignments, flags, genes, seed_from)
        driver = Driver.create(found, folder or new_folder("evolve"), display)
    if where == "local" and "simd_width" in (one.name for one in driver.experiment.space.genes):
        raise UserError("simd_width is a gene, and cannot change within a process; give --executor processes")
    trainer = executor(where, driver.folder, workers, display)
    if dry_run:
        click.echo(driver.preview())
        return
    if not driver.run(trainer):
        interrupted()
    if (driver.state.verdict or {}).get("winner") is None:  # which the report has said
        raise click.exceptions.Exit(1)


@main.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--no-plots", is_flag=True, help="Write the page without pictures.")
def report_(folder: Path, no_plots: bool) -> None:
    """Say what an experiment has shown, and write report.md, summary.json and winner.toml."""
    console = Console(highlight=False, soft_wrap=True)
    for line in report.write_from(folder, plots=not no_plots):
        console.print(line, markup=False)


if __name__ == "__main__":
    main()
