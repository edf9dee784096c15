"""Gradient norms, clipping and skipped updates of a run, its alerts, and what was measured of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from helios.train.markdown import escaped, norm, number, percent, share_of, table
from helios.train.monitors.trouble import SPIKE, WINDOW
from helios.train.report.facts import loss, spread
from helios.train.report.losses import stage
from helios.train.report.reading import (
    LAYERS,
    RunData,
    finite,
    highest,
    known,
    lowest,
    mean,
    median,
    percentile,
    share,
)

LIMITS = (10, 100, 1000, 10_000, 100_000)  # norms beyond which steps are counted
WORST, LISTED, LOOKS = 10, 12, 12  # largest norms, alerts, and measurements of weights in a table


def norms(run: RunData) -> Iterator[str]:
    """Yield the distribution of gradient norms, spikes by phase and activation, and the largest norms."""
    values = run.column("grad_norm")
    if not finite(values).size:
        return
    yield from table(("gradient norm", f"of {finite(values).size:,} steps"), [
        ["mean", norm(mean(values))], *(
            [["mean without spikes", norm(mean(values[~run.spikes]))]] if run.spikes.any() else []),
        ["lowest", norm(lowest(values))],
        *([f"{p} % of the steps are below" if p != 50 else "median", norm(percentile(values, p))]
          for p in (1, 10, 25, 50, 75, 90, 99) if finite(values).size > 1),
        ["highest", norm(highest(values))],
        *([f"steps above {limit:,}", share_of(int((values > limit).sum()), len(run))] for limit in LIMITS
          if (values > limit).any())])
    yield from ("", "### Spikes", "", f"A spike is a norm above `spike_threshold`, or above {SPIKE:g} times the median "
                f"of the {WINDOW} before it. Steps with one: {share_of(int(run.spikes.sum()), len(run))}.", "")
    yield from table(("phase", "activation", "steps", "spikes", "share", "highest norm", "norm not finite", "skipped"),
                     _by_part(run), left=2)
    yield from ("", "### The largest norms", "")
    yield from table(("step", "norm", "× the usual", "loss", "update", *["of"] * run.searched), _worst(run), left=0,
                     words=("update", "of"))


def parts(run: RunData) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the phases of a run, and the activations in each: names, and which rows [N] they are."""
    for phase, where in (("search", ~run.main), ("training", run.main)):
        for activation in dict.fromkeys(run.activations[where]):
            yield phase, activation, where & (run.activations == activation)


def _by_part(run: RunData) -> Iterator[list[str]]:
    values = run.column("grad_norm")
    for phase, activation, where in parts(run):
        yield [phase, escaped(activation), f"{where.sum():,}", f"{run.spikes[where].sum():,}",
               percent(share(run.spikes[where])), norm(highest(values[where])),
               f"{np.sum(~np.isfinite(values[where])):,}", f"{run.skipped[where].sum():,}"]


def _worst(run: RunData) -> Iterator[list[str]]:
    values = run.column("grad_norm")
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[:WORST]
    for i in (int(j) for j in order if np.isfinite(values[j])):
        start = next(t.rows.start for t in run.trainings if t.rows.start <= i < t.rows.stop)
        usual = median(values[max(start, i - WINDOW):i])
        update = "skipped" if run.skipped[i] else "clipped" if run.clipped[i] else "whole"
        yield [f"{run.steps[i]:,}", norm(values[i]), number(values[i] / usual if usual else None, ",.1f"),
               loss(known(run.column("loss")[i])), update, *[stage(run, i)] * run.searched]


# -- clipping, skipped updates, alerts ---------------------------------------------------------------------------------

def clipping(run: RunData) -> Iterator[str]:
    """Yield how often the gradient was scaled down, and by how much, and which updates were skipped."""
    coefficients = run.column("clip_coef")
    if not finite(coefficients).size:
        return
    if run.clipped.any():
        yield from (f"Steps whose gradient was scaled down: {share_of(int(run.clipped.sum()), len(run))}.", "")
        yield from table(("phase", "activation", "clipped", "mean coefficient", "lowest"), (
            [phase, escaped(activation), share_of(int(run.clipped[where].sum()), int(where.sum())),
             number(mean(coefficients[where]), ".3f"), number(lowest(coefficients[where]), ".3g")]
            for phase, activation, where in parts(run)), left=2)
    else:
        yield "The gradient was never scaled down."
    if run.skipped.any():
        why = Counter(str(x) for x in run.text("skip_reason")[run.skipped])
        said = ", ".join(f"{escaped(reason)} {n:,}" for reason, n in why.most_common())
        yield from ("", f"Updates skipped: {share_of(int(run.skipped.sum()), len(run))} ({said}).")
    if scales := finite(run.column("loss_scale")).tolist():
        low, high = min(scales), max(scales)
        yield from ("", f"The loss scale was {low:,g}." if low == high else
                    f"The loss scale was {low:,g} to {high:,g}, {scales[-1]:,g} at the end.")


def alerts(run: RunData) -> Iterator[str]:
    """Yield the alerts of the monitors by kind, and the first of them. Those of candidates: in the search's timeline.
    """
    reasons = run.text("cusum_alert_reason")
    where = np.flatnonzero([bool(r) for r in reasons])
    if not len(where):
        if finite(run.column("cusum_alerts")).size:
            yield "The monitors saw no shift in what they watch."
        return
    kinds: dict[str, list[int]] = {}
    for i in where:
        for reason in reasons[i].split("; "):
            kinds.setdefault(reason, []).append(int(i))
    steps = lambda found: ", ".join(f"{run.steps[i]:,}" for i in found[:LISTED]) + (
        f" and {len(found) - LISTED:,} more" if len(found) > LISTED else "")
    yield from table(("alert", "steps with it", "at the steps"), (
        [escaped(reason), f"{len(found):,}", steps(found)] for reason, found in kinds.items()),
        words=("at the steps",))


# -- weights -----------------------------------------------------------------------------------------------------------

WEIGHTS = {"weight_entropy": ("entropy (bits)", ".4f"), "effective_rank": ("effective rank", ".2f"),
           "free_energy": ("free energy", ".4f"), "fitness_score": ("1/free energy", ".4f"),
           "mi_input_repr": ("MI input, repr.", ".3f"), "mi_repr_output": ("MI repr., output", ".3f"),
           "mi_compression": ("MI compression", ".3f")}


def weights(run: RunData) -> Iterator[str]:
    """Yield what was measured of the weights, and how it moved in the training that the run is for."""
    present = [name for name in WEIGHTS if finite(run.column(name)).size]
    if not present:
        return
    where = np.flatnonzero(np.any([np.isfinite(run.column(name)) for name in present], axis=0))
    chosen = where[spread(len(where), LOOKS)]
    if len(chosen) < len(where):
        yield from (f"{len(chosen)} of {len(where):,} measurements.", "")
    yield from table(("step", "loss", *(WEIGHTS[name][0] for name in present), *["of"] * run.searched), (
        [f"{run.steps[i]:,}", loss(known(run.column("loss")[i])),
         *(number(known(run.column(name)[i]), WEIGHTS[name][1]) for name in present),
         *[stage(run, i)] * run.searched] for i in chosen), left=0, words=("of",))
    beta = run.setting("monitor", "free_energy_beta")
    if "free_energy" in present and isinstance(beta, int | float):
        yield from ("", f"Free energy is the loss + {beta:g} · entropy.")


def layers(run: RunData) -> Iterator[str]:
    """Yield the gradient norms by layer."""
    prefix = f"{LAYERS}."
    found = {name.removeprefix(prefix): values for name, values in run.numbers.items() if name.startswith(prefix)}
    if not any(finite(values).size for values in found.values()):
        return
    measured = max(finite(values).size for values in found.values())
    yield from (f"Measured at {measured:,} step{'s' * (measured > 1)}.", "")
    last = lambda values: number(float(finite(values)[-1]) if finite(values).size else None, ".3g")
    yield from table(("layer", "median", "lowest", "highest", "at step", "last"), (
        [escaped(name), *(number(of(values), ".3g") for of in (median, lowest, highest)),
         f"{run.steps[int(np.nanargmax(values))]:,}" if finite(values).size else "–", last(values)]
        for name, values in found.items()))
