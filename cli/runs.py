"""helios-runs: the runs in a folder, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from helios.cli.common import DefaultGroup, Given, HeliosCommand
from helios.errors import UserError, nearest
from helios.model.activations import short_name
from helios.train.config import BY_NAME
from helios.train.progress import show
from helios.train.records import overview
from helios.train.records.layout import differing, find_runs, read_config

_short = lambda text: short_name(str(text))

# Title of a column → key and how its value is written.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run_id", str), "status": ("status", str), "model": ("model", str), "activation": ("activation", _short),
    "parameters": ("parameters", "{:,}".format), "step": ("step", "{:,}".format), "of": ("steps", "{:,}".format),
    "loss": ("loss", "{:.4f}".format), "best val": ("best_val_loss", "{:.4f}".format),
    "tok/s": ("tokens_per_sec", "{:,.0f}".format), "rows": ("coverage", "{:.1%}".format),
    "winner": ("symbio_winner", _short), "updated": ("updated", str),
}
NUMBERS = {"parameters", "step", "of", "loss", "best val", "tok/s", "rows"}


@click.group(cls=DefaultGroup)
def main() -> None:
    """List the runs in a folder, or say what differs between two."""


@main.command("list", cls=HeliosCommand, epilog="helios-runs diff A B says what differs between two runs.")
@click.argument("folder", metavar="[DIR]", type=Given(Path), default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a run, on a line.")
@click.option("--sort", metavar="KEY", default="created", show_default=True,
              help="A key that --json prints, or a setting; -KEY: the largest first.")
@click.option("--where", metavar="KEY=VALUE", multiple=True,
              help="Only the runs with that value of such a key; may be repeated.")
def list_(folder: Path, as_json: bool, sort: str, where: tuple[str, ...]) -> None:
    """List the runs in the folder DIR (default: runs): how they stand, what they are, how far and how good they are."""
    wanted = [_pair(text) for text in where]
    key, last = sort.removeprefix("-"), sort.startswith("-")
    for name in (key, *(name for name, _ in wanted)):
        _check_key(name)
    found = list(filter(None, map(_readable, find_runs(folder))))
    kept = [run for run in found if all(_equal(_value(run, name), value) for name, value in wanted)]
    known = [run for run in kept if _value(run, key) is not None]
    known.sort(key=lambda run: _order(_value(run, key)), reverse=last)
    kept = known + [run for run in kept if _value(run, key) is None]
    if as_json:
        for run in kept:
            click.echo(json.dumps(run.entry | {"path": str(run.path)}))
        return
    if not kept:
        raise UserError(f"no run in {folder}" + (f" with {', '.join(where)}" if found and where else ""))
    table = Table(*(Column(title, justify="right" if title in NUMBERS else "left") for title in COLUMNS), box=None,
                  pad_edge=False)
    for run in kept:
        cells = ((run.entry[key], form) for key, form in COLUMNS.values())
        table.add_row(*(Text("–" if x is None else form(x)) for x, form in cells))
    show(Console(highlight=False, soft_wrap=True), table)
    for run in kept:
        if run.entry["status"] == "failed":
            click.echo(f"{run.entry['run_id']}: {run.entry['reason']}")


@main.command("diff", cls=HeliosCommand)
@click.argument("one", metavar="A", type=Given(Path))
@click.argument("other", metavar="B", type=Given(Path))
def diff(one: Path, other: Path) -> None:
    """Say what differs between the runs in the directories A and B: settings, device, versions, results."""
    a, b = _read(one), _read(other)
    table = Table("", a.entry["run_id"], b.entry["run_id"], box=None, pad_edge=False)
    for name, x, y in differing(a.about, b.about):
        table.add_row(Text(name), *(Text("–" if v is None else str(v)) for v in (x, y)))
    for title, (key, form) in COLUMNS.items():
        x, y = a.entry[key], b.entry[key]
        if title not in ("run", "updated", "model", "activation") and x != y:
            table.add_row(title, *("–" if v is None else form(v) for v in (x, y)))
    show(Console(highlight=False, soft_wrap=True), table)


class Found(NamedTuple):
    path: Path
    about: dict[str, Any]  # config.json
    entry: dict[str, Any]  # what is known at a glance


def _read(path: Path) -> Found:
    return Found(path, read_config(path), overview.read(path))


def _readable(path: Path) -> Found | None:
    """Return what `_read` does; with a warning None, where there is no run or it cannot be read."""
    try:
        return _read(path)
    except UserError as error:
        click.echo(f"warning: {error}; it is left out", err=True)
        return None


def _value(run: Found, key: str) -> Any:
    """Return the value of a key of the entry, or of a setting."""
    key = key.replace("-", "_")
    if key in run.entry:
        return run.entry[key]
    setting = BY_NAME[key]
    section = run.about.get(setting.section)  # None: of a search, where there was none
    return section.get(setting.key) if isinstance(section, dict) else None


def _check_key(key: str) -> None:
    known = [*overview.Overview().entry(None, 0.0), *BY_NAME]
    if key.replace("-", "_") not in known:
        raise UserError(f"no key {key!r}{nearest(key, known)}")


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--where {text}: expected KEY=VALUE")
    return key, value


def _equal(value: Any, text: str) -> bool:
    """Return whether a value is what a user wrote: 1e-3 is 0.001, and True is true."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value) == text.lower()
    if isinstance(value, int | float):
        with suppress(ValueError):
            return float(text) == value
    return str(value) == text


def _order(value: Any) -> tuple[bool, Any]:
    """Return what sorts numbers before texts."""
    number = isinstance(value, int | float)
    return not number, value if number else str(value)


if __name__ == "__main__":
    main()
