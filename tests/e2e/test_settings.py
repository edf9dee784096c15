"""Any settings: refused in one line, or a training that comes to something or says why not.

HELIOS_TEST_DRAWS is the number of dry runs, 300 where it is unset; for 100 of them there are 3 trainings, at least 20.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.backends.backend import Backend
from helios.cli import train
from helios.model.activations import TABLE
from helios.model.config import NORMS
from helios.model.settings import FLOAT, INT, SWITCH, Setting
from helios.train import checkpoint
from helios.train.config import SECTIONS, SETTINGS, presets

from ..commands import invoke, refused

DRAWS = int(os.environ.get("HELIOS_TEST_DRAWS", "300"))
pytestmark = pytest.mark.timeout(2 * DRAWS)
drawn: Callable[[int], Any] = lambda n: settings(max_examples=n, deadline=None, database=None, derandomize=DRAWS <= 300,
                                                 suppress_health_check=list(HealthCheck))

FORMULAS = [*TABLE, "x*sin(x)", "mine: a*tanh(g)*u+b*g; a=1, b=0.1"]
LETTERS = st.text(max_size=20) | st.sampled_from(
    ["", "auto", "none", "true", "１２", "1_0", "0x1", "[", "[]", "{}", "nan", "synth:9GB", "synth:1"])
WHOLE = st.integers(-2, 9) | st.integers() | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400])
REAL = st.floats() | st.sampled_from([0.0, -0.0, 1e-46, 1.1e-38, 1.2e-38, 3.4e38, 3.5e38, 0.99999999, 0.9999999, 1.0])
ANYTHING = st.recursive(LETTERS | WHOLE | REAL | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def fitting(s: Setting) -> st.SearchStrategy[Any]:
    """Values of the setting's kind, most of which it accepts."""
    if s.range.names:
        return st.sampled_from(s.range.names)
    if s.kind is SWITCH:
        return st.booleans()
    if s.kind is INT:
        return st.integers(0, 12)
    return st.floats(0, 1) if s.kind is FLOAT else st.sampled_from([*FORMULAS, "synth:3KB", "gelu,relu", "1", "a=1"])


@st.composite
def pairs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Setting, Any]:
    s = draw(st.sampled_from(SETTINGS))
    return s, draw(ANYTHING if draw(st.integers(0, 3)) == 0 else fitting(s))


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@st.composite
def command_lines(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[list[str], str]:
    """Arguments, and the content of a TOML file, "" for none."""
    args = []
    if draw(st.booleans()):
        args.append(f"--preset={draw(st.sampled_from(presets()))}")
    for s, value in draw(st.lists(pairs(), max_size=4)):
        args += [f"--{s.flag}={text(value)}"] if s.flag else ["--set", f"{s.key}={text(value)}"]
    if draw(st.integers(0, 9)) == 0:
        args.append(draw(LETTERS | st.binary(max_size=5).map(os.fsdecode)))
        if args[-1] == "--help":
            args.pop()
    lines = [f"{s.key} = {json.dumps(value)}" for s, value in draw(st.lists(pairs(), max_size=3))]
    tables = st.sampled_from([*SECTIONS, "activations", "[x]"])
    lines += [f"[{section}]" for section in draw(st.lists(tables, max_size=1))]
    lines += [f"{s.key} = {json.dumps(value)}" for s, value in draw(st.lists(pairs(), max_size=2))]
    lines += draw(st.lists(LETTERS, max_size=1)) if draw(st.integers(0, 9)) == 0 else []
    return args, "\n".join(lines)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, chdir(name):
        yield Path(name)


def checked(result: Result) -> None:
    """It is a result that a user can do something with."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert result.exit_code in (0, 1, 2), result.output
    if result.exit_code == 2:
        refused(result, stdout=None)


@drawn(DRAWS)
@given(command_lines())
def test_dry_runs(line: tuple[list[str], str]) -> None:
    args, toml = line
    with folder() as here:
        if toml:
            (here / "a.toml").write_text(toml, "utf-8")
            args = [*args, "--config", "a.toml"]
        result = invoke(train.main, *args, "--dry-run")
        checked(result)
        assert result.exit_code != 1 and (result.exit_code == 2 or " parameters: " in result.stdout)
        assert [p.name for p in here.iterdir()] == ["a.toml"] * bool(toml)


SMALL = st.floats(2.0**-126, 1.0) | st.floats(0.01, 1.0)
LARGE = SMALL | st.sampled_from([0.0, 1.0, 10.0, 1e9, 1e30, 3e38])
TRAINED = {
    "layers": st.integers(1, 2), "dim": st.just(8), "block": st.just(7), "batch": st.just(1),
    "accum": st.integers(1, 2),
    "steps": st.integers(1, 4), "activation": st.sampled_from(FORMULAS), "precision": st.sampled_from(["f32", "mixed"]),
    "lr": LARGE, "warmup": st.integers(0, 5), "beta1": SMALL | st.just(0.0), "beta2": SMALL,
    "eps": LARGE, "weight-decay": LARGE, "grad-clip": LARGE, "spike-threshold": LARGE, "softcap": LARGE,
    "dropout": SMALL, "attn-dropout": SMALL, "resid-dropout": SMALL, "mlp-dropout": SMALL, "embd-dropout": SMALL,
    "norm": st.sampled_from([*NORMS]), "logit-softcap": LARGE, "zero-init-outputs": st.booleans(),
    "qk-norm": st.booleans(), "eval-interval": st.integers(0, 2), "eval-iters": st.integers(1, 2),
    "checkpoint-interval": st.integers(0, 2), "keep": st.integers(0, 2), "seed": st.integers(0, 2**63 - 1),
}


@drawn(max(20, DRAWS * 3 // 100))
@given(chosen=st.fixed_dictionaries({}, optional=TRAINED))
def test_trainings(chosen: dict[str, Any], backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helios.train.samples.SAMPLE_TOKENS", 2)
    device = os.environ.get("HELIOS_TEST_BACKEND", "").partition(":")[2]
    where = ["--backend", backend.name, *(["--device", device] if device and backend.name == "vulkan" else [])]
    with folder():
        flags = [f"--{name}={value}" for name, value in ({"steps": 3, "lr-min": 0.0} | chosen).items()]
        result = invoke(train.main, "--preset", "tiny", *where, "--run-dir", "run", *flags)
        checked(result)
        if result.exit_code == 0:
            found, problems = checkpoint.find("run")
            last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
            assert not problems and all(np.isfinite(value).all() for value in found.model.values())
            assert np.isfinite(last["loss"])
        if result.exit_code == 1:
            assert "not finite" in result.output or "every update was skipped" in result.output, result.output
