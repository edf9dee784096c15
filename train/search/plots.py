"""The plots of a search's report."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from helios.model.activations import colour as colour_of
from helios.model.activations import kind, kinds, short_name, short_names, split
from helios.train.search.births import Candidate
from helios.train.search.files import Track
from helios.train.search.ranking import labels

PREPARING = 2  # first steps of a replicate, which prepare kernels and so are no measure of speed
WIDTH, DPI = 9.0, 150  # inches; readable where a page is 900 pixels wide
TALLEST = 40.0  # inches
ROOMY, BREADTH = 8, 110  # generations, and characters, that fit in the width of a page
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
         "legend.frameon": False, "axes.axisbelow": True, "figure.constrained_layout.use": True}


def speeds(candidates: Sequence[Candidate], found: Iterable[Track]) -> dict[str, np.ndarray]:
    """Return the tokens/s of the steps of each replicate but its first PREPARING, by activation in short form."""
    short, activation = short_names(c.activation for c in candidates), {c.id: c.activation for c in candidates}
    rates: dict[str, list[float]] = {}
    for track in found:
        rates.setdefault(short[activation[track.candidate]], []).extend(track.rates[PREPARING:])
    finite = {name: np.array([x for x in values if math.isfinite(x)]) for name, values in rates.items()}
    return {name: values for name, values in finite.items() if values.size}


# -- the plots ---------------------------------------------------------------------------------------------------------

def draw(candidates: Sequence[Candidate], winner: str | None, found: Sequence[Track]) -> dict[str, bytes]:
    """Return the plots as PNG images by file name, without those that have nothing to show yet."""
    import matplotlib
    from matplotlib.figure import Figure

    images = {}
    with matplotlib.rc_context(STYLE):
        for name, plot in {"loss.png": _loss, "speed.png": _speed, "lineage.png": _lineage,
                           "activations.png": _activations}.items():
            figure = Figure(dpi=DPI)
            if plot(figure, candidates, winner, found):
                file = io.BytesIO()
                figure.savefig(file, format="png")
                images[name] = file.getvalue()
    return images


def _loss(figure: Any, candidates: Sequence[Candidate], winner: str | None, found: Sequence[Track]) -> bool:
    """Plot the losses by step on the left, and on the right the last validation losses, on a scale of their own."""
    shown, activation = _kinds(candidates), {c.id: c.activation for c in candidates}
    if not found:
        return False
    ended = [c for c in candidates if c.val_loss_mean is not None and c.status != "reused"]
    ended.sort(key=lambda c: -(c.val_loss_mean or 0))
    figure.set_size_inches(WIDTH, min(max(4.2, 1 + 0.3 * len(ended)), TALLEST))
    way, end = figure.subplots(1, 2, width_ratios=(3, 2)) if ended else (figure.subplots(), None)
    for track in found:
        colour = colour_of(kind(activation[track.candidate], shown))
        way.plot(track.steps, track.losses, color=colour, linewidth=0.6, alpha=0.4)
        if track.evaluations:
            way.scatter(*zip(*track.evaluations, strict=True), color=colour, s=16, edgecolor="white", linewidth=0.4,
                        zorder=3)
    way.set(xlabel="step of the candidate", ylabel="loss (nats a token)", **_reach(found))
    legend(way, (kind(activation[track.candidate], shown) for track in found), loc="upper right")
    if end is not None:
        _last(end, ended, winner, labels(candidates), shown)
    return True


def _reach(found: Sequence[Track]) -> dict[str, tuple[float, float]]:
    """Return the loss axis's limits, from the lowest to about the first losses, whatever spikes or diverges."""
    values = np.array([x for track in found for x in (*track.losses, *(v for _, v in track.evaluations))])
    began = np.array([track.losses[0] for track in found])
    if not np.isfinite(began).any():
        return {}
    low, high = np.nanmin(values), min(np.nanpercentile(values, 99.5), 1.1 * np.nanmedian(began))
    margin = 0.04 * (high - low) or 0.1
    return {"ylim": (low - margin, high + margin)}


def _last(axes: Any, ended: Sequence[Candidate], winner: str | None, names: Mapping[str, str], shown: list[str]
          ) -> None:
    for y, c in enumerate(ended):
        colour, mean = colour_of(kind(c.activation, shown)), c.val_loss_mean
        values = [r.val_loss for r in c.replicates if r.val_loss is not None]
        axes.scatter(values, [y] * len(values), color=colour, s=12, alpha=0.6, linewidth=0)
        axes.errorbar(mean, y, xerr=2 * (c.val_loss_se or 0), color=colour, marker="|", markersize=11, linewidth=1.4)
    axes.set_yticks(range(len(ended)), [names[c.id] for c in ended], fontsize=8)
    for c, label in zip(ended, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if c.id == winner else "normal")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel="last validation loss ± 2 SE", ylim=(-0.6, len(ended) - 0.4))


def _speed(figure: Any, candidates: Sequence[Candidate], winner: str | None, found: Sequence[Track]) -> bool:
    rates = speeds(candidates, found)
    names, shown = sorted(rates, key=lambda name: float(np.median(rates[name]))), _kinds(candidates)
    if not names:
        return False
    figure.set_size_inches(WIDTH, min(1.1 + 0.45 * len(names), TALLEST))
    axes = figure.subplots()
    boxes = axes.boxplot([rates[name] for name in names], orientation="horizontal", whis=(5, 95), showfliers=False,
                         widths=0.6, patch_artist=True, medianprops={"color": "black"})
    for name, box in zip(names, boxes["boxes"], strict=True):
        box.set(facecolor=colour_of(kind(name, shown)), edgecolor="black", linewidth=0.8, alpha=0.85)
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="tokens per second: median, quarters, 5 % and 95 % of the steps")
    return True


def _lineage(figure: Any, candidates: Sequence[Candidate], winner: str | None, found: Sequence[Track]) -> bool:
    from matplotlib.patheffects import withStroke

    if not any(c.parent_id for c in candidates):
        return False
    at, names = _places(candidates), labels(candidates)
    generations = 1 + max(x for x, _ in at.values())
    rows = max(Counter(x for x, _ in at.values()).values())
    figure.set_size_inches(WIDTH * max(1, generations / ROOMY), min(1.2 + 0.75 * rows, TALLEST))
    axes, shown, halo = figure.subplots(), _kinds(candidates), [withStroke(linewidth=2, foreground="white")]
    for c in candidates:
        (x, y), colour = at[c.id], colour_of(kind(c.activation, shown))
        if c.parent_id:
            past = x - at[c.parent_id][0] > 1  # a straight line might cross others
            axes.annotate("", (x, y), at[c.parent_id], zorder=1, arrowprops={
                "arrowstyle": "-", "connectionstyle": f"arc3,rad={0.1 * past}", "color": "#aaaaaa"})
        if c.id == winner:
            axes.scatter(x, y, s=230, facecolor="none", edgecolor="black", linewidth=1.6, zorder=2)
        open_ = c.status in (None, "reused")
        axes.scatter(x, y, s=90, facecolor="white" if open_ else colour, edgecolor=colour, linewidth=1.6, zorder=3)
        loss = "" if c.val_loss_mean is None else f"\n{c.val_loss_mean:.4f}"
        genome = f"\n{short_name(c.activation)}" if len(split(c.activation)) > 1 and 2 * generations <= ROOMY else ""
        axes.annotate(f"{names[c.id]}{genome}{loss}", (x, y), (0, -10), textcoords="offset points", ha="center",
                      va="top", fontsize=8, path_effects=halo)
    axes.set_xticks(range(generations))
    axes.set(xlabel="generation", xlim=(-0.4, generations - 0.6), yticks=[])
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.6, high + 0.1)
    axes.spines["left"].set_visible(False)
    legend(axes, shown, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=7)
    return True


def _places(candidates: Sequence[Candidate]) -> dict[str, tuple[int, float]]:
    """Return (generation, height) by id: evenly spaced in a generation, children in their parents' order."""
    at: dict[str, tuple[int, float]] = {}
    generations = sorted({c.generation for c in candidates})
    for x in generations:
        mine = [c for c in candidates if c.generation == x]
        mine.sort(key=lambda c: -at[c.parent_id][1] if c.parent_id else 0)  # stable: siblings stay in order
        at |= {c.id: (x, (len(mine) - 1) / 2 - i) for i, c in enumerate(mine)}
    return at


def _activations(figure: Any, candidates: Sequence[Candidate], winner: str | None, found: Sequence[Track]) -> bool:
    """Plot how many candidates, or blocks where these differ, have each activation in each generation."""
    if not candidates:
        return False
    blocks = max(len(split(c.activation)) for c in candidates)
    shown = kinds(name for c in candidates for name in split(c.activation))
    counts: dict[int, Counter[str]] = {}
    for c in candidates:
        names = split(c.activation)
        for name in names:
            counts.setdefault(c.generation, Counter())[kind(name, shown)] += blocks // len(names)
    figure.set_size_inches(WIDTH, 3.2)
    axes = figure.subplots()
    base = np.zeros(len(counts))
    for name in shown:
        heights = np.array([counts[x][name] for x in counts])
        axes.bar(list(counts), heights, bottom=base, color=colour_of(name), width=0.6, label=name, edgecolor="white",
                 linewidth=0.6)
        base += heights
    axes.set_xticks(list(counts))
    axes.set(xlabel="generation", ylabel="blocks" if blocks > 1 else "candidates", ylim=(0, 1.04 * base.max()))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    return True


def _kinds(candidates: Iterable[Candidate]) -> list[str]:
    return kinds(c.activation for c in candidates)


def legend(axes: Any, found: Iterable[str], ncols: int = 1, **where: Any) -> None:
    """Draw a legend of the colours in use. found: what kinds() returned, or some of it. ncols: at most."""
    shown = kinds(found)
    where["ncols"] = max(1, min(ncols, BREADTH // max(len(name) + 5 for name in shown)))
    axes.legend([axes.scatter([], [], color=colour_of(name), s=40) for name in shown], shown, **where)
