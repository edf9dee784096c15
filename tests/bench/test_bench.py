"""helios-bench on tiny shapes: what it prints and writes, and how it refuses. No test looks at a time."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.backends.vulkan import shaders
from helios.bench import step
from helios.bench.registry import Sizes, rows
from helios.cli import bench
from helios.train.config import resolve

from ..commands import invoke, refused

TOP = {"device", "driver", "processor", "profile", "software", "date", "rows", "steps"}
ROW = {"op", "shape", "dtype", "variant", "median_ms", "gflops", "gbps", "fraction_of_peak", "peer", "peer_ms", "ratio"}
STEP = {"preset", "parameters", "batch", "activation", "precision", "tokens_per_sec", "ms_per_step", "times_first",
        "dispatches", "submits", "barriers", "host_ms", "arena_bytes", "peer", "peer_tokens_per_sec", "ratio",
        "kernels"}
TINY = ("--preset", "tiny", "--quick")
run = partial(invoke, bench.main)


def done(*args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.output


def test_rows(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    shown = done(*TINY, "--backend", backend.name, "--only", "silu", "--only", "attention_backward", "--json", file)
    found = json.loads(file.read_text())
    assert set(found) == TOP and found["steps"] == []
    assert found["device"] == backend.device_name and found["driver"] == backend.driver
    assert [row["op"] for row in found["rows"]] == ["silu", "attention_backward"]
    for row in found["rows"]:
        assert set(row) == ROW
        assert row["dtype"] == "f32" and row["peer"] == "numpy" and row["op"] in shown
        assert all(row[k] > 0 for k in ("median_ms", "gflops", "gbps", "fraction_of_peak", "peer_ms"))
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["median_ms"])


def test_products_of_other_lengths(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    done(*TINY, "--backend", "cpu_ref", "--only", "matmul_nn", "--only", "matmul_tn", "--product", "24",
         "--product", "7x5x3", "--peer", "none", "--json", file)
    found = json.loads(file.read_text())["rows"]
    assert [(row["op"], row["shape"]) for row in found[:4]] == [
        (op, shape) for shape in ("24x24x24", "7x5x3") for op in ("matmul_nn", "matmul_tn")]
    assert len(found) > 4


def test_without_a_peer(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    done(*TINY, "--backend", "cpu_ref", "--only", "sum", "--peer", "none", "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["variant"] == "cpu_ref" and row["peer"] is row["peer_ms"] is row["ratio"] is None


def test_step(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    shown = done("step", *TINY, "--batch", "2", "--activation", "swiglu,relu", "--backend", backend.name,
                 "--json", file)
    found = json.loads(file.read_text())
    assert set(found) == TOP and found["rows"] == []
    (figures,) = found["steps"]
    assert set(figures) == STEP
    assert (figures["preset"], figures["batch"], figures["activation"]) == ("tiny", 2, "swiglu,relu")
    assert figures["tokens_per_sec"] == pytest.approx(1e3 * 2 * 16 / figures["ms_per_step"])
    assert 0 <= figures["host_ms"] <= figures["ms_per_step"]
    if backend.name == "vulkan":
        assert figures["submits"] == 1 and 0 < figures["barriers"] < figures["dispatches"]
        assert figures["arena_bytes"] > 0 and "attention_backward" in shown and "adamw" in shown


def test_several_activations(backend: Backend, tmp_path: Path) -> None:
    file, mine = tmp_path / "b.json", "mine: a*silu(g)*u+b*u; a=1, b=0"
    shown = done("step", *TINY, "--activation", "gelu", "--activation", mine, "--activation", "relu|gelu", "--backend",
                 backend.name, "--json", file)
    found = json.loads(file.read_text())["steps"]
    assert [figures["activation"] for figures in found] == ["gelu", mine, "relu|gelu".replace("|", ",")]
    for figures in found:
        assert set(figures) == STEP
        assert figures["times_first"] == pytest.approx(figures["ms_per_step"] / found[0]["ms_per_step"])
    lines = shown.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("activation "))
    assert "× first" in lines[first] and "peer" not in lines[first]
    for name, figures, line in zip(("gelu", "mine", "gelu×1 relu×1"), found, lines[first + 1:], strict=False):
        assert line.startswith(f"{name} ") and f" {figures['ms_per_step']:,.2f} " in line
        assert f" {figures['times_first']:.3f} " in line


def test_activations_and_their_peers_take_turns(cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    log, real = list[str](), step.Training.step

    def logged(self: step.Training, *inputs: Any) -> float:
        log.append(self.config.model.activation)
        return real(self, *inputs)

    monkeypatch.setattr(step.Training, "step", logged)
    monkeypatch.setattr(step, "peer", lambda name, config, be: lambda *inputs: log.append(
        f"{name} {config.model.activation}"))
    trainings = [step.Training(resolve("tiny", flags={"activation": name}), cpu_ref) for name in ("gelu", "x*sin(x)")]
    found = step.measure("tiny", trainings, "torch", step.Effort(rounds=2, steps=2, warmup=1, profiles=1))
    once, turn = ([name for side in ("gelu", "x*sin(x)") for name in (*[side] * n, *[f"torch {side}"] * n)]
                  for n in (1, 2))
    assert log == once + turn * 2
    assert [(f["peer"], f["activation"]) for f in found] == [("torch", "gelu"), ("torch", "x*sin(x)")]


def test_breakdown_counts_every_dispatch(backend: Backend) -> None:
    if backend.name != "vulkan":
        pytest.skip("only Vulkan records dispatches")
    config = resolve("tiny", flags={"activation": "gelu,swiglu"})
    (figures,) = step.measure("tiny", [step.Training(config, backend)], "none", step.QUICK)
    names = [k["name"] for k in figures["kernels"]]
    assert sum(k["calls"] for k in figures["kernels"]) == figures["dispatches"]
    assert len(set(names)) == len(names)
    assert any(" nt" in name for name in names) and any("gelu" in name for name in names)


def test_torch_beside_a_step(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is a peer, not a requirement")
    file = tmp_path / "b.json"
    done("step", *TINY, "--backend", "cpu_ref", "--peer", "torch", "--precision", "mixed", "--json", file)
    (figures,) = json.loads(file.read_text())["steps"]
    assert figures["peer"] == "torch" and figures["precision"] == "mixed" and figures["peer_tokens_per_sec"] > 0
    assert figures["ratio"] == pytest.approx(figures["tokens_per_sec"] / figures["peer_tokens_per_sec"])


def test_several_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One after the other; what is measured is kept when the next one fails."""
    def peer(name: str, *more: Any) -> Any:
        if name == "torch-compile":
            raise RuntimeError("no compiler")
        return lambda tokens, targets: 0.0

    monkeypatch.setattr(step, "peer", peer)
    monkeypatch.setattr(step, "torch_module", lambda: None)
    file = tmp_path / "b.json"
    args = ("step", *TINY, "--backend", "cpu_ref", "--json", file, "--peer", "torch", "--peer")
    done(*args, "torch")
    assert [figures["peer"] for figures in json.loads(file.read_text())["steps"]] == ["torch", "torch"]
    assert str(run(*args, "torch-compile").exception) == "no compiler"
    assert [figures["peer"] for figures in json.loads(file.read_text())["steps"]] == ["torch"]


def test_torch_gets_float16_where_ours_rounds_to_it() -> None:
    pytest.importorskip("torch", reason="PyTorch is a peer, not a requirement")
    (product, norm) = (next(r for r in rows(Sizes.of(resolve("tiny").model, 4)) if r.op == op)
                       for op in ("matmul_nt", "layer_norm"))
    for row, precision, expected in ((product, "mixed", "float16"), (product, "f32", "float32"),
                                     (norm, "mixed", "float32")):
        work = bench.measure.peer_work("torch", row, row.arguments(), precision=precision)
        assert str(work().dtype) == f"torch.{expected}"


def test_roofline(tmp_path: Path) -> None:
    done(*TINY, "--backend", "cpu_ref", "--only", "gelu", "--only", "expand", "--peer", "none",
         "--plot", tmp_path / "p")
    assert (tmp_path / "p" / "roofline.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("args", "message"), [
    (["--only", "matmull"], "--only matmull: no such op; did you mean matmul"),
    (["--preset", "tinny"], "unknown preset 'tinny'"),
    (["--json", "/no/such/folder/b.json"], "cannot write /no/such/folder/b.json: no folder"),
    (["--json", "/"], "cannot write /: it is a folder"),
    (["--peer", "none", "step"], "options of step go after it"),
    (["--product", "3x4"], "expected M or MxNxK"),
    (["--product", "0"], "expected M or MxNxK"),
    (["page", "/no/such/file.json"], "cannot read /no/such/file.json"),
    (["page", __file__], "is no JSON"),
    (["step", "--preset", "tinny"], "unknown preset 'tinny'"),
    (["step", "--activation", "gelo"], "activation: given 'gelo'"),
    (["step", "--precision", "f64"], "--precision: expected one of"),
    (["step", "--json", "/no/such/folder/b.json"], "cannot write"),
])
def test_bad_options(args: list[str], message: str) -> None:
    refused(run(*args), message)


@pytest.mark.parametrize("args", [["--peer", "jax"], ["--dtype", "f64"], ["step", "--batch", "0"],
                                  ["step", "--peer", "jax"], ["--rows"]])
def test_bad_usage(args: list[str]) -> None:
    assert run(*args).exit_code == 2


@pytest.mark.parametrize("args", [["--peer", "torch"], ["step", "--peer", "torch"]])
def test_what_is_optional_is_missed_in_one_line(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *more: Any) -> Any:
        if name.startswith("torch"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", missing)
    refused(run(*args), "No module named 'torch'")


@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_the_kernels_of_the_peaks_are_valid(lanes: int, tmp_path: Path) -> None:
    validator = shutil.which("spirv-val")
    for name, more in (("peak_fma", {"WIDTH": 8, "DEPTH": 8}), ("peak_copy", {"SPAN": 4})):
        text = shaders.source(f"helios.bench/{name}", {"SG": lanes, "WG": lanes, **more})
        (tmp_path / f"{name}.spv").write_bytes(shaders.compile(name, text))
        if validator:
            subprocess.run([validator, "--target-env", "vulkan1.3", "--scalar-block-layout", tmp_path / f"{name}.spv"],
                           check=True)


def test_board(tmp_path: Path) -> None:
    page, file = tmp_path / "board.md", tmp_path / "board.json"
    shown = done("board", "--quick", "--json", file, "--markdown", page)
    figures = {f["what"]: f for f in json.loads(file.read_text())}
    assert all(what in shown and what in page.read_text() for what in figures)
    assert all(f["value"] >= 0 and f["peer"] is None for f in figures.values())
    assert figures["highest loss in that series; one step has 99"]["value"] == 99.0
    refused(run("board", "--json", tmp_path / "none" / "b.json"), "no folder")
