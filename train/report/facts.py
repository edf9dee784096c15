"""What a run is: facts in tables with a column a run, its settings, texts, samples, events and records."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import short_name
from helios.model.settings import declared, shown
from helios.train.config import SECTIONS, SearchConfig
from helios.train.markdown import block, duration, escaped, figure, listed, number, percent, plain, share_of, table
from helios.train.records.layout import differing
from helios.train.records.records import COLUMNS
from helios.train.report import reading
from helios.train.report.reading import RunData, finite, highest, lowest, median
from helios.train.search.evolution import trainings
from helios.train.search.operators import described

Fact = Callable[[RunData], str | None]
EVENTS, SAMPLED, KEPT, GAPS = 40, 4, 12, 10  # most events, steps with samples, checkpoints, stretches of missing steps
ROUTINE = {"checkpoint", "skipped", "alert", "non_finite"}  # kinds of events that are counted elsewhere
COUNTED = ("alert", "skipped", "non_finite", "checkpoint")


def compared(facts: Mapping[str, Fact], runs: Sequence[RunData]) -> list[str]:
    """Return a table of facts with a column a run, without those that no run has."""
    found = {name: [fact(run) for run in runs] for name, fact in facts.items()}
    cells = [[name, *(x or "–" for x in values)] for name, values in found.items() if any(values)]
    return table(("", *names(runs)), cells, left=1 + len(runs))


def names(runs: Sequence[RunData]) -> list[str]:
    """Return the runs' ids, as text in a page, with the directory where an id is not of one run alone."""
    often = Counter(run.about["run_id"] for run in runs)
    return [escaped(run.about["run_id"] + f" ({run.path})" * (often[run.about["run_id"]] > 1)) for run in runs]


def loss(x: float | None, unknown: str = "not finite") -> str:
    """Return a loss in nats, which is not finite where it is not known at a step that was recorded."""
    return unknown if x is None else f"{x:.4f}" if x < 1e6 else f"{x:.2e}"


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
        return found and f"{loss(found[0])} at step {found[1]:,}"
    return fact


def _last_val(run: RunData) -> str | None:
    where = np.flatnonzero(np.isfinite(run.column("val_loss")) & run.main)
    return f"{loss(run.column('val_loss')[where[-1]])} at step {run.steps[where[-1]]:,}" if len(where) else None


def _status(run: RunData) -> str:
    reason = run.entry["reason"]
    return escaped(f"{run.entry['status']}: {reason}" if reason else run.entry["status"])


def _steps(run: RunData) -> str:
    planned, searched = run.entry["steps"], int(np.sum(~run.main))
    told = f"{run.last:,}" + (f" of {planned:,}, {percent(run.last / planned)}" if planned else "")
    return told + (f"; {searched:,} of them in a search" if searched else "")


def activation(run: RunData) -> str | None:
    """Return the activation of the training that the run is for."""
    won = run.entry["symbio_winner"]
    if isinstance(won, str):
        settings = run.about.get("symbio_winner_settings")
        return f"{escaped(described(short_name(won), settings if isinstance(settings, dict) else {}))}, by a search"
    name = run.entry["activation"]
    return escaped(short_name(name)) if isinstance(name, str) else None


def _checkpoints(run: RunData) -> str | None:
    return f"{len(run.checkpoints):,}, the last of step {max(run.checkpoints):,}" if run.checkpoints else None


def _wall(run: RunData) -> str | None:
    elapsed = highest(run.column("elapsed_ms"))
    return None if elapsed is None else duration(elapsed / 1000)


def _perplexity(run: RunData) -> str | None:
    found = best(run, "val_loss")
    return found and perplexity(found[0])


def _rate(run: RunData) -> str | None:
    x = median(run.column("tokens_per_sec")[run.steady])
    return None if x is None else f"{x:,.0f} tokens/s"


def _range(column: str, unit: str) -> Fact:
    def fact(run: RunData) -> str | None:
        low, high = (integer(of(run.column(column))) for of in (lowest, highest))
        return None if low == "–" else f"{low}{unit}" if low == high else f"{low}–{high}{unit}"
    return fact


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
    "sequences in a step, as alerts changed them": _range("adaptive_batch_size", ""),
    "tokens read": lambda run: f"{x.sum():,.0f}" if (x := finite(run.tokens)).size else None,
    "parameters": _parameters,
    "activation": activation,
    "first loss": _loss_at(0),
    "last loss": _loss_at(-1),
    "lowest loss": _best("loss"),
    "last validation loss": _last_val,
    "best validation loss": _best("val_loss"),
    "perplexity at the best": _perplexity,
    "median speed": _rate,
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
                 ["parameters", f"{m.parameters():,}"]]
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
           + (f" The search took {np.sum(~run.main):,} steps." if run.searched else ""))


def text(run: RunData) -> str:
    """Return the names of the files that the run trained on."""
    data = run.setting("data", "data")
    return ", ".join(Path(str(x)).name for x in (data if isinstance(data, list) else [data]) if x)


def texts(run: RunData) -> list[str]:
    """Return the table of what the run read."""
    data = run.about["data"]
    chat = run.about.get("chat")
    return table(("", "value"), [[name, value] for name, value in (
        ("training text", escaped(text(run))),
        ("validation text", escaped(Path(str(data["val_data"])).name) if data.get("val_data") else
         "a part of the training text"),
        ("form", escaped(data.get("format") or "")),
        ("read as", "conversations" if chat is True else "documents" if chat is False else ""),
        ("vocabulary", f"{integer(reading.number(run.setting('model', 'vocab_size')))} tokens of byte-level BPE"
         + (f", from {escaped(Path(str(data['tokenizer'])).name)}" if data.get("tokenizer") else "")),
    ) if value], left=2)


def differences(runs: Sequence[RunData]) -> list[str]:
    """Return the table of what differs between the settings, devices and versions of some runs."""
    first, *others = runs
    keys = dict.fromkeys(key for other in others for key, _, _ in differing(first.about, other.about))
    lacking: dict[str, str] = {}  # of a section that a run lacks, as one without a search does, one key stands for all
    for key in keys:
        section, dot, _ = key.partition(".")
        if dot and any(not isinstance(run.about.get(section), dict) for run in runs):
            lacking.setdefault(section, key)
    rows = [[escaped(key), *(_value(_nested(run.about, key)) for run in runs)] for key in keys
            if lacking.get(key.partition(".")[0], key) == key]
    return table(("", *names(runs)), rows, left=1 + len(runs))


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
        how = [f"{word} {value:g}" for key, word in (("temperature", "temperature"), ("top_k", "top-k"))
               if (value := reading.number(drawn.get(key))) is not None]
        told = ", ".join([*([f"loss {loss(x)}"] if x is not None else []), *how])
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
    kept = [event for event in run.events if str(event.get("kind")) not in ROUTINE]
    shown_ = kept if len(kept) <= EVENTS else [*kept[:EVENTS // 2], *kept[-EVENTS // 2:]]
    if len(shown_) < len(kept):
        yield from (f"The first and last {EVENTS // 2} of {len(kept):,}.", "")
    yield from table(("step", "time (UTC)", "event", "what it says"), (
        [f"{e['step']:,}" if type(e.get("step")) is int else "–", escaped(e.get("time", "–")),
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
    columns: dict[tuple[int, int, int], dict[str, None]] = {}  # by number of values, first and last step
    known = {name: np.isfinite(x) for name, x in run.numbers.items()}
    for name, where in (known | {name: x.astype(bool) for name, x in run.texts.items()}).items():
        steps = run.steps[where]
        if len(steps):
            columns.setdefault((len(steps), steps[0], steps[-1]), {})[name.partition(".")[0]] = None
    yield from ("", *table(("columns of the rows", "rows with a value", "from step", "to"), (
        [escaped(", ".join(names)), share_of(n, len(run)), f"{first:,}", f"{last:,}"]
        for (n, first, last), names in sorted(columns.items(), key=lambda item: -item[0][0]))))
    if len(run) and (never := [name for name in COLUMNS[1:] if name not in run.numbers]):
        yield from ("", f"Without a value in any row: {escaped(', '.join(never))}.")


def checkpoints(run: RunData) -> Iterator[str]:
    """Yield the table of the checkpoints that are kept."""
    steps = sorted(run.checkpoints)
    yield from table(("checkpoint of step", "loss", "val loss", "MiB"), (
        [f"{s:,}", *(loss(run.at(s, name), "–") for name in ("loss", "val_loss")), f"{run.checkpoints[s] / 2**20:,.1f}"]
        for s in (steps[i] for i in spread(len(steps), KEPT))), left=0)


def gaps(run: RunData) -> list[str]:
    """Return the stretches of steps up to the last one that have no row."""
    return [f"{a + 1:,}" if b - a == 2 else f"{a + 1:,}–{b - 1:,}" for a, b in itertools.pairwise([0, *run.steps])
            if b - a > 1]
