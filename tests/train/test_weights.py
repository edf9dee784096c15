"""Entropy, rank and mutual information against what is known of planted matrices and series."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.model import GPT, GPTConfig
from helios.train.monitors.weights import (
    SIDE,
    effective_rank,
    layer_norms,
    mi_profile,
    mutual_information,
    sample,
    weight_entropy,
    weight_metrics,
)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 3], np.uint64)))


def of_rank(rank: int, m: int, n: int, seed: int = 0) -> np.ndarray:
    """[m, n] with `rank` equal singular values."""
    left, right = (np.linalg.qr(draw(seed + i).normal(size=(size, rank)))[0] for i, size in enumerate((m, n)))
    return left @ right.T


# -- sample -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 1), (3, 128), (129, 5), (300, 1000), (128, 128)])
def test_a_sample_is_evenly_spaced_and_bounded(shape: tuple[int, int]) -> None:
    rows, columns = np.indices(shape)
    for axis, index in enumerate((sample(rows)[:, 0], sample(columns)[0])):
        gaps = np.diff(index, append=shape[axis])  # to the end as well
        assert len(index) == min(shape[axis], SIDE) and index[0] == 0
        assert gaps.max() - gaps.min() <= 1


# -- entropy ----------------------------------------------------------------------------------------------------------
def half_normal_entropy() -> float:
    """Of the histogram of |w| for normal w: from the normal distribution function."""
    edges = [i / 8 for i in range(32)] + [math.inf]
    below = [math.erf(e / math.sqrt(2)) for e in edges]
    return -sum(p * math.log2(p) for p in np.diff(below) if p > 0)


def test_entropy_of_known_distributions() -> None:
    r = draw()
    assert weight_entropy(r.normal(0, 0.02, (300, 300))) == pytest.approx(half_normal_entropy(), abs=0.01)
    # |w| up to √3 root mean squares: 8·√3 bins, the last one of 14 in part
    whole, part = divmod(8 * math.sqrt(3), 1)
    p = np.array([1.0] * int(whole) + [part]) / (whole + part)
    assert weight_entropy(r.uniform(-1, 1, (300, 300))) == pytest.approx(float(-(p * np.log2(p)).sum()), abs=0.01)
    assert weight_entropy(r.choice([-0.3, 0.3], (50, 50))) == 0
    assert weight_entropy(np.repeat([0.0, 1.0], 50).reshape(10, 10)) == 1
    assert weight_entropy(np.zeros((5, 5))) == 0
    assert weight_entropy(np.array([[0.0] * 9999 + [1.0]])) < 0.01  # beyond the open bin's edge


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(1e-30, 1e30))
def test_entropy_knows_no_scale(seed: int, scale: float) -> None:
    w = draw(seed).normal(size=(20, 30))
    assert weight_entropy(scale * w) == pytest.approx(weight_entropy(w), abs=1e-9)
    assert 0 <= weight_entropy(w) <= 5


def test_entropy_falls_where_weights_concentrate() -> None:
    w = draw().normal(size=(100, 100))
    assert weight_entropy(w**3) < weight_entropy(w) - 0.5


# -- rank -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(128, 128), (7, 128), (128, 7), (1, 1), (200, 150)])
def test_rank_one_has_rank_one(shape: tuple[int, int], dtype: type) -> None:
    r = draw()
    w = np.outer(r.normal(size=shape[0]), r.normal(size=shape[1])).astype(dtype)
    for scale in (1, 1e-20, 1e20):
        assert effective_rank(w * dtype(scale)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(np.ones(shape, dtype)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 17, 200])
def test_identity_has_full_rank(n: int) -> None:
    assert effective_rank(np.eye(n)) == pytest.approx(n, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(12, 40), st.integers(12, 40))
def test_as_many_equal_singular_values_as_the_rank(rank: int, m: int, n: int) -> None:
    assert effective_rank(of_rank(rank, m, n)) == pytest.approx(rank, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 30))
def test_rank_by_singular_values(seed: int, m: int, n: int) -> None:
    w = draw(seed).normal(size=(m, n))
    p = np.linalg.svd(w, compute_uv=False)
    p /= p.sum()
    assert effective_rank(w) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert effective_rank(w.T) == pytest.approx(effective_rank(w))


def test_what_has_no_rank() -> None:
    assert effective_rank(np.zeros((4, 6))) == 0
    for bad in (math.nan, math.inf):
        w = np.ones((4, 6))
        w[1, 2] = bad
        assert math.isnan(effective_rank(w)) and math.isnan(weight_entropy(w))


# -- a model's metrics ------------------------------------------------------------------------------------------------
CONFIG = GPTConfig(vocab_size=300, block_size=16, n_layer=2, n_head=2, n_embd=32, activation="gelu,kan_spline")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return GPT(CONFIG, "cpu_ref").state_dict()


def test_metrics_are_means_over_matrices(weights: dict[str, np.ndarray]) -> None:
    found = weight_metrics(weights)
    matrices = [w for w in weights.values() if w.ndim == 2]
    assert found["weight_entropy"] == pytest.approx(half_normal_entropy(), abs=0.05)
    assert found["effective_rank"] == pytest.approx(np.mean([effective_rank(sample(w)) for w in matrices]))
    huge = {name: w if w.ndim == 2 else w + 1e6 for name, w in weights.items()}
    assert weight_metrics(huge) == found
    collapsed = {name: np.outer(w[:, 0], w[0]) if w.ndim == 2 else w for name, w in weights.items()}
    assert weight_metrics(collapsed)["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert math.isnan(weight_metrics(weights | {"wte.weight": np.full((300, 32), np.nan)})["effective_rank"])


def test_layer_norms(weights: dict[str, np.ndarray]) -> None:
    grads = {name: np.full(w.shape, i + 1, np.float32) for i, (name, w) in enumerate(weights.items())}
    norms = layer_norms(grads)
    assert list(norms) == ["embedding", "block0", "block1", "head"]
    total = math.sqrt(sum(float((g.astype(np.float64)**2).sum()) for g in grads.values()))
    assert math.hypot(*norms.values()) == pytest.approx(total)
    inside = [g for name, g in grads.items() if name.startswith("blocks.1.")]
    assert norms["block1"] == pytest.approx(math.sqrt(sum(float((g.astype(float)**2).sum()) for g in inside)))
    only = {name: g if name == "wpe.weight" else np.zeros_like(g) for name, g in grads.items()}
    assert [name for name, x in layer_norms(only).items() if x] == ["embedding"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(weights: dict[str, np.ndarray], bad: float) -> None:
    grads = weights | {"ln_f.bias": np.array([bad, 1.0], np.float32)}
    norms = layer_norms(grads)
    assert math.isnan(norms["head"]) and all(math.isfinite(x) for name, x in norms.items() if name != "head")


def test_norms_do_not_overflow() -> None:
    assert layer_norms({"wte.weight": np.full((2, 2), 1e38, np.float32)})["embedding"] == pytest.approx(2e38)


def test_a_foreign_name() -> None:
    with pytest.raises(ValueError, match=r"'h\.0\.w' is no parameter of a GPT"):
        layer_norms({"h.0.w": np.ones(3)})


# -- mutual information -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bins", [5, 10, 30])
def test_independent_series_share_nothing(bins: int) -> None:
    found = [mutual_information(r.uniform(size=5000), r.uniform(size=5000), bins) for r in map(draw, range(5))]
    bias = (bins - 1) ** 2 / (2 * 5000 * math.log(2))  # of the estimate without correction
    assert np.mean(found) < 0.15 * bias + 0.002


def test_the_correction_takes_off_the_known_bias() -> None:
    x, y = draw(1).uniform(size=(2, 5000))
    joint = np.histogram2d(x, y, 10)[0] / 5000
    p = joint / joint.sum(1, keepdims=True) / joint.sum(0, keepdims=True)
    plain = float((joint * np.log2(p)).sum())
    assert plain == pytest.approx(81 / (2 * 5000 * math.log(2)), rel=0.4)
    assert mutual_information(x, y, 10) == pytest.approx(max(0.0, plain - 81 / (2 * 5000 * math.log(2))), abs=1e-9)


def test_a_series_shares_its_entropy_with_itself() -> None:
    r = draw()
    assert mutual_information(r.uniform(size=20_000), r.uniform(size=20_000)) < 0.01
    x = r.uniform(size=20_000)
    for y in (x, -x, 3 * x + 5):
        assert mutual_information(x, y) == pytest.approx(math.log2(30), abs=0.01)
    coin = r.integers(0, 2, 5000)
    assert mutual_information(coin, coin) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_normal_series(rho: float) -> None:
    """-½ log2(1 - ρ²), of which a histogram loses a little."""
    r = draw()
    x = r.normal(size=50_000)
    y = rho * x + math.sqrt(1 - rho**2) * r.normal(size=50_000)
    assert mutual_information(x, y) == pytest.approx(-0.5 * math.log2(1 - rho**2), rel=0.1)


def test_a_constant_and_what_is_no_number() -> None:
    x = draw().normal(size=500)
    assert mutual_information(x, np.ones(500)) == 0
    assert math.isnan(mutual_information(x, np.where(x > 1, np.nan, x)))


@pytest.mark.parametrize(("n", "bins"), [(100, 4), (400, 8), (2000, 20), (5000, 30)])
def test_profile_along_the_main_direction(n: int, bins: int) -> None:
    r = draw()
    a, b = r.uniform(-1, 1, (2, n))
    spread = lambda x, d, seed: np.outer(x, draw(seed).normal(size=d)) + 0.001 * draw(seed).normal(size=(n, d))
    found = mi_profile(spread(a, 8, 1), spread(a, 300, 2), spread(b, 40, 3))
    assert found["mi_input_repr"] == pytest.approx(math.log2(bins), abs=0.2)
    assert found["mi_repr_output"] < 0.1
    assert found["mi_compression"] == found["mi_repr_output"] / found["mi_input_repr"]
    # The smaller direction is not looked at.
    mixed = spread(b, 8, 4) + 0.01 * spread(a, 8, 5)
    assert mi_profile(mixed, spread(a, 8, 1), spread(b, 8, 2))["mi_input_repr"] < 0.1


def test_profile_of_what_does_not_vary() -> None:
    x = draw().normal(size=(100, 4))
    assert mi_profile(np.ones((100, 4)), x, x)["mi_compression"] is None
    found = mi_profile(x * np.nan, x, x)
    assert math.isnan(found["mi_input_repr"]) and math.isnan(found["mi_compression"])
    assert found["mi_repr_output"] > 1
