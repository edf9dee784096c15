"""The plots of a run's report, and that of several runs' losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from helios.model.activations import colour as colour_of
from helios.model.activations import kind, kinds
from helios.train.history import Historic
from helios.train.report.reading import LAYERS, SEARCH, RunData, finite
from helios.train.report.speed import PHASES
from helios.train.search.plots import WIDTH, drawn, legend

BUCKETS = 2000  # most points of a line; more rows are drawn by their range and their mean
AREAS = 150  # most points of the stacked phases
TICKS = 40  # most layers with a name beside the heat map
GREY, DARK, RED = "#9aa5b1", "#333f4f", "#d1242f"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")  # of several runs

Plot = Callable[..., bool]  # (figure, run) → whether it has something to show


def draw(run: RunData) -> dict[str, bytes]:
    """Return the plots of a run as PNG images by file name, without those that have nothing to show."""
    return drawn({name: partial(plot, run=run) for name, plot in PLOTS.items()})


def overlaid(runs: Sequence[RunData], beside: Historic | None = None) -> dict[str, bytes]:
    """Return the plot of the losses of several runs, one over another. beside: whose losses are marked, too."""
    return drawn({"losses.png": partial(_overlay, runs=runs, beside=beside)})


def literal(text: str) -> str:
    """Return a text that matplotlib shows as it is, without taking $ for mathematics or _ for what is to be hidden."""
    return f" {text}".replace("$", r"\$")


# -- parts of plots ----------------------------------------------------------------------------------------------------

def _line(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    """Draw a line; of many values their means, and their range around them, so that no spike is lost."""
    if len(steps) <= BUCKETS:
        # A single value has no line.
        axes.plot(steps, values, color=colour, marker="." if len(steps) == 1 else "", **style)
        return
    edges = np.linspace(0, len(steps), BUCKETS // 2 + 1).astype(int)[:-1]
    at = np.add.reduceat(steps, edges) / np.diff([*edges, len(steps)])
    low, high = np.fmin.reduceat(values, edges), np.fmax.reduceat(values, edges)
    axes.fill_between(at, low, high, color=colour, alpha=0.35, linewidth=0)
    counts = np.add.reduceat(np.isfinite(values), edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        axes.plot(at, np.add.reduceat(np.nan_to_num(values), edges) / counts, color=colour, **style)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the means of the known values around each, of a fiftieth of all."""
    reach = len(values) // 100
    sums, counts = (np.cumsum(np.pad(x, (1, 0))) for x in (np.nan_to_num(values), np.isfinite(values)))
    first = np.maximum(np.arange(len(values)) - reach, 0)
    past = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[past] - sums[first]) / (counts[past] - counts[first])


def _bounds(values: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the limits of an axis of losses: all of them but for what spikes or diverges."""
    seen = finite(values)
    if not seen.size:
        return {}
    low, high = seen.min(), min(np.percentile(seen, 99.5), 1.1 * np.median(seen[:5]))
    high = max(high, float(np.median(seen)))
    margin = 0.05 * (high - low) or 0.1
    return {"ylim": (low - margin, high + margin)}


def _switches(axes: Any, run: RunData) -> None:
    """Shade the trainings of a search, and mark where each begins."""
    names = kinds(run.activations)
    for n, training in enumerate(t for t in run.trainings if t.phase == SEARCH):
        a, b = (run.steps[i] for i in (training.rows.start, training.rows.stop - 1))
        colour = colour_of(kind(run.activations[training.rows.start], names))
        axes.axvspan(a - 0.5, b + 0.5, color=colour, alpha=0.14 if n % 2 else 0.07, linewidth=0)


def _span(axes: Any, run: RunData, **more: Any) -> None:
    room = max(0.5, 0.01 * run.last)
    axes.set(xlabel="step", xlim=(run.steps[0] - room, run.last + room), **more)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.25)


def _activations(axes: Any, run: RunData, **where: Any) -> None:
    if len(names := kinds(run.activations)) > 1:
        legend(axes, names, **where)


# -- the plots ---------------------------------------------------------------------------------------------------------

def _loss(figure: Any, run: RunData) -> bool:
    values, val = run.column("loss"), run.column("val_loss")
    if not finite(values).size and not finite(val).size:
        return False
    figure.set_size_inches(WIDTH, 4.2)
    axes = figure.subplots()
    _switches(axes, run)
    _line(axes, run.steps, values, GREY, linewidth=0.8, label="training")
    for training in run.trainings:
        part = values[training.rows]
        if len(part) >= 100:
            axes.plot(run.steps[training.rows], _smooth(part), color=DARK, linewidth=1.4)
    where = np.isfinite(val)
    axes.plot(run.steps[where & run.main], val[where & run.main], color=LINES[1], marker="o", markersize=4,
              linewidth=1.2, label="validation")
    axes.scatter(run.steps[where & ~run.main], val[where & ~run.main], color=LINES[1], s=10, zorder=3)
    main = np.where(run.main, val, math.nan)
    if finite(main).size:
        best = int(np.nanargmin(main))
        axes.scatter(run.steps[best], main[best], marker="*", s=150, color=LINES[4], edgecolor="black", linewidth=0.6,
                     zorder=4, label="best validation")
    bounds = _bounds(np.concatenate((values, val)))
    floor = bounds["ylim"][0]
    for steps, mark, colour, label in (
            ([s for s in run.checkpoints if s <= run.last], "^", LINES[2], "checkpoint"),
            (run.steps[run.spikes], "x", RED, "gradient spike")):
        if len(steps):
            axes.scatter(steps, [floor] * len(steps), marker=mark, color=colour, s=26, zorder=5, clip_on=False,
                         linewidth=1.2, label=label)
    warmup = run.setting("train", "warmup")
    if isinstance(warmup, int) and 0 < warmup < run.last - run.first:
        axes.axvline(run.first + warmup, color=DARK, linestyle=":", linewidth=1, label="end of the warm-up")
    _span(axes, run, ylabel="loss (nats a token)", **bounds)
    figure.legend(loc="outside upper center", ncols=6, fontsize=8.5, handlelength=1.4, columnspacing=1.2)
    return True


def _rate(figure: Any, run: RunData) -> bool:
    values = run.column("lr")
    if finite(values).size < 2:
        return False
    figure.set_size_inches(WIDTH, 2.4)
    axes = figure.subplots()
    _switches(axes, run)
    _line(axes, run.steps, values, LINES[0], linewidth=1.3)
    _span(axes, run, ylabel="learning rate")
    axes.set_ylim(bottom=0)
    return True


def _gradients(figure: Any, run: RunData) -> bool:
    values = np.where(run.column("grad_norm") > 0, run.column("grad_norm"), math.nan)
    if not finite(values).size:
        return False
    axes = figure.subplots()
    _switches(axes, run)
    axes.set_yscale("log")
    _line(axes, run.steps, values, LINES[0], linewidth=0.8)
    axes.scatter(run.steps[run.spikes], values[run.spikes], color=RED, s=18, zorder=3, label="spike")
    skipped = run.skipped & np.isfinite(values)
    if skipped.any():
        axes.scatter(run.steps[skipped], values[skipped], marker="x", color="black", s=26, zorder=4, label="skipped")
    clip = run.setting("train", "grad_clip")
    if isinstance(clip, int | float) and clip > 0:
        axes.axhline(clip, color=DARK, linestyle=":", linewidth=1, label="clipped above")
    _span(axes, run, ylabel="gradient norm")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5)
    return True


def _throughput(figure: Any, run: RunData) -> bool:
    where = run.steady & np.isfinite(run.column("tokens_per_sec"))
    if not where.any():
        return False
    axes = figure.subplots()
    names = kinds(run.activations)
    of = {a: kind(a, names) for a in set(run.activations)}
    own = np.array([of[a] for a in run.activations])
    for name in names:
        part = where & (own == name)
        axes.scatter(run.steps[part], run.column("tokens_per_sec")[part], color=colour_of(name), s=7, linewidth=0,
                     alpha=0.8, rasterized=True)
    _span(axes, run, ylabel="tokens a second")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _activations(axes, run, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=7)
    return True


def _phases(figure: Any, run: RunData) -> bool:
    names = [name for name in PHASES if finite(run.column(name)).size]
    where = np.flatnonzero(run.steady & np.all([np.isfinite(run.column(name)) for name in names], axis=0)
                           ) if names else np.array([], int)
    if len(where) < 2:
        return False
    parts = np.array_split(where, min(len(where), AREAS))
    heights = [[float(np.median(run.column(name)[part])) for part in parts] for name in names]
    axes = figure.subplots()
    axes.stackplot([run.steps[part].mean() for part in parts], heights, labels=[PHASES[name] for name in names],
                   colors=LINES, alpha=0.85, step="mid", linewidth=0)
    _span(axes, run, ylabel="ms of a step")
    figure.legend(loc="outside upper center", ncols=len(names), fontsize=8.5)
    return True


def _weights(figure: Any, run: RunData) -> bool:
    names = {"weight_entropy": "entropy (bits)", "effective_rank": "effective rank"}
    present = [name for name in names if finite(run.column(name)).size > 1]
    if not present:
        return False
    figure.set_size_inches(WIDTH, 2.6)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(present))), present, strict=True):
        _switches(axes, run)
        for training in run.trainings:
            values = run.column(name)[training.rows]
            where = np.isfinite(values)
            axes.plot(run.steps[training.rows][where], values[where], color=LINES[0], marker=".", linewidth=1.2)
        _span(axes, run, ylabel=names[name])
    return True


def _layers(figure: Any, run: RunData) -> bool:
    names = [name for name in run.numbers if name.startswith(f"{LAYERS}.")]
    if len(names) < 2:
        return False
    norms = np.array([run.column(name) for name in names])
    norms = np.where(norms > 0, norms, math.nan)
    where = np.flatnonzero(np.isfinite(norms).any(axis=0))
    if len(where) < 2:
        return False
    from matplotlib.colors import LogNorm

    figure.set_size_inches(WIDTH, min(1.4 + 0.26 * len(names), 8))
    axes = figure.subplots()
    image = axes.imshow(norms[:, where], aspect="auto", interpolation="nearest", cmap="viridis", norm=LogNorm())
    if len(names) <= TICKS:
        axes.set_yticks(range(len(names)), [literal(name.removeprefix(f"{LAYERS}.")) for name in names], fontsize=8)
    ticks = np.unique(np.linspace(0, len(where) - 1, min(8, len(where))).astype(int))
    axes.set_xticks(ticks, [f"{run.steps[where[i]]:,}" for i in ticks])
    axes.set_xlabel("step")
    figure.colorbar(image, ax=axes, label="gradient norm", pad=0.01)
    return True


PLOTS: Mapping[str, Plot] = {"loss.png": _loss, "lr.png": _rate, "gradients.png": _gradients,
                             "throughput.png": _throughput, "steps.png": _phases, "weights.png": _weights,
                             "layers.png": _layers}


def _overlay(figure: Any, runs: Sequence[RunData], beside: Historic | None) -> bool:
    figure.set_size_inches(WIDTH, 4.6)
    axes, seen = figure.subplots(), []
    for n, run in enumerate(runs):
        colour, steps = LINES[n % len(LINES)], run.steps[run.main] - run.first
        values, val = run.column("loss")[run.main], run.column("val_loss")[run.main]
        if not finite(values).size:
            continue
        seen.append(np.concatenate((values, val)))
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.3, label=literal(run.about["run_id"]))
        where = np.isfinite(val)
        axes.plot(steps[where], val[where], color=colour, marker="o", markersize=4, linestyle=":", linewidth=1)
    if not seen:
        return False
    if beside:
        first = beside.phases[-1].first - 1 if beside.phases else 0
        longest = first + max(run.last - run.first for run in runs)
        points = {step - first: x for step, x in beside.column("loss").items() if first < step <= longest}
        axes.plot([*points], [*points.values()], color=DARK, marker="D", markersize=4, linestyle="",
                  label=literal(beside.run_id))
        seen.append(np.array([*points.values()]))
    axes.set(xlabel="step of the training", ylabel="loss (nats a token)", **_bounds(np.concatenate(seen)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=8.5)
    return True
