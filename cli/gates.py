"""helios-search gates: three gates of a study of activations, run and judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from helios.bench.report import dump, write
from helios.cli.common import HeliosCommand
from helios.train.progress import Display, show
from helios.train.search import study, study_page
from helios.train.search.study import PRESETS, STEPS


@click.command("gates", cls=HeliosCommand)
@click.option("--data", required=True, metavar="FILE", help="Training text: a UTF-8 file, or synth:2MB[:SEED].")
@click.option("--val-data", metavar="FILE", help="Validation text; else documents of --data are set apart.")
@click.option("--run-dir", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where the searches go, or are continued; else runs/gates-…")
@click.option("--model", "models", multiple=True, type=click.Choice(list(PRESETS)),
              help=f"Of preset {' or '.join(PRESETS.values())}; can be given twice. Else both.")
@click.option("--seeds", type=click.IntRange(3), default=3, show_default=True, metavar="N", help="For each activation.")
@click.option("--tokens", type=click.IntRange(1), metavar="N",
              help=f"That each training reads; else those of {STEPS} steps.")
@click.option("--all-gates", is_flag=True, help="Train for gate 3 also where gate 1 does not pass.")
@click.option("--backend", metavar="TEXT", help="auto, vulkan or cpu_ref.")
@click.option("--device", metavar="TEXT", help="Vulkan device: its index or part of its name.")
@click.option("--quiet", is_flag=True, help="Nothing but errors, warnings, the last line of each search, the result.")
def command(data: str, val_data: str | None, folder: Path | None, models: Sequence[str], seeds: int,
            tokens: int | None, all_gates: bool, backend: str | None, device: str | None, quiet: bool) -> None:
    """Judge whether activations matter: three gates, pass or fail.

    Trains gelu, silu, relu and swiglu under equal conditions, and genomes of the best two where gate 1 passes. Writes
    gates.json and gates.md. An interrupted one goes on when the same command is given again with its --run-dir.
    """
    folder = (folder or Path("runs") / f"gates-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}").absolute()
    given = {"data": data, "val_data": val_data, "backend": backend, "device": device}
    display, studies = Display(quiet), []
    for model in [m for m in PRESETS if m in models or not models]:
        found = study.study(model, folder, given, seeds, tokens, all_gates, display)
        if found is None:
            display.final(f"go on with the same command and --run-dir {folder}")
            click.get_current_context().exit(130)
        studies.append(found)
    write(folder / "gates.json", dump(study_page.data(studies, given, seeds)))
    write(folder / "gates.md", study_page.markdown(studies, seeds))
    show(Console(highlight=False, soft_wrap=True), study_page.shown(studies))
    display.final(str(folder / "gates.md"))
