"""The Khronos validation layer has nothing to say about any operation or a training step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .vulkan import make

CODE = """
import sys
sys.path.insert(0, {tests!r})
from backends.emulation import matrix_units
from backends.vulkan import KINDS, Training, make
from contextlib import nullcontext
from helios.backends.vulkan import device
from ops.registry import OPS, gradients
with matrix_units() if {units} else nullcontext(make()) as be:
    for op in OPS.values():
        for sample in op.samples()[:3]:
            if all(x is None or x.size < 100_000 for x in sample.inputs):
                gradients(op, sample, be)
    training = Training(be, "gelu" if {units} else KINDS, n_embd=32)
    for _ in range(3):
        training.step()
    training.program.profile()
print(*sorted(key[0] for key in be.pipelines.kernels))
for message in device.validation_messages:
    print(message)
"""

UNITS = {"matmul_coopmat", "attention_coopmat", "attention_backward_coopmat"}


@pytest.mark.parametrize("units", [False, True], ids=["as it is", "matrix units"])
def test_validation_layer_is_silent(units: bool) -> None:
    make()
    tests = Path(__file__).parent.parent
    code = CODE.format(tests=str(tests), units=units)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          env={**os.environ, "HELIOS_VALIDATION": "1"})
    if "validation layer is not installed" in done.stderr and not os.environ.get("CI"):
        pytest.skip("the Khronos validation layer is not installed")
    assert done.returncode == 0, done.stderr
    kernels, *messages = done.stdout.splitlines()
    assert len(kernels.split()) > 40
    assert {name for name in kernels.split() if name.endswith("_coopmat")} == (UNITS if units else set())
    assert messages == []
