"""The report of measurements: tables for the terminal, and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from helios import host
from helios.backends.backend import Backend
from helios.bench.measure import Peaks, Result, cores
from helios.bench.step import KernelTime
from helios.bench.tune import Choice
from helios.files import write_text
from helios.model.activations import short_name

MIB = 2**20


def about(be: Backend) -> dict[str, Any]:
    """Return the JSON's entries on device, software and date."""
    packages = [name for name in ("numpy", "torch") if name in sys.modules]
    return {"device": be.device_name, "driver": be.driver, "processor": processor(), "profile": be.kind,
            "software": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in packages}},
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def processor() -> str:
    """Return the name of the host's processor, and how many of its cores this process may use."""
    return f"{host.processor()}, {cores()} cores"


def save(path: Path, be: Backend, rows: Sequence[dict[str, Any]] = (), steps: Sequence[dict[str, Any]] = ()) -> None:
    """Write what was measured on `be` to a JSON file."""
    write_text(path, dump({**about(be), "rows": list(rows), "steps": list(steps)}))


def dump(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def console() -> Console:
    """Return a console, wide enough for any table where it is no terminal."""
    found = Console(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=160)


def headline(be: Backend, more: str) -> str:
    return f"{be.device_name}, {be.driver}: {more}"


def row_table(results: Iterable[Result], peaks: Peaks, dtype: str, peer: str) -> Table:
    beside = () if peer == "none" else (f"{peer} ms", "ratio", "at best")
    table = _table("op", "shape", "kernels", right=("ms", "wall ms", "GFLOP/s", "GB/s", "of peak", *beside))
    for r in results:
        json = r.json(dtype, peaks, peer)
        figures = ((r.ours.device_ms, 3), (r.ours.wall_ms, 3), (r.gflops, 1), (r.gbps, 1),
                   (json["fraction_of_peak"], 2), (r.peer_ms, 3), (json["ratio"], 2), (r.best, 2))
        table.add_row(r.row.op, r.row.shape, r.variant, *(_number(*f) for f in figures[:5 + len(beside)]))
    return table


STEP = {"parameters": "parameters", "tokens_per_sec": "tokens/s", "ms_per_step": "ms", "times_first": "× first",
        "dispatches": "dispatches", "submits": "submits", "barriers": "barriers", "host_ms": "host ms",
        "arena_bytes": "arena", "peer": "peer", "peer_tokens_per_sec": "its tokens/s", "ratio": "ratio"}


def step_table(steps: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each step, without figures that none has."""
    shown = [key for key in STEP if any(s[key] is not None for s in steps)]
    table = _table("activation", right=[STEP[key] for key in shown])
    for s in steps:
        table.add_row(short_name(s["activation"]), *(_figure(key, s[key]) for key in shown))
    return table


def kernel_table(kernels: Sequence[KernelTime]) -> Table:
    table, total = _table("kernel", right=("calls", "ms", "share")), sum(k.ms for k in kernels)
    for name, calls, ms in kernels:
        table.add_row(name, str(calls), f"{ms:.2f}", f"{ms / total:.1%}" if total else "")
    return table


def tile_table(choices: Iterable[Choice]) -> Table:
    table = _table("products up to", "measured on", "tile", right=("ms", "untuned ms"))
    for c in choices:
        table.add_row(c.name, c.shape, " ".join(f"{k}={v}" for k, v in c.tile.items()), f"{c.ms:.3f}",
                      f"{c.untuned_ms:.3f}")
    return table


def plain_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of texts, all but the first column aligned to the right."""
    table = _table(titles[0], right=titles[1:])
    for row in rows:
        table.add_row(*row)
    return table


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in left:
        table.add_column(title, no_wrap=True)
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _number(x: float | None, digits: int) -> str:
    return "–" if x is None else f"{x:,.{digits}f}"


def _figure(key: str, value: Any) -> str:
    if key == "arena_bytes" and value is not None:
        return f"{value / MIB:,.1f} MiB"
    if isinstance(value, float | None):
        return _number(value, 0 if "per_sec" in key else 3 if key == "times_first" else 2)
    return f"{value:,}" if isinstance(value, int) else str(value)
