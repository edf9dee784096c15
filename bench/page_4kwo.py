"""The page on run 4kwo, the first steps of a long training with gelu: the original's figures and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from helios.bench import original
from helios.bench.original import LONG, Point
from helios.bench.reproduce import (
    AGAIN,
    LONGEST,
    SAME_LOSS,
    Finding,
    Here,
    above,
    between,
    comparable,
    distance,
    findings,
    mean,
    median,
    milliseconds,
    rates,
    records_kept,
    run_rows,
    samples,
    seconds,
    share,
    starts,
    values,
)
from helios.train.markdown import exact, figure, loss, norm, percent, section, table
from helios.train.records.rows import clipped

SAME_NORM = 1.5  # largest ratio of single steps' norms that counts as agreement
PHASES = {"fwd": "forward", "bwd": "backward", "grad_norm": "gradient norm", "optim": "optimizer"}


def markdown(runs: Mapping[str, Here]) -> str:
    """Return the page on the finished run."""
    here = runs[AGAIN]
    points = [p for p in LONG.points if p.step <= here.last]
    return "\n".join([
        f"# Run 4kwo, run again for {here.last:,} steps", "", _lead(here, points[-1]),
        *section("What was run", *_about(runs)),
        *table(("", "original", "here"), _facts(runs)),
        *section("Loss and gradient norm", "Of single steps."),
        *table(("step", "loss: original", "here", "difference", "norm: original", "here"), _steps(here, points)),
        *section("Mean loss"),
        *_means(here),
        *section("Validation loss"),
        *table(("step", "original", "here"), _validation(here)),
        *section("Speed"),
        *table(("step", "ms: original", "here", "tokens/s: original", "here"), (
            [f"{p.step:,}", exact(p.ms), figure(here.at(p.step, "ms_per_iter")), exact(p.tokens_per_sec),
             figure(here.at(p.step, "tokens_per_sec"))] for p in points)),
        *_phases(here),
        *section("Gradient norms", f"The original's are over all {LONG.recorded:,} steps in its records, here they are "
                 f"over {here.last:,}."),
        *table(("", "original", "here"), _norms(here)),
        *samples(runs),
        *findings(_findings(runs, points)),
    ]) + "\n"


# -- tables -----------------------------------------------------------------------------------------------------------

def _lead(here: Here, p: Point) -> str:
    return (f"At step {p.step:,} the original's loss was {loss(p.loss)}, here it is {loss(here.at(p.step, 'loss'))}; a "
            f"step took {exact(LONG.ms)} ms and takes {figure(milliseconds(here))} ms.")


def _about(runs: Mapping[str, Here]) -> Iterator[str]:
    here = runs[AGAIN]
    yield comparable(LONG, runs)
    yield (f"The original was stopped after {LONG.steps:,} of the {original.SCHEDULE_STEPS:,} steps of its schedule. "
           f"In the first {LONGEST}, its warm-up, the learning rate depends on the step alone, so the {here.last:,} "
           "steps here have the rates of that schedule. At its mean speed they took the original "
           f"{here.last * LONG.ms / 1000:,.0f} s, and they took {figure(seconds(here))} s here, evaluations included.")


def _facts(runs: Mapping[str, Here]) -> Iterator[list[str]]:
    here = runs[AGAIN]
    most = lambda column: figure(max(values(here.rows.values(), column), default=None))
    yield from run_rows(LONG, runs)
    yield ["parameters", exact(LONG.parameters), exact(here.about["parameters"])]
    yield ["operations (here dispatches) a step", exact(LONG.ops), figure(_dispatches(here))]
    yield ["memory in use, MB (here MiB)", "–".join(map(exact, original.USED_MB)), most("gpu_vram_used_mb")]
    yield ["memory pools, alike", "–".join(map(exact, original.POOL_MB)), most("gpu_mem_pool_mb")]


def _dispatches(here: Here) -> float | None:
    return median(values(here.rows.values(), "gpu_ops_count"))


def _steps(here: Here, points: Sequence[Point]) -> Iterator[list[str]]:
    for p in points:
        x = here.at(p.step, "loss")
        yield [exact(p.step), loss(p.loss), loss(x), "–" if x is None else f"{x - p.loss:+.3f}", norm(p.grad_norm),
               norm(here.at(p.step, "grad_norm"))]


def _means(here: Here) -> Iterator[str]:
    whole = {s: values(between(here, s.first, s.past), "loss") for s in LONG.stretches if s.past <= here.last + 1}
    if whole:
        yield from table(("steps", "mean: original", "here", "lowest: original", "here"), (
            [f"{s.first:,}–{s.past:,}", loss(s.mean), loss(mean(x)), loss(s.low), loss(min(x, default=None))]
            for s, x in whole.items()))
    else:
        s, mine = LONG.stretches[0], mean(values(here.rows.values(), "loss"))
        yield (f"The original's first mean is over its steps to {s.past}, {loss(s.mean)}. This run ended before that "
               f"step; its own mean over {here.last:,} steps, {loss(mine)}, cannot be set beside it.")


def _validation(here: Here) -> Iterator[list[str]]:
    known = [step for step, row in here.rows.items() if row["val_loss"] is not None]
    for step in sorted({*known, *LONG.validation}):
        yield [exact(step), loss(LONG.validation.get(step)), loss(here.at(step, "val_loss"))]


def _phases(here: Here) -> Iterator[str]:
    found = {name: milliseconds(here, f"timing_{name}_ms") for name in PHASES}
    if any(x is not None for x in found.values()):
        yield ""
        yield from table(("ms of a step", "original", "here"), (
            [words, exact(original.PHASES_MS[name]), figure(found[name])] for name, words in PHASES.items()))


def _norms(here: Here) -> Iterator[list[str]]:
    rows, norms = list(here.rows.values()), values(here.rows.values(), "grad_norm")
    for limit, there in original.NORMS_ABOVE.items():
        yield [f"steps above {limit:,}", percent(there), percent(share(rows, above(limit)))]
    yield ["mean", norm(original.NORM_MEAN), norm(mean(norms))]
    yield ["lowest", norm(original.NORM_LOW), norm(min(norms, default=None))]
    for p in (10, 50, 90, 99):
        yield ["median" if p == 50 else f"{p} % of the steps are below", norm(original.NORM_PERCENTILES[p]),
               norm(float(np.percentile(norms, p)) if norms else None)]
    yield ["highest", norm(original.NORM_HIGH), norm(max(norms, default=None))]
    yield ["steps clipped", "–", percent(share(rows, clipped))]
    yield ["updates skipped", "–", str(sum(bool(r.get("skipped")) for r in rows))]


# -- sentences --------------------------------------------------------------------------------------------------------

def _findings(runs: Mapping[str, Here], points: Sequence[Point]) -> Iterator[Finding]:
    here = runs[AGAIN]
    yield from starts(LONG, runs)
    yield from rates(LONG, here, "that of this run")
    yield from _losses(here, points)
    yield from _norm(here, points)
    yield from _spikes(here, points)
    yield from _speed(here)
    yield from _forward(here)
    yield from records_kept(LONG, runs)


def _losses(here: Here, points: Sequence[Point]) -> Iterator[Finding]:
    pairs = [(p, x) for p in points if (x := here.at(p.step, "loss")) is not None]
    if pairs:
        most = max(abs(x - p.loss) for p, x in pairs)
        p, x = pairs[-1]
        yield Finding(most <= SAME_LOSS, "Loss", f"At the {len(pairs)} steps in the table it differs by {loss(most)} "
                      f"at most; at step {p.step:,} it is {loss(x)} here, {distance({AGAIN: x}, p.loss)} the "
                      f"original's {loss(p.loss)}. Initial values and batches are others, and the loss is "
                      "that of one batch.")


def _norm(here: Here, points: Sequence[Point]) -> Iterator[Finding]:
    ratios = [x / p.grad_norm for p in points if (x := here.at(p.step, "grad_norm")) is not None]
    if ratios:
        alike = 1 / SAME_NORM <= min(ratios) <= max(ratios) <= SAME_NORM
        yield Finding(alike, "Gradient norm", f"At the same steps it is {figure(min(ratios))} to {figure(max(ratios))} "
                      "times the original's.")


def _spikes(here: Here, points: Sequence[Point]) -> Iterator[Finding]:
    limit, there = next(iter(original.NORMS_ABOVE.items()))
    mine = share(list(here.rows.values()), above(limit)) or 0.0
    first = next(p.step for p in LONG.points if p.grad_norm > original.SPIKE)
    text = f"{percent(mine)} of the steps have a gradient norm above {limit}; {percent(there)} of the original's had."
    if here.last < first:
        text += (" That says little yet: of the original's norms in the table none exceeds "
                 f"{norm(max(p.grad_norm for p in points))}, and the first above {original.SPIKE:g} that is known is "
                 f"at step {first:,}.")
    yield Finding(mine >= there / 2, "Spikes", text)


def _speed(here: Here) -> Iterator[Finding]:
    if ms := milliseconds(here):
        ratio = ms / LONG.ms
        yield Finding(0.8 <= ratio <= 1.25, "Speed", f"A step takes {figure(ms)} ms on {here.about['device']['name']} "
                      f"and took {exact(LONG.ms)} ms on {LONG.device}: {figure(ratio)} times as long.")
    if count := _dispatches(here):
        yield Finding(False, "Dispatches", f"A step is {figure(count)} dispatches here and was {LONG.ops:,} operations "
                      f"there, {original.SOFTCAP_OPS} of them for the soft cap in the forward pass; here that is part "
                      "of the attention kernel.")


def _forward(here: Here) -> Iterator[Finding]:
    forward, backward = (milliseconds(here, f"timing_{name}_ms") for name in ("fwd", "bwd"))
    if forward and backward:
        mine, there = forward / backward, original.PHASES_MS["fwd"] / original.PHASES_MS["bwd"]
        yield Finding(0.8 <= mine / there <= 1.25, "Forward and backward", f"The forward pass takes {figure(mine)} "
                      f"times as long as the backward pass here and took {figure(there)} times as long there.")
