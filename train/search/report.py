"""The report of a search, made from its files: a table for the terminal, and a page with plots."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from helios.errors import UserError
from helios.files import write_atomic
from helios.model.activations import activation, is_name, short_name, split
from helios.train.config import SearchConfig
from helios.train.markdown import YES_NO, duration, escaped, number, with_error
from helios.train.markdown import table as markdown_table
from helios.train.search import operators
from helios.train.search.births import Candidate, genome_key
from helios.train.search.files import FOLDER, NOT_YET, Track, read, tracks
from helios.train.search.plots import PREPARING, draw, speeds
from helios.train.search.ranking import Entry, Summary, labels
from helios.train.search.separation import PERCENT

PAGE, SPEED = "report.md", "Speed by activation"
RIVALS = 4  # most rivals of the winner that the first line names
TITLES = ("rank", "name", "activation", "gen.", "parent", "val loss ± SE", "fitness", "parameters", "tok/s", "clip %",
          "spikes", "alerts", "status")
PAGE_TITLES = (*TITLES[:6], "behind ± SE", "separated", *TITLES[6:])
# Titles of the columns for what is too long for "activation", and for what else a genome has.
LONG = BLOCKS, FORMULA, SETTINGS = "blocks", "formula", "settings"
GENOME = {"activation", *LONG}
WORDS = GENOME | {"name", "parent", "separated", "status", "alerts for", "skipped for"}

_table = partial(markdown_table, left=0, words=WORDS)

# What makes a comparison fair: a setting, its value, and what all candidates then have in common.
FAIR = (
    ("shared_init", True, "the same seeds of initial weights"),
    ("shared_batches", True, "the same batches in the same order"),
    ("candidate_schedule", "constant", "the same learning rate at the same step: a warm-up, then constant"),
    ("match", "params", "as many parameters, by the width of the MLP"),
)
BUDGETS = {"steps": "{steps_per_candidate:,} steps", "tokens": "{tokens_per_candidate:,} tokens",
           "seconds": "{seconds_per_candidate:g} seconds of training"}
CAPTIONS = {
    "loss.png": "Thin lines: training; marks: evaluations; of every replicate, against its own steps. On the right the "
                "last evaluations, and their mean with two standard errors.",
    "lineage.png": "The winner is ringed; what was not trained itself is hollow. Below the name, the validation loss.",
}
HOW_TO_READ = (
    "A candidate is trained once for each seed; these trainings are its replicates. The validation loss is the mean of "
    "their last evaluations, in nats a token, and SE its standard error: how far other seeds would move it. One "
    "replicate says nothing of the noise.",
    f"Two candidates are separated where they differ by more than as many equal ones would come to lie apart in "
    f"{PERCENT} of searches, by the noise of all of them together. More replicates or a larger budget separate more. "
    f"A rank says no more.",
    "The result holds for this model, this text and this budget: what learns fastest in a short training need not be "
    "best in a long one.",
    "Where several candidates have one name, the number at the end of their id follows it. Status: reused, the genome "
    "of an earlier candidate, whose results are shown; stopped, ended early because it could not win any more; "
    "diverged, without a finite validation loss.",
    "Clip % is the share of steps whose gradient was clipped. Spikes are steps whose gradient norm was above the "
    "threshold, or ten times the usual. Alerts are steps at which a monitor saw a shift of norm, clipping or "
    "validation loss. All are counted over all replicates.",
)


# -- the result, and the table for the terminal ------------------------------------------------------------------------

def result(candidates: Sequence[Candidate], summary: Summary) -> str:
    """Return in one sentence who won, and whether that is more than noise."""
    names, by_id = labels(candidates), {c.id: c for c in candidates}
    brief = lambda c: f"{short_name(c.activation)} ({names[c.id]})"
    named = lambda c: f"{c.named(short_name(c.activation))} ({names[c.id]})"
    winner = by_id.get(summary["winner"] or "")
    if summary["status"] != "complete":
        leads, n = f"; {named(winner)} leads" if winner else "", sum(c.status is not None for c in candidates)
        return f"The search is in progress: {n} candidate{'s' * (n != 1)} measured{leads}."
    if winner is None:
        return "There is no winner: no candidate came to a result."
    rivals: dict[str, Entry] = {}  # the best of each genome that the winner was compared with
    for entry in summary["ranking"]:
        if entry["separated"] is not None:
            rivals.setdefault(genome_key(by_id[entry["id"]]), entry)
    near = [by_id[e["id"]] for e in rivals.values() if not e["separated"]]
    if summary["separated"]:
        rest = "the next best genome, though not from every one" if near else "every other genome"
        return f"{named(winner)} won, separated from {rest}."
    if not rivals:
        return f"{named(winner)} won, not separated: there was no other genome to compare it with."
    told = [brief(c) for c in (winner, *near[:RIVALS])]
    told += [f"{len(near) - RIVALS} more"] if len(near) > RIVALS else []
    return (f"{named(winner)} came first, but not separated: the data do not say which of {', '.join(told[:-1])} and "
            f"{told[-1]} is best.")


def table(candidates: Sequence[Candidate], summary: Summary | None) -> Table:
    """Return the table of candidates: those with a rank first, then the others in order of creation."""
    titles, rows = _ranked(candidates, summary or NOT_YET, TITLES, labels(candidates))
    shown = Table(box=None, pad_edge=False)
    for title in titles:
        shown.add_column(title, justify="left" if title in WORDS else "right", no_wrap=title not in LONG,
                         overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[title]) for title in titles), style="bold" if row["rank"] == "1" else None)
    return shown


def _ranked(candidates: Sequence[Candidate], summary: Summary, titles: tuple[str, ...], names: Mapping[str, str]
            ) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the titles of the columns, and each candidate's cells by title. names: by id."""
    entries = {e["id"]: e for e in summary["ranking"] if e["score"] is not None}
    order = sorted(candidates, key=lambda c: entries[c.id]["rank"] if c.id in entries else math.inf)
    texts = {c.activation for c in candidates}
    blocks = {text for text in texts if len(split(text)) > 1}
    found = blocks, {text for text in texts - blocks if short_name(text) != text}, [c for c in candidates if c.settings]
    long = [title for title, any_ in zip(LONG, found, strict=True) if any_]
    return (*titles, *long), [_cells(c, entries.get(c.id, {}), names) for c in order]


def _cells(c: Candidate, entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    genes = split(c.activation)
    return {
        "rank": _count(entry.get("rank")), "name": names[c.id], "activation": short_name(c.activation),
        "gen.": str(c.generation), "parent": names.get(c.parent_id or "", "–"), "val loss ± SE": _loss(c),
        "behind ± SE": with_error(entry.get("difference"), entry.get("difference_se"), "#.3g"),
        "separated": YES_NO[entry.get("separated")],
        "fitness": number(c.fitness, "#.4g"), "parameters": _count(c.parameters),
        "tok/s": _count(c.tokens_per_sec_mean), "clip %": number(c.clip_rate, ".1%").rstrip("%"),
        "spikes": _count(c.spikes), "alerts": _count(c.cusum_alerts), "status": escaped(c.status or "–"),
        BLOCKS: (", " if all(map(is_name, genes)) else " | ").join(genes) if len(genes) > 1 else "",
        FORMULA: str(activation(genes[0]).formula or "–") if len(genes) == 1 else "",
        SETTINGS: operators.shown(c.settings) or "–",
    }


def _loss(c: Candidate) -> str:
    return "not finite" if c.status == "diverged" else with_error(c.val_loss_mean, c.val_loss_se, ".4f")


def _count(x: float | None) -> str:
    return number(x, ",.0f")


# -- the page ----------------------------------------------------------------------------------------------------------

def write(run: Path, plots: bool = True) -> Path:
    """Write search/report.md and, with `plots`, its pictures in the run directory `run`; return the page's path.
    Raises UserError where a file is damaged or cannot be written."""
    candidates, summary = read(run)
    found, folder = tracks(run, candidates), run / FOLDER
    pictures = draw(candidates, summary["winner"], found) if plots else {}
    files = pictures | {PAGE: _page(candidates, summary, found, pictures).encode()}
    try:
        for name, content in files.items():
            write_atomic(folder / name, methodcaller("write", content))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return folder / PAGE


def _page(candidates: Sequence[Candidate], summary: Summary, found: Sequence[Track],
          pictures: Collection[str]) -> str:
    page = [f"# {escaped(result(candidates, summary))}"]
    for title, parts in sections(candidates, summary, found, pictures):
        page += [f"## {title}", *parts]
    return "\n\n".join(page) + "\n"


def sections(candidates: Sequence[Candidate], summary: Summary, found: Sequence[Track], pictures: Collection[str],
             prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the paragraphs of each section that has any.
    pictures: the names of those that there are, to which their files' names add a prefix."""
    names = _names(candidates)
    titles, rows = _ranked(candidates, summary, PAGE_TITLES, names)
    content: tuple[tuple[str, str, Iterable[str]], ...] = (  # title, picture, lines above the picture
        ("Why", "", _list(summary["reasons"])),
        ("What was fair, and what was not", "", _fairness(summary)),
        ("Budget and cost", "", _cost(summary)),
        ("Ranking", "", ["“Behind” is the difference to the winner in what the search ranks by.", "",
                         *_table(titles, ([escaped(row[t]) if t in GENOME else row[t] for t in titles]
                                          for row in rows))]),
        ("Loss", "loss.png", []),
        (SPEED, "speed.png", _speed(speeds(candidates, found))),
        ("Lineage", "lineage.png", _lineage(candidates)),
        ("Activations by generation", "activations.png", []),
        ("Alerts and skipped updates", "", _trouble(candidates, found)),
        ("How to read this", "", ["\n\n".join(HOW_TO_READ)]),
    )
    for title, picture, above in content:
        parts = ["\n".join(above)]
        if picture in pictures:
            parts += [CAPTIONS.get(picture, ""), f"![{title}]({prefix}{picture})"]
        if any(parts):
            yield title, list(filter(None, parts))


def _names(candidates: Iterable[Candidate]) -> dict[str, str]:
    return {key: escaped(name) for key, name in labels(candidates).items()}


def _short(c: Candidate) -> str:
    return escaped(c.named(short_name(c.activation)))


def _list(sentences: Iterable[str]) -> list[str]:
    return [f"* {escaped(sentence)}" for sentence in sentences]


def _fairness(summary: Summary) -> list[str]:
    if not summary["config"]:
        return []
    config, unfair = SearchConfig.from_dict(summary["config"]), summary["unfair"]
    shared = [words for key, value, words in FAIR if getattr(config, key) == value]
    return ["All candidates had", "", *_list([f"the same budget: {_budget(config)}", *shared]), "",
            *(["What was switched off, or differs:", "", *_list(unfair)] if unfair else
              ["Nothing that makes candidates comparable was switched off."])]


def _budget(config: SearchConfig) -> str:
    each, n = BUDGETS[config.budget].format(**vars(config)), config.replicates
    return f"{n} replicates of {each}" if n != 1 else f"one training of {each}"


def _cost(summary: Summary) -> Iterator[str]:
    if cost := summary["cost"]:
        spent = [f"{_count(cost.get(name))} {name}" for name in ("trainings", "steps", "tokens")]
        yield f"{', '.join(spent)}; {duration(cost.get('seconds'))} of training on {escaped(summary['device'])}."
    if base := {k: v for k, v in summary["base"].items() if k != "activation" and v is not None}:
        yield from ("", "The model: " + ", ".join(escaped(f"{k} {v}") for k, v in base.items()) + ".")


def _speed(rates: Mapping[str, np.ndarray]) -> Iterator[str]:
    medians = {name: float(np.median(x)) for name, x in rates.items()}
    if rates:
        yield from (f"Tokens per second of single steps, without the first {PREPARING} of each replicate, which "
                    f"prepare kernels.", "")
    yield from _table(("activation", "steps", "median", "5 %", "95 %", "of the fastest"), (
        [escaped(name), _count(len(rates[name])), _count(medians[name]),
         *map(_count, np.percentile(rates[name], (5, 95))), f"{medians[name] / max(medians.values()):.0%}"]
        for name in sorted(rates, key=lambda n: -medians[n])))


def _lineage(candidates: Sequence[Candidate]) -> Iterator[str]:
    names = _names(candidates)
    children: dict[str | None, list[Candidate]] = {}
    for c in candidates:
        children.setdefault(c.parent_id, []).append(c)

    def branch(parent: str | None, depth: int) -> Iterator[str]:
        for c in children.get(parent, []):
            came = f" ({escaped(c.mutation or 'unchanged')})" if parent else ""
            loss = "not measured yet" if c.status is None else _loss(c)
            again = f", {c.status}" if c.status in ("reused", "stopped") else ""
            yield f"{'  ' * depth}* **{names[c.id]}**, {_short(c)}{came}: {loss}{again}"
            yield from branch(c.id, depth + 1)
    if children.keys() - {None}:
        yield from branch(None, 0)


def _trouble(candidates: Sequence[Candidate], found: Sequence[Track]) -> Iterator[str]:
    names = _names(candidates)
    alerts: dict[str, Counter[str]] = {c.id: Counter() for c in candidates}
    skips: dict[str, Counter[str]] = {c.id: Counter() for c in candidates}
    for track in found:
        alerts[track.candidate] += track.alerts
        skips[track.candidate] += track.skips
    said = lambda counts: "; ".join(f"{escaped(reason)}: {n}" for reason, n in sorted(counts.items())) or "–"
    yield from _table(("name", "activation", "steps with alerts", "alerts for", "updates skipped", "skipped for",
                       "clip %", "highest gradient norm"), (
        [names[c.id], _short(c), _count(c.cusum_alerts), said(alerts[c.id]), _count(c.skipped),
         said(skips[c.id]), number(c.clip_rate, ".1%").rstrip("%"), number(c.max_grad_norm, ",.4g")]
        for c in candidates if c.status != "reused"))
    if any(c.status == "reused" for c in candidates):
        yield from ("", "Those that reuse the results of an earlier candidate are left out.")
