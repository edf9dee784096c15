"""What every Vulkan driver must do alike: .ci/run has these tests, and the model's, run on a second one, too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helios.backends.backend import Backend
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.progress import Display
from helios.train.records.layout import METRICS
from helios.train.records.rows import rows
from helios.train.run import Run

QUIET = Display(quiet=True)


@pytest.mark.device
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_twenty_steps_are_those_of_numpy_and_of_ten_and_ten(tmp_path: Path, backend: Backend, activation: str) -> None:
    if backend.name == "cpu_ref":
        pytest.skip("cpu_ref is what a driver is compared with")
    asked = {"steps": 20, "checkpoint_interval": 10, "keep": 0, "eval_interval": 10, "activation": activation,
             "sample_interval": 0}
    config = lambda name: resolve("tiny", assignments=[f"{key}={value}" for key, value in asked.items()],
                                  flags={"backend": name})
    here, there, parts = (tmp_path / name for name in ("here", "there", "parts"))
    for path, name in ((here, backend.name), (there, "cpu_ref")):
        assert Run.create(config(name), path).train(QUIET).finished
    ours, theirs = rows(here / METRICS), rows(there / METRICS)
    assert len(ours) == 20
    for name in ("loss", "val_loss", "grad_norm"):
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) if b[name] is not None]
        assert pairs and [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-5), name
    shutil.copytree(here, parts)
    shutil.rmtree(checkpoint.path_of(parts, 20))  # as if it had died after step 10
    assert Run.resume(parts).train(QUIET).finished
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        assert len({(checkpoint.path_of(path, 20) / name).read_bytes() for path in (parts, here)}) == 1, name
    losses = lambda path: [(row["step"], row["loss"], row["val_loss"]) for row in rows(path / METRICS)]
    assert losses(parts) == losses(here)
