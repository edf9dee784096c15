"""How fast a run was, by activation, and what its steps' time went into."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import mannwhitneyu

from helios.train.markdown import escaped, figure, percent, table
from helios.train.report.facts import integer
from helios.train.report.reading import RunData, finite, highest, lowest, mean, median, percentile

# Phases of a step on the device, one after the other. Batches are prepared while the device computes.
PHASES = {"timing_fwd_ms": "forward", "timing_bwd_ms": "backward", "timing_grad_norm_ms": "gradient norm",
          "timing_optim_ms": "optimizer"}
BESIDE = {"timing_data_ms": "preparing batches", "timing_flush_ms": "waiting for the device"}
LIKELY = 0.01  # chance below which speeds are said to differ


def throughput(run: RunData) -> Iterator[str]:
    """Yield the distribution of tokens a second, and that of each activation."""
    rates = run.column("tokens_per_sec")[run.steady]
    if not finite(rates).size:
        return
    yield from ("Of single steps, without the first one of each training and process, in which kernels are prepared.",
                "")
    low, high = percentile(rates, 5), percentile(rates, 95)
    ms = run.column("ms_per_iter")[run.steady]
    yield from table(("", "tokens/s", "ms a step"), [
        ["median", integer(median(rates)), figure(median(ms))], ["mean", integer(mean(rates)), figure(mean(ms))],
        ["5 % of the steps are slower than", integer(low), figure(percentile(ms, 95))],
        ["5 % of the steps are faster than", integer(high), figure(percentile(ms, 5))],
        ["slowest", integer(lowest(rates)), figure(highest(ms))],
        ["fastest", integer(highest(rates)), figure(lowest(ms))],
    ])
    found = by_activation(run)
    if len(found) > 1:
        best = max(np.median(x) for x in found.values())
        ops = run.column("gpu_ops_count")
        yield ""
        yield from table(("activation", "steps", "median tokens/s", "of the fastest", "dispatches"), (
            [escaped(name), f"{len(x):,}", integer(float(np.median(x))), percent(float(np.median(x) / best)),
             integer(median(ops[run.activations == name]))]
            for name, x in sorted(found.items(), key=lambda item: -np.median(item[1]))))


def by_activation(run: RunData) -> dict[str, np.ndarray]:
    """Return the tokens a second of steady steps by activation."""
    rates = run.column("tokens_per_sec")
    found = {name: finite(rates[run.steady & (run.activations == name)]) for name in dict.fromkeys(run.activations)}
    return {name: values for name, values in found.items() if values.size}


def apart(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two sets of speeds differ by more than chance, by Mann and Whitney's test."""
    return min(len(a), len(b)) > 1 and mannwhitneyu(a, b).pvalue < LIKELY


def breakdown(run: RunData) -> Iterator[str]:
    """Yield what a step's time goes into."""
    found = shares(run)
    if not found:
        return
    ms = lambda name: median(run.column(name)[run.steady])
    yield from ("Of steady steps: the median, and the share of all their time.", "")
    rest = 1 - sum(found.values())
    yield from table(("phase", "median ms", "of the time"), [
        *([PHASES[name], figure(ms(name)), percent(x)] for name, x in found.items()),
        *([["the rest", "–", percent(rest)]] if rest > 0 else []),
        ["step", figure(ms("ms_per_iter")), percent(1.0)]])
    told = [f"{words} {figure(x)} ms" for name, words in BESIDE.items() if (x := ms(name)) is not None]
    forward, backward = (found.get(name) for name in ("timing_fwd_ms", "timing_bwd_ms"))
    ratio = [f"the backward pass takes {figure(backward / forward)} times as long as the forward pass"
             ] if forward and backward else []
    if told or ratio:
        line = "; ".join(filter(None, (f"Beside these, on the host: {', '.join(told)}" if told else "", *ratio)))
        yield from ("", f"{line[0].upper()}{line[1:]}.")


def shares(run: RunData) -> dict[str, float]:
    """Return the shares of PHASES in the time of those steady steps whose phases are all known."""
    names = [name for name in PHASES if finite(run.column(name)).size]
    times = np.array([run.column(name)[run.steady] for name in ("ms_per_iter", *names)])
    total, *parts = times[:, np.isfinite(times).all(axis=0)].sum(axis=1)
    return {name: float(x / total) for name, x in zip(names, parts, strict=True)} if total else {}


def early_and_late(run: RunData) -> tuple[np.ndarray, np.ndarray]:
    """Return the milliseconds of the steady steps in the first and in the last tenth of the main training."""
    ms = finite(run.column("ms_per_iter")[run.main & run.steady])
    n = len(ms) // 10
    return ms[:n], ms[len(ms) - n:]
