"""A historic run's own figures beside those of any runs: what was run, tables, and what agrees and what differs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from helios.train.history import Historic
from helios.train.markdown import (
    YES_NO,
    block,
    escaped,
    exact,
    figure,
    loss,
    norm,
    of_steps,
    percent,
    plain,
    section,
    share_of,
    table,
    with_error,
)
from helios.train.records.layout import differing
from helios.train.report import agreement, facts
from helios.train.report.agreement import (
    Runs,
    alerts,
    each,
    each_way,
    last_of,
    measured,
    phase,
    shared,
    speeds_here,
    speeds_there,
    trained,
    usual,
)
from helios.train.report.reading import RunData, finite, highest, lowest, mean, percentile, share
from helios.train.search.separation import PERCENT
from helios.train.tokenizer import ASSISTANT, USER

HERE, THERE = "here", "original"  # names of columns: of a run that stands alone, and of the historic one
COMPARED = ("model", "train", "search")  # sections of settings
# Settings that have no part in what a step learns, or that another row tells of.
APART = {"train.steps", "train.eval_interval", "train.eval_iters", "train.eval_batch", "train.sample_interval",
         "train.seed", "train.checkpoint_interval", "model.ffn_dim"}
PHASES = {"data": "data", "fwd": "forward", "bwd": "backward", "grad_norm": "gradient norm", "optim": "optimizer",
          "flush": "flush"}
MEMORY = {"gpu_vram_used_mb": "memory in use, MB (here MiB)", "gpu_mem_pool_mb": "memory pools, alike"}

Told = Callable[[RunData], str]
Row = tuple[str, str, Told]  # of a table: its name, the original's figure, and that of a run
Form = Callable[[float | None], str]


def page(there: Historic, runs: Runs, about: Iterable[str] = ()) -> str:
    """Return the page, in Markdown. runs: by names. about: paragraphs on what they are."""
    return "\n".join([f"# {title(there, runs)}", *lines(there, runs, about)]) + "\n"


def named(runs: Sequence[RunData]) -> Runs:
    """Return the runs by the names that they have in the page: HERE, or the ends of their ids where these differ."""
    ends = [escaped(run.about["run_id"].rpartition("_")[2]) for run in runs]
    short = [HERE] if len(runs) == 1 else ends if len({*ends} - {"", THERE}) == len(runs) else facts.names(runs)
    return dict(zip(short, runs, strict=True))


def title(there: Historic, runs: Runs) -> str:
    """Return the title of the page, without mark-up."""
    return f"Run {there.name}, and {each_way(runs, lambda run: f'{run.last:,} steps')} of Helios"


def lines(there: Historic, runs: Runs, about: Iterable[str] = (), pictures: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of the page, without its title. pictures: file names of plots of the losses."""
    last, differ = last_of(runs), _settings(there, runs)
    steps = {step: row for step, row in there.by_step().items() if step <= last}
    single = lambda columns: _single(there, runs, [s for s, row in steps.items() if {*columns} & {*row}], columns)
    two = lambda first, second: (f"{first}: {THERE}", *runs, f"{second}: {THERE}", *runs)
    searched = bool(there.candidates) and any(run.candidates for run in runs.values())
    for paragraph in _first(there, runs, differ):
        yield from ("", paragraph)
    yield from section("What was run", *about, _comparable(there, runs), _span(there, runs))
    yield from _rows(("", THERE, *runs), _facts(there, searched), runs)
    yield from _part("Settings that differ", table(("setting", THERE, *runs), differ))
    yield from _part("Loss and gradient norm", table(("step", *two("loss", "norm")), single(
        {"loss": loss, "grad_norm": norm})), "Of single steps.", _searching(runs))
    for name in pictures:
        yield from ("", f"![Loss]({name})")
    yield from _part("Mean loss", table(("steps", *two("mean", "lowest")), _stretches(there, runs)))
    yield from _part("Validation loss", table(("step", THERE, *runs), _validation(there, runs)))
    yield from _part("Speed", table(("step", *two("ms", "tokens/s")), single(
        {"ms_per_iter": figure, "tokens_per_sec": figure})))
    yield from _part("", _rows(("ms of a step", THERE, *runs), _timing(there), runs))
    if searched:
        yield from _part("Speed by activation", table(("activation", *(x for name in (THERE, *runs) for x in (
            name, "× gelu"))), _speeds(there, runs)), "Tokens a second in the search, and as a multiple of gelu's.")
    yield from _part("Gradient norms, clipping, alerts", _rows(("", THERE, *runs), _norms(there, searched), runs), "Of "
                     "all steps in the records. An alert is a step at which a monitor reports a shift.")
    yield from _part("", table(("steps", *two("spikes", "highest norm")), _spikes(there, runs)))
    if searched:
        yield from _rankings(there, runs)
    yield from (*section("What the models say"), "\n\n".join(_said(there, runs)))
    yield from agreement.lines(there, runs, not any(key.startswith(("model.", "train.")) for key, *_ in differ))
    yield from (*section("What else is known of the original"), *(f"* {note}" for note in there.notes))


def _part(title: str, rows: Sequence[str], *paragraphs: str) -> Iterator[str]:
    """Yield a section with a table, or, without a title, one more table; nothing where that is empty."""
    if rows:
        yield from (*(section(title, *paragraphs) if title else [""]), *rows)


def _rows(titles: Sequence[str], rows: Iterable[Row], runs: Runs) -> list[str]:
    """Return a table without the rows of which nothing is known of the runs."""
    cells = [[name, text, *map(of, runs.values())] for name, text, of in rows]
    return table(titles, [row for row in cells if {*row[2:]} != {"–"}])


def _exact(x: float | None) -> str:
    return "–" if x is None else exact(x)


# -- what was run -----------------------------------------------------------------------------------------------------

def _first(there: Historic, runs: Runs, differ: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield how the losses compare, and what is no comparison of equals."""
    ends = {name: known[-1] for name, run in runs.items() if (known := shared(there, run, "loss"))}
    if ends:
        step, was, _ = max(ends.values())
        times, ms = each(runs, lambda run: usual(run, "ms_per_iter")), there.mean.get("ms_per_iter")
        yield (f"At step {step:,} the original's loss was {loss(was)}, here it is "
               f"{each_way({name: x for name, (s, _, x) in ends.items() if s == step}, loss)}" +
               (f"; a step took {exact(ms)} ms and takes {each_way(times, figure)} ms." if ms and times else "."))
    if lost := each(runs, _diverged):
        yield f"**Diverged**: the loss here is not finite at {each_way(lost)}, the last one among them."
    if models := [key.removeprefix("model.") for key, *_ in differ if key.startswith("model.")]:
        yield f"**Another model** than the original's: {', '.join(models)} differ. Its figures are not to be met here."
    if texts := {name: escaped(x) for name, run in runs.items() if (x := facts.text(run)) not in ("", there.text)}:
        yield f"**Another text**, by its name: {there.text} there, {each_way(texts)} here."


def _diverged(run: RunData) -> str | None:
    there = np.isfinite(run.column("loss"))
    return None if not len(run) or there[-1] else of_steps(int(np.sum(~there)), len(run))


def _comparable(there: Historic, runs: Runs) -> str:
    device, names = there.device["name"], {str(run.entry["device"] or "an unknown one") for run in runs.values()}
    means = "The original's speeds are means, those here medians of steps in which no kernels were prepared."
    if all(device.removeprefix("NVIDIA ") in name.split() for name in names):
        return f"Both ran on an {device}. {means}"
    return (f"The devices differ, {device} there and {escaped(', '.join(sorted(names)))} here: wall clock and speed "
            f"compare whole systems, not the code alone. {means}")


def _span(there: Historic, runs: Runs) -> str:
    """Return in words how many steps are compared, and the wall clocks."""
    last, ms, took = last_of(runs), there.mean.get("ms_per_iter"), each(runs, _seconds)
    text = f"The original made {there.steps:,} of {there.planned:,} steps. " if there.steps < there.planned else ""
    if last < there.steps:
        text += f"Here are {last:,}, and the original's later figures are left out. "
        if ms and took:
            text += (f"At its mean speed they took the original {last * ms / 1000:,.0f} s, and they took "
                     f"{each_way(took, figure)} s here, evaluations included.")
    elif there.seconds and took and last == there.steps:
        ratios = {name: x / there.seconds for name, x in took.items()}
        text += f"The whole run took {each_way(ratios, '{:.2f}'.format)} times the original's {there.seconds:,.0f} s."
    return text.strip()


def _seconds(run: RunData) -> float | None:
    elapsed = run.at(run.last, "elapsed_ms")
    return None if elapsed is None else elapsed / 1000


def _facts(there: Historic, searched: bool) -> Iterator[Row]:
    average = lambda name: _exact(there.mean.get(name))
    yield "run", there.run_id, lambda run: escaped(run.about["run_id"])
    yield "device", there.device["name"], lambda run: escaped(run.entry["device"] or "–")
    yield "driver", there.device["driver"], lambda run: escaped(run.setting("device", "driver") or "–")
    yield "begun", there.begun[:10], lambda run: escaped(run.entry["created"] or "–")[:10]
    yield ("training text", ", ".join(filter(None, (there.text, there.text_size))),
           lambda run: escaped(facts.text(run)) or "–")
    yield "parameters", exact(there.parameters), lambda run: facts.OVERVIEW["parameters"](run) or "–"
    yield "steps", exact(there.steps), lambda run: exact(run.last)
    yield "steps in the records", _exact(there.recorded), lambda run: exact(len(run))
    yield "wall clock, s", _exact(there.seconds), lambda run: figure(_seconds(run))
    for column, words in (("ms_per_iter", "ms a step"), ("tokens_per_sec", "tokens/s"),
                          ("gpu_ops_count", "operations (here dispatches) a step")):
        yield words, average(column), _usual(column)
    for column, words in MEMORY.items():
        yield words, "–".join(map(exact, there.memory.get(column, ()))) or average(column), _highest(column)
    if searched:
        search, after = there.phases
        yield "trainings in the search", exact(len(there.candidates)), lambda run: exact(len(trained(run)))
        yield "steps in the search", exact(search.steps), lambda run: exact(int(phase(run, "search").sum()))
        yield "steps after it", exact(after.steps), lambda run: exact(int(phase(run, "after").sum()))
        yield "winner", there.winner or "–", lambda run: escaped(run.summary["winner_activation"] or "none")
        yield ("trained after the search", f"likely {there.trained_after}",
               lambda run: escaped(run.about.get("symbio_winner") or "–"))


def _usual(column: str) -> Told:
    return lambda run: figure(usual(run, column))


def _highest(column: str) -> Told:
    return lambda run: figure(highest(run.column(column)))


def _settings(there: Historic, runs: Runs) -> list[list[str]]:
    """Return the settings known of the original that differ in a run that has them, and all their values."""
    # Of a search, the model's activation is only that of the settings it began from.
    apart = APART | {"model.activation"} if all(run.candidates for run in runs.values()) else APART
    known = {f"{section}.{key}" for section in COMPARED for key in there.config.get(section, ())} - apart
    told = lambda about, key: _value((about.get(key.split(".")[0]) or {}).get(key.split(".")[1]))
    keys = dict.fromkeys(key for run in runs.values() for key, _, x in differing(there.about(), run.about)
                         if key in known and x is not None)
    return [[key, *(told(about, key) for about in (there.about(), *(run.about for run in runs.values())))]
            for key in keys]


def _value(x: Any) -> str:
    return "–" if x is None else f"{x:g}" if isinstance(x, float) else escaped(x) if isinstance(x, str) else str(x)


# -- tables -----------------------------------------------------------------------------------------------------------

def _searching(runs: Runs) -> str:
    steps = {name: f"{run.first:,}" for name, run in runs.items() if run.first}
    return f"Up to step {each_way(steps)} the candidates train, one after the other." if steps else ""


def _single(there: Historic, runs: Runs, steps: Sequence[int], columns: Mapping[str, Form]) -> Iterator[list[str]]:
    """Yield the rows of columns at single steps, the last ones of the runs included."""
    for step in sorted({*steps, *(run.last for run in runs.values())}) if steps else ():
        yield [exact(step), *(x for name, form in columns.items() for x in (
            form(there.column(name).get(step)), *(form(run.at(step, name)) for run in runs.values())))]


def _between(run: RunData, column: str, first: int, past: int) -> np.ndarray:
    return run.column(column)[(run.steps >= first) & (run.steps < past)]


def _stretches(there: Historic, runs: Runs) -> Iterator[list[str]]:
    for s in (s for s in there.stretches if s.past <= last_of(runs) + 1):
        parts = [_between(run, "loss", s.first, s.past) for run in runs.values()]
        yield [f"{s.first:,}–{s.past - 1:,}", loss(s.mean), *(loss(mean(x)) for x in parts), loss(s.low),
               *(loss(lowest(x)) for x in parts)]


def _validation(there: Historic, runs: Runs) -> Iterator[list[str]]:
    was, last = there.column("val_loss"), last_of(runs)
    here = {int(s) for run in runs.values() for s in run.steps[run.main & np.isfinite(run.column("val_loss"))]}
    for step in sorted({*(step for step in was if step <= last), *here}):
        yield [exact(step), loss(was.get(step)), *(loss(run.at(step, "val_loss")) for run in runs.values())]
    if was and last >= max(was):
        yield ["lowest", loss(there.entry()["best_val_loss"]),
               *(loss(lowest(run.column("val_loss")[run.main])) for run in runs.values())]


def _timing(there: Historic) -> Iterator[Row]:
    for name, x in there.timing.items():
        yield PHASES[name], exact(x), _usual(f"timing_{name}_ms")


def _speeds(there: Historic, runs: Runs) -> Iterator[list[str]]:
    after = "after the search"
    columns: list[dict[str, float | None]] = [{**speeds_there(there), after: there.phases[-1].tokens_per_sec}]
    columns += [{**speeds_here(run), after: usual(run, "tokens_per_sec", run.main)} for run in runs.values()]
    for name in (*sorted({name for column in columns for name in column} - {after}), after):
        yield [name, *(x for column in columns for x in _beside(column.get(name), column.get("gelu")))]


def _beside(rate: float | None, gelu: float | None) -> tuple[str, str]:
    return figure(rate), "–" if rate is None or gelu is None else f"{rate / gelu:.2f}"


def _norms(there: Historic, searched: bool) -> Iterator[Row]:
    n, limit = there.norms, there.norms.above[0][0] if there.norms.above else 0.0
    of = lambda statistic: lambda run: norm(statistic(run.column("grad_norm")))
    above = lambda limit: lambda run: percent(share(run.column("grad_norm") > limit))
    spiked = lambda name: lambda run: share_of(int(np.sum(run.column("grad_norm")[phase(run, name)] > limit)),
                                               int(phase(run, name).sum()))
    watched = lambda name: lambda run: str(len(alerts(run, name)))
    for x, count in n.above:
        yield f"steps above {x:,g}", percent(count / (there.recorded or there.steps)), above(x)
    for p in there.phases * searched:
        yield f"of these, {p.words}", share_of(p.spikes, p.recorded), spiked(p.name)
    yield "mean", norm(n.mean), of(mean)
    if n.healthy:
        yield "mean of the others", norm(n.healthy), of(lambda x: mean(x[x <= limit]))
    yield "lowest", norm(n.low), of(lowest)
    for q, x in n.percentiles:
        yield "median" if q == 50 else f"{q:g} % of the steps are below", norm(x), of(partial(percentile, p=q))
    yield "highest", norm(n.high), of(highest)
    yield ("not finite", f"about {there.not_finite}" if there.not_finite else "–",
           lambda run: str(np.sum(~np.isfinite(run.column("grad_norm")))))
    yield "steps clipped", percent(there.clipped), lambda run: percent(share(run.clipped))
    yield "updates skipped", "–", lambda run: str(np.sum(run.skipped))
    for p in there.phases * searched:
        yield f"alerts {p.words}", "not watched" if p.alerts is None else str(p.alerts), watched(p.name)


def _spikes(there: Historic, runs: Runs) -> Iterator[list[str]]:
    for s in (s for s in there.spikes if s.last <= last_of(runs)):
        parts = [finite(_between(run, "grad_norm", s.first, s.last + 1)) for run in runs.values()]
        yield [f"{s.first}–{s.last}", str(s.steps), *(str(np.sum(x > there.norms.above[0][0])) for x in parts),
               norm(s.norm), *(norm(highest(x)) for x in parts)]


def _rankings(there: Historic, runs: Runs) -> Iterator[str]:
    yield from section("The candidates, the best first", "The original ranked by the lowest training loss of a step, "
                       "here it is the validation loss after a candidate's last step. ± is a standard error over "
                       f"seeds; separated: behind the winner by more than equals come to lie apart in {PERCENT} of "
                       "searches.")
    counts, titles, best = ("clipped", "alerts", "tokens/s"), ("behind", "spikes"), there.candidates[0].loss
    yield from table((THERE, "lowest loss", *titles, *counts), (
        [c.id, loss(c.loss), loss(c.loss - best), str(c.spikes), percent(c.clipped / c.recorded), str(c.alerts),
         exact(c.tokens_per_sec)] for c in there.candidates))
    error = partial(with_error, form=".3f")
    for name, run in runs.items():
        yield from _part("", table((name, "separated", "validation loss", *titles, "skipped", *counts), (
            [c.id, YES_NO[e["separated"]], error(c.val_loss_mean, c.val_loss_se),
             error(e["difference"], e["difference_se"]), str(c.spikes), str(c.skipped), percent(c.clip_rate),
             str(c.cusum_alerts), figure(c.tokens_per_sec_mean)]
            for e in run.summary["ranking"] if (c := measured(run).get(e["id"]))), left=2))


def _said(there: Historic, runs: Runs) -> Iterator[str]:
    """Yield what the models said last, and the original at the step nearest to that."""
    said = [(THERE, there.said(), last_of(runs)), *((name, run.samples, run.last) for name, run in runs.items())]
    for name, samples, last in said:
        found = [s for s in samples if type(s.get("step")) is int and isinstance(s.get("text"), str)]
        if found:
            _, step = min((abs(s["step"] - last), s["step"]) for s in found)
            yield f"After {step:,} steps, {name}:"
            yield "\n".join(block(line for s in found if s["step"] == step for line in _answer(s)))


def _answer(sample: Mapping[str, Any]) -> Iterator[str]:
    yield plain(str(sample.get("prompt", "")).replace(USER, "").replace(ASSISTANT, ""))
    yield from textwrap.wrap(plain(sample["text"]), 110, initial_indent="    ", subsequent_indent="    ")
