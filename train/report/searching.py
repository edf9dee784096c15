"""The search of a run: when each candidate was trained, and what the search's own report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import numpy as np

from helios.train.markdown import escaped, figure, percent, table
from helios.train.report.facts import integer, loss
from helios.train.report.reading import SEARCH, RunData, finite, lowest, median, share
from helios.train.search import plots, report
from helios.train.search.files import Track
from helios.train.search.ranking import labels
from helios.train.search.report import SPEED

PREFIX = "search-"  # of the names of its pictures
MOST = 120  # trainings in the timeline


def draw(run: RunData) -> dict[str, bytes]:
    """Return the plots of the search by file name; none where there was none."""
    if not run.candidates:
        return {}
    drawn = plots.draw(run.candidates, run.summary["winner"], tracks(run))
    return {f"{PREFIX}{name}": image for name, image in drawn.items()}


def tracks(run: RunData) -> list[Track]:
    """Return the rows of each training of a candidate."""
    known, found = {c.id for c in run.candidates}, []
    for t in run.trainings:
        if t.phase != SEARCH or t.candidate not in known:
            continue
        first = int(run.steps[t.rows.start])
        steps = (run.steps[t.rows] - first + 1).tolist()
        val = run.column("val_loss")[t.rows]
        found.append(Track(
            t.candidate, first, steps, run.column("loss")[t.rows].tolist(),
            [(steps[i], float(val[i])) for i in np.flatnonzero(np.isfinite(val))],
            run.column("tokens_per_sec")[t.rows].tolist(),
            Counter(part for told in run.text("cusum_alert_reason")[t.rows] if told for part in told.split("; ")),
            Counter(str(why) for why, skipped in zip(run.text("skip_reason")[t.rows], run.skipped[t.rows], strict=True)
                    if skipped)))
    return found


def section(run: RunData, pictures: Collection[str]) -> Iterator[str]:
    """Yield the section on the search. pictures: the names of those that there are."""
    if not run.candidates:
        return
    yield f"**{escaped(report.result(run.candidates, run.summary))}**"
    if timeline := list(_timeline(run)):
        yield from ("", "### Timeline", "", *timeline)
    there = [name.removeprefix(PREFIX) for name in pictures if name.startswith(PREFIX)]
    for title, parts in report.sections(run.candidates, run.summary, tracks(run), there, PREFIX):
        if title != SPEED:  # which has a section of its own, on all of the run
            yield from ("", f"### {title}", "", "\n\n".join(parts))


def _timeline(run: RunData) -> Iterator[str]:
    names, by_id = labels(run.candidates), {c.id: c for c in run.candidates}
    rows = []
    for t in run.trainings[:MOST]:
        values, part = run.column("loss")[t.rows], t.rows
        seen, val = finite(values), finite(run.column("val_loss")[part])
        steps, c = run.steps[part], by_id.get(t.candidate)
        what = names[c.id] if c else t.candidate if t.phase == SEARCH else "training"
        steady = run.column("tokens_per_sec")[part][run.steady[part]]
        rows.append([
            f"{steps[0]:,}–{steps[-1]:,}", escaped(what) + (" ★" if c and c.id == run.summary["winner"] else ""),
            str(c.generation) if c else "–", escaped(run.activations[part.start]),
            f"{t.replicate + 1}" if t.phase == SEARCH else "–", loss(float(seen[0]) if seen.size else None),
            loss(lowest(values)), loss(float(val[-1]) if val.size else None, "–"), integer(median(steady)),
            figure(median(run.column("ms_per_iter")[part][run.steady[part]])), percent(share(run.clipped[part])),
            f"{run.spikes[part].sum():,}", f"{sum(map(bool, run.text('cusum_alert_reason')[part])):,}"])
    yield from table(("steps", "candidate", "gen.", "activation", "seed", "first loss", "lowest", "last val loss",
                      "tokens/s", "ms", "clipped", "spikes", "alerts"), rows, left=2, words=("activation",))
    if len(run.trainings) > MOST:
        yield from ("", f"The first {MOST} of {len(run.trainings):,} trainings.")
