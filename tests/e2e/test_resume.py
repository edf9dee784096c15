"""A resumed run is the uninterrupted one, bit for bit, however it ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helios.backends.backend import Backend
from helios.train import checkpoint


def train(backend: Backend, *args: str | Path) -> list[str]:
    where = ["--backend", backend.name]
    if (device := os.environ.get("HELIOS_TEST_BACKEND", "").partition(":")[2]) and backend.name == "vulkan":
        where += ["--device", device]
    return [sys.executable, "-m", "helios.cli.train", *where, *map(str, args)]


def finish(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


CONTROL = ("action_reason", "grad_clip", "spike_threshold", "skip_reason", "adaptive_batch_size")


def assert_same(a: Path, b: Path, step: int) -> None:
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        path = Path("checkpoints", f"step-{step:06d}", name)
        assert (a / path).read_bytes() == (b / path).read_bytes(), name
    logs = []
    for run in (a, b):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == list(range(1, step + 1))
        logs.append([{k: r.get(k) for k in ("loss", "val_loss", "lr", "grad_norm", "clip_coef", "clip_pct", *CONTROL)}
                     for r in rows])
    assert logs[0] == logs[1]
    texts = [[(s["step"], s["text"]) for s in map(json.loads, (run / "samples.jsonl").read_text().splitlines())]
             for run in (a, b)]
    assert texts[0] == texts[1]


STEADY = ("--norm rms --qk-norm true --logit-softcap 5 --resid-dropout 0 --mlp-dropout 0.2 --embd-dropout 0.1 "
          "--zero-init-outputs true")


@pytest.mark.parametrize("flags", ["", "--accum 2", "--accum 2 --precision mixed", f"{STEADY} --precision mixed"])
def test_twelve_steps_are_six_and_six(tmp_path: Path, each_backend: Backend, flags: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(train(each_backend, "--preset", "tiny", "--run-dir", whole, *flags.split()))
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-000012")  # as if it had died after step 6 or later
    finish(train(each_backend, "--resume", parts))
    assert_same(whole, parts, 12)


RULES = ("cusum_grad: lr*0.5 for 9, guard*1.5 for 7; cusum_clip: batch+2 for 6, clip*0.5 for 5; "
         "cusum_val: clip*2 for 20; plateau: lr*0.7 for 30")
NERVOUS = ["cusum_sensitivity=1", "cusum_slack=0", "cusum_window=5", "cusum_grace=1", "plateau_evals=1",
           "plateau_delta=0.3", "grad_clip=0.5", f"actions={RULES}"]  # so that rules act often


@pytest.mark.parametrize(("steps", "more"), [(150, []), (60, NERVOUS)], ids=["plain", "rules"])
def test_killed_at_any_moment(tmp_path: Path, each_backend: Backend, steps: int, more: list[str]) -> None:
    settings = ["--preset", "tiny", "--steps", str(steps), "--checkpoint-interval", "3", "--eval-interval", "10",
                "--keep", "0", *(f"--set={text}" for text in more)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(train(each_backend, *settings, "--run-dir", whole))
    seed = time.time_ns()
    print("seed of the moments:", seed)
    draw = random.Random(seed)
    command = train(each_backend, *settings, "--run-dir", killed)
    for _ in range(2):
        before = len(checkpoint.directories(killed))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while len(checkpoint.directories(killed)) <= before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), errors
        command = train(each_backend, "--resume", killed)
    finish(command)
    assert_same(whole, killed, steps)
    acted = [row["action_reason"] for row in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
             if row.get("action_reason")]
    assert len(acted) > 10 if more else not acted
    names = os.listdir(killed / "checkpoints")
    assert sorted(names) == [f"step-{n:06d}" for n in range(3, steps + 1, 3)]
