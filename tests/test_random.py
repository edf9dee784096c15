"""The counter-based generators against their authors' test vectors, the layout that kernels rely on, and distributions
whose bits must never change."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from helios import random
from helios.model import GPTConfig
from helios.model.gpt import initial_state

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(("counter", "key", "expected"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_known_answers(counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """philox4x32-10 in the file kat_vectors of Random123."""
    c0, c1, c2, c3 = counter
    words = random.philox(np.array([c0], np.uint32), np.array([c1], np.uint32), c2, c3, *key)
    assert words.tolist() == [list(expected)]


def test_state_holds_seed_and_step() -> None:
    state = random.state(0xFEDCBA9876543210, 0x80000001)
    assert state.dtype == np.int32
    assert state.view(np.uint32).tolist() == [0x76543210, 0xFEDCBA98, 0x80000001]


def test_bits_are_words_of_counters() -> None:
    """Element j of row i is word j % 4 of counter (j // 4, i, site, step) under the seed."""
    got = random.bits((5, 11), random.state(0x123456789ABCDEF, 77), site=13)
    assert got.shape == (5, 11) and got.dtype == np.uint32
    for (i, j), word in np.ndenumerate(got):
        counter = np.array([j // 4], np.uint32), np.array([i], np.uint32)
        assert word == random.philox(*counter, 13, 77, 0x89ABCDEF, 0x1234567)[0, j % 4]


@pytest.mark.parametrize("shape", [(2, 3, 10), (3, 2, 10), (6, 1, 10), (1, 6, 10)])
def test_bits_do_not_depend_on_how_rows_are_split(shape: tuple[int, ...]) -> None:
    state = random.state(5, 6)
    assert (random.bits(shape, state, 7).reshape(6, 10) == random.bits((6, 10), state, 7)).all()


def test_bits_do_not_depend_on_how_much_is_asked_for() -> None:
    state = random.state(5, 6)
    whole = random.bits((6, 10), state, 7)
    for rows, columns in [(1, 1), (3, 4), (6, 7), (2, 10)]:
        assert (random.bits((rows, columns), state, 7) == whole[:rows, :columns]).all()
    assert random.bits((10,), state, 7).tolist() == whole[0].tolist()
    assert random.bits((), state, 7) == whole[0, 0]


def test_seed_step_and_site_give_unrelated_bits() -> None:
    base = random.bits((64, 64), random.state(1, 2), 3)
    for state, site in [(random.state(1 + 2**32, 2), 3), (random.state(2, 2), 3), (random.state(1, 3), 3),
                        (random.state(1, 2), 4)]:
        differing = np.unpackbits((base ^ random.bits((64, 64), state, site)).view(np.uint8)).mean() * 32
        assert abs(differing - 16) < 5 * np.sqrt(8 / base.size)  # of 32 bits, each with probability ½


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_keep_probability(p: float) -> None:
    kept = random.keep((500, 401), random.state(42, 9), 5, p)
    assert kept.dtype == np.bool_
    assert abs(kept.mean() - (1 - p)) <= 5 * np.sqrt(p * (1 - p) / kept.size)
    for axis in (0, 1):  # no row and no column is favoured
        spread = kept.mean(axis).std() / np.sqrt(p * (1 - p) / kept.shape[axis]) if p else 1
        assert 0.8 < spread < 1.2


def test_keep_compares_with_the_threshold() -> None:
    state = random.state(1, 1)
    assert (random.keep((9, 9), state, 0, 0.25) == (random.bits((9, 9), state, 0) >= 2**30)).all()
    assert random.threshold(0.0) == 0
    assert random.threshold(0.5) == 2**31
    assert random.threshold(1.0) == 2**32 - 1


# -- on the host ------------------------------------------------------------------------------------------------------
def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()[:16]


@pytest.mark.parametrize(("count", "seed", "stream", "position", "expected"), [
    (1, 0, 0, (), ("8ea4f8b66a5c889c", "a7dfc9642eeb74be", "a32526acaf783e14")),
    (100_001, 3, 7, (), ("5f2c2a3b0043ce72", "33431082886be2fc", "ff5f93f61251c5b2")),
    (20_001, -1, 2**64 - 1, (5, 6, 7), ("f901ade4251c1a74", "dd61386f9f68006e", "84d220ba7df9200a"))])
def test_bits_for_good(count: int, seed: int, stream: int, position: tuple[int, ...], expected: tuple[str, ...]
                       ) -> None:
    """On every machine, with every version of numpy: weights, batches and samples of a seed are made of these."""
    made = [f(count, seed, stream, *position) for f in (random.words, random.uniform, random.normal)]
    assert [x.dtype for x in made] == [np.uint64, np.float64, np.float32]
    assert tuple(map(digest, made)) == expected


def test_words_are_those_of_philox_4x64() -> None:
    """philox4x64-10 in the file kat_vectors of Random123: the first output for the counter and key of all zeros, ones.
    numpy counts up before it draws."""
    assert random.words(4, 0, 0).tolist() != random.words(4, 0, 0, 1).tolist()
    before = np.array([2**64 - 1] * 4, np.uint64)
    first = np.random.Philox(key=np.zeros(2, np.uint64), counter=before).random_raw(4)
    assert [hex(w) for w in first.tolist()] == [
        "0x16554d9eca36314c", "0xdb20fe9d672d0fdc", "0xd7e772cee186176b", "0x7e68b68aec7ba23b"]
    counter = np.array([0, 5, 6, 7], np.uint64)
    expected = np.random.Philox(key=np.array([2**64 - 3, 9], np.uint64), counter=counter).random_raw(10)
    assert random.words(10, -3, 9, 5, 6, 7).tolist() == expected.tolist()


def test_initial_weights_for_good() -> None:
    config = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=20, activation="swiglu,kan_spline")
    state = initial_state(config, 5)
    assert digest(*(state[name] for name in sorted(state))) == "018978eee2abfb2e"


@pytest.mark.parametrize("draw", [random.words, random.uniform, random.normal])
def test_numbers_do_not_depend_on_how_many_are_asked_for(draw: object) -> None:
    assert callable(draw)
    whole = draw(50_000, 1, 2)
    for count in (0, 1, 2, 3, 2 * random._PAIRS - 1, 2 * random._PAIRS, 2 * random._PAIRS + 1, 49_999):
        assert np.array_equal(draw(count, 1, 2), whole[:count])
    for other in ((2, 2), (1, 3), (1, 2, 1), (1, 2, 0, 1), (1, 2, 0, 0, 1)):
        assert not np.isin(draw(100, *other), whole).all()


def test_uniform() -> None:
    x = random.uniform(400_000, 1, 2)
    assert 0 <= x.min() < 1e-4 and 1 - 1e-4 < x.max() < 1
    counts = np.bincount((x * 64).astype(int), minlength=64)
    assert abs(((counts - x.size / 64) ** 2).sum() / (x.size / 64) - 63) < 5 * math.sqrt(2 * 63)  # chi²
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5 / math.sqrt(x.size)


def test_normal() -> None:
    """Five standard deviations for everything that is compared."""
    x = random.normal(2_000_000, 1, 2).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)  # kurtosis
    for limit in (0.1, 0.5, 1, 2, 3, 4, 4.5):
        for tail in (x > limit, x < -limit):
            p = math.erfc(limit / math.sqrt(2)) / 2
            assert abs(tail.sum() - n * p) < 5 * math.sqrt(n * p * (1 - p)), limit
    values = np.sort(x)[:: n // 1000]
    cdf = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in values])
    assert np.abs(cdf - np.arange(len(cdf)) / len(cdf)).max() < 2.0 / math.sqrt(n) + 2 / len(cdf)  # Kolmogorov–Smirnov
    for lag in (1, 2, 3):  # within a pair, and between pairs
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / math.sqrt(n)
        assert abs(np.corrcoef(x[:-lag] ** 2, x[lag:] ** 2)[0, 1]) < 5 / math.sqrt(n)


def test_the_functions_that_normal_is_made_of() -> None:
    draw = np.random.default_rng(0)
    u = np.concatenate([draw.random(20_000), 2.0 ** -draw.uniform(1, 53, 20_000),
                        [2.0**-53, 0.5, np.nextafter(0.5, 0), 1 - 2.0**-53, 1 - 2.0**-30, math.sqrt(0.5)]])
    np.testing.assert_allclose(random._log(u), np.log(u), rtol=4e-14)
    angle = np.concatenate([draw.uniform(-math.pi / 4, math.pi / 4, 20_000), [0.0, 1e-300, -math.pi / 4]])
    np.testing.assert_allclose(random._sin(angle), np.sin(angle), rtol=1e-15)
