"""The table of what is measured covers every primitive, and all sides of a row compute the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.bench import measure, registry
from helios.bench.registry import REF, Row, Sizes, rows
from helios.errors import UserError
from helios.train.config import resolve

SIZES = Sizes.of(resolve("tiny").model, 4)
TOLERANCE = 1e-5  # of float32 sums of a few hundred terms, relative to the largest value
NOT_MEASURED = {"array", "numpy", "zeros", "reshape", "view", "record", "mark", "memory", "assign", "upload"}


def names(row: Row) -> str:
    return f"{row.op}-{row.shape}"


def same(got: Any, expected: Any) -> None:
    """A prefix of what was expected, at least one array."""
    pairs = list(zip(got, expected, strict=False))
    assert pairs and len(got) <= len(expected)
    for x, y in pairs:
        assert x.shape == y.shape and np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * max(np.abs(y).max(), 1e-3))


def values(row: Row, be: Backend) -> list[np.ndarray]:
    return [be.numpy(x) for x in row.outputs(row.call(be, *(be.array(x) for x in row.arguments())))]


def test_every_primitive_has_a_row() -> None:
    primitives = {name for name, f in vars(Backend).items() if callable(f) and not name.startswith("_")} - NOT_MEASURED
    assert {row.primitive for row in rows(SIZES)} == primitives


def test_rows_are_distinct() -> None:
    found = [names(row) for row in rows(Sizes.of(resolve("historic-6l").model, 8))]
    assert len(found) == len(set(found))


def test_products_are_those_of_a_step() -> None:
    """Layouts and lengths of historic-6l, M 2048 in each."""
    found = {(row.op, row.shape) for row in rows(Sizes.of(resolve("historic-6l").model, 8))}
    for n, k in ((768, 256), (256, 256), (1024, 256), (256, 1024), (1408, 256), (256, 704), (4000, 256)):
        assert {("matmul_nt", f"2048x{n}x{k}"), ("matmul_nn", f"2048x{k}x{n}"), ("matmul_tn", f"{n}x{k}x2048")} <= found


@pytest.mark.parametrize("row", rows(SIZES), ids=names)
def test_numpy_computes_the_same(row: Row, backend: Backend) -> None:
    work = measure.peer_work("numpy", row, row.arguments())
    same(row.outputs(work()), values(row, backend))


@pytest.mark.parametrize("row", rows(dataclasses.replace(SIZES, dropout=0.0)), ids=names)
def test_torch_computes_the_same(row: Row) -> None:
    pytest.importorskip("torch", reason="PyTorch is a peer, not a requirement")
    work = measure.peer_work("torch", row, row.arguments())
    same([x.detach().numpy() for x in row.outputs(work())], values(row, REF))
    work()  # may be repeated


def test_traffic_and_arithmetic() -> None:
    row = next(row for row in rows(SIZES) if row.op == "matmul_nt")
    m, n, k = map(int, row.shape.split("x"))
    arguments = row.arguments()
    assert row.flops == 2 * m * n * k
    assert row.bytes(arguments, row.outputs(row.call(REF, *arguments))) == 4 * (m * k + n * k + m * n)


def test_choice() -> None:
    table = rows(SIZES)
    assert {row.op for row in measure.choose(table, ["matmul", "linear+gelu"])} == {
        "matmul_nt", "matmul_nn", "matmul_tn", "linear+gelu"}
    assert measure.choose(table, []) == table
    with pytest.raises(UserError, match="--only atention: no such op; did you mean attention"):
        measure.choose(table, ["atention"])


def test_fraction_is_of_the_roof_above() -> None:
    peaks = measure.Peaks(gflops=100.0, gbps=10.0)
    assert peaks.fraction(gflops=50.0, gbps=1.0) == 0.5
    assert peaks.fraction(gflops=1.0, gbps=8.0) == 0.8


def test_attention_rows_use_what_the_model_uses() -> None:
    """The backward row's saved values are those of its own forward pass."""
    row = next(row for row in rows(SIZES) if row.op == "attention_backward")
    qkv, out, lse, key, _ = row.arguments()
    again = REF.attention(qkv, key, SIZES.n_head, SIZES.softcap, SIZES.dropout, 0)
    np.testing.assert_array_equal(out, again[0])
    np.testing.assert_array_equal(lse, again[1])
    assert registry.Sizes.of(resolve("tiny").model, 4) == SIZES
