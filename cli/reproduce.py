"""helios-reproduce: run a historic run again, and compare its figures with the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from helios.bench import reproduce
from helios.bench.reproduce import AGAIN, WAYS, page, plans
from helios.cli.common import Given, HeliosCommand, HeliosGroup, interrupted, new_folder, setting_options, whole
from helios.files import check_writable, write_text
from helios.train import history
from helios.train.progress import Display

TEXT = click.Path(path_type=Path, exists=True, dir_okay=False)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every historic run has."""
    for option in reversed((
        click.option("--data", type=TEXT, required=True, metavar="FILE", help="Training text, a UTF-8 file."),
        click.option("--val-data", type=TEXT, required=True, metavar="FILE", help="Validation text, a UTF-8 file."),
        click.option("--run-dir", "folder", type=Given(Path), metavar="DIR",
                     help="Directory of the runs, which go on if there are any. Default: runs/reproduce-<run>-<time>."),
        click.option("--page", "page_file", type=Given(Path), metavar="FILE.md",
                     help="Where to write the page. Default: in the run directory."),
        setting_options("backend", "device"),
        click.option("--quiet", is_flag=True, help="Print only errors, warnings and the last line of each run."),
    )):
        command = option(command)
    return command


@click.group(cls=HeliosGroup, no_args_is_help=False)
def main() -> None:
    """Run a historic run of the system that Helios replaces again, and write a page with both runs' figures.

    To continue after an interruption, give the same command with its --run-dir.
    """


@main.command("5ke3", cls=HeliosCommand)
@click.option("--faithful", is_flag=True, help="Search the original's way, but with a selection that works.")
@click.option("--fair", is_flag=True, help="Compare candidates under equal conditions, with two seeds each.")
@options
def search_run(faithful: bool, fair: bool, **given: Any) -> None:
    """Search over four activations, then train the winner for 340 steps.

    Neither --faithful nor --fair means both.
    """
    wanted = {"faithful": faithful, "fair": fair}
    _reproduce("5ke3", [name for name in WAYS["5ke3"] if wanted[name] or not any(wanted.values())], **given)


def steps(run: str, usual: int) -> Callable[..., Any]:
    """Return the option of how far to go: to step `usual` unless told otherwise, and to the run's planned end at most.
    """
    most = history.read(run).planned
    return click.option("--steps", type=whole(1, most), default=usual, show_default=True, metavar="N",
                        help=f"Step to go to, of {most:,}; more of them later go on from there.")


@main.command("4kwo", cls=HeliosCommand)
@steps("4kwo", 300)
@options
def long_run(**given: Any) -> None:
    """Train the first steps of a long run with gelu."""
    _reproduce("4kwo", **given)


@main.command("2ao8", cls=HeliosCommand)
@steps("2ao8", history.read("2ao8").steps)
@options
def larger_run(**given: Any) -> None:
    """Search over four activations with a larger model, and train the winner for the first of many steps.

    The batch varies from 12 to 64 sequences of 512 tokens: 610 steps take hours on a CPU.
    """
    _reproduce("2ao8", **given)


def _reproduce(run: str, ways: Sequence[str] = (AGAIN,), *, data: Path, val_data: Path, folder: Path | None,
               page_file: Path | None, backend: str | None, device: str | None, quiet: bool, steps: int | None = None
               ) -> None:
    if page_file is not None:
        check_writable(page_file)
    folder = (folder or new_folder(f"reproduce-{run}")).absolute()
    planned = plans(run, ways, {"data": str(data.resolve()), "val_data": str(val_data.resolve()), "backend": backend,
                                "device": device}, steps)
    display = Display(quiet)
    if not reproduce.run(planned, folder, display):
        display.final(f"go on with the same command and --run-dir {folder}")
        interrupted()
    page_file = page_file or folder / f"{run}.md"
    write_text(page_file, page(run, folder, ways))
    display.final(str(page_file))


if __name__ == "__main__":
    main()
