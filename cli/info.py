"""helios-info: show the devices and software that Helios can use here."""

from __future__ import annotations

import json
import platform
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import helios
from helios.backends import get_backend
from helios.cli.common import HeliosCommand
from helios.errors import UserError
from helios.train import settings_page
from helios.train.device import ADVICE, MIB, advised

BYTES = ("bytes", "allocation")  # endings of the names of figures in bytes


@click.command(cls=HeliosCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--settings", is_flag=True, help="Print the page of all settings of a run, docs/settings.md, instead.")
def main(as_json: bool, settings: bool) -> None:
    """List devices, features, limits, compiler and caches."""
    if settings:
        click.echo(settings_page.markdown(), nl=False)
        return
    cpu = get_backend("cpu_ref")
    about: dict[str, Any] = {
        "helios": helios.__version__, "python": platform.python_version(),
        "cpu_ref": {"name": cpu.device_name, "driver": cpu.driver, **cpu.memory()}, **_vulkan(),
    }
    if as_json:
        click.echo(json.dumps(about, indent=2, default=str))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"helios {about['helios']}, python {about['python']}", markup=False)
    memory = about["cpu_ref"]
    console.print(f"cpu_ref: {memory['name']}, {memory['driver']}, {memory['available'] / MIB:,.0f} of "
                  f"{memory['total'] / MIB:,.0f} MiB free", markup=False)
    if about["error"]:
        console.print(f"vulkan: none: {about['error']}", markup=False)
        return
    console.print(f"vulkan: loader {about['loader']}, shader compiler {about['compiler']}", markup=False)
    devices = about["devices"]
    if not devices:
        console.print(f"no device; {ADVICE}", markup=False)
    table = Table("", *(f"device {d['index']}" for d in devices), box=None, pad_edge=False)
    for key in (k for k in (devices[0] if devices else {}) if k != "index"):
        table.add_row(key.replace("_", " "), *(_figure(key, d.get(key)) for d in devices))
    console.print(table)
    for title in ("caches", "env", "tuned"):
        for name, value in about[title].items():
            console.print(f"{title.removesuffix('s')} {name}: {value}", markup=False)


def _vulkan() -> dict[str, Any]:
    """Return the Vulkan backend's description of itself, or the error that it meets."""
    try:
        from helios.backends.vulkan.device import describe

        return {**describe(), "error": None}
    except (UserError, ImportError, OSError) as error:
        return {"error": advised(error), "devices": []}


def _figure(key: str, value: Any) -> str:
    if isinstance(value, int) and key.endswith(BYTES):
        return f"{value / MIB:,.0f} MiB" if value >= MIB else f"{value:,} B"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return str(value)


if __name__ == "__main__":
    main()
