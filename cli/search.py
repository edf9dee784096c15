"""helios-search: what came of a search for an activation."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.measure import Measurement

from helios.cli import gates
from helios.cli.common import HeliosGroup
from helios.train.search import report

WIDEST = 1000  # characters of a row


@click.group(cls=HeliosGroup, no_args_is_help=False)
def main() -> None:
    """Report on a search for an activation."""


@main.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--no-plots", is_flag=True, help="The page without pictures.")
def report_(folder: Path, no_plots: bool) -> None:
    """Say who won and why, and write the page search/report.md.

    DIR is the directory of a run that searched, or the folder search/ in it.
    """
    run = report.find(folder)
    page = report.write(run, not no_plots)
    candidates, summary = report.read(run)
    console = Console(highlight=False, soft_wrap=True)
    for line in (report.result(candidates, summary), *summary["reasons"], ""):
        console.print(line, markup=False)
    table = report.table(candidates, summary)
    # Rows that the terminal breaks are better than cells that are cut.
    console.width = max(console.width, Measurement.get(console, console.options.update(width=WIDEST), table).maximum)
    console.print(table)
    console.print(f"\n{page}", markup=False)


main.add_command(gates.command)


if __name__ == "__main__":
    main()
