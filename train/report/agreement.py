"""Where runs agree with a historic one and where they differ, in sentences that follow from the figures by rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from helios.model import GPTConfig
from helios.train.history import Historic
from helios.train.markdown import exact, figure, listed, loss, norm, percent, section, share_of, with_error
from helios.train.monitors.cusum import FLUSH, MEMORY, TPS
from helios.train.report.reading import Array, RunData, highest, median
from helios.train.search.births import Candidate, Replicate

T = TypeVar("T")
Runs = Mapping[str, RunData]  # by name
SAME_LOSS, SAME_RATE, SAME_NORM, SAME_SPEED = 0.1, 0.05, 1.5, 1.25
RULES = (f"A loss agrees within {SAME_LOSS:g}, a learning rate within {100 * SAME_RATE:g} %, a norm of a single step "
         f"within a factor of {SAME_NORM:g}, a speed within one of {SAME_SPEED:g}; spikes, if there are at least "
         "half as many.")


class Finding(NamedTuple):
    """A sentence on where the runs agree with the original, or differ. explained: whether the cause that is known of
    such a difference applies."""

    agrees: bool
    topic: str
    text: str
    explained: bool = True


def lines(there: Historic, runs: Runs, same: bool) -> Iterator[str]:
    """Yield the sections of what agrees and what differs. same: whether the settings do."""
    searched = {name: run for name, run in runs.items() if run.candidates}
    found = [x for of in OF_ANY for x in of(there, runs)]
    if there.candidates and searched:
        found += [x for of in OF_SEARCHES for x in of(there, searched)]
    for agrees, title in ((True, "What agrees"), (False, "What differs, and why")):
        yield from section(title, RULES * agrees)
        yield from [f"* **{f.topic}.** {f.text} {_why(there, f, same)}".rstrip() for f in found if f.agrees == agrees
                    ] or ["Nothing."]


def _why(there: Historic, f: Finding, same: bool) -> str:
    return there.why.get(f.topic, "") if f.explained and not f.agrees and (same or f.topic != "Loss") else ""


# -- of runs ----------------------------------------------------------------------------------------------------------

def each(runs: Runs, of: Callable[[RunData], T | None]) -> dict[str, T]:
    """Return what is known of the runs, by their names."""
    return {name: x for name, run in runs.items() if (x := of(run)) is not None}


def last_of(runs: Runs) -> int:
    """Return the last step that any of the runs came to."""
    return max(run.last for run in runs.values())


def shared(there: Historic, run: RunData, column: str) -> list[tuple[int, float, float]] | None:
    """Return the steps at which both know a column, with the original's value and the run's; None where there are
    none."""
    return [(step, was, x) for step, was in there.column(column).items()
            if (x := run.at(step, column)) is not None] or None


def usual(run: RunData, column: str, where: Array | bool = True) -> float | None:
    """Return the median of a column, without the steps in which kernels are prepared."""
    return median(run.column(column)[run.steady & where])


def phase(run: RunData, name: str) -> Array:
    """Return which rows [N] are of the phase "search" or "after"."""
    return run.main == (name == "after")


def alerts(run: RunData, name: str) -> list[int]:
    """Return the alerts of the steps of a phase that have some, of what the original watched, too."""
    found = run.column("cusum_alerts")[phase(run, name)]
    return [bits for x in found if x > 0 and (bits := int(x) & ~(FLUSH | MEMORY))]


def measured(run: RunData) -> dict[str, Candidate]:
    """Return the candidates that were trained, by id."""
    return {c.id: c for c in run.candidates if c.status not in ("reused", None)}


def trained(run: RunData) -> list[Replicate]:
    """Return the trainings of the search."""
    return [r for c in measured(run).values() for r in c.replicates]


def speeds_there(there: Historic) -> dict[str, float]:
    """Return the original's mean tokens a second in the search, by activation."""
    steps, tokens = ({name: sum(of(c) for c in there.candidates if c.activation == name)
                      for name in sorted(c.activation for c in there.candidates)}
                     for of in (lambda c: c.recorded, lambda c: c.recorded * c.tokens_per_sec))
    return {name: tokens[name] / steps[name] for name in steps}


def speeds_here(run: RunData) -> dict[str, float]:
    """Return a run's median tokens a second in the search, by activation."""
    names = run.text("symbio_candidate_activation")
    return {name: x for name in sorted({*names[~run.main]} - {None})
            if (x := usual(run, "tokens_per_sec", ~run.main & (names == name)))}


# -- in words ---------------------------------------------------------------------------------------------------------

def each_way(figures: Mapping[str, T], form: Callable[[T], str] = str) -> str:
    """Return "5.41 (faithful) and 5.40 (fair)", without the names where all figures are equal."""
    texts = {name: form(x) for name, x in figures.items()}
    alike = len(set(texts.values())) == 1
    return next(iter(texts.values())) if alike else listed([f"{text} ({name})" for name, text in texts.items()])


def distance(figures: Mapping[str, float], reference: float) -> str:
    """Return the distances from the reference in words, as "1.85 (faithful) and 1.86 (fair) below"."""
    side = lambda x: "below" if x < reference else "above"
    amount = lambda x: loss(abs(x - reference))
    if len(sides := {side(x) for x in figures.values()}) == 1:
        return f"{each_way(figures, amount)} {sides.pop()}"
    return each_way(figures, lambda x: f"{amount(x)} {side(x)}")


def _alike(ratios: Iterable[float], most: float) -> bool:
    return all(1 / most <= x <= most for x in ratios)


# -- of any run -------------------------------------------------------------------------------------------------------

def _start(there: Historic, runs: Runs) -> Iterator[Finding]:
    was, first = there.column("loss")[1], each(runs, lambda r: r.at(1, "loss"))
    if first:
        sizes = {n for r in runs.values() if (n := r.setting("model", "vocab_size"))}
        guess = "".join(f"; an even guess among {n:,} tokens has ln {n:,} = {math.log(n):.3f}" for n in sizes)
        yield Finding(all(abs(x - was) <= SAME_LOSS for x in first.values()), "Start",
                      f"The first step's loss was {loss(was)} and is {each_way(first, loss)}{guess}.")


def _rates(there: Historic, runs: Runs) -> Iterator[Finding]:
    pairs = each(runs, lambda r: shared(there, r, "lr"))
    for name, known in pairs.items():
        most = max(abs(x / was - 1) for _, was, x in known)
        at = f"{len(known)} step{'s' * (len(known) > 1)}"
        yield Finding(most <= SAME_RATE, "Learning rate" + f", {name}" * (len(runs) > 1), f"At the {at} at which the "
                      f"original's is known, to two or three digits, that here differs by {percent(most)} at most.")


def _losses(there: Historic, runs: Runs) -> Iterator[Finding]:
    pairs = each(runs, lambda r: shared(there, r, "loss"))
    if not pairs:
        return
    most = {name: max(abs(x - was) for _, was, x in known) for name, known in pairs.items()}
    step, was = max(known[-1][:2] for known in pairs.values())
    ends = {name: known[-1][2] for name, known in pairs.items() if known[-1][0] == step}
    yield Finding(max(most.values()) <= SAME_LOSS, "Loss", f"At the steps in the table it differs by "
                  f"{each_way(most, loss)} at most; at step {step:,} it is {each_way(ends, loss)} here, "
                  f"{distance(ends, was)} the original's {loss(was)}. Initial values and batches are others, and the "
                  "loss is that of one batch.", all(x < was - SAME_LOSS for x in ends.values()))


def _soon(there: Historic, runs: Runs) -> Iterator[Finding]:
    *_, (step, was) = there.column("loss").items()
    first = {name: np.flatnonzero(r.column("loss")[r.main] < was)[:1] + 1 for name, r in runs.items()}
    if any(x[0] > 1 for x in first.values() if len(x)):
        steps = step - (there.phases[-1].first - 1 if there.phases else 0)
        yield Finding(False, "How soon", f"The training is below {loss(was)}, the original's last loss, "
                      f"{each_way(first, lambda x: f'after {x[0]:,} steps' if len(x) else 'never')}; the original's "
                      f"took {steps:,} steps to come there.")


def _norms(there: Historic, runs: Runs) -> Iterator[Finding]:
    pairs = each(runs, lambda r: shared(there, r, "grad_norm"))
    ratios = {name: [x / was for _, was, x in known] for name, known in pairs.items()}
    if ratios:
        told = each_way(ratios, lambda x: f"{figure(min(x))} to {figure(max(x))}")
        yield Finding(_alike((x for known in ratios.values() for x in known), SAME_NORM), "Gradient norm",
                      f"At the steps in the table it is {told} times the original's.")


def _spikes(there: Historic, runs: Runs) -> Iterator[Finding]:
    if not there.norms.above:
        return
    limit, count = there.norms.above[0]
    after = there.phases[-1] if there.phases else None
    was = after.spikes / after.recorded if after else count / (there.recorded or there.steps)
    here = {name: r.column("grad_norm")[r.main] for name, r in runs.items()}
    most = max(np.sum(x > limit) / max(1, len(x)) for x in here.values())
    text = (f"Of the steps{' after the search' * bool(after)} {percent(was)} had a norm above {limit:g}, up to "
            f"{norm(there.norms.high)}. Here it is {each_way(here, lambda x: share_of(int(np.sum(x > limit)), len(x)))}"
            f"; the highest norm is {each_way(here, lambda x: norm(highest(x)))}.")
    first = min(step for step, x in there.column("grad_norm").items() if x > limit)
    early = most < was / 2 and last_of(runs) < first
    if early:
        text += f" That says little yet: the original's first norm above {limit:g} that is known is of step {first:,}."
    yield Finding(most >= was / 2, "Spikes", text, not early and most == 0)


def _speed(there: Historic, runs: Runs) -> Iterator[Finding]:
    was, here = there.mean.get("ms_per_iter"), each(runs, lambda r: usual(r, "ms_per_iter"))
    if was and here:
        ratios = {name: x / was for name, x in here.items()}
        yield Finding(_alike(ratios.values(), SAME_SPEED), "Speed", f"A step takes {each_way(here, figure)} ms and "
                      f"took {exact(was)} ms: {each_way(ratios, figure)} times as long.")
    was, here = there.mean.get("gpu_ops_count"), each(runs, lambda r: usual(r, "gpu_ops_count"))
    if was and here:
        yield Finding(False, "Dispatches", f"A step is {each_way(here, figure)} dispatches here and was {exact(was)} "
                      "operations there.")
    here = each(runs, lambda r: a / b if (a := usual(r, "timing_fwd_ms")) and (b := usual(r, "timing_bwd_ms"))
                else None)
    if there.timing and here:
        was = there.timing["fwd"] / there.timing["bwd"]
        yield Finding(_alike((x / was for x in here.values()), SAME_SPEED), "Forward and backward", "The forward pass "
                      f"takes {each_way(here, figure)} times as long as the backward pass here and took {figure(was)} "
                      "times as long there.")


def _records(there: Historic, runs: Runs) -> Iterator[Finding]:
    if there.recorded:
        yield Finding(False, "Records", f"They hold {each_way(runs, lambda r: f'{len(r):,} of {r.last:,} steps')} here "
                      f"and {there.recorded:,} of {there.steps:,} there. The original's means and shares are over what "
                      "is left.")


# -- of searches ------------------------------------------------------------------------------------------------------

def _gap(there: Historic, runs: Runs) -> Iterator[Finding]:
    ratio = lambda rates: max(rates.values()) / min(rates.values())
    was = ratio(speeds_there(there))
    here = each(runs, lambda r: ratio(rates) if len(rates := speeds_here(r)) > 1 else None)
    if here:
        yield Finding(all(x >= was / 2 for x in here.values()), "Speed by activation", f"The fastest was {was:.1f} "
                      f"times as fast as the slowest ({there.gap} by the original's account) and is "
                      f"{each_way(here, '{:.2f}'.format)} times as fast.")


def _selection(there: Historic, runs: Runs) -> Iterator[Finding]:
    told = each_way(runs, lambda run: f"{sum(bool(r.evaluations) for r in trained(run))} of {len(trained(run))}")
    yield Finding(False, "Selection", f"Here {told} trainings have evaluations of their own to be ranked by.")


def _winner(there: Historic, runs: Runs) -> Iterator[Finding]:
    here = {name: r.summary["winner_activation"] or "none" for name, r in runs.items()}
    yield Finding(set(here.values()) == {there.winner}, "Winner", f"It was {there.winner} and is {each_way(here)}.")


def _separation(there: Historic, runs: Runs) -> Iterator[Finding]:
    for name, run in runs.items():
        rivals: dict[str, Any] = {}  # the best entry of each other activation, the nearest first
        for entry in run.summary["ranking"]:
            if entry["separated"] is not None:
                rivals.setdefault(entry["activation"], entry)
        if not rivals:
            continue
        winner = next(c for c in run.candidates if c.id == run.summary["winner"])
        second, nearest = next(iter(rivals.items()))
        text, seeds = f"{winner.activation} came first, {loss(nearest['difference'])} before {second}", len(
            winner.replicates)
        if seeds == 1:
            yield Finding(True, f"Separation, {name}", f"{text}. With one seed of {winner.steps} steps each the noise "
                          "is unknown, and nothing is separated, as in the original.")
            continue
        yes = [activation for activation, e in rivals.items() if e["separated"]]
        no = [f"{activation} ({with_error(e['difference'], e['difference_se'], '.3f')})"
              for activation, e in rivals.items() if not e["separated"]]
        told = [f"{words} {listed(names)}" for words, names in (("separated from", yes), ("not separated from", no))
                if names]
        yield Finding(not yes, f"Separation, {name}", f"{text}. By {seeds} seeds of {winner.steps} steps it is "
                      f"{'; '.join(told)}.")


def _noise(there: Historic, runs: Runs) -> Iterator[Finding]:
    best: dict[str, float] = {}
    for c in sorted(there.candidates, key=lambda c: c.loss):
        best.setdefault(c.activation, c.loss)
    (first, low), (second, high), *_ = best.items()
    for name, run in runs.items():
        if wide := _widest((c.activation, r.val_loss) for c in measured(run).values() for r in c.replicates
                           if len(c.replicates) > 1):
            yield Finding(False, "Noise", f"In {name}, seeds of one activation lie up to {loss(wide[1])} apart "
                          f"({wide[0]}), {'more' if wide[1] > high - low else 'less'} than the {loss(high - low)} by "
                          f"which the original put {first} before {second} on one seed.")


def _place(there: Historic, runs: Runs) -> Iterator[Finding]:
    if not (was := _widest((c.activation, c.loss) for c in there.candidates)):
        return
    text = (f"The original's two trainings of {was[0]} ended {loss(was[1])} apart: they differed in learning rate, "
            "initial values and batches.")
    for name, run in runs.items():
        if all(run.setting("search", key) for key in ("shared_init", "shared_batches")):
            text += f" In {name} all candidates share these."
        elif wide := _widest((c.activation, c.val_loss_mean) for c in measured(run).values()):
            text += f" In {name}, where they do as well, those of {wide[0]} end {loss(wide[1])} apart."
    yield Finding(False, "Place in the run", text)


def _widest(losses: Iterable[tuple[str, float | None]]) -> tuple[str, float] | None:
    """Return the activation whose losses lie farthest apart, and how far; None where none has several."""
    found: dict[str, list[float]] = {}
    for activation, x in losses:
        if x is not None:
            found.setdefault(activation, []).append(x)
    return max(((name, max(x) - min(x)) for name, x in found.items() if len(x) > 1), key=lambda wide: wide[1],
               default=None)


def _sizes(there: Historic, runs: Runs) -> Iterator[Finding]:
    size = lambda name: GPTConfig.from_dict({**there.config["model"], "activation": name}).parameters()
    was = {name: size(name) for name in speeds_there(there)}
    here = {c.activation: c.parameters for r in runs.values() for c in measured(r).values() if c.parameters}
    told = lambda sizes: listed([f"{n:,} ({name})" for name, n in sizes.items()])
    if here:
        yield Finding(was == here, "Size", f"The original's candidates had {told(was)} parameters, all with MLPs of "
                      f"width {there.config['model']['ffn_dim']}; here they have {told(here)}.")


def _alerts(there: Historic, runs: Runs) -> Iterator[Finding]:
    count = lambda found: f"{len(found)}" + f", {sum(a & TPS > 0 for a in found)} of them for speed" * bool(found)
    yield Finding(False, "Alerts", f"In the search there were {there.phases[0].alerts}. Here, with a baseline for each "
                  f"training, there are {each_way(runs, lambda r: count(alerts(r, 'search')))}. There watching ended "
                  f"with step {there.last_monitored}, here it goes on to the end.")


Found = Callable[[Historic, Runs], Iterator[Finding]]
OF_ANY: Sequence[Found] = (_start, _rates, _losses, _soon, _norms, _spikes, _speed, _records)
OF_SEARCHES: Sequence[Found] = (_gap, _selection, _winner, _separation, _noise, _place, _sizes, _alerts)
