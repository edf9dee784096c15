"""A formula that no file of the project has: trained, killed, resumed, sampled, exported and searched with."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from helios.backends.backend import Backend
from helios.train import checkpoint

from .test_resume import assert_same, finish, train

STEPS = 150
SEARCH = """
activation_pool = ["relu", "mine"]
population_size = 2
generations = 1
replicates = 1
steps_per_candidate = 6
"""


def said(command: str, *args: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", f"helios.cli.{command}", *map(str, args)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_formula_of_today(tmp_path: Path, backend: Backend) -> None:
    seed = time.time_ns()
    print("seed of the constants:", seed)
    draw = random.Random(seed)
    first, second = (round(draw.uniform(0.5, 2), 6) for _ in range(2))
    formula = f"a*silu({first}*g)*u+b*sin({second}*u); a=1, b=0.1"
    whole, killed, searched, own = (tmp_path / name for name in ("whole", "killed", "searched", "own.toml"))
    own.write_text(f'[activations]\nmine = "{formula}"\n[search]\n{SEARCH}')
    settings = ["--preset", "tiny", "--steps", str(STEPS), "--checkpoint-interval", "3"]
    finish(train(backend, *settings, "--activation", f"gelu|mine: {formula}", "--run-dir", whole))

    process = subprocess.Popen(train(backend, *settings, "--config", own, "--set", "mode=none", "--activation",
                                     "gelu,mine", "--run-dir", killed), stdout=subprocess.DEVNULL)
    while not checkpoint.directories(killed) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    finish(train(backend, "--preset", "tiny", "--search-config", own, "--steps", "6", "--run-dir", searched))
    own.unlink()  # a run needs it no more
    finish(train(backend, "--resume", killed))
    assert_same(whole, killed, STEPS)

    found, _ = checkpoint.find(killed)
    learned = {name.rpartition(".")[2]: value for name, value in found.model.items() if ".act." in name}
    assert learned.keys() == {"a", "b"} and (learned["a"] != 1).any() and (learned["b"] != 0.1).any()
    how = ["--prompt", "Who?", "--tokens", "8", "--backend", backend.name]
    said("export", killed, "--out", tmp_path / "a.helios")
    assert said("sample", "--from", tmp_path / "a.helios", *how) == said("sample", "--run", whole, *how)
    candidates = [json.loads(line) for line in (searched / "search" / "candidates.jsonl").read_text().splitlines()]
    assert [(c["activation"], c["status"]) for c in candidates] == [
        ("relu", "complete"), (f"mine: {formula}", "complete")]
