"""What a run is: facts in tables with a column a run, its settings, texts, samples, events and records."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.settings import declared, shown
from helios.train.config import SECTIONS, SearchConfig
from helios.train.markdown import block, duration, escaped, figure, listed, number, percent, plain, share_of, table
from helios.train.records.layout import differing
from helios.train.report import reading
from helios.train.report.reading import RunData, finite, highest, lowest, median, share
from helios.train.search.evolution import trainings
from helios.train.search.plots import short_name

Fact = Callable[[RunData], str | None]
EVENTS, SAMPLED, GAPS = 40, 4, 10  # most events, steps with samples, and stretches of missing steps that are listed
ROUTINE = {"checkpoint", "skipped", "alert", "non_finite"}  # kinds of events that are counted elsewhere
COUNTED = ("alert", "skipped", "non_finite", "checkpoint")


def compared(facts: Mapping[str, Fact], runs: Sequence[RunData]) -> list[str]:
    """Return a table of facts with a column a run, without those that no run has."""
    found = {name: [fact(run) for run in runs] for name, fact in facts.items()}
    cells = [[name, *(x or "–" for x in values)] for name, values in found.items() if any(values)]
    return table(("", *(name_of(run) for run in runs)), cells, left=1 + len(runs))


def name_of(run: RunData) -> str:
    """Return the run's id, as text in a page."""
    return escaped(run.about["run_id"])


def loss(x: float | None) -> str:
    """Return a loss in nats, which is not finite where it is not known at a step that was recorded."""
    return "not finite" if x is None else f"{x:.4f}"


def perplexity(x: float | None) -> str:
    """Return what a loss comes to in equally likely tokens."""
    return "–" if x is None else figure(math.exp(x)) if x < 700 else "∞"


def integer(x: float | None) -> str:
    """Return a count."""
    return number(x, ",.0f")


# -- overview ----------------------------------------------------------------------------------------------------------

def best(run: RunData, name: str) -> tuple[float, int] | None:
    """Return the lowest value of a column in the training that the run is for, and its step."""
    values = np.where(run.main, run.column(name), math.nan)
    if not np.isfinite(values).any():
        return None
    i = int(np.nanargmin(values))
    return float(values[i]), int(run.steps[i])


def _loss_at(position: int) -> Fact:
    def fact(run: RunData) -> str | None:
        where = np.flatnonzero(run.main)
        return f"{loss(reading.known(run.column('loss')[i]))} at step {run.steps[i]:,}" if len(where) and (
            i := where[position]) >= 0 else None
    return fact


def _best(name: str) -> Fact:
    def fact(run: RunData) -> str | None:
        found = best(run, name)
        return found and f"{found[0]:.4f} at step {found[1]:,}"
    return fact


def _last_val(run: RunData) -> str | None:
    where = np.flatnonzero(np.isfinite(run.column("val_loss")) & run.main)
    return f"{run.column('val_loss')[where[-1]]:.4f} at step {run.steps[where[-1]]:,}" if len(where) else None


def _status(run: RunData) -> str:
    reason = run.entry["reason"]
    return escaped(f"{run.entry['status']}: {reason}" if reason else run.entry["status"])


def _steps(run: RunData) -> str:
    planned, searched = run.entry["steps"], int(np.sum(~run.main))
    told = f"{run.last:,}" + (f" of {planned:,}, {percent(run.last / planned)}" if planned else "")
    return told + (f"; {searched:,} of them in a search" if searched else "")


def _activation(run: RunData) -> str | None:
    won = run.entry["symbio_winner"]
    if isinstance(won, str):
        return f"{escaped(short_name(won))}, by a search"
    name = run.entry["activation"]
    return escaped(short_name(name)) if isinstance(name, str) else None


def _checkpoints(run: RunData) -> str | None:
    steps = [f"{step:,}" for step in run.checkpoints]
    if not steps:
        return None
    told = listed([*steps[:2], f"{len(steps) - 4:,} more", *steps[-2:]] if len(steps) > 6 else steps)
    return f"of step{'s' * (len(steps) > 1)} {told}, {max(run.checkpoints.values()) / 2**20:,.1f} MiB each"


def _wall(run: RunData) -> str | None:
    elapsed = highest(run.column("elapsed_ms"))
    return None if elapsed is None else duration(elapsed / 1000)


def _perplexity(run: RunData) -> str | None:
    found = best(run, "val_loss")
    return found and perplexity(found[0])


def speed(run: RunData) -> float | None:
    """Return the median of the tokens a second, without the steps that prepare kernels."""
    return median(run.column("tokens_per_sec")[run.steady])


def rate(run: RunData) -> str | None:
    return None if (x := speed(run)) is None else f"{x:,.0f} tokens/s"


def _parameters(run: RunData) -> str | None:
    n = run.about.get("parameters")
    return f"{n:,}" if isinstance(n, int) else None


OVERVIEW: Mapping[str, Fact] = {
    "status": _status,
    "domain": lambda run: escaped(run.entry["domain"]) if run.entry["domain"] else None,
    "begun": lambda run: escaped(run.entry["created"]) if run.entry["created"] else None,
    "last news": lambda run: run.entry["updated"],
    "time in training": _wall,
    "steps": _steps,
    "tokens read": lambda run: f"{np.nansum(run.tokens):,.0f}" if finite(run.tokens).size else None,
    "parameters": _parameters,
    "activation": _activation,
    "first loss": _loss_at(0),
    "last loss": _loss_at(-1),
    "lowest loss": _best("loss"),
    "last validation loss": _last_val,
    "best validation loss": _best("val_loss"),
    "perplexity at the best": _perplexity,
    "median speed": rate,
    "steps in the records": lambda run: share_of(len(run), run.last) if run.last else None,
    "checkpoints": _checkpoints,
}


# -- machine -----------------------------------------------------------------------------------------------------------

def _host(key: str, form: Callable[[Any], str] = str) -> Fact:
    return _of("host", key, form)


def _of(section: str, key: str, form: Callable[[Any], str] = str) -> Fact:
    def fact(run: RunData) -> str | None:
        about = run.about.get(section)
        value = about.get(key) if isinstance(about, dict) else None
        return None if value is None or value == "" else escaped(form(value))
    return fact


def _range(column: str, unit: str) -> Fact:
    def fact(run: RunData) -> str | None:
        low, high = lowest(run.column(column)), highest(run.column(column))
        if low is None or high is None:
            return None
        return f"{integer(low)}{unit}" if integer(low) == integer(high) else f"{integer(low)}–{integer(high)}{unit}"
    return fact


def _versions(run: RunData) -> str | None:
    versions = run.about.get("versions")
    return escaped(", ".join(f"{k} {v}" for k, v in versions.items())) if isinstance(versions, dict) else None


def _mib(x: Any) -> str:
    return f"{x:,} MiB" if isinstance(x, int) else str(x)


MACHINE: Mapping[str, Fact] = {
    "host": _host("name"), "system": _host("os"), "processor": _host("cpu"), "cores": _host("cores"),
    "memory": _host("memory_mib", _mib), "backend": _of("device", "backend"), "device": _of("device", "name"),
    "driver": _of("device", "driver"), "precision": _of("train", "precision"),
    "device memory": _range("gpu_vram_total_mb", " MiB"), "of it in use": _range("gpu_vram_used_mb", " MiB"),
    "Helios's memory pools": _range("gpu_mem_pool_mb", " MiB"), "GPU busy": _range("gpu_util_pct", " %"),
    "dispatches a step": _range("gpu_ops_count", ""), "versions": _versions,
}


# -- settings ----------------------------------------------------------------------------------------------------------

def settings(run: RunData, section: str, all_of_them: bool = True) -> list[str]:
    """Return the table of a section's settings, with the default where the value is another and what each is.
    all_of_them: else those alone that differ from their defaults."""
    found = run.about.get(section)
    if not isinstance(found, dict):
        return []
    known = {s.key: s for s in declared(SECTIONS[section])}
    rows = []
    for key, value in found.items():
        default = known[key].default if key in known else None
        other = value != (list(default) if isinstance(default, tuple) else default)
        if all_of_them or other:
            rows.append([escaped(key), _value(value), _value(default) if other else "",
                         escaped(known[key].help) if key in known else ""])
    return table(("setting", "value", "default, if another", "what it is"), rows, left=4)


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    return escaped(value if isinstance(value, str) else shown(value)) or "–"


def derived(run: RunData) -> list[str]:
    """Return the table of what follows from the settings of the model and the training."""
    rows: list[list[str]] = []
    try:
        m = GPTConfig.from_dict(run.about["model"])
    except UserError:  # of another version
        m = None
    if m:
        widths = listed([f"{w:,}" for w in dict.fromkeys(m.ffn_dims)])
        rows += [["width of a head", f"{m.n_embd // m.n_head:,}"], ["width of the MLPs", widths],
                 ["parameters", f"{m.parameters():,}"],
                 ["loss of an even guess, ln V", f"{math.log(m.vocab_size):.4f}"]]
    b, a, steps = (run.setting("train", key) for key in ("batch_size", "accum", "steps"))
    if m and all(isinstance(x, int) for x in (b, a)):
        rows.append(["tokens in a step", f"{b * a} × {m.block_size} = {b * a * m.block_size:,}"])
        if isinstance(steps, int):
            rows.append(["tokens in the planned steps", f"{steps * b * a * m.block_size:,}"])
    return table(("", "comes to"), rows, left=2)


def budget(run: RunData) -> Iterator[str]:
    """Yield in words what the search may cost, and what it did."""
    found, layers = run.about.get("search"), run.setting("model", "n_layer")
    if not isinstance(found, dict) or not isinstance(layers, int):
        return
    try:
        s = SearchConfig.from_dict(found)
    except UserError:  # of another version
        return
    most = trainings(s, layers)
    each = {"steps": f"{s.steps_per_candidate:,} steps", "tokens": f"{s.tokens_per_candidate:,} tokens",
            "seconds": f"{s.seconds_per_candidate:g} seconds"}[s.budget]
    total = most * s.steps_per_candidate
    yield (f"Computed budget: at most {most:,} trainings of {each}" + f" = **{total:,} steps**" * (s.budget == "steps")
           + (", equal genomes once." if s.reuses else ".")
           + (f" The search took {np.sum(~run.main):,} steps." if (~run.main).any() else ""))


def texts(run: RunData) -> list[str]:
    """Return the table of what the run read."""
    data = run.about["data"]
    named = [data.get("data")] if not isinstance(data.get("data"), list) else data["data"]
    read_as: Mapping[Any, str] = {True: "conversations", False: "documents"}
    return table(("", "value"), [[name, value] for name, value in (
        ("training text", ", ".join(escaped(Path(str(x)).name) for x in named if x)),
        ("validation text", escaped(Path(str(data["val_data"])).name) if data.get("val_data") else
         "a part of the training text"),
        ("form", escaped(data.get("format") or "")),
        ("read as", read_as.get(run.about.get("chat"), "")),
        ("vocabulary", f"{integer(run.setting('model', 'vocab_size'))} tokens of byte-level BPE"
         + (f", from {escaped(Path(str(data['tokenizer'])).name)}" if data.get("tokenizer") else "")),
        ("tokens read", integer(float(np.nansum(run.tokens))) if finite(run.tokens).size else ""),
    ) if value], left=2)


def differences(runs: Sequence[RunData]) -> list[str]:
    """Return the table of what differs between the settings, devices and versions of some runs."""
    first, *others = runs
    names = dict.fromkeys(name for other in others for name, _, _ in differing(first.about, other.about))
    value = lambda run, name: _value(_nested(run.about, name))
    return table(("", *map(name_of, runs)), ([escaped(name), *(value(run, name) for run in runs)] for name in names),
                 left=1 + len(runs))


def _nested(about: Mapping[str, Any], name: str) -> Any:
    section, dot, key = name.partition(".")
    found = about.get(section)
    return (found.get(key) if isinstance(found, dict) else None) if dot else found


# -- samples, events, records ------------------------------------------------------------------------------------------

def samples(run: RunData) -> Iterator[str]:
    """Yield what the model said, step by step."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for sample in run.samples:
        if type(sample.get("step")) is int and isinstance(sample.get("text"), str):
            by_step.setdefault(sample["step"], []).append(sample)
    steps = sorted(by_step)
    chosen = [steps[i] for i in spread(len(steps), SAMPLED)]
    if len(chosen) < len(steps):
        yield from (f"At {len(chosen)} of {len(steps):,} steps at which there are samples.", "")
    for step in chosen:
        x, drawn = run.at(step, "loss"), by_step[step][0]
        how = [f"{word} {drawn[key]:g}" for key, word in (("temperature", "temperature"), ("top_k", "top-k"))
               if isinstance(drawn.get(key), int | float)]
        told = ", ".join([*([f"loss {x:.4f}"] if x is not None else []), *how])
        yield from (f"### Step {step:,}{f' ({told})' if told else ''}", "")
        lines = []
        for sample in by_step[step]:
            lines += [plain(sample.get("prompt", "")), *textwrap.wrap(plain(sample["text"]), 100, initial_indent="    ",
                                                                       subsequent_indent="    ")]
        yield from (*block(lines), "")


def spread(n: int, most: int) -> list[int]:
    """Return at most `most` of the first n whole numbers, evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def events(run: RunData) -> Iterator[str]:
    """Yield the table of events of note."""
    kept = [event for event in run.events if event.get("kind") not in ROUTINE]
    shown_ = kept if len(kept) <= EVENTS else [*kept[:EVENTS // 2], *kept[-EVENTS // 2:]]
    if len(shown_) < len(kept):
        yield from (f"The first and last {EVENTS // 2} of {len(kept):,}.", "")
    yield from table(("step", "time (UTC)", "event", "what it says"), (
        [integer(e["step"]) if type(e.get("step")) is int else "–", escaped(e.get("time", "–")),
         escaped(e.get("kind", "–")), escaped(textwrap.shorten(plain(e.get("message", "")), 300, placeholder=" …"))]
        for e in shown_), left=0, words=("time (UTC)", "event", "what it says"))


def records(run: RunData) -> Iterator[str]:
    """Yield how much of the run is in its records."""
    missing = gaps(run)
    if run.last:
        yield f"Steps that have a row: {share_of(len(run), run.last)}." + (
            f" Missing: {listed(missing[:GAPS])}{f' and {len(missing) - GAPS:,} more' * (len(missing) > GAPS)}."
            if missing else "")
        yield ""
    kinds = Counter(str(event.get("kind")) for event in run.events)
    rows = [["rows", f"{len(run):,}"], ["events", f"{len(run.events):,}"],
            *([f"… {escaped(kind)}", f"{kinds[kind]:,}"] for kind in COUNTED if kinds[kind]),
            ["samples", f"{len(run.samples):,}"], ["candidates of a search", f"{len(run.candidates):,}"],
            ["checkpoints", f"{len(run.checkpoints):,}"]]
    yield from table(("records", "number"), ([name, n] for name, n in rows if n != "0"))
    if len(run):
        cover = {name: share(np.isfinite(run.column(name))) for name in
                 ("loss", "val_loss", "grad_norm", "tokens_per_sec", "timing_fwd_ms", "weight_entropy", "cusum_grad")}
        yield from ("", "Share of the rows in which a column has a value: " + ", ".join(
            f"{escaped(name)} {percent(x)}" for name, x in cover.items() if x) + ".")


def gaps(run: RunData) -> list[str]:
    """Return the stretches of steps up to the last one that have no row."""
    before, after = np.concatenate(([0], run.steps[:-1])), run.steps
    return [f"{a + 1:,}" if b - a == 2 else f"{a + 1:,}–{b - 1:,}" for a, b in zip(before, after, strict=True)
            if b - a > 1]
