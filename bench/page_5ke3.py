"""The page on run 5ke3, a search over four activations and 340 steps of training: the original's figures and ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from helios.bench import original
from helios.bench.original import RANKING, SEARCHED
from helios.bench.reproduce import (
    SAME_LOSS,
    Finding,
    Here,
    above,
    between,
    comparable,
    distance,
    each_way,
    findings,
    mean,
    rates,
    records_kept,
    run_rows,
    samples,
    seconds,
    share,
    speed,
    starts,
    values,
)
from helios.model import GPTConfig
from helios.train.markdown import (
    YES_NO,
    exact,
    figure,
    listed,
    loss,
    norm,
    percent,
    section,
    share_of,
    table,
    with_error,
)
from helios.train.monitors.cusum import TPS
from helios.train.records.rows import clipped
from helios.train.search.evolution import Candidate, Replicate
from helios.train.search.separation import PERCENT

Runs = Mapping[str, Here]
WHAT = {
    "faithful": "**Faithful** goes the original's way: one schedule of the learning rate through search and training, "
                "one seed a candidate, each with initial values and batches of its own. But a candidate is ranked by "
                "its own validation loss, and the winner is what is trained on.",
    "fair": "**Fair** gives all candidates the same initial values, batches and learning rates, with two seeds each; a "
            "genome is measured once; the training after the search has a schedule of its own.",
}
POOL = ("gelu", "silu", "relu", "swiglu")


def markdown(runs: Runs) -> str:
    """Return the page on the finished runs, by their way: faithful, fair or both."""
    return "\n".join([
        "# Run 5ke3, run again", "", _lead(runs),
        *section("What was run", *(WHAT[name] for name in runs), comparable(SEARCHED, runs), _clock(runs)),
        *table(("", "original", *runs), _facts(runs)),
        *section("Loss and gradient norm", "Of single steps. Up to step "
                 f"{original.SEARCH_STEPS} the candidates train for 20 steps each, in fair with each of two seeds, in "
                 "the order of the numbers that end their names."),
        *table(("step", "loss: original", *runs, "norm: original", *runs), _steps(runs)),
        *section("Loss by fifties"),
        *table(("steps", "mean: original", *runs, "lowest: original", *runs), _fifties(runs)),
        *section("Validation loss", "After the search, and where the original has one."),
        *table(("step", "original", *runs), _validation(runs)),
        *section("Speed by activation", "Tokens a second in the search, and as a multiple of gelu's."),
        *table(("activation", "original", "× gelu", *(x for name in runs for x in (name, "× gelu"))), _speeds(runs)),
        *section("Spikes, clipping, alerts", f"A spike is a gradient norm above {original.SPIKE:g}; its update is "
                 "skipped. An alert is a step at which a monitor reports a shift."),
        *table(("", "original", *runs), _health(runs)),
        *_rankings(runs),
        *samples(runs),
        *findings(_findings(runs)),
    ]) + "\n"


# -- tables -----------------------------------------------------------------------------------------------------------

def _lead(runs: Runs) -> str:
    ends = {name: loss(h.at(h.last, "loss")) for name, h in runs.items()}
    winners = {name: h.winner or "none" for name, h in runs.items()}
    return (f"The original ended at a loss of {loss(SEARCHED.last_loss)} and called {original.AFTER_LABEL} the winner. "
            f"Here the loss after {next(iter(runs.values())).last:,} steps is {each_way(ends)}, and the winner is "
            f"{each_way(winners)}.")


def _clock(runs: Runs) -> str:
    took = {name: f"{x / SEARCHED.seconds:.2f}" for name, h in runs.items() if (x := seconds(h)) is not None}
    return f"The whole run took {each_way(took)} times the original's {SEARCHED.seconds:,.0f} s." if took else ""


def _facts(runs: Runs) -> Iterator[list[str]]:
    here = list(runs.values())
    yield from run_rows(SEARCHED, runs)
    yield ["trainings in the search", str(len(RANKING)), *(str(len(_replicates(h))) for h in here)]
    yield ["steps in the search", exact(original.SEARCH_STEPS), *(exact(len(h.phase("search"))) for h in here)]
    yield ["steps after it", exact(original.AFTER_STEPS), *(exact(len(h.phase("after"))) for h in here)]
    yield ["winner", original.AFTER_LABEL, *(h.winner or "none" for h in here)]
    yield ["trained after the search", f"likely {original.AFTER_LIKELY}",
           *(h.about.get("symbio_winner") or "–" for h in here)]


def _steps(runs: Runs) -> Iterator[list[str]]:
    there = {p.step: (loss(p.loss), norm(p.grad_norm)) for p in SEARCHED.points}
    for step in sorted({*there, *(h.last for h in runs.values())}):
        loss_there, norm_there = there.get(step, ("–", "–"))
        yield [exact(step), loss_there, *(loss(h.at(step, "loss")) for h in runs.values()),
               norm_there, *(norm(h.at(step, "grad_norm")) for h in runs.values())]


def _fifties(runs: Runs) -> Iterator[list[str]]:
    for s in SEARCHED.stretches:
        here = [values(between(h, s.first, s.past), "loss") for h in runs.values()]
        yield [f"{s.first}–{s.past - 1}", loss(s.mean), *(loss(mean(x)) for x in here), loss(s.low),
               *(loss(min(x, default=None)) for x in here)]


def _validation(runs: Runs) -> Iterator[list[str]]:
    known = {row["step"] for h in runs.values() for row in h.phase("after") if row["val_loss"] is not None}
    for step in sorted({*SEARCHED.validation, *known}):
        yield [exact(step), loss(SEARCHED.validation.get(step)), *(loss(h.at(step, "val_loss")) for h in runs.values())]
    yield ["lowest", loss(SEARCHED.best_validation),
           *(loss(min(values(h.rows.values(), "val_loss"), default=None)) for h in runs.values())]


def _rates_there() -> dict[str, float]:
    """Return the original's mean tokens a second by activation."""
    mine = {name: [c for c in RANKING if c.activation == name] for name in POOL}
    return {name: sum(c.steps * c.tokens_per_sec for c in cs) / sum(c.steps for c in cs) for name, cs in mine.items()}


def _rates_here(here: Here) -> dict[str, float]:
    mine = {name: [r for r in here.phase("search") if r["symbio_candidate_activation"] == name] for name in POOL}
    return {name: x for name, rows in mine.items() if (x := speed(rows)) is not None}


def _speeds(runs: Runs) -> Iterator[list[str]]:
    columns: list[dict[str, float | None]] = [
        {**_rates_there(), "after the search": original.AFTER_TOKENS_PER_SEC},
        *({**_rates_here(h), "after the search": speed(h.phase("after"))} for h in runs.values())]
    for name in (*POOL, "after the search"):
        yield [name, *(x for column in columns for x in _beside_gelu(column.get(name), column.get("gelu")))]


def _beside_gelu(rate: float | None, gelu: float | None) -> tuple[str, str]:
    return figure(rate), "–" if rate is None or gelu is None else f"{rate / gelu:.2f}"


def _health(runs: Runs) -> Iterator[list[str]]:
    o, here = original, list(runs.values())
    yield ["spikes in the search", share_of(o.SEARCH_SPIKES, o.SEARCH_RECORDED), *(_spiked(h, "search") for h in here)]
    yield ["spikes after it", share_of(o.AFTER_SPIKES, o.AFTER_RECORDED), *(_spiked(h, "after") for h in here)]
    highest = [max(h.rows.values(), key=lambda r: r["grad_norm"] or 0.0) for h in here]
    yield ["highest norm", f"{norm(o.WORST_NORM)} at step {o.WORST_STEP}",
           *(f"{norm(r['grad_norm'])} at step {r['step']}" for r in highest)]
    yield ["norms that are not finite", f"about {o.NOT_FINITE}",
           *(str(sum(r["grad_norm"] is None for r in h.rows.values())) for h in here)]
    yield ["updates skipped", "–", *(str(sum(bool(r.get("skipped")) for r in h.rows.values())) for h in here)]
    yield ["steps clipped", percent(o.CLIPPED), *(percent(share(list(h.rows.values()), clipped)) for h in here)]
    yield ["alerts in the search", str(sum(c.alerts for c in RANKING)), *(str(len(_alerts(h, "search"))) for h in here)]
    yield ["alerts after it", "not watched", *(str(len(_alerts(h, "after"))) for h in here)]


def _spiked(here: Here, phase: str) -> str:
    rows = here.phase(phase)
    return share_of(sum(map(above(original.SPIKE), rows)), len(rows))


def _alerts(here: Here, phase: str) -> list[int]:
    return [row["cusum_alerts"] for row in here.phase(phase) if row.get("cusum_alerts")]


def _measured(here: Here) -> dict[str, Candidate]:
    """Return the candidates that were trained, by id."""
    return {c.id: c for c in here.candidates if c.status not in ("reused", None)}


def _replicates(here: Here) -> list[Replicate]:
    return [r for c in _measured(here).values() for r in c.replicates]


def _rankings(runs: Runs) -> Iterator[str]:
    yield from section("The candidates, the best first", "The original ranked by the lowest training loss of a step, "
                       "here it is the validation loss after a candidate's last step. ± is a standard error over "
                       f"seeds; separated: behind the winner by more than equals come to lie apart in {PERCENT} of "
                       "searches.")
    counts, titles = ("clipped", "alerts", "tokens/s"), ("behind", "spikes")
    yield from table(("original", "lowest loss", *titles, *counts), (
        [c.id, loss(c.loss), "–" if c is RANKING[0] else loss(c.loss - RANKING[0].loss), str(c.spikes),
         percent(c.clipped / c.steps), str(c.alerts), exact(c.tokens_per_sec)] for c in RANKING))
    for name, h in runs.items():
        measured = _measured(h)
        rows = [(measured[e["id"]], e) for e in h.summary["ranking"] if e["id"] in measured]
        yield ""
        yield from table((name, "separated", "validation loss", *titles, "skipped", *counts), (
            [c.id, YES_NO[e["separated"]], _error(c.val_loss_mean, c.val_loss_se),
             _error(e["difference"], e["difference_se"]), str(c.spikes), str(c.skipped), percent(c.clip_rate),
             str(c.cusum_alerts), figure(c.tokens_per_sec_mean)] for c, e in rows), left=2)


_error = partial(with_error, form=".3f")


# -- sentences --------------------------------------------------------------------------------------------------------

def _findings(runs: Runs) -> Iterator[Finding]:
    yield from starts(SEARCHED, runs)
    if "faithful" in runs:
        yield from rates(SEARCHED, runs["faithful"], "that of faithful")
    for found in (_end, _reached, _spikes, _after, _gap, _selection, _winner, _separation, _noise, _position, _width,
                  _shifts):
        yield from found(runs)
    yield from records_kept(SEARCHED, runs, ", where a row with a value that was not finite was lost")


def _end(runs: Runs) -> Iterator[Finding]:
    there, ends = SEARCHED.last_loss, {n: x for n, h in runs.items() if (x := h.at(h.last, "loss")) is not None}
    if not ends:
        return
    text = (f"After the last step the loss is {each_way({name: loss(x) for name, x in ends.items()})}, "
            f"{distance(ends, there)} the {loss(there)} of the last step in the original's records, "
            f"{SEARCHED.last_step}.")
    if all(x < there - SAME_LOSS for x in ends.values()):
        text += (" Model, batch and optimizer are set as there. But the original's attention mixed the heads and let a "
                 "token see later ones, its kernels lacked barriers, one of them left three quarters of its tensor as "
                 "it was, and many updates were skipped.")
    yield Finding(all(abs(x - there) <= SAME_LOSS for x in ends.values()), "Loss", text)


def _reached(runs: Runs) -> Iterator[Finding]:
    there, steps = SEARCHED.last_loss, {}
    for name, h in runs.items():
        below = (i for i, row in enumerate(h.phase("after"), 1) if row["loss"] is not None and row["loss"] < there)
        steps[name] = f"after {first} steps" if (first := next(below, None)) else "never"
    yield Finding(False, "How soon", f"The training that follows the search is below {loss(there)} {each_way(steps)}; "
                  f"the original's took its {original.AFTER_STEPS} steps to come there.")


def _spikes(runs: Runs) -> Iterator[Finding]:
    o, after = original, {name: h.phase("after") for name, h in runs.items()}
    there = o.AFTER_SPIKES / o.AFTER_RECORDED
    most = max(share(rows, above(o.SPIKE)) or 0.0 for rows in after.values())
    text = f"Of the steps after the search {percent(there)} were spikes, up to a norm of {norm(o.WORST_NORM)}. "
    if most == 0:
        norms = {name: norm(max(values(rows, "grad_norm"), default=None)) for name, rows in after.items()}
        text += f"Here none is: the highest norm is {each_way(norms)}. The likely source there is missing barriers."
    else:
        text += f"Here there are {each_way({name: _spiked(h, 'after') for name, h in runs.items()})}."
    yield Finding(most >= there / 2, "Spikes", text)


def _after(runs: Runs) -> Iterator[Finding]:
    o, speeds = original, _rates_there()
    likely, label = o.AFTER_LIKELY, o.AFTER_LABEL
    first = {name: loss(rows[0]["loss"]) for name, h in runs.items() if (rows := h.phase("after"))}
    begins = f" Here it begins at {each_way(first)}." if first else ""
    yield Finding(False, "What was trained after the search", f"The original's records say {label}; most likely it was "
                  f"{likely}, its last candidate. The loss went on at {loss(o.AFTER_FIRST_LOSS)} where fresh weights "
                  f"have {loss(SEARCHED.first_loss)}, at {exact(o.AFTER_TOKENS_PER_SEC)} tokens/s, which is {likely}'s "
                  f"speed ({figure(speeds[likely])}) and not {label}'s ({figure(speeds[label])}). So neither the loss "
                  f"nor the spikes after the search are {label}'s.{begins}")


def _gap(runs: Runs) -> Iterator[Finding]:
    ratio = lambda rates: max(rates.values()) / min(rates.values())
    here = {name: ratio(rates) for name, h in runs.items() if len(rates := _rates_here(h)) == len(POOL)}
    if here:
        alike = all(x >= original.GAP / 2 for x in here.values())
        why = "" if alike else (" There the backward pass of silu, and so of swiglu, left the GPU: values were read "
                                "back and differentiated on the host. The activations' arithmetic was not the reason.")
        yield Finding(alike, "Speed", f"The fastest activation was {ratio(_rates_there()):.1f} times as fast as the "
                      f"slowest ({original.GAP} by the original's account) and is "
                      f"{each_way({name: f'{x:.2f}' for name, x in here.items()})} times as fast.{why}")


def _selection(runs: Runs) -> Iterator[Finding]:
    counts = {name: (sum(bool(r.evaluations) for r in _replicates(h)), len(_replicates(h))) for name, h in runs.items()}
    told_here = each_way({name: f"{evaluated} of {trained}" for name, (evaluated, trained) in counts.items()})
    yield Finding(False, "Selection", "The original's evaluations never reached its selection, which had seen each "
                  f"step before the step was evaluated. Here {told_here} trainings have evaluations of their own to be "
                  "ranked by.")


def _winner(runs: Runs) -> Iterator[Finding]:
    here = {name: h.winner or "none" for name, h in runs.items()}
    yield Finding(set(here.values()) == {RANKING[0].activation}, "Winner",
                  f"It was {RANKING[0].activation} and is {each_way(here)}.")


def _separation(runs: Runs) -> Iterator[Finding]:
    for name, h in runs.items():
        if not (rivals := _rivals(h)):
            continue
        winner = next(c for c in h.candidates if c.id == h.summary["winner"])
        second, entry = rivals[0]
        text = f"{winner.activation} came first, {loss(entry['difference'])} before {second}"
        if len(winner.replicates) == 1:
            yield Finding(True, f"Separation, {name}", f"{text}. With one seed of {winner.steps} steps each the noise "
                          "is unknown, and nothing is separated, as in the original.")
            continue
        yes = listed([activation for activation, e in rivals if e["separated"]])
        no = listed([f"{activation} ({_error(e['difference'], e['difference_se'])})" for activation, e in rivals
                     if not e["separated"]])
        verdict = "; ".join([f"separated from {yes}"] * bool(yes) + [f"not separated from {no}"] * bool(no))
        seeds = len(winner.replicates)
        yield Finding(not yes, f"Separation, {name}", f"{text}. By {seeds} seeds of {winner.steps} steps it is "
                      f"{verdict}.")


def _rivals(here: Here) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the other activations than the winner's, the nearest first, with their best entries in the ranking."""
    best: dict[str, Mapping[str, Any]] = {}
    for entry in here.summary["ranking"]:
        if entry["separated"] is not None:
            best.setdefault(entry["activation"], entry)
    return list(best.items())


def _noise(runs: Runs) -> Iterator[Finding]:
    best: dict[str, float] = {}
    for c in RANKING:
        best[c.activation] = min(c.loss, best.get(c.activation, c.loss))
    (first, low), (second, next_low), *_ = sorted(best.items(), key=lambda item: item[1])
    margin = next_low - low
    for name, h in runs.items():
        losses = {c.activation: [r.val_loss for r in c.replicates if r.val_loss is not None]
                  for c in _measured(h).values()}
        if many := {activation: x for activation, x in losses.items() if len(x) > 1}:
            activation, wide = _widest(many)
            yield Finding(False, "Noise", f"In {name}, seeds of one activation lie up to {loss(wide)} apart "
                          f"({activation}), {'more' if wide > margin else 'less'} than the {loss(margin)} by which the "
                          f"original put {first} before {second} on one seed.")


def _position(runs: Runs) -> Iterator[Finding]:
    there: dict[str, list[float]] = {}
    for c in RANKING:
        there.setdefault(c.activation, []).append(c.loss)
    activation, wide = _widest(there)
    text = (f"The original's two trainings of {activation} ended {loss(wide)} apart: they differed in learning rate, "
            "initial values and batches.")
    if "faithful" in runs:
        here: dict[str, list[float]] = {}
        for measured in _measured(runs["faithful"]).values():
            if measured.val_loss_mean is not None:
                here.setdefault(measured.activation, []).append(measured.val_loss_mean)
        if again := {name: x for name, x in here.items() if len(x) > 1}:
            activation, wide = _widest(again)
            text += f" In faithful, where they do as well, those of {activation} end {loss(wide)} apart."
    if "fair" in runs:
        text += " In fair all candidates share these."
    yield Finding(False, "Place in the run", text)


def _widest(losses: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """Return the activation whose losses lie farthest apart, and how far."""
    return max(((name, max(x) - min(x)) for name, x in losses.items()), key=lambda item: item[1])


def _width(runs: Runs) -> Iterator[Finding]:
    model = GPTConfig.from_dict(dict(next(iter(runs.values())).about["model"]))
    narrow = dataclasses.replace(model, activation="gelu", ffn_dim=original.FFN_DIM).parameters()
    here = {c.activation: c.parameters for h in runs.values() for c in _measured(h).values() if c.parameters}
    if here:
        sizes = listed([f"{n:,} ({name})" for name, n in here.items()])
        yield Finding(False, "Size", f"The original gave every candidate swiglu's width, {original.FFN_DIM}: gelu, "
                      f"silu and relu had {narrow:,} parameters. Here the candidates have {sizes}.")


def _shifts(runs: Runs) -> Iterator[Finding]:
    here = {}
    for name, h in runs.items():
        alerts = _alerts(h, "search")
        here[name] = f"{len(alerts)}" + f", {sum(bool(a & TPS) for a in alerts)} of them for speed" * bool(alerts)
    yield Finding(False, "Alerts", f"In the search there were {sum(c.alerts for c in RANKING)}, all for speed, by a "
                  "baseline from the run's first five steps, whatever was trained. Here, with a baseline for each "
                  f"training, there are {each_way(here)}. There watching ended with step {original.LAST_MONITORED}, "
                  "here it goes on to the end.")
