"""How plots are saved, and the roofline: each primitive's GFLOP/s under the most that the device can reach at its
arithmetic intensity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios.backends.backend import Backend
from helios.bench.measure import Peaks, Result
from helios.errors import UserError


def roofline(folder: Path, be: Backend, results: Sequence[Result], peaks: Peaks) -> Path:
    """Draw folder/roofline.png and return its path; rows without arithmetic are left out. Raises UserError."""
    import matplotlib
    from matplotlib.figure import Figure

    points = [(r.row, r.gflops / r.gbps, r.gflops) for r in results if r.gflops]
    figure = Figure(figsize=(11, 7))
    axes = figure.add_subplot()
    ridge = peaks.gflops / peaks.gbps
    low = min([x for _, x, _ in points] + [ridge]) / 2
    high = max([x for _, x, _ in points] + [ridge]) * 2
    axes.plot([low, ridge, high], [low * peaks.gbps, peaks.gflops, peaks.gflops], color="black")
    axes.text(high, peaks.gflops, f"{peaks.gflops:.0f} GFLOP/s", ha="right", va="bottom")
    axes.text(low, low * peaks.gbps, f"{peaks.gbps:.1f} GB/s", ha="left", va="bottom")
    for i, name in enumerate(dict.fromkeys(row.op for row, _, _ in points)):
        mine = [(x, y) for row, x, y in points if row.op == name]
        axes.scatter([x for x, _ in mine], [y for _, y in mine], label=name, s=28, marker="os^Dv"[i // 20 % 5],
                     color=matplotlib.colormaps["tab20"](i % 20))
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP per byte", ylabel="GFLOP/s",
             title=f"{be.device_name}\n{be.driver}")
    axes.grid(True, which="major", alpha=0.3)
    if points:
        axes.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1.01, 1))
    save(path := folder / "roofline.png", figure)
    return path


def save(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib's to a PNG file, whose folder is made. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
