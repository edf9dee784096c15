"""helios-reproduce: run a historic run again, and compare its figures with the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from helios.bench import reproduce
from helios.bench.reproduce import LONGEST, NAMES, page, plans
from helios.cli.common import Given, HeliosCommand, HeliosGroup, interrupted, new_folder, setting_options, whole
from helios.files import check_writable, write_text
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
    _reproduce("5ke3", [name for name in NAMES["5ke3"] if wanted[name] or not any(wanted.values())], **given)


@main.command("4kwo", cls=HeliosCommand)
@click.option("--steps", type=whole(1, LONGEST), default=300, show_default=True, metavar="N",
              help=f"Steps to train, at most the {LONGEST} of the original's warm-up.")
@options
def long_run(steps: int, **given: Any) -> None:
    """Train the first steps of a long run with gelu."""
    _reproduce("4kwo", NAMES["4kwo"], steps=steps, **given)


def _reproduce(run: str, ways: Sequence[str], data: Path, val_data: Path, folder: Path | None, page_file: Path | None,
               backend: str | None, device: str | None, quiet: bool, steps: int = 0) -> None:
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
    write_text(page_file, page(run, folder))
    display.final(str(page_file))


if __name__ == "__main__":
    main()
