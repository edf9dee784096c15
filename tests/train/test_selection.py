"""Ranks, crowding and volumes against brute force; what is out of the running; distances, and sizes of generations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helios.errors import UserError
from helios.train.fitness import Measurements
from helios.train.records.journal import MEASURES
from helios.train.search.selection import (
    Box,
    Floats,
    best_first,
    box,
    crowding,
    hypervolume,
    next_size,
    novelty,
    objective_values,
    parse_objectives,
    ranks,
)

OUT = math.nan
# Few values, so that there are ties and equal rows; some rows are out of the running.
values = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(lambda shape: arrays.arrays(
    np.float64, shape, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 3.5]) | st.just(OUT) | st.floats(-1e9, 1e9)))


def better(a: Floats, b: Floats) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_ranks(x: Floats) -> list[int]:
    """Peel off, time and again, those that no other is better than."""
    left, result, rank = {i for i in range(len(x)) if np.isfinite(x[i]).all()}, dict[int, int](), 0
    while left:
        front = {i for i in left if not any(better(x[j], x[i]) for j in left)}
        result |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1
    return [result.get(i, rank) for i in range(len(x))]


def brute_crowding(x: Floats, rank: list[int]) -> list[float]:
    """As in the paper: one front and one objective after the other."""
    distance = [0.0] * len(x)
    for front in set(rank):
        for m in range(x.shape[1]):
            members = sorted((i for i in range(len(x)) if rank[i] == front), key=lambda i: x[i, m])
            low, high = x[members[0], m], x[members[-1], m]
            if high > low:
                distance[members[0]] = distance[members[-1]] = math.inf
                for before, i, after in zip(members, members[1:], members[2:], strict=False):
                    distance[i] += (x[after, m] - x[before, m]) / (high - low)
    return distance


@given(values, st.lists(st.floats(0, 2), min_size=12, max_size=12))
def test_against_brute_force(x: Floats, bonuses: list[float]) -> None:
    rank, bonus = brute_ranks(x), bonuses[:len(x)]
    assert ranks(x).tolist() == rank
    inside = np.isfinite(x).all(axis=1)
    assert inside.sum() == 0 or (ranks(x)[inside] == moocore.pareto_rank(x[inside])).all()
    apart = np.zeros(len(x))
    apart[inside] = brute_crowding(x[inside], [r for r, known in zip(rank, inside, strict=True) if known])
    assert crowding(x[inside], ranks(x)[inside]) == pytest.approx(apart[inside])

    lone = x.shape[1] == 1
    order, known = best_first(x, bonus).tolist(), crowding(x[inside], ranks(x)[inside])
    apart[inside] = known  # the same bits, for ties
    key = lambda i: (not inside[i], *((x[i, 0] - bonus[i],) if lone else (rank[i], -apart[i] - bonus[i], -bonus[i])))
    assert order == [*sorted((i for i in range(len(x)) if inside[i]), key=key), *np.flatnonzero(~inside)]


def test_by_hand() -> None:
    x = np.array([[0, 4], [1, 2], [2, 1], [4, 0], [2, 2], [3, 3], [OUT, 0], [2, 1]], float)
    assert ranks(x).tolist() == [0, 0, 0, 0, 1, 2, 3, 0]
    apart = crowding(x[:4], np.zeros(4, int))
    assert apart.tolist() == [math.inf, 2 / 4 + 3 / 4, 3 / 4 + 2 / 4, math.inf]
    assert crowding(np.array([[1, 5], [1, 5], [1, 5]], float), np.zeros(3, int)).tolist() == [0, 0, 0]
    assert best_first(x[:7]).tolist() == [0, 3, 1, 2, 4, 5, 6]
    # A bonus counts within a rank, decides among the ends of one, and helps nobody who is out.
    assert best_first(x[:7], [0, 0, 0, 1, 0.1, 5, 9]).tolist() == [3, 0, 1, 2, 4, 5, 6]
    assert best_first(x[:7], [0, 0, 0.1, 0, 0, 0, 0]).tolist() == [0, 3, 2, 1, 4, 5, 6]
    x[2, 1] = 1.5  # so that it stands a little more alone: 3/4 + 2/4 to 2/4 + 2.5/4
    assert [best_first(x[:4], [0, b, 0, 0]).tolist() for b in (0.1, 0.2)] == [[0, 3, 2, 1], [0, 3, 1, 2]]
    one = np.array([[2], [OUT], [1], [2], [math.inf]])
    assert best_first(one, [0.5, 9, 0, 1, 9]).tolist() == [2, 3, 0, 1, 4]
    assert best_first(np.empty((0, 3))).tolist() == []


@pytest.mark.parametrize("n", [2000])  # and up to 100,000, by hand
def test_many(n: int) -> None:
    x = np.random.default_rng(1).random((n, 3)).round(2)
    x[::7] = OUT
    rank, order = ranks(x), best_first(x)
    assert sorted(order) == list(range(n)) and (np.diff(rank[order]) >= 0).all()
    assert np.isnan(x[order[-len(x[::7]):]]).all()
    for r in range(1, rank.max()):
        beaten = (x[rank == r - 1][:, None] <= x[rank == r]).all(axis=2) & (
            x[rank == r - 1][:, None] < x[rank == r]).any(axis=2)
        assert beaten.any(axis=0).all()


# -- what is measured ------------------------------------------------------------------------------------------------

def test_every_measurement_is_an_objective() -> None:
    assert set(MEASURES) == set(Measurements._fields) - {"free_energy"}
    assert [name for name in MEASURES if MEASURES[name].more] == ["tokens_per_sec"]
    assert {name for name in MEASURES if MEASURES[name].clock} == {"tokens_per_sec", "seconds"}


@pytest.mark.parametrize(("text", "message"), [
    ("val_loss,tokens_per_second", "unknown objective 'tokens_per_second'; did you mean tokens_per_sec?; there are "),
    ("", "objectives '': a name is missing; there are val_loss, "), ("val_loss,,seconds", "a name is missing"),
    ("val_loss, seconds,val_loss", "objectives 'val_loss, seconds,val_loss': val_loss is there twice; name each once"),
])
def test_wrong_objectives(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_objectives(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_values() -> None:
    assert parse_objectives("tokens_per_sec, instability") == ("tokens_per_sec", "instability")
    good = {"val_loss": 4.0, "tokens_per_sec": 7000.0, "instability": 0.25}
    rows: list[tuple[dict[str, Any], str | None, bool]] = [
        (good, "complete", True), (good, "reused", True), (good, "diverged", False), (good, "stopped", False),
        (good, None, False), ({**good, "val_loss": None}, "reused", False), ({"val_loss": 4.0}, "complete", False),
        *(({**good, name: bad}, "complete", False) for name in good for bad in (math.nan, math.inf, -math.inf)),
    ]
    found = objective_values([m for m, _, _ in rows], [s for _, s, _ in rows], ("tokens_per_sec", "instability"))
    assert [row.tolist() == [-7000, 0.25] for row in found] == [expected for _, _, expected in rows]
    assert np.isnan(found[2:]).all()
    assert set(best_first(found)[:2]) == {0, 1} and objective_values([], [], ("val_loss",)).shape == (0, 1)


# -- hypervolume -----------------------------------------------------------------------------------------------------

grids = st.integers(1, 3).flatmap(lambda m: arrays.arrays(
    np.float64, st.tuples(st.integers(0, 6), st.just(m)), elements=st.integers(0, 5).map(float) | st.just(OUT)))


@given(grids)
def test_volume_is_that_of_the_cells_dominated(x: Floats) -> None:
    m, found = x.shape[1], x[np.isfinite(x).all(axis=1)]
    cells = sum(any((p <= cell).all() for p in found) for cell in np.ndindex(*[5] * m))
    within = Box((1.0,) * m, (5.0,) * m)
    assert hypervolume(x, within) == pytest.approx(cells / 4**m)
    assert hypervolume(x[::-1], within) == pytest.approx(hypervolume(x, within))
    assert hypervolume(np.vstack([x, np.zeros((1, m))]), within) == pytest.approx((5 / 4)**m)


@given(values)
def test_box_holds_the_first_generation(x: Floats) -> None:
    inside, found = x[np.isfinite(x).all(axis=1)], box(x)
    if found is None:
        assert len(inside) == 0
        return
    assert (inside >= found.best).all() and (inside < found.reference).all()
    assert 0 < hypervolume(x, found) <= 1 + 1e-9
    assert box(x[::-1]) == found == Box(*map(tuple, map(list, found)))


def test_box_by_hand() -> None:
    found = box(np.array([[2, -100, 0], [4, -50, 0], [3, OUT, 0]]))
    assert found and found.best == (2, -100, 0) and found.reference == pytest.approx((4.2, -45, 0.1))
    for near in (5e-324, 1 + 2**-52):  # no range to speak of
        narrow = box(np.array([[near], [1.0 if near > 1 else 0.0]]))
        assert narrow and narrow.reference == pytest.approx((1.1 if near > 1 else 0.1,))
    assert box(np.array([[OUT, 1.0]])) is None and hypervolume(np.array([[OUT, 1.0, 1.0]]), found) == 0
    assert hypervolume(np.array([found.best]), found) == pytest.approx(1)
    assert hypervolume(np.array([found.reference]), found) == 0


# -- novelty ---------------------------------------------------------------------------------------------------------

class Gene(NamedTuple):
    name: str
    part: str
    low: float = 0
    high: float = 0  # 0: a set

    def place(self, value: Any) -> float | None:
        return math.log(value / self.low) / math.log(self.high / self.low) if self.high and value is not None else None


GENES = (Gene("activation", "architecture"), Gene("width", "architecture", 1, 16),
         Gene("lr", "dynamics", 1e-4, 1e-2))
BASE = {"activation": "gelu", "width": 4, "lr": 1e-3}


@pytest.mark.parametrize(("change", "distance"), [
    ({}, 0), ({"activation": "silu"}, 1 / 4), ({"width": 8}, 1 / 4 * 1 / 4), ({"lr": 1e-2}, 1 / 2 * 1 / 2),
    ({"lr": None}, 1 / 2), ({"activation": "silu", "width": 1, "lr": 1e-4}, 1 / 4 + 1 / 4 * 1 / 2 + 1 / 2 * 1 / 2),
])
def test_distance_by_hand(change: dict[str, Any], distance: float) -> None:
    other = BASE | change
    assert novelty([BASE], [other], GENES) == pytest.approx([distance])
    assert novelty([other], [BASE], GENES) == pytest.approx([distance])
    assert novelty([other], [other], GENES) == [0]
    far = {"activation": "relu", "width": 16, "lr": None}
    assert novelty([BASE, other], [far, other], GENES) == pytest.approx([distance, 0])


def test_novelty_of_many() -> None:
    rng = np.random.default_rng(0)
    genomes = [{"activation": str(rng.integers(3)), "width": rng.uniform(1, 16), "lr": rng.uniform(1e-4, 1e-2)}
               for _ in range(700)]
    found = novelty(genomes[:300], genomes[300:], GENES)  # in more than one block
    one_by_one = [min(float(novelty([a], [b], GENES)[0]) for b in genomes[300:]) for a in genomes[:300:60]]
    assert found[::60] == pytest.approx(one_by_one) and 0 <= found.min() < found.max() <= 1
    assert novelty(genomes[:2], [], GENES).tolist() == [1, 1] and novelty([], genomes, GENES).shape == (0,)
    # Of activations alone, a genome is new or it is not, as in the activation search.
    assert novelty(genomes[:3], [{"activation": "0"}], GENES[:1]).tolist() == [
        float(genome["activation"] != "0") for genome in genomes[:3]]


# -- size of the population ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("size", "series", "expected", "why"), [
    (8, [0.5], 8, "still 8: the hypervolume has nothing yet to be compared with"),
    (8, [None, 0.5], 8, "still 8: the hypervolume has nothing yet to be compared with"),
    (8, [0.5, 0.6], 10, "grown from 8 to 10: the hypervolume rose from 0.5 to 0.6"),
    (2, [0.5, 0.6], 3, "grown from 2 to 3: "),  # at least one more
    (8, [0.0, 0.1], 10, "grown from 8 to 10: "), (8, [-4.0, -3.9], 10, "rose from -4 to -3.9"),
    (8, [-4.0, -3.98], 8, "still 8: the hypervolume did not rise by more than 1 % in 1 generation"),
    (8, [0.5, 0.504], 8, "in 1 generation"), (8, [0.5, 0.504, 0.508], 10, "rose from 0.5 to 0.508"),  # they add up
    (10, [0.5, 0.5, 0.4], 8, "shrunk from 10 to 8: the hypervolume did not rise by more than 1 % in 2 generations"),
    (10, [0.5, 0.4, 0.5], 8, "shrunk"),  # back is not up
    (10, [0.5, None, None], 8, "shrunk"), (10, [0.5, 0.5, 0.5, 0.5], 10, "in 3 generations"),
    (10, [0.5] * 5, 8, "shrunk"), (10, [0.5, 0.5, 0.5, 0.6], 12, "grown"), (10, [0.5, 0.5, 0.6, 0.6], 10, "still"),
    (15, [0.5, 0.6], 16, "grown from 15 to 16, the most allowed: "),
    (16, [0.5, 0.6], 16, "still 16, the most allowed: the hypervolume rose"),
    (2, [0.5] * 3, 2, "still 2, the least allowed: the hypervolume did not rise"),
])
def test_sizes(size: int, series: list[float | None], expected: int, why: str) -> None:
    found = next_size([(size, value) for value in series], 2, 16)
    assert found.size == expected and why in found.why


def test_patience_and_delta() -> None:
    history = [(10, 0.5), (10, 0.6), (10, 0.6), (10, 0.6)]
    assert next_size(history, 2, 16, patience=3, what="best").why == (
        "still 10: the best did not rise by more than 1 % in 2 generations")
    assert next_size(history[:2], 2, 16, delta=0.25).size == 10
