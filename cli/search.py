"""helios-search: report on a search for an activation, or judge whether one is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from helios.cli.common import Given, HeliosCommand, HeliosGroup, interrupted, new_folder, setting_options, whole
from helios.files import write_text
from helios.train.gates import page, study
from helios.train.gates.study import PRESETS, STEPS
from helios.train.progress import Display, show
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
    written = report.write(run, not no_plots)
    candidates, summary = files.read(run)
    console = Console(highlight=False, soft_wrap=True)
    for line in (report.result(candidates, summary), *summary["reasons"], ""):
        console.print(line, markup=False)
    show(console, report.table(candidates, summary))
    console.print(f"\n{written}", markup=False)


@main.command("gates", cls=HeliosCommand)
@click.option("--data", required=True, metavar="FILE", help="Training text: a UTF-8 file, or synth:SIZE[:SEED].")
@setting_options("val_data", "vocab_size", "backend", "device")
@click.option("--run-dir", "folder", type=Given(Path), metavar="DIR",
              help="Directory of the searches, which go on if there are any. Default: runs/gates-<time>.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(PRESETS)),
              help=f"Model of the preset {' or '.join(PRESETS.values())}; may be given twice. Default: both.")
@click.option("--seeds", type=whole(3), default=3, show_default=True, metavar="N",
              help="Trainings of each activation, with a seed each.")
@click.option("--tokens", type=whole(1), metavar="N",
              help=f"Tokens that each training reads. Default: those of {STEPS} steps.")
@click.option("--all-gates", is_flag=True, help="Train for gate 3 even where gate 1 does not pass.")
@click.option("--quiet", is_flag=True, help="Print only errors, warnings, the last line of each search, the result.")
def gates_(folder: Path | None, models: Sequence[str], seeds: int, tokens: int | None, all_gates: bool, quiet: bool,
            **flags: Any) -> None:
    """Judge whether activations matter: three gates, pass or fail.

    Trains gelu, silu, relu and swiglu under equal conditions and, where gate 1 passes, mixtures of the best two by
    block. Writes gates.json and gates.md. To continue after an interruption, give the same command with its --run-dir.
    """
    folder = (folder or new_folder("gates")).absolute()
    display, studies = Display(quiet), []
    for model in [m for m in PRESETS if m in models or not models]:
        found = study.study(model, folder, flags, seeds, tokens, all_gates, display)
        if found is None:
            display.final(f"go on with the same command and --run-dir {folder}")
            interrupted()
        studies.append(found)
    write_text(folder / "gates.json", page.json_text(studies, flags, seeds))
    write_text(folder / "gates.md", page.markdown(studies, seeds))
    show(Console(highlight=False, soft_wrap=True), page.verdict_table(studies))
    display.final(str(folder / "gates.md"))


if __name__ == "__main__":
    main()
