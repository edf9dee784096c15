"""How the loss of a run came down: by ranges of steps, at milestones, and at evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from helios.train.markdown import figure, norm, number, table
from helios.train.report.facts import integer, loss, perplexity, spread
from helios.train.report.reading import SEARCH, RunData, finite, known, lowest, mean

RANGES, EVALUATIONS, LAST = 10, 20, 5  # ranges of steps, evaluations in a table, and last steps in one
RECENT = 20  # last training steps whose mean a validation loss is compared with


def summary(run: RunData) -> Iterator[str]:
    """Yield the figures of the training that the run is for, in a sentence."""
    values = run.column("loss")[run.main]
    known_ = finite(values)
    if len(known_) < 2:
        return
    start, end, vocabulary = known_[0], known_[-1], run.setting("model", "vocab_size")
    even = f" An even guess among {vocabulary:,} tokens has ln {vocabulary:,} = {math.log(vocabulary):.4f}." \
        if isinstance(vocabulary, int) and vocabulary > 1 else ""
    yield (f"The loss went from {start:.4f} to {end:.4f}, by {end - start:+.4f} ({100 * (end / start - 1):+.1f} %); "
           f"its mean is {mean(values):.4f}, its lowest {lowest(values):.4f}.{even} Losses are in nats a token, of the "
           f"single batch of a step.")


def ranges(run: RunData) -> Iterator[str]:
    """Yield the table of losses by about RANGES ranges of steps, of the training that the run is for."""
    where = run.main if run.main.any() else np.ones(len(run), bool)
    steps, values = run.steps[where], run.column("loss")[where]
    if len(steps) < 2:
        return
    width = nice((steps[-1] - steps[0] + 1) / RANGES)
    first = int(steps[0])
    rows, before = [], None
    for start in range(first, int(steps[-1]) + 1, width):
        part = values[(steps >= start) & (steps < start + width)]
        if not len(part):
            continue
        here = mean(part)
        change = "–" if before is None or here is None else f"{here - before:+.4f}"
        rows.append([f"{start:,}–{min(start + width - 1, int(steps[-1])):,}", loss(here), loss(lowest(part)), change,
                     f"{len(part):,}"])
        before = here
    yield from table(("steps", "mean loss", "lowest", "change", "rows"), rows)


def nice(width: float) -> int:
    """Return a round number near a width, at least 1: 1, 2 or 5 times a power of ten."""
    if width <= 1:
        return 1
    power = 10 ** math.floor(math.log10(width))
    return int(min((m * power for m in (1, 2, 5, 10)), key=lambda x: abs(math.log(x / width))))


def milestones(last: int) -> list[int]:
    """Return 1, 10, 50, 100, 250, 500, 1,000, 2,500, … below the last step, and that."""
    found, power = [1, 10, 50], 100
    while power < last:
        found += [power, power * 5 // 2, power * 5]
        power *= 10
    return [s for s in found if s < last] + ([last] if last else [])


def at_milestones(run: RunData) -> Iterator[str]:
    """Yield the table of single steps: milestones, and the last ones."""
    steps = sorted({*milestones(run.last), *(int(s) for s in run.steps[-LAST:])})
    searched = bool((~run.main).any())
    titles = ("step", "loss", "val loss", "perplexity", "grad norm", "LR", "tokens/s", "ms", *["of"] * searched)
    rows = []
    for step in steps:
        if (i := run.index(step)) is None:
            continue
        at = lambda name, i=i: known(run.column(name)[i])
        x = at("loss")
        cells = [f"{step:,}", loss(x), number(at("val_loss"), ".4f"), perplexity(x),
                 "not finite" if at("grad_norm") is None else norm(at("grad_norm")), number(at("lr"), ".3g"),
                 integer(at("tokens_per_sec")), figure(at("ms_per_iter"))]
        rows.append([*cells, *[stage(run, i)] * searched])
    yield from table(titles, rows, left=0, words=("of",))


def stage(run: RunData, i: int) -> str:
    """Return in words what a row is of, in a run with a search."""
    if run.text("symbio_phase")[i] == SEARCH:
        return f"search, {run.activations[i]}"
    return f"training, {run.activations[i]}"


def evaluations(run: RunData) -> Iterator[str]:
    """Yield the table of validation losses of the training that the run is for, with their distance from training."""
    found = gaps(run)
    if not found:
        return
    lowest_ = min(range(len(found)), key=lambda i: found[i][1])
    chosen = sorted({*spread(len(found), EVALUATIONS), lowest_})
    if len(chosen) < len(found):
        yield from (f"{len(chosen)} of {len(found):,} evaluations.", "")
    yield from table(("step", "val loss", "train loss", "gap", "val perplexity", "best"), (
        [f"{step:,}", f"{val:.4f}", number(train, ".4f"), "–" if train is None else f"{val - train:+.4f}",
         perplexity(val), "★" if i == lowest_ else ""]
        for i, (step, val, train) in enumerate(found) if i in chosen))
    yield from ("", f"Train loss: the mean of the last {RECENT} steps up to the evaluation." +
                " It is measured with dropout, the validation loss without." * bool(run.setting("model", "dropout")))


def gaps(run: RunData) -> list[tuple[int, float, float | None]]:
    """Return (step, validation loss, mean training loss of the RECENT steps up to it), of the main training."""
    steps, values, train = (x[run.main] for x in (run.steps, run.column("val_loss"), run.column("loss")))
    return [(int(steps[i]), float(values[i]), mean(train[max(0, i + 1 - RECENT):i + 1]))
            for i in np.flatnonzero(np.isfinite(values))]


