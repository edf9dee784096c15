"""Who has children: ranks by one or more objectives, how new a genome is, and how many a generation has.

Arrays of objectives are [N, M]: a row for each candidate, a column for each objective, lower being better, and NaN
where a candidate is out of the running. All here are pure functions; equals keep their order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from helios.errors import UserError, nearest
from helios.train.records.journal import MEASURES

Floats = npt.NDArray[np.float64]
CHOSEN = ("complete", "reused")  # the status of a candidate that may be chosen
BEYOND = 0.1  # of the range: how far behind the worst values of the first generation the reference point lies
SAME = 1e-12  # a range, as a share of the worst value, that is none
GROWTH, SHRINKAGE = (5, 4), (4, 5)  # of a population, as fractions, so that sizes are exact
BLOCK = 2**16  # distances at a time, which fit a cache


def parse_objectives(text: str) -> tuple[str, ...]:
    """Return the names in a text such as val_loss,tokens_per_sec. Raises UserError if one is unknown or there twice."""
    names = tuple(name.strip() for name in text.split(","))
    for i, name in enumerate(names):
        if not name:
            raise UserError(f"objectives {text!r}: a name is missing; there are {', '.join(MEASURES)}")
        if name not in MEASURES:
            raise UserError(f"unknown objective {name!r}{nearest(name, MEASURES)}; there are {', '.join(MEASURES)}")
        if name in names[:i]:
            raise UserError(f"objectives {text!r}: {name} is there twice; name each once")
    return names


def objective_values(measured: Sequence[Mapping[str, float | None]], statuses: Sequence[str | None],
                     objectives: Sequence[str]) -> Floats:
    """Return the objectives of candidates [N, M], lower being better. NaN in all of a row: the candidate's status is
    none of CHOSEN, or its val_loss, whether that is an objective or not, or an objective is missing or not finite.

    measured: what was measured of each candidate, by the names of MEASURES.
    """
    values = np.full((len(measured), len(objectives)), np.nan)
    for row, found, status in zip(values, measured, statuses, strict=True):
        needed = [math.nan if (x := found.get(name)) is None else x for name in ("val_loss", *objectives)]
        if status in CHOSEN and all(map(math.isfinite, needed)):
            row[:] = needed[1:]
    return values * [-1 if MEASURES[name].more else 1 for name in objectives]


def _in(values: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(values).all(axis=1))


def ranks(values: Floats) -> npt.NDArray[np.intp]:
    """Return non-dominated ranks [N]: 0 for what no other is better than, 1 for what only those of rank 0 are better
    than, and so on; behind all, those out of the running. A candidate is better than another if it is not worse in any
    objective and better in one."""
    import moocore
    inside = _in(values)
    found = moocore.pareto_rank(values[inside])
    result = np.full(len(values), found.max(initial=-1) + 1)
    result[inside] = found
    return result


def crowding(values: Floats, rank: npt.NDArray[np.intp]) -> Floats:
    """Return crowding distances [N]: over the objectives, the sum of the gap between the neighbours of the same rank on
    both sides, divided by the rank's range; infinite for the first and last. An objective that is the same in the whole
    rank does not count. Values are finite.

    Source: Deb, Pratap, Agarwal, Meyarivan, A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, III-B.
    """
    total = np.zeros(len(values))
    for column in values.T if len(values) else ():
        order = np.lexsort((column, rank))
        x, r = column[order], rank[order]
        first = np.append(True, r[1:] != r[:-1])
        last = np.append(first[1:], True)
        span = (x[last] - x[first])[np.cumsum(first) - 1]
        gap = np.append(x[1:], x[-1]) - np.append(x[0], x[:-1])
        gap[first | last] = np.inf
        total[order] += np.divide(gap, span, out=np.zeros(len(x)), where=span > 0)
    return total


def best_first(values: Floats, bonus: npt.ArrayLike = 0.0) -> npt.NDArray[np.intp]:
    """Return the order of candidates [N], the best first, those out of the running last; ties by index.

    Of several objectives, the order is that of NSGA-II: by rank, and within a rank what stands most alone first, where
    the bonus (a number, or [N]) adds to the crowding distance; among those whose distance is infinite it decides alone.
    Of a single one, the order is by value less bonus.
    """
    inside = _in(values)
    lead = np.where(inside, bonus, 0.0)
    if values.shape[1] == 1:
        return np.lexsort((np.where(inside, values[:, 0] - lead, 0.0), ~inside))
    rank, apart = ranks(values), np.zeros(len(values))
    apart[inside] = crowding(values[inside], rank[inside])
    return np.lexsort((-lead, -(apart + lead), rank))


# -- hypervolume -----------------------------------------------------------------------------------------------------

class Box(NamedTuple):
    """Corners of the space of objectives, lower being better: what volumes of an experiment are measured in."""

    best: tuple[float, ...]
    reference: tuple[float, ...]


def box(values: Floats) -> Box | None:
    """Return the box of the first generation's values: from its best of each objective to its worst and BEYOND of the
    range more. Where all are the SAME, their size stands for the range, or 1 where that is 0. None if nothing was
    measured."""
    inside = values[_in(values)]
    if not len(inside):
        return None
    best, worst = inside.min(axis=0), inside.max(axis=0)
    size = np.where(abs(worst) > 1e-300, abs(worst), 1.0)
    span = np.where(worst - best > SAME * size, worst - best, size)
    return Box(tuple(best.tolist()), tuple((worst + BEYOND * span).tolist()))


def front(values: Floats) -> Floats:
    """Return the values that no others are better than, each once, in order; those out of the running are left out."""
    import moocore
    return np.asarray(moocore.filter_dominated(values[_in(values)]))


def hypervolume(values: Floats, within: Box) -> float:
    """Return the volume that the candidates dominate up to the reference point, as a share of the box: 0 where nothing
    is better than the reference, 1 where one is as good as the box's best in all; more, where they have got better."""
    import moocore
    best, reference = np.array(within)
    inside = (values[_in(values)] - best) / (reference - best)
    return float(moocore.hypervolume(inside, ref=np.ones(len(best)))) if len(inside) else 0.0


# -- novelty ---------------------------------------------------------------------------------------------------------

class Gene(Protocol):
    """What is used of a gene: place() gives a value's position on the gene's own scale from 0 to 1, None if the value
    has none, as those of a set without an order."""

    @property
    def name(self) -> str: ...
    @property
    def part(self) -> str: ...
    def place(self, value: Any) -> float | None: ...


def _places(genomes: Sequence[Mapping[str, Any]], gene: Gene) -> Floats:
    """Return a number [N] for each genome's value; that of one without a place is at least 1 away from all others."""
    codes: dict[Any, float] = {}
    values = [genome[gene.name] for genome in genomes]
    found = [gene.place(value) for value in values]
    return np.array([codes.setdefault(value, 2.0 + len(codes)) if at is None else at
                     for value, at in zip(values, found, strict=True)])


def novelty(genomes: Sequence[Mapping[str, Any]], among: Sequence[Mapping[str, Any]], genes: Sequence[Gene]) -> Floats:
    """Return each genome's distance [N], 0 to 1, to the nearest of those given; 1 where none is. Times the bonus and
    its decay, it is the diversity bonus.

    Two genomes are apart, in a gene, by the difference of the values' places or, where one has no place, by 0 if they
    are equal and 1 if not; in a part, by the mean over its genes; as a whole, by the mean over the parts that have
    genes. So a part of few genes counts as much as one of many. Genomes hold, by name, the value of every gene, a
    formula's in its normal form.
    """
    size, parts = len(genomes), Counter(gene.part for gene in genes)
    weights = [1 / (len(parts) * parts[gene.part]) for gene in genes]
    places = [_places([*genomes, *among], gene) for gene in genes]
    nearest_one = np.ones(size)
    rows = max(1, BLOCK // max(1, len(among)))
    for i in range(0, size, rows):
        block = slice(i, min(size, i + rows))
        total = np.zeros((block.stop - i, len(among)))
        for at, weight in zip(places, weights, strict=True):
            apart = abs(at[block, None] - at[size:])
            total += weight * np.minimum(apart, 1.0, out=apart)
        nearest_one[block] = total.min(axis=1, initial=1.0)
    return nearest_one


# -- size of the population ------------------------------------------------------------------------------------------

class Size(NamedTuple):
    """How many candidates the next generation has, and why, as a sentence."""

    size: int
    why: str


def next_size(history: Sequence[tuple[int, float | None]], least: int, most: int, delta: float = 0.01,
              patience: int = 2, what: str = "hypervolume") -> Size:
    """Return the size of the generation that comes after the history, from `least` to `most`.

    A population grows by a quarter, and at least one, when the last value has risen by more than `delta`, as a share of
    the value at the last such rise (at first, of the first value): so many small rises count, too. It shrinks by a
    fifth whenever `patience` more generations have passed without such a rise. Else it stays.

    history: for each generation so far, its size, and what is to rise: the hypervolume, or minus the best score; None
    where nothing was measured. what: its name in the sentence.
    """
    size, still, change = history[-1][0], 0, ""
    known: float | None = None
    for _, value in history:
        still, change = still + 1, ""
        if value is None:
            continue
        if known is None or value > known + delta * abs(known):
            still, change, known = 0, "" if known is None else f"rose from {known:.4g} to {value:.4g}", value
    wanted = size
    if change:
        wanted = max(size + 1, size * GROWTH[0] // GROWTH[1])
    elif still and still % patience == 0:
        wanted = size * SHRINKAGE[0] // SHRINKAGE[1]
    new = min(most, max(least, wanted))
    if not change:
        change = (f"did not rise by more than {100 * delta:g} % in {still} generation{'s' * (still > 1)}" if still else
                  "has nothing yet to be compared with")
    done = f"still {size}" if new == size else f"{'grown' if new > size else 'shrunk'} from {size} to {new}"
    bound = "" if new == wanted else f", the {'most' if new == most else 'least'} allowed"
    return Size(new, f"{done}{bound}: the {what} {change}")
