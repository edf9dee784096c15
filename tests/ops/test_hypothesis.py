"""Forward and gradients on shapes that nobody chose: 1, primes, anything that is no multiple of a tile."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helios import random
from helios.backends.backend import Backend
from helios.model.activations import TABLE, activation

from .arrays import Sample, integers, normal
from .registry import OPS, ORACLE, close, forward, gradients
from .samples import largest_score, normed_sample

few = settings(max_examples=15, deadline=None, derandomize=True)  # a new shape may mean a new pipeline on a device
lengths = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 17, 31, 37, 61, 64, 67, 97, 127, 131]) | st.integers(1, 140)
short = st.sampled_from([1, 2, 3, 5, 7, 8, 11, 16, 17, 33])
seeds = st.integers(0, 2**32 - 1)


def check(name: str, sample: Sample, be: Backend) -> None:
    op = OPS[name]
    tolerance = op.tolerance(sample)
    close(forward(op, sample, be)[0].numpy(), forward(op, sample, ORACLE)[0].numpy(), tolerance, sample.scale)
    for got, expected in zip(gradients(op, sample, be), gradients(op, sample, ORACLE), strict=True):
        close(got, expected, tolerance, sample.scale)


@few
@given(name=st.sampled_from(["add", "sub", "mul", *TABLE]), shape=st.lists(lengths, min_size=1, max_size=3), seed=seeds)
def test_elementwise(each_backend: Backend, name: str, shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    *rows, features = shape
    if name in TABLE:
        act = activation(name)
        coefficients = [normal(rng, *value.shape, features) for value in act.coefficients.values()]
        inputs = [normal(rng, *rows, act.parts * features), *coefficients]
    else:
        inputs, coefficients = [normal(rng, *shape), normal(rng, *shape)], []
    check(name, Sample(tuple(inputs), terms=math.prod(rows) if coefficients else 1, scale=1.0), each_backend)


@few
@given(lead=st.lists(short, max_size=2), shared=st.booleans(), m=lengths, n=lengths, k=lengths, ta=st.booleans(),
       tb=st.booleans(), seed=seeds)
def test_matmul(each_backend: Backend, lead: list[int], shared: bool, m: int, n: int, k: int, ta: bool, tb: bool,
                seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = shared and not ta  # an op(a) transposed needs a b of its own
    a = normal(rng, *lead, *((k, m) if ta else (m, k)))
    b = normal(rng, *([] if shared else lead), *((n, k) if tb else (k, n)))
    rows = m * math.prod(lead) if shared else m
    check("matmul", Sample((a, b), {"ta": ta, "tb": tb}, terms=max(n, k, rows)), each_backend)


@few
@given(lead=st.lists(lengths, min_size=1, max_size=2), n=lengths, k=lengths,
       activation=st.sampled_from([None, "gelu(x)", "silu(x)", "relu(x)", "x*tanh(x)"]), seed=seeds)
def test_linear(each_backend: Backend, lead: list[int], n: int, k: int, activation: str | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = Sample((normal(rng, *lead, k), normal(rng, n, k)), {"activation": activation},
                    terms=max(n, k, math.prod(lead)))
    check("linear", sample, each_backend)


@few
@given(lead=st.lists(lengths, max_size=2), width=lengths.filter(lambda d: d not in (2, 3)), seed=seeds)
def test_layer_norm(each_backend: Backend, lead: list[int], width: int, seed: int) -> None:
    """Without widths 2 and 3: there a row's variance may be near 0, and float32 has no right answer."""
    rng = np.random.default_rng(seed)
    x = np.linspace(-1.5, 1.5, width) + normal(rng, *lead, width, spread=0.2)
    sample = Sample((np.asarray(x, np.float32), normal(rng, width), normal(rng, width)), terms=x.size)
    check("layer_norm", sample, each_backend)


@few
@given(lead=st.lists(lengths, max_size=2), width=lengths, seed=seeds)
def test_rms_norm(each_backend: Backend, lead: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.copysign(1, normal(rng, *lead, width)) + normal(rng, *lead, width, spread=0.2)
    sample = Sample((x, normal(rng, width)), terms=x.size, scale=float(width == 1))
    check("rms_norm", sample, each_backend)


@few
@given(v=lengths, d=lengths, lead=st.lists(short, max_size=1), t=short, more=st.none() | short, seed=seeds)
def test_embedding(each_backend: Backend, v: int, d: int, lead: list[int], t: int, more: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = None if more is None else normal(rng, t + more - 1, d)
    index = integers(rng, v, *lead, t)
    check("embedding", Sample((normal(rng, v, d), index, positions), terms=index.size), each_backend)


@few
@given(b=st.integers(1, 3), t=lengths, n_head=st.sampled_from([1, 2, 3, 5]), size=st.sampled_from([1, 3, 5, 8, 16, 24]),
       cap=st.sampled_from([0.0, 2.0, 30.0]), p=st.sampled_from([0.0, 0.1, 0.5]), seed=seeds)
def test_attention(each_backend: Backend, b: int, t: int, n_head: int, size: int, cap: float, p: float, seed: int
                   ) -> None:
    qkv = normal(np.random.default_rng(seed), b, t, 3 * n_head * size)
    sample = Sample((qkv, random.state(seed, 1)), {"n_head": n_head, "cap": cap, "p": p, "site": 3},
                    terms=max(t, size), exponent=largest_score(qkv, n_head, cap))
    check("attention", sample, each_backend)


@few
@given(b=st.integers(1, 3), t=lengths, n_head=st.sampled_from([1, 2, 3, 5]), size=st.sampled_from([3, 5, 8, 16, 24]),
       cap=st.sampled_from([0.0, 2.0]), p=st.sampled_from([0.0, 0.1]), seed=seeds)
def test_attention_with_norms(each_backend: Backend, b: int, t: int, n_head: int, size: int, cap: float, p: float,
                              seed: int) -> None:
    sample = normed_sample(np.random.default_rng(seed), b, t, n_head, size, cap, p)
    check("attention", sample, each_backend)


@few
@given(lead=st.lists(short, max_size=2), v=lengths | st.integers(200, 3000), cap=st.sampled_from([0.0, 2.0, 30.0]),
       seed=seeds)
def test_cross_entropy(each_backend: Backend, lead: list[int], v: int, cap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = normal(rng, *lead, v, spread=2.0)
    sample = Sample((logits, integers(rng, v, *lead)), {"cap": cap}, terms=max(v, math.prod(lead)), scale=float(v == 1),
                    exponent=cap or float(np.abs(logits).max()))
    check("cross_entropy", sample, each_backend)


@few
@given(shape=st.lists(lengths, min_size=1, max_size=3), p=st.sampled_from([0.1, 0.5, 0.9]), with_residual=st.booleans(),
       site=st.integers(0, 2**31 - 1), seed=seeds)
def test_dropout(each_backend: Backend, shape: list[int], p: float, with_residual: bool, site: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    residual = normal(rng, *shape) if with_residual else None
    sample = Sample((normal(rng, *shape), random.state(seed << 31, seed % 2**31), residual), {"p": p, "site": site})
    check("dropout", sample, each_backend)
