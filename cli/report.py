"""helios-report: what the directory of any run tells."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from helios.cli.common import DefaultGroup, Given, HeliosCommand, Number
from helios.model.settings import FLOAT, NATURAL
from helios.train.records import reporter
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


@main.command("push", cls=HeliosCommand)
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=Given(Path))
@click.option("--to", "url", metavar="URL", type=Given(), required=True,
              help="Address of the board; the environment variable HELIOS_TOKEN holds its token.")
@click.option("--wait", type=Number(FLOAT, NATURAL), metavar="SECONDS", default=30.0, show_default=True,
              help="How long a board that does not answer is tried again.")
def push(runs: tuple[Path, ...], url: str, wait: float) -> None:
    """Send the runs in the directories RUN to a board, finished or not, but for what it has of them."""
    warn = lambda text: click.echo(text, err=True)
    console = Console(stderr=True)
    for run in runs:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(str(run), total=None)
            sent = reporter.push(run.absolute(), url, wait, warn,
                                 lambda done, of: bar.update(task, completed=done, total=of))  # noqa: B023
        click.echo(f"{run}: {sent:,} rows sent")


if __name__ == "__main__":
    main()
