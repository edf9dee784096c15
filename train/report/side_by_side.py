"""Several runs side by side: what differs between them, how their losses went, and what each came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from helios.train.markdown import figure, norm, share_of, table
from helios.train.report import facts, losses
from helios.train.report.facts import Fact, loss
from helios.train.report.reading import RunData, finite, highest, mean, median, percentile

MOST = 20  # most steps in a table of validation losses


def at_milestones(runs: Sequence[RunData]) -> Iterator[str]:
    """Yield the losses at milestones that two runs have at least, by the step of the training that a run is for."""
    ends = sorted(run.last - run.first for run in runs)
    common = [step for step in losses.milestones(ends[-2]) if step <= ends[-2]]
    yield from _by_step(runs, common, "loss")


def evaluations(runs: Sequence[RunData]) -> Iterator[str]:
    """Yield the validation losses at steps at which two runs have one, at least."""
    found = [{step - run.first for step, _, _ in losses.gaps(run)} for run in runs]
    common = sorted(s for s in set().union(*found) if sum(s in steps for steps in found) > 1)
    yield from _by_step(runs, [common[i] for i in facts.spread(len(common), MOST)], "val_loss")


def _by_step(runs: Sequence[RunData], steps: Sequence[int], column: str) -> list[str]:
    unknown = lambda run, step: "not finite" if column == "loss" and run.index(step) is not None else "–"
    told = {step: [loss(run.at(s := run.first + step, column), unknown(run, s)) for run in runs] for step in steps}
    return table(("step of the training", *facts.names(runs)), (
        [f"{step:,}", *row] for step, row in told.items() if sum(x != "–" for x in row) > 1))


def _end(run: RunData) -> str | None:
    values = run.column("loss")[run.main]
    return loss(mean(values[-max(1, len(values) // 10):])) if len(values) else None


def _gap(run: RunData) -> str | None:
    found = losses.gaps(run)
    return losses.signed(found[-1][1] - found[-1][2]) if found and found[-1][2] is not None else None


def _norms(run: RunData) -> str | None:
    values = run.column("grad_norm")[run.main]
    return " / ".join(map(norm, (median(values), percentile(values, 99), highest(values)))
                      ) if finite(values).size else None


def _count(what: str) -> Fact:
    def fact(run: RunData) -> str | None:
        where = getattr(run, what)[run.main]
        return share_of(int(where.sum()), len(where)) if len(where) else None
    return fact


def _alerts(run: RunData) -> str | None:
    return f"{sum(map(bool, run.text('cusum_alert_reason'))):,}" if len(run) else None


def _medians(*columns: str) -> Fact:
    def fact(run: RunData) -> str | None:
        found = [median(run.column(name)[run.steady & run.main]) for name in columns]
        return None if None in found else " / ".join(map(figure, found))
    return fact


def _per_token(run: RunData) -> str | None:
    tokens, elapsed = finite(run.tokens).sum(), highest(run.column("elapsed_ms"))
    return f"{1000 * tokens / elapsed:,.0f}" if elapsed and tokens else None


FIGURES: Mapping[str, Fact] = {
    "mean loss of the last tenth": _end,
    "gap of the last validation loss": _gap,
    "gradient norm: median / 99 % / highest": _norms,
    "spikes": _count("spikes"),
    "clipped": _count("clipped"),
    "skipped": _count("skipped"),
    "steps with alerts": _alerts,
    "ms a step, median": _medians("ms_per_iter"),
    "forward / backward, ms": _medians("timing_fwd_ms", "timing_bwd_ms"),
    "tokens/s, of the whole time": _per_token,
    "dispatches a step": facts.MACHINE["dispatches a step"],
    "device memory in use": facts.MACHINE["of it in use"],
}
