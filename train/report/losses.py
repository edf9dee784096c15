"""How the loss of a run came down: by ranges of steps, at milestones, and at evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from helios.errors import UserError
from helios.model import GPTConfig
from helios.train.markdown import escaped, figure, norm, number, of_steps, table
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
    share = f" ({100 * (end / start - 1):+.1f} %)" if start and abs(end / start) < 1e6 else ""
    missing = f" It is not finite at {of_steps(len(values) - len(known_), len(values))}, which the figures leave out." \
        if len(known_) < len(values) else ""
    yield (f"The loss went from {loss(start)} to {loss(end)}, by {signed(end - start)}{share}; its mean is "
           f"{loss(mean(values))}, its lowest {loss(lowest(values))}.{missing}{even} Losses are in nats a token, of "
           f"the single batch of a step.")


def ranges(run: RunData) -> Iterator[str]:
    """Yield the table of losses by about RANGES ranges of steps, of the training that the run is for."""
    steps, values = run.steps[run.main], run.column("loss")[run.main]
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
        change = signed(None if before is None or here is None else here - before)
        past = min(start + width - 1, int(steps[-1]))
        rows.append([f"{start:,}–{past:,}" if past > start else f"{start:,}", loss(here), loss(lowest(part)), change,
                     f"{len(part):,}"])
        before = here
    yield from table(("steps", "mean loss", "lowest", "change", "rows"), rows)


def signed(x: float | None) -> str:
    """Return a difference of losses."""
    return number(x, "+.4f" if x is None or abs(x) < 1e6 else "+.2e")


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
    """Yield the table of single steps: milestones of the run and of the training that it is for, and the last ones."""
    own = [run.first + step for step in milestones(run.last - run.first)] if run.main.any() else []
    steps = sorted({*milestones(run.last), *own, *(int(s) for s in run.steps[-LAST:])})
    titles = ("step", "loss", "val loss", "perplexity", "grad norm", "LR", "tokens/s", "ms", *["of"] * run.searched)
    rows = []
    for step in steps:
        if (i := run.index(step)) is None:
            continue
        at = lambda name, i=i: known(run.column(name)[i])
        x = at("loss")
        length = at("grad_norm")
        cells = [f"{step:,}", loss(x), loss(at("val_loss"), "–"), perplexity(x),
                 "not finite" if length is None else norm(length), number(at("lr"), ".3g"),
                 integer(at("tokens_per_sec")), figure(at("ms_per_iter"))]
        rows.append([*cells, *[stage(run, i)] * run.searched])
    yield from table(titles, rows, left=0, words=("of",))


def stage(run: RunData, i: int) -> str:
    """Return in words what a row is of, in a run with a search."""
    return f"{'search' if run.text('symbio_phase')[i] == SEARCH else 'training'}, {escaped(run.activations[i])}"


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
        [f"{step:,}", loss(val), loss(train), signed(None if train is None else val - train), perplexity(val),
         "★" if i == lowest_ else ""]
        for i, (step, val, train) in enumerate(found) if i in chosen))
    yield from ("", f"Train loss: the mean of the last {RECENT} steps up to the evaluation." +
                " It is measured with dropout, the validation loss without." * drops(run))


def drops(run: RunData) -> bool:
    """Return whether the run trains with dropout."""
    model = run.about.get("model")
    given = {k: x for k, x in model.items() if k.endswith("dropout")} if isinstance(model, dict) else {}
    with suppress(UserError):  # of another version
        return any(GPTConfig.from_dict(given).dropouts)
    return False


def gaps(run: RunData) -> list[tuple[int, float, float | None]]:
    """Return (step, validation loss, mean training loss of the RECENT steps up to it), of the main training."""
    steps, values, train = (x[run.main] for x in (run.steps, run.column("val_loss"), run.column("loss")))
    return [(int(steps[i]), float(values[i]), mean(train[max(0, i + 1 - RECENT):i + 1]))
            for i in np.flatnonzero(np.isfinite(values))]


