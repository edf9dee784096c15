"""helios-search gates: run a study of activations, and judge its three gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from helios.bench.report import dump, write
from helios.cli.common import Given, HeliosCommand, interrupted, new_folder, setting_options
from helios.train.progress import Display, show
from helios.train.search import study, study_page
from helios.train.search.study import PRESETS, STEPS


@click.command("gates", cls=HeliosCommand)
@click.option("--data", required=True, metavar="FILE", help="Training text: a UTF-8 file, or synth:SIZE[:SEED].")
@setting_options("val_data", "backend", "device")
@click.option("--run-dir", "folder", type=Given(Path), metavar="DIR",
              help="Directory of the searches, which go on if there are any. Default: runs/gates-<time>.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(PRESETS)),
              help=f"Model of the preset {' or '.join(PRESETS.values())}; may be given twice. Default: both.")
@click.option("--seeds", type=click.IntRange(3), default=3, show_default=True, metavar="N",
              help="Trainings of each activation, with a seed each.")
@click.option("--tokens", type=click.IntRange(1), metavar="N",
              help=f"Tokens that each training reads. Default: those of {STEPS} steps.")
@click.option("--all-gates", is_flag=True, help="Train for gate 3 even where gate 1 does not pass.")
@click.option("--quiet", is_flag=True, help="Print only errors, warnings, the last line of each search, the result.")
def command(folder: Path | None, models: Sequence[str], seeds: int, tokens: int | None, all_gates: bool, quiet: bool,
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
    write(folder / "gates.json", dump(study_page.to_json(studies, flags, seeds)))
    write(folder / "gates.md", study_page.markdown(studies, seeds))
    show(Console(highlight=False, soft_wrap=True), study_page.verdict_table(studies))
    display.final(str(folder / "gates.md"))
