"""helios-report: what the directory of any run tells."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from helios.cli.common import DefaultGroup, Given, HeliosCommand, Number
from helios.errors import UserError
from helios.model.settings import FLOAT, NATURAL
from helios.train import history
from helios.train.history import names
from helios.train.markdown import words
from helios.train.records import reporter
from helios.train.records.layout import read_config
from helios.train.report import findings, page, reading


@click.group(cls=DefaultGroup)
def main() -> None:
    """Report on runs."""


@main.command("report", cls=HeliosCommand,
              epilog="helios-report push RUN… --to URL sends runs to a board; helios-report push --help tells more.")
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


@main.command("push", cls=HeliosCommand)
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=Given(Path))
@click.option("--to", "url", metavar="URL", type=Given(), required=True,
              help="Address of the board; the environment variable HELIOS_TOKEN holds its token.")
@click.option("--wait", type=Number(FLOAT, NATURAL), metavar="SECONDS", default=30.0, show_default=True,
              help="How long a board that does not answer is tried again.")
def push(runs: tuple[Path, ...], url: str, wait: float) -> None:
    """Send the runs in the directories RUN to a board, finished or not. What it has already is not sent again."""
    warn = lambda text: click.echo(text, err=True)
    console = Console(stderr=True)
    for run in _readable(runs, warn):
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(str(run), total=None)
            sent = reporter.push(run.absolute(), url, wait, warn,
                                 lambda done, of: bar.update(task, completed=done, total=of))  # noqa: B023
        click.echo(f"{run}: {sent:,} rows sent")


def _readable(runs: Sequence[Path], warn: Callable[[str], object]) -> list[Path]:
    """Return the run directories, without others, such as the board's own files in runs/*, and say so.
    Raises UserError where there is none."""
    found = []
    for run in runs:
        try:
            read_config(run)
            found.append(run)
        except UserError as error:
            if not found and run is runs[-1]:
                raise
            warn(f"warning: {error}; it is left out")
    return found


if __name__ == "__main__":
    main()
