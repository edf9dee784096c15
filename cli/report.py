"""helios-report: what the directory of any run tells."""

from __future__ import annotations

from pathlib import Path

import click

from helios.cli.common import DefaultGroup, Given, HeliosCommand
from helios.train.report import page


@click.group(cls=DefaultGroup)
def main() -> None:
    """Report on runs."""


@main.command("report", cls=HeliosCommand)
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=Given(Path))
@click.option("--out", metavar="DIR", type=Given(Path), help="Folder of the report. Default: report/ in the run's.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the report of the run in the directory RUN.

    Give ./push for a run directory that is called push.
    """
    click.echo(page.write(runs, out or runs[0] / "report"))


if __name__ == "__main__":
    main()
