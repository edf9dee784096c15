"""What to look at in a run: findings, each by a rule that the report states."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_ind

from helios.model.gpt import STD
from helios.train.markdown import escaped, figure, listed, norm, of_steps, percent, table
from helios.train.report import facts, losses, speed
from helios.train.report.facts import loss
from helios.train.report.reading import RunData, finite, mean, median, share
from helios.train.search.report import result

# Beyond which a rule holds.
FAR, FLAT, RISE, APART = 0.2, 0.005, 0.01, 0.05  # nats: from the expected, of the end's trend, of val. loss, of a gap
CHANCE = 0.01  # probability of a difference among equals
SPIKES, CLIPPED, OVERFLOWS, SHORT, LEFT = 0.01, 0.5, 0.05, 0.2, 0.1  # shares of steps, of a norm, of a step's time
SLOWER, UNEQUAL = 1.1, 1.25  # ratios of times, of speeds
FLATTER, LOWER_RANK = 0.1, 0.5  # shares by which entropy and rank fell; a healthy training lowers the rank by a third
TENTH, LEAST = 3, 10  # steps that a tenth of a training must have, at least, and a training that is judged as a whole
IN_A_ROW = 3  # evaluations after the lowest
NAMED = 5  # most steps that a sentence names


class Rule(NamedTuple):
    """A rule: its condition, and the sentence where it holds of a run."""

    condition: str
    finding: Callable[[RunData], str | None]


def findings(run: RunData) -> list[str]:
    """Return the sentences of the rules that hold, the most pressing first."""
    return [sentence for rule in RULES if (sentence := rule.finding(run))]


def section(run: RunData) -> Iterator[str]:
    """Yield the findings as a list."""
    yield from [f"* {sentence}" for sentence in findings(run)] or ["Nothing: no rule at the end of this page holds."]


def rules(runs: Sequence[RunData]) -> list[str]:
    """Return the table of rules, and of which runs they hold."""
    names = facts.names(runs) if len(runs) > 1 else ["here"]
    holds = lambda rule, run: "yes" if rule.finding(run) else "no"
    return table(("there is a finding where", *names), (
        [rule.condition, *(holds(rule, run) for run in runs)] for rule in RULES), left=1 + len(runs))


# -- the run and its records -------------------------------------------------------------------------------------------

def _unfinished(run: RunData) -> str | None:
    if run.entry["status"] == "completed":
        return None
    reason = f" ({escaped(run.entry['reason'])})" if run.entry["reason"] else ""
    planned = f" of {run.entry['steps']:,}" if run.entry["steps"] else ""
    return f"The run is not finished: {escaped(run.entry['status'])}{reason}, at step {run.last:,}{planned}."


def _no_rows(run: RunData) -> str | None:
    return None if len(run) else "No step is recorded."


def _missing(run: RunData) -> str | None:
    if not len(run) or len(run) >= run.last:
        return None
    return f"Rows are missing: {of_steps(run.last - len(run), run.last)} have none."


def _broken_off(run: RunData) -> str | None:
    kinds = {"resumed": "resumed", "device_lost": "device lost", "damaged_checkpoint": "checkpoint damaged",
             "settings_changed": "settings changed"}
    found = {words: run.of_kind(kind) for kind, words in kinds.items()}
    told = [f"{words} at step{'s' * (len(events) > 1)} {_steps([e.get('step') for e in events])}"
            for words, events in found.items() if events]
    return f"It was not made in one go: {listed(told)}." if told else None


def _steps(steps: list) -> str:
    told = [f"{s:,}" if type(s) is int else "?" for s in dict.fromkeys(steps)]
    return listed(told[:NAMED] + ([f"{len(told) - NAMED:,} more"] if len(told) > NAMED else []))


# -- loss --------------------------------------------------------------------------------------------------------------

def _not_finite(run: RunData) -> str | None:
    told = []
    for words, name in (("the loss", "loss"), ("the gradient norm", "grad_norm")):
        where = ~np.isfinite(run.column(name)) & (run.text("skip_reason") != "overflow")
        if len(run) and where.any():
            told.append(f"{words} at {of_steps(int(where.sum()), len(run))}, first at step "
                        f"{run.steps[np.argmax(where)]:,}" + (", and at the last one" if where[-1] else ""))
    return f"Not finite: {'; '.join(told)}." if told else None


def _start(run: RunData) -> str | None:
    size, steps = run.setting("model", "vocab_size"), run.steps[run.main]
    learned = run.setting("search", "after") == "continue" or run.setting("train", "init_from")
    if not isinstance(size, int) or size < 2 or not len(steps) or learned:
        return None
    # The logits of fresh weights have a variance of n_embd · STD².
    width = run.setting("model", "n_embd")
    first, fresh = run.at(run.first + 1, "loss"), math.log(size) + (width if isinstance(width, int) else 0) * STD**2 / 2
    if first is None or abs(first - fresh) <= FAR:
        return None
    return (f"The first step's loss is {loss(first)}, {loss(abs(first - fresh))} "
            f"{'above' if first > fresh else 'below'} the {fresh:.4f} that fresh weights have.")


def _learned_nothing(run: RunData) -> str | None:
    size, values = run.setting("model", "vocab_size"), run.column("loss")[run.main]
    end = mean(_tenths(values)[1])
    if not isinstance(size, int) or size < 2 or len(values) < LEAST or end is None or end <= math.log(size) - FAR:
        return None
    return f"It learned next to nothing: the mean loss of the last tenth is {loss(end)}, ln V is {math.log(size):.4f}."


def _tenths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the last tenth of values and, before it, the one before."""
    n = max(1, len(values) // 10)
    return values[-2 * n:-n], values[-n:]


def _trend(run: RunData) -> str | None:
    before, end = map(finite, _tenths(run.column("loss")[run.main]))
    if min(len(before), len(end)) < TENTH:
        return None
    change = float(np.mean(end) - np.mean(before))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of losses that are all equal
        if abs(change) <= FLAT or ttest_ind(before, end, equal_var=False).pvalue >= CHANCE:
            return None
    told = f"its mean is {loss(mean(end))}, {loss(abs(change))} {'below' if change < 0 else 'above'} the tenth before"
    return (f"The loss still fell in the last tenth: {told}. More steps may lower it." if change < 0 else
            f"The loss rose in the last tenth: {told}.")


def _validation(run: RunData) -> str | None:
    found = losses.gaps(run)
    if len(found) < 2:
        return None
    last, best = [val for _, val, _ in found[-min(IN_A_ROW, len(found) - 1):]], min(found, key=lambda entry: entry[1])
    if min(last) - best[1] <= RISE:
        return None
    return (f"The validation loss rose from {loss(best[1])} at step {best[0]:,} to {loss(last[-1])} at step "
            f"{found[-1][0]:,}, and {'the' if best[0] in run.checkpoints else 'no'} checkpoint of its lowest is kept.")


def _gap(run: RunData) -> str | None:
    found = [(step, val, val - train) for step, val, train in losses.gaps(run) if train is not None]
    if len(found) < 3:
        return None
    (middle, was, before), (end, now, after) = found[len(found) // 2], found[-1]
    if after <= 0 or after - before <= APART or was - now > RISE:
        return None
    return (f"The gap of the validation loss to the training's grew from {losses.signed(before)} at step {middle:,} to "
            f"{losses.signed(after)} at step {end:,}: a sign of overfitting.")


def _warming(run: RunData) -> str | None:
    warmup, done = run.setting("train", "warmup"), run.last - run.first
    if not isinstance(warmup, int) or not run.main.any() or not 0 < done < warmup:
        return None
    return f"The training is not past its warm-up: {done:,} of {warmup:,} steps."


# -- gradients ---------------------------------------------------------------------------------------------------------

def _spikes(run: RunData) -> str | None:
    rate = share(run.spikes)
    if rate is None or rate <= SPIKES:
        return None
    values = np.nan_to_num(np.where(run.spikes, run.column("grad_norm"), math.nan), nan=-1.0)
    worst, searched = int(np.argmax(values)), int(run.spikes[~run.main].sum())
    inside = f", {searched:,} of them in the search" if searched else ""
    high = f"; the highest norm is {norm(values[worst])} at step {run.steps[worst]:,}" if values[worst] >= 0 else ""
    return f"The gradient norm spiked at {of_steps(int(run.spikes.sum()), len(run))}{inside}{high}."


def _skipped(run: RunData) -> str | None:
    reasons = run.text("skip_reason")
    overflow = run.skipped & (reasons == "overflow")
    others, told = run.skipped & ~overflow, []
    if others.any():
        why = Counter(str(reason) for reason in reasons[others]).most_common()
        told.append(f"updates were skipped at {of_steps(int(others.sum()), len(run))}: "
                    + ", ".join(f"{n:,} × {escaped(reason)}" for reason, n in why))
    if (share(overflow) or 0.0) > OVERFLOWS:
        told.append(f"the loss scale overflowed at {of_steps(int(overflow.sum()), len(run))}")
    line = "; ".join(told)
    return f"{line[0].upper()}{line[1:]}." if line else None


def _clipping(run: RunData) -> str | None:
    part = run.clipped[run.main]
    rate = share(part)
    middle = median(run.column("clip_coef")[run.main & run.clipped])
    if rate is None or rate <= CLIPPED or len(part) < LEAST or middle is None or middle >= SHORT:
        return None
    return (f"The gradient was clipped at {of_steps(int(part.sum()), len(part))} of the training, to "
            f"{figure(middle)} of its length in the median: these steps count alike, however large the gradients.")


def _alerts(run: RunData) -> str | None:
    found: dict[str, list[int]] = {}
    for step, told in zip(run.steps, run.text("cusum_alert_reason"), strict=True):
        for reason in told.split("; ") if told else ():
            found.setdefault(reason, []).append(int(step))
    told = [f"{escaped(reason)} at step{'s' * (len(steps) > 1)} {_steps(steps)}" for reason, steps in found.items()]
    return f"The monitors raised alerts: {'; '.join(told)}." if told else None


# -- weights -----------------------------------------------------------------------------------------------------------

def _collapse(run: RunData) -> str | None:
    told = []
    for name, words, limit in (("weight_entropy", "entropy", FLATTER),
                               ("effective_rank", "effective rank", LOWER_RANK)):
        values = finite(run.column(name)[run.main])
        if len(values) > 1 and values[0] > 0 and values[-1] < (1 - limit) * values[0]:
            told.append(f"{words} fell from {figure(values[0])} to {figure(values[-1])}, by "
                        f"{percent(1 - values[-1] / values[0])}")
    return f"The weights' {' and their '.join(told)}." if told else None


# -- speed -------------------------------------------------------------------------------------------------------------

def _drift(run: RunData) -> str | None:
    first, last = speed.early_and_late(run)
    if len(first) < TENTH or not speed.apart(first, last):
        return None
    early, late = np.median(first), np.median(last)
    if late <= SLOWER * early:
        return None
    return (f"The steps became slower: {figure(early)} ms in the first tenth of the training and {figure(late)} ms in "
            f"the last (medians).")


def _bimodal(run: RunData) -> str | None:
    found = sorted(speed.by_activation(run).items(), key=lambda item: -np.median(item[1]))
    if len(found) < 2:
        return None
    (fast, a), (slow, b) = found[0], found[-1]
    ratio = float(np.median(a) / np.median(b))
    if ratio <= UNEQUAL or not speed.apart(a, b):
        return None
    return (f"The speed differs by activation: {escaped(fast)} {np.median(a):,.0f} tokens/s and {escaped(slow)} "
            f"{np.median(b):,.0f}, a factor of {ratio:.2f}. They ran at different times: see in the plot of the "
            f"throughput whether it follows the activation or the machine.")


def _rest(run: RunData) -> str | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 1 - sum(map(run.column, speed.PHASES)) / run.column("ms_per_iter")
    rest = median(shares[run.steady])
    return f"{percent(rest)} of a step's time is in no phase on the device (median)." if rest and rest > LEFT else None


# -- search ------------------------------------------------------------------------------------------------------------

def _search(run: RunData) -> str | None:
    if not run.candidates or (run.summary["status"] == "complete" and run.summary["separated"]):
        return None
    return escaped(result(run.candidates, run.summary))


def _unfair(run: RunData) -> str | None:
    told = run.summary["unfair"] if run.candidates else []
    return f"Not all was equal in the search: {' '.join(map(escaped, told))}" if told else None


def _not_trained(run: RunData) -> str | None:
    if not run.candidates or run.summary["status"] != "complete" or run.main.any():
        return None
    return "The winner of the search was not trained: there are no steps after it."


def _percent(x: float) -> str:
    return f"{100 * x:g} %"


RULES = (
    Rule("the run is not completed", _unfinished),
    Rule("no step is recorded", _no_rows),
    Rule("a loss or a gradient norm is not finite, other than by an overflow that loss scaling expects", _not_finite),
    Rule(f"the mean loss of the last tenth is above ln V - {FAR:g} (of {LEAST} steps at least)", _learned_nothing),
    Rule(f"the first step's loss differs by more than {FAR:g} nats from that of fresh weights, ln V + n_embd · "
         f"{STD:g}² / 2, and it began with such", _start),
    Rule(f"the mean losses of the last tenth and of the tenth before differ by more than {FLAT:g} nats and more than "
         f"chance makes of equal ones in {_percent(CHANCE)} of runs (Welch's t-test; at least {TENTH} steps each)",
         _trend),
    Rule(f"each of the last {IN_A_ROW} validation losses is more than {RISE:g} nats above the lowest (of few, each but "
         f"the first)", _validation),
    Rule(f"the gap of the validation loss to the mean of the last {losses.RECENT} training losses has grown by more "
         f"than {APART:g} nats since the middle evaluation and is above 0, and the validation loss has not fallen by "
         f"{RISE:g} nats since then", _gap),
    Rule("the training has not come to the end of its warm-up", _warming),
    Rule(f"the gradient norm spiked at more than {_percent(SPIKES)} of the steps", _spikes),
    Rule(f"an update was skipped, or more than {_percent(OVERFLOWS)} of them for an overflow of the loss scale",
         _skipped),
    Rule(f"the gradient was clipped at more than {_percent(CLIPPED)} of the training's steps, of {LEAST} at least, and "
         f"to less than {_percent(SHORT)} of its length in the median of these", _clipping),
    Rule("a monitor raised an alert", _alerts),
    Rule(f"the weights' entropy fell by more than {_percent(FLATTER)}, or their effective rank by more than "
         f"{_percent(LOWER_RANK)}, from the training's first measurement to its last", _collapse),
    Rule(f"the median step time of the training's last tenth is more than {SLOWER:g} times that of the first, beyond "
         f"what chance makes of equal ones in {_percent(speed.LIKELY)} of runs (at least {TENTH} steps each)", _drift),
    Rule(f"the median speeds of two activations differ by a factor above {UNEQUAL:g} and more than chance makes of "
         f"equal ones in {_percent(speed.LIKELY)} of runs (Mann and Whitney's test)", _bimodal),
    Rule(f"more than {_percent(LEFT)} of a step's time is in no phase on the device (median of steady steps)", _rest),
    Rule("a search is in progress, has no winner, or its winner is not separated from the next best genome", _search),
    Rule("the candidates of a search were not trained alike", _unfair),
    Rule("a search is complete and no step follows it", _not_trained),
    Rule("rows are missing", _missing),
    Rule("the run was resumed, lost its device or a checkpoint, or changed settings", _broken_off),
)
