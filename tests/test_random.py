"""The counter-based generator against its authors' test vectors, and the layout that kernels rely on."""

from __future__ import annotations

import numpy as np
import pytest

from helios import random

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
