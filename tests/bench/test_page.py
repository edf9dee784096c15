"""The page: what several files hold, in one; targets beside what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helios.bench import page
from helios.cli import bench
from helios.errors import UserError
from helios.train.markdown import table

ABOUT = {"device": "NVIDIA L4", "driver": "NVIDIA 1.2", "profile": "coopmat", "software": {"torch": "2.0"},
         "processor": "A CPU, 4 cores", "date": "2026-01-02T03:04:05+00:00"}
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_ops" name="test_a" time="1.5"/>
<testcase classname="tests.ops.test_ops" name="test_b" time="1"><failure message="assert 1 == 2&#10;more">…
</failure></testcase>
<testcase classname="tests.ops.test_ops" name="test_c" time="0"><skipped message="no such thing"/></testcase>
<testcase classname="tests.ops.test_ops" name="test_d" time="0"><error message="broken | here"/></testcase>
</testsuite></testsuites>"""


def row(op: str = "matmul_nt", dtype: str = "f32", **more: Any) -> dict[str, Any]:
    return {"op": op, "shape": "64x64x64", "dtype": dtype, "variant": "matmul", "median_ms": 1.0, "gflops": 120.0,
            "gbps": 1.0, "fraction_of_peak": 0.5, "peer": "torch", "peer_ms": 1.0, "ratio": 1.0} | more


def step(**more: Any) -> dict[str, Any]:
    kernels = [{"name": f"kernel {i}", "calls": 2, "ms": 14.0 - i} for i in range(14)]
    return {"preset": "historic-6l", "parameters": 6838784, "batch": 8, "activation": "gelu", "precision": "mixed",
            "tokens_per_sec": 400000.0, "ms_per_step": 10.0, "dispatches": 120, "submits": 1.0, "barriers": 90,
            "host_ms": 0.5, "arena_bytes": 3 << 20, "peer": "torch-compile", "peer_tokens_per_sec": 200000.0,
            "ratio": 2.0, "kernels": kernels} | more


def folded(text: str) -> str:
    """Without the blanks that align the cells of a table."""
    return re.sub(" +", " ", text)


def target(text: str, what: str) -> list[str]:
    (line,) = (line for line in folded(text).splitlines() if line.startswith(f"| {what} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_files_become_one_page(tmp_path: Path) -> None:
    files = {"rows.json": {**ABOUT, "rows": [row()], "steps": []},
             "steps.json": {**ABOUT, "rows": [], "steps": [step()]},
             "parts.json": {"parts": [{"part": "matmul", "result": "out of time (60 s)", "seconds": 60}]}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "ops.xml").write_text(JUNIT)
    out = tmp_path / "all.json"
    result = CliRunner().invoke(bench.main, ["page", *(str(tmp_path / name) for name in (*files, "ops.xml")),
                                             "--json", str(out), "--markdown", str(tmp_path / "all.md")])
    assert result.exit_code == 0, result.output
    found, text = json.loads(out.read_text()), (tmp_path / "all.md").read_text()
    assert {key: found[key] for key in ABOUT} == ABOUT
    assert (found["rows"], found["steps"]) == ([row()], [step()])
    assert page.markdown(found) == text and page.merge([out]) == found
    assert text.startswith("# NVIDIA L4\n\nNVIDIA 1.2; A CPU, 4 cores; torch 2.0; 2026-01-02.\n")
    text = folded(text)
    assert "| matmul | out of time (60 s) | 60 |" in text
    assert "| kernel 0 | 2 | 14.0 | 13.3% |" in text and "| 2 others | 4 | 3.00 |" in text and "kernel 12" not in text
    assert "| ops | 1 | 2 | 1 | 2 |" in text and "* `tests.ops.test_ops::test_b`: assert 1 == 2\n" in text
    assert page.markdown({})  # whatever is missing


def test_targets() -> None:
    text = page.markdown({**ABOUT, "rows": [row(dtype="mixed", ratio=0.7), row(dtype="mixed", ratio=0.9),
                                            row(dtype="mixed", ratio=0.95), row("silu", "mixed", ratio=0.1),
                                            row(ratio=0.91), row(peer="numpy", ratio=0.2)],
                          "steps": [step(), step(dispatches=151), step(preset="small-17m", ratio=0.1, dispatches=999)]})
    assert target(text, "matmul mixed, × cuBLAS f16") == ["≥ 0.85", "0.700", "0.900", "in the median"]
    assert target(text, "matmul f32, × cuBLAS without TF32") == ["≥ 0.9", "0.910", "0.910", "yes"]
    assert target(text, "historic-6l mixed, × PyTorch compiled, bf16") == ["≥ 1", "2.00", "2.00", "yes"]
    assert target(text, "dispatches a step") == ["≤ 150", "151", "136", "in the median"]
    assert target(text, "gpt2-124m mixed, tokens/s on an L4") == ["≥ 35,000", "–", "–", "not measured"]


def test_a_formula_is_no_markup() -> None:
    text = page.markdown({**ABOUT, "profile": "cpu", "rows": [], "steps": [step(activation="x*x|a*x; a=1")]})
    assert "x*x" not in text and text.count("x\\*x") == 2


def test_targets_of_a_cpu() -> None:
    took = {"gelu": 10.0, "silu": 10.2, "quick: x*sigmoid(1.702*x)": 10.4, "swiglu": 11.1, "max(g, u)*g": 10.9,
            "universal": 11.6, "a*tanh(g)*u; a=1": 11.0, "kan_bspline": 19.0, "gelu|silu": 19.0, "gelu,mish": 19.0}
    steps = [step(activation=text, ms_per_step=ms, precision="f32") for text, ms in took.items()]
    text = page.markdown({**ABOUT, "profile": "cpu", "rows": [row(gflops=99.0)],
                          "steps": [*steps, step(activation="relu", batch=4)]})
    assert target(text, "matmul f32, GFLOP/s") == ["≥ 100", "99.0", "99.0", "no"]
    assert target(text, "formula in x: × gelu's step") == ["≤ 1.03", "1.04", "1.03", "in the median"]
    assert target(text, "gated formula: × gelu's step") == ["≤ 1.1", "1.11", "1.10", "in the median"]
    assert target(text, "formula with coefficients: × gelu's step") == ["≤ 1.15", "1.16", "1.13", "in the median"]


def test_the_page_of_what_was_measured_before() -> None:
    file = Path(__file__).parents[2] / "docs" / "results" / "lavapipe.json"
    text = page.markdown(page.merge([file]))
    for what in ("formula in x", "gated formula", "formula with coefficients"):
        assert target(text, f"{what}: × gelu's step")[-1] in ("yes", "in the median", "no")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    for name, content in (("a.json", {"device": "A"}), ("b.json", {"device": "B"}), ("list.json", [])):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "x.xml").write_text("<no")
    with pytest.raises(UserError, match="measured on B, the files before it on A"):
        page.merge([tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(UserError, match="holds no report"):
        page.merge([tmp_path / "list.json"])
    with pytest.raises(UserError, match="no JUnit"):
        page.merge([tmp_path / "x.xml"])


def test_cells_stay_in_their_columns() -> None:
    row = ["a | b", "1,000", "two\nlines"]
    assert list(table(("op", "ms", "why"), [row], words={"why"})) == [
        "| op     |    ms | why       |",
        "|:-------|------:|:----------|",
        "| a \\| b | 1,000 | two lines |"]
    assert table(("op", "ms", "why"), [row], left=0)[1] == "|-------:|------:|----------:|"
    assert not list(table(("op", "ms"), []))
    with pytest.raises(ValueError):
        list(table(("op", "ms"), [row]))
