"""helios-report: what the directory of any run tells."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from helios.cli.common import DefaultGroup, Given, HeliosCommand
from helios.train import history
from helios.train.history import names
from helios.train.markdown import words
from helios.train.report import findings, page, reading


@click.group(cls=DefaultGroup)
def main() -> None:
    """Report on runs."""


@main.command("report", cls=HeliosCommand)
@click.argument("paths", metavar="RUN…", nargs=-1, required=True, type=Given(Path))
@click.option("--out", metavar="DIR", type=Given(Path),
              help="Folder of the report. Default: report in the run's directory, for several runs in the present one.")
@click.option("--against", "name", metavar="NAME", help=f"Compare with the historic run NAME: {', '.join(names())}.")
@click.option("--html", "as_html", is_flag=True, help="Write one HTML file, with all plots in it.")
def report(paths: tuple[Path, ...], out: Path | None, name: str | None, as_html: bool) -> None:
    """Write what the run in the directory RUN tells, or several side by side: report.md and its plots.

    A run may be of any kind, finished or not. On a terminal, what to look at is printed, too. Say ./push for a run
    directory that is called push.
    """
    beside = history.read(name) if name else None
    runs = [reading.read(path) for path in paths]
    written = page.write(runs, out or (paths[0] if len(paths) == 1 else Path()) / "report", as_html, beside)
    if not beside and sys.stdout and sys.stdout.isatty():
        for run in runs:
            click.echo("\n".join([f"{run.about['run_id']}:"] * (len(runs) > 1)
                                 + [f"* {words(line)}" for line in findings.findings(run)]))
    click.echo(written)


if __name__ == "__main__":
    main()
