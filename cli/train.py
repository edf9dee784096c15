"""helios-train: train a GPT on a text, or resume a run."""

from __future__ import annotations

from typing import Any

import click

from helios.cli.common import Given, HeliosCommand, interrupted, setting_options
from helios.errors import UserError
from helios.train.config import SETTINGS, presets, resolve
from helios.train.morph import MODES
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.resume import settings_of
from helios.train.run import Run


@click.command(cls=HeliosCommand)
@click.option("--preset", type=Given(), metavar="NAME",
              help=f"Settings to start from: {', '.join(presets())}.")
@click.option("--config", "file", type=Given(), metavar="FILE.toml",
              help="File of settings, which win over the preset's.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A setting that wins over the file's; KEY as in config.json, or a flag's name.")
@click.option("--search-config", "search_file", type=Given(), metavar="FILE.toml",
              help="Settings of a search; implies --search.")
@click.option("--run-dir", type=Given(), metavar="DIR", help="New or empty directory. Default: runs/<run id>.")
@click.option("--resume", type=Given(), metavar="DIR",
              help="Directory of a run to continue, or of one of its checkpoints.")
@click.option("--quiet", is_flag=True, help="Print only errors, warnings and the last line.")
@click.option("--dry-run", is_flag=True, help="Check all settings and say what they come to, without a device; write "
              "nothing.")
@setting_options(*(s.key for s in SETTINGS if s.flag))
def main(preset: str | None, file: str | None, assignments: tuple[str, ...], search_file: str | None,
         run_dir: str | None, resume: str | None, quiet: bool, dry_run: bool, **flags: Any) -> None:
    """Train a GPT on a text, or continue a run.

    Defaults are those without --preset; --dry-run says what all comes to. Flags win over --set, --set over --config,
    --config over --preset, and all over the settings of a resumed run. docs/settings.md and helios-info --settings list
    the settings without a flag, too.
    """
    base = settings_of(resume) if resume else None
    config = resolve(preset, file, assignments, flags, base, search_file)
    if config.train.morph != MODES[0] and not config.train.init_from and not resume:
        raise UserError(f"--morph {config.train.morph} says what may differ from --init-from; give that, too")
    run = (Run.resume(resume, config, run_dir, plan=planned) if resume else
           Run.create(config, run_dir, plan=planned))
    if dry_run:
        click.echo(run.preview())
        return
    result = run.train(Display(quiet))
    if not result.finished:
        interrupted()
    if result.trouble:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
