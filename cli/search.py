"""helios-search: report on a search for an activation, or judge whether one is worth it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from helios.cli import gates
from helios.cli.common import HeliosGroup
from helios.train.progress import show
from helios.train.search import files, report


@click.group(cls=HeliosGroup, no_args_is_help=False)
def main() -> None:
    """Report on a search for an activation, or judge whether one is worth it."""


@main.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--no-plots", is_flag=True, help="Write the page without pictures.")
def report_(folder: Path, no_plots: bool) -> None:
    """Say who won and why, and write the page search/report.md.

    DIR is the directory of a run that searched, or the folder search/ in it.
    """
    run = files.find(folder)
    page = report.write(run, not no_plots)
    candidates, summary = files.read(run)
    console = Console(highlight=False, soft_wrap=True)
    for line in (report.result(candidates, summary), *summary["reasons"], ""):
        console.print(line, markup=False)
    show(console, report.table(candidates, summary))
    console.print(f"\n{page}", markup=False)


main.add_command(gates.command)


if __name__ == "__main__":
    main()
