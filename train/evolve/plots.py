"""The plots of an experiment's report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from helios.model.activations import colour as colour_of
from helios.model.activations import kind, kinds
from helios.model.genes import Gene
from helios.train.evolve import winner
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.state import State
from helios.train.evolve.summary import Entry, Summary, place, sign, spending
from helios.train.evolve.terms import spelt
from helios.train.search.plots import TALLEST, WIDTH, drawn, legend, places
from helios.train.search.ranking import labels

COLOURS = {"evolved": "#005a8c", "random": "#9a6200", "preset": "#8a3d85"}  # as on the board
MARKS = {"evolved": "o", "random": "s", "preset": "D"}
COLUMNS, ROOM = 3, 34  # panels side by side; characters that fit below one
SPREAD = 0.12  # how far dots of one place are strewn
BEYOND = 85  # percentile of values, above which some may lie outside of the picture
LABELLED, LINES = 24, 3  # most ancestors with what changed beside their names; most lines of that
UNITS = dict.fromkeys(("val_loss", "best_val_loss", "train_loss"), " (nats a token)")


def draw(experiment: Experiment, state: State, found: Summary) -> dict[str, bytes]:
    """Return the plots as PNG images by file name, without those that have nothing to show."""
    plots: Mapping[str, Callable[..., bool]] = {
        "validation.png": _validation, "progress.png": _progress, "front.png": _front, "generations.png": _generations,
        "hypervolume.png": _hypervolume, "genes.png": _genes, "lineage.png": _lineage}
    return drawn({name: partial(plot, experiment=experiment, state=state, found=found)
                  for name, plot in plots.items()})


def _values(found: Summary, arm: str | None = None) -> dict[str, float]:
    """Return the first objective of the candidates in the running, by id."""
    return {e["id"]: x for e in found["ranking"] if e["rank"] and arm in (None, e["arm"])
            and (x := e["measured"][found["objectives"][0]]["mean"]) is not None}


def _label(name: str) -> str:
    return f"{name}{UNITS.get(name, '')}"


def _limit(axes: Any, found: Summary) -> None:
    """Keep what is far worse than most, and than the middle of each arm, out of the picture."""
    side = sign(found["objectives"][0])
    signed = side * np.array([*_values(found).values()])
    middles = [np.median(side * np.array([*x.values()])) for arm in COLOURS if (x := _values(found, arm))]
    low, high = float(signed.min()), float(max(np.percentile(signed, BEYOND), *middles))
    margin = 0.06 * (high - low) or 0.05 * abs(low) or 0.1
    axes.set_ylim(*sorted((side * (low - margin), side * (high + margin))))


def _preset(axes: Any, found: Summary) -> None:
    for x in _values(found, "preset").values():
        axes.axhline(x, color=COLOURS["preset"], linewidth=1, linestyle="--", label="preset", zorder=1)


def _arms(figure: Any, found: Summary) -> None:
    shown = [arm for arm in COLOURS if _values(found, arm)]
    marks = [figure.axes[0].scatter([], [], color=COLOURS[arm], marker=MARKS[arm], s=24) for arm in shown]
    figure.legend(marks, shown, loc="outside upper center", ncols=len(shown))


def _strewn(n: int) -> np.ndarray:
    """Return how far each of n dots is moved aside, the same every time."""
    return SPREAD * (2 * np.modf(np.arange(n) * 0.6180339887)[0] - 1)


def _progress(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    values, side = _values(found), sign(found["objectives"][0])
    if not values:
        return False
    axes, seconds = figure.subplots(), found["unit"] == "seconds"
    for arm in ("evolved", "random"):
        x, y, own, best = list[float](), list[float](), list[float](), math.inf
        for id, used in spending(state, arm, seconds):
            best = min(best, side * values.get(id, math.inf * side))
            x.append(used)
            y.append(side * best)
            own.append(values.get(id, math.nan))
        if x:
            axes.scatter(x, own, color=COLOURS[arm], marker=MARKS[arm], s=9, alpha=0.4, linewidth=0)
            axes.step(x, np.where(np.isfinite(y), y, np.nan), where="post", color=COLOURS[arm], linewidth=1.8,
                      label=arm)
    _preset(axes, found)
    _limit(axes, found)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel=f"{found['unit']} of the arm's trainings", ylabel=_label(found["objectives"][0]))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return True


def _front(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    first, *others = found["objectives"]
    entries = [e for e in found["ranking"] if e["rank"]]
    if not others or not entries:
        return False
    rows, columns = _grid(figure, len(others), 3.4, min(len(others), 2))
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for other, axes in zip(others, panels, strict=False):
        at = lambda kept, other=other: [np.array([e["measured"][name][part] for e in kept], np.float64).ravel()
                                        for name in (other, first) for part in ("mean", "error")]  # nan: no error
        for arm in reversed(COLOURS):
            x, dx, y, dy = at([e for e in entries if e["arm"] == arm])
            axes.errorbar(x, y, xerr=dx, yerr=dy, color=COLOURS[arm], marker=MARKS[arm], markersize=4.5, alpha=0.75,
                          linestyle="none", elinewidth=0.6)
        x, _, y, _ = at([e for e in entries if e["front"]])
        axes.scatter(x, y, s=90, facecolor="none", edgecolor="black", linewidth=1.2, zorder=3)
        better = [f"{name}, {found['better'][name]} is better" for name in (other, first)]
        axes.set(xlabel=better[0], ylabel=better[1])
        _limit(axes, found)
    _hide(panels)
    _arms(figure, found)
    return True


def _hide(panels: Iterator[Any]) -> None:
    for axes in panels:
        axes.set_axis_off()


def _grid(figure: Any, n: int, height: float, columns: int = COLUMNS) -> tuple[int, int]:
    """Make room for n panels; return their rows and columns."""
    rows = math.ceil(n / columns)
    figure.set_size_inches(WIDTH, min(height * rows, TALLEST))
    return rows, columns


def _generations(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    values = _values(found)
    if len(values) < 2:
        return False
    axes = figure.subplots()
    for number, ids in enumerate(state.generations):
        for arm, aside in (("evolved", -0.2), ("random", 0.2)):
            mine = [values[whose] for id in ids if state.born[id].arm == arm
                    and (whose := state.reused.get(id, id)) in values]
            if mine:
                axes.scatter(number + aside + _strewn(len(mine)), mine, color=COLOURS[arm], marker=MARKS[arm], s=14,
                             alpha=0.6, linewidth=0)
                axes.hlines(float(np.median(mine)), number + aside - 0.16, number + aside + 0.16, color=COLOURS[arm],
                            linewidth=2)
    _preset(axes, found)
    _limit(axes, found)
    axes.set_xticks(range(len(state.generations)))
    axes.set(xlabel="generation", ylabel=_label(found["objectives"][0]))
    _arms(figure, found)
    return True


def _hypervolume(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    every = found["generations"]
    known = [g for g in every if g["hypervolume"] is not None]
    if len(known) < 2:
        return False
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot([g["generation"] for g in known], [g["hypervolume"] for g in known], color=COLOURS["evolved"],
               marker="o", markersize=4)
    above.set(ylabel="hypervolume, evolved")
    below.bar([g["generation"] for g in every], [g["size"] for g in every], color="#9aa5b1", width=0.5)
    below.set_xticks([g["generation"] for g in every])
    below.yaxis.get_major_locator().set_params(integer=True)
    below.set(xlabel="generation", ylabel="size")
    return True


def _genes(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    values, space = _values(found), experiment.space
    if len(values) < 2:
        return False
    rows, columns = _grid(figure, space.size, 2.5)
    panels = iter(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    entries = [e for e in found["ranking"] if e["id"] in values]
    for gene, axes in zip(space.genes, panels, strict=False):
        of = lambda id, gene=gene: gene.of(space.values(state.born[id].genome))
        at = _places(gene, [of(e["id"]) for e in entries])
        for arm in COLOURS:
            mine = [(x, values[e["id"]]) for x, e in zip(at, entries, strict=True) if e["arm"] == arm and x is not None]
            if mine:
                axes.scatter(*zip(*mine, strict=True), color=COLOURS[arm], marker=MARKS[arm], s=14, alpha=0.6,
                             linewidth=0)
        (own,) = _places(gene, [gene.of(space.own)], strewn=False)
        if own is not None:
            axes.axvline(own, color=COLOURS["preset"], linewidth=1, linestyle="--", zorder=1)
        axes.set_xticks(*_ticks(gene))
        if sum(len(label.get_text()) + 2 for label in axes.get_xticklabels()) > ROOM:
            axes.tick_params(axis="x", rotation=40, labelsize=7)
        axes.set(xlabel=gene.name)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.05), max(high, 1.05 if gene.kind != "set" else len(gene.values) - 0.8))
    if space.pool:
        _activations(next(panels), entries, values)
    _limit(figure.axes[0], found)
    _hide(panels)
    for axes in figure.axes[::columns]:
        axes.set_ylabel(found["objectives"][0])
    _arms(figure, found)
    return True


def _activations(axes: Any, entries: Sequence[Entry], values: Mapping[str, float]) -> None:
    shown = kinds(e["activation"] for e in entries)
    for x, name in enumerate(shown):
        mine = [values[e["id"]] for e in entries if kind(e["activation"], shown) == name]
        axes.scatter(x + _strewn(len(mine)), mine, color=colour_of(name), s=14, alpha=0.7, linewidth=0)
    axes.set_xticks(range(len(shown)), [name if len(name) < 15 else f"{name[:13]}…" for name in shown],
                    rotation=40, ha="right", fontsize=8)
    axes.set(xlabel="activation")


def _places(gene: Gene, values: Sequence[tuple[Any, ...]], strewn: bool = True) -> list[float | None]:
    """Return where values lie on an axis: on the gene's own scale or, where they have no order, by their number."""
    if gene.kind == "set":
        found = [float(gene.values.index(v)) if v in gene.values else None for v in values]
        aside = _strewn(len(values)) if strewn else np.zeros(len(values))
        return [None if x is None else x + float(dx) for x, dx in zip(found, aside, strict=True)]
    return [place(gene, v) for v in values]


def _ticks(gene: Gene) -> tuple[list[float], list[str]]:
    values = [gene.at(x) for x in (0.0, 0.5, 1.0)] if gene.numeric else list(gene.values)
    return [x for x in _places(gene, values, strewn=False) if x is not None], [spelt(v) for v in values]


def _lineage(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    from matplotlib.patheffects import withStroke

    leader, values = found["leader"], _values(found)
    if leader is None or not state.born[leader].parents:
        return False
    ids = winner.ancestors(state, leader)
    mine, names = [c for id, c in state.born.items() if id in ids], labels(state.born.values())
    at, generations = places(mine), 1 + max(c.generation for c in mine)
    rows = max(sum(c.generation == g for c in mine) for g in range(generations))
    figure.set_size_inches(min(WIDTH * max(1, generations / 4), TALLEST), min(1.4 + 1.15 * rows, TALLEST))
    axes, line, halo = figure.subplots(), winner.line(state, leader), [withStroke(linewidth=2, foreground="white")]
    shown = kinds(c.activation for c in mine)
    for c in mine:
        (x, y), colour = at[c.id], colour_of(kind(c.activation, shown))
        for i, parent in enumerate(c.parents):
            on_line = c.id in line and i == 0
            axes.annotate("", (x, y), at[parent], zorder=1, arrowprops={
                "arrowstyle": "-", "connectionstyle": f"arc3,rad={-0.12 * (x - at[parent][0] > 1)}",
                "linestyle": "--" if i else "-", "color": "#555555" if on_line else "#bbbbbb",
                "linewidth": 1.6 if on_line else 0.8})
        if c.id == leader:
            axes.scatter(x, y, s=230, facecolor="none", edgecolor="black", linewidth=1.6, zorder=2)
        axes.scatter(x, y, s=90, facecolor="white" if c.id in state.reused else colour, edgecolor=colour, linewidth=1.6,
                     zorder=3)
        value = values.get(state.reused.get(c.id, c.id))
        told = [names[c.id], "" if value is None else f"{value:.4g}"]
        if len(mine) <= LABELLED or c.id in line:
            told[1:1] = [str(c.operator), *textwrap.wrap(c.mutation or "", 30, max_lines=LINES, placeholder=" …")]
        axes.annotate("\n".join(filter(None, told)), (x, y), (0, -10), textcoords="offset points", ha="center",
                      va="top", fontsize=7, path_effects=halo)
    axes.set_xticks(range(generations))
    axes.set(xlabel="generation", xlim=(-0.5, generations - 0.5), yticks=[])
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.9, high + 0.4)
    axes.spines["left"].set_visible(False)
    legend(axes, shown, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=7)
    return True


def _validation(figure: Any, experiment: Experiment, state: State, found: Summary) -> bool:
    verdict, side = found["verdict"] or {}, sign(found["objectives"][0])
    values = {role: [math.nan if x is None else side * x for x in verdict["values"][role]]
              for role in ("preset", "random", "evolved") if role in verdict.get("values", ())}
    if not any(np.isfinite(x).any() for x in values.values()):
        return False
    axes, table = figure.subplots(), np.array(list(values.values()))  # [roles, seeds]
    axes.plot(range(len(table)), table, color="#bbbbbb", linewidth=0.8, zorder=1)
    for i, (role, mine) in enumerate(values.items()):
        axes.scatter([i] * len(mine), mine, color=COLOURS[role], marker=MARKS[role], s=30, zorder=2)
        if np.isfinite(mine).all():
            axes.hlines(float(np.mean(mine)), i - 0.12, i + 0.12, color=COLOURS[role], linewidth=2.5, zorder=3)
    axes.set_xticks(range(len(table)), [f"{role}: {state.born[verdict['roles'][role]].name}" for role in values])
    axes.set(xlim=(-0.5, len(table) - 0.5), ylabel=f"{_label(found['objectives'][0])}, on fresh seeds")
    axes.grid(axis="y", alpha=0.3)
    return True
