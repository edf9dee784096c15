"""The page of measurements in docs/results/, made of several files: targets, tables, kernels, tests."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from helios.bench.report import MIB
from helios.errors import UserError
from helios.formula import Formula
from helios.model.activations import activation, split
from helios.train.markdown import escaped, figure, section, table

Report = dict[str, Any]  # what helios-bench --json writes, and perhaps "tests" and "parts"
KERNELS = 12  # most rows of a breakdown
FAILURES = 30  # most failed tests that are listed


# -- one report ------------------------------------------------------------------------------------------------------

def merge(files: Sequence[Path]) -> Report:
    """Return one report of several files: lists are joined, and of other values the first one stays.
    Raises UserError for files that cannot be read, and for those of different devices."""
    report: Report = {}
    for path in files:
        found = _read(path)
        for key, value in found.items():
            if isinstance(value, list):
                report[key] = report.get(key, []) + value
            elif key == "device" and report.setdefault(key, value) != value:
                raise UserError(f"{path} was measured on {value}, the files before it on {report[key]}")
            else:
                report.setdefault(key, value)
    return report


def _read(path: Path) -> Report:
    try:
        text = path.read_text("utf-8")
        found = {"tests": [tests(path.stem, text)]} if path.suffix == ".xml" else json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no JSON (or, ending in .xml, no JUnit) file: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no report")
    return found


def tests(name: str, junit: str) -> dict[str, Any]:
    """Return the counts and failures in a JUnit XML file that pytest wrote."""
    cases = list(ElementTree.fromstring(junit).iter("testcase"))
    failures, skipped = [], 0
    for case in cases:
        skipped += case.find("skipped") is not None
        problem = next((x for kind in ("failure", "error") if (x := case.find(kind)) is not None), None)
        if problem is not None:
            said, *_ = [*(problem.get("message") or "").strip().splitlines(), ""]
            failures.append({"test": f"{case.get('classname')}::{case.get('name')}", "message": said})
    return {"name": name, "passed": len(cases) - skipped - len(failures), "skipped": skipped, "failed": len(failures),
            "seconds": sum(float(case.get("time") or 0) for case in cases), "failures": failures}


# -- targets ---------------------------------------------------------------------------------------------------------

class Target(NamedTuple):
    """A target that figures in a report should meet."""

    what: str
    least: bool  # whether the limit is the least or the most that is wanted
    limit: float
    figures: Callable[[Report], list[float]]

    def row(self, report: Report) -> list[str]:
        """Return the cells of the target's row in the table."""
        figures = self.figures(report)
        wanted = f"{'≥' if self.least else '≤'} {self.limit:,g}"
        if not figures:
            return [self.what, wanted, "–", "–", "not measured"]
        worst, middle = (min if self.least else max)(figures), statistics.median(figures)
        met = "yes" if self._meets(worst) else "in the median" if self._meets(middle) else "no"
        return [self.what, wanted, figure(worst), figure(middle), met]

    def _meets(self, x: float) -> bool:
        return x >= self.limit if self.least else x <= self.limit


def _products(key: str, dtype: str) -> Callable[[Report], list[float]]:
    """Return a function that takes the figures of products in all layouts; ratios are those to PyTorch."""
    return lambda report: [row[key] for row in report.get("rows", ()) if row["op"].startswith("matmul")
                           and row["dtype"] == dtype and (key != "ratio" or row["peer"] == "torch")]


def _steps(key: str, **where: Any) -> Callable[[Report], list[float]]:
    return lambda report: [s[key] for s in report.get("steps", ()) if where.items() <= s.items()
                           and s[key] is not None]


def _against_gelu(which: Callable[[Formula], bool]) -> Callable[[Report], list[float]]:
    """Return a function that takes the times of steps with a formula of a kind over those of gelu's steps that differ
    in nothing else."""
    def wanted(text: str) -> bool:
        first, *others = {activation(part) for part in split(text)}
        return not others and text != "gelu" and first.formula is not None and which(first.formula)

    def figures(report: Report) -> list[float]:
        took: dict[tuple[Any, ...], dict[str, float]] = {}
        for s in report.get("steps", ()):
            took.setdefault((s["preset"], s["batch"], s["precision"]), {})[s["activation"]] = s["ms_per_step"]
        return [ms[text] / ms["gelu"] for ms in took.values() if "gelu" in ms for text in ms if wanted(text)]
    return figures


RECORDED = (
    Target("dispatches a step", False, 150, _steps("dispatches", preset="historic-6l")),
    Target("submits a step", False, 1, _steps("submits")),
    Target("host's milliseconds a step, beyond waiting", False, 1.0, _steps("host_ms", preset="historic-6l")),
)
ON_CPU = (
    Target("matmul f32, GFLOP/s", True, 100, _products("gflops", "f32")),
    Target("matmul f32, × PyTorch", True, 0.6, _products("ratio", "f32")),
    Target("historic-6l f32, × PyTorch eager", True, 0.6,
           _steps("ratio", preset="historic-6l", precision="f32", peer="torch")),
    *RECORDED,
    Target("formula in x: × gelu's step", False, 1.03, _against_gelu(lambda f: f.plain)),
    Target("gated formula: × gelu's step", False, 1.1, _against_gelu(lambda f: f.gated and not f.coefficients)),
    Target("formula with coefficients: × gelu's step", False, 1.15, _against_gelu(lambda f: bool(f.coefficients))),
)
ON_GPU = (
    Target("matmul f32, × cuBLAS without TF32", True, 0.9, _products("ratio", "f32")),
    Target("matmul mixed, × cuBLAS f16", True, 0.85, _products("ratio", "mixed")),
    Target("historic-6l mixed, × PyTorch compiled, bf16", True, 1.0,
           _steps("ratio", preset="historic-6l", precision="mixed", peer="torch-compile")),
    Target("historic-6l mixed, tokens/s on an L4", True, 300_000,
           _steps("tokens_per_sec", preset="historic-6l", precision="mixed")),
    Target("gpt2-124m mixed, tokens/s on an L4", True, 35_000,
           _steps("tokens_per_sec", preset="gpt2-124m", precision="mixed")),
    *RECORDED,
)


# -- the page --------------------------------------------------------------------------------------------------------

def markdown(report: Report) -> str:
    """Return the page."""
    software = ", ".join(f"{name} {version}" for name, version in report.get("software", {}).items())
    head = [f"# {report.get('device', 'Unknown device')}", "",
            f"{report.get('driver', 'Unknown driver')}; {report.get('processor', 'unknown processor')}; {software}; "
            f"{report.get('date', '')[:10]}."]
    return "\n".join([*head, *_targets(report), *_step_section(report), *_row_section(report), *_kernel_section(report),
                      *_test_section(report), *_part_section(report)]) + "\n"


def _targets(report: Report) -> Iterator[str]:
    targets = ON_CPU if report.get("profile") == "cpu" else ON_GPU
    yield from section("Targets", "A ratio is Helios's throughput divided by the peer's.")
    yield from table(("what", "wanted", "worst", "median", "met"), (t.row(report) for t in targets))


def _step_section(report: Report) -> Iterator[str]:
    if steps := report.get("steps"):
        yield from section("Whole training steps", "Forward, backward, clipping, AdamW, in turn with PyTorch, which "
                           "uses bf16 autocast where Helios uses f16 (mixed).")
        yield from table(
            ("model", "parameters", "activation", "precision", "batch", "tokens/s", "ms", "dispatches", "host ms",
             "arena MiB", "peer", "its tokens/s", "ratio"),
            ([s["preset"], f"{s['parameters']:,}", escaped(s["activation"]), s["precision"], str(s["batch"]),
              figure(s["tokens_per_sec"]), figure(s["ms_per_step"]), str(s["dispatches"]), figure(s["host_ms"]),
              figure(s["arena_bytes"] / MIB), s["peer"] or "–", figure(s["peer_tokens_per_sec"]), figure(s["ratio"])]
             for s in steps), left=4)


def _row_section(report: Report) -> Iterator[str]:
    rows = report.get("rows", [])
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        yield from section(f"Primitives, {dtype}", "" if dtype == "f32" else "PyTorch's matrices are f16.")
        yield from table(("op", "shape", "kernels", "ms", "GFLOP/s", "GB/s", "of peak", "peer", "its ms", "ratio"), (
            [r["op"], r["shape"], r["variant"], figure(r["median_ms"]), figure(r["gflops"]), figure(r["gbps"]),
             figure(r["fraction_of_peak"]), r["peer"] or "–", figure(r["peer_ms"]), figure(r["ratio"])]
            for r in mine), left=3)


def _kernel_section(report: Report) -> Iterator[str]:
    # Where a step was measured with several peers, the last one counts.
    steps = {(s["preset"], escaped(s["activation"]), s["precision"], s["batch"]): s["kernels"]
             for s in report.get("steps", ()) if s.get("kernels")}
    for about, kernels in steps.items():
        yield from section("Kernels of {}, {}, {}, batch {}".format(*about), "By the device's clock, each run alone.")
        total, rest = sum(k["ms"] for k in kernels), kernels[KERNELS:]
        shown = kernels[:KERNELS]
        if rest:
            shown = [*shown, {"name": f"{len(rest)} others", "calls": sum(k["calls"] for k in rest),
                              "ms": sum(k["ms"] for k in rest)}]
        yield from table(("kernel", "calls", "ms", "share"), (
            [k["name"], str(k["calls"]), figure(k["ms"]), f"{k['ms'] / total:.1%}"] for k in shown))


def _test_section(report: Report) -> Iterator[str]:
    if runs := report.get("tests"):
        yield from section("Tests on this device")
        yield from table(("tests", "passed", "failed", "skipped", "seconds"), (
            [t["name"], *(str(t[k]) for k in ("passed", "failed", "skipped")), f"{t['seconds']:.0f}"] for t in runs))
        failures = [f for t in runs for f in t["failures"]]
        if failures:
            yield ""
            yield from (f"* `{f['test']}`: {f['message']}" for f in failures[:FAILURES])
        if len(failures) > FAILURES:
            yield f"* and {len(failures) - FAILURES} more"


def _part_section(report: Report) -> Iterator[str]:
    if parts := report.get("parts"):
        yield from section("What ran")
        yield from table(("part", "result", "seconds"), ([p["part"], p["result"], str(p["seconds"])] for p in parts),
                          left=2)
