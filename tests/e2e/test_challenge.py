"""A run with challengers that is killed again and again comes to the bits, choices and files that it would have.

HELIOS_TEST_KILLS says how often; CI kills it less often than is worth doing by hand.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helios.train import checkpoint, directory
from helios.train.records.rows import rows

KILLS, SEED = (int(os.environ.get(f"HELIOS_TEST_{name}", default)) for name, default in (("KILLS", "2"), ("SEED", "0")))
ASKED = ("--preset", "tiny", "--backend", "cpu_ref", "--search", "continuous", "--challenge-interval", "6", "--steps",
         "24", "--lr", "1e-4", "--lr-min", "1e-5", "--set", "challenge_steps=4", "--set", "challenge_replicates=3",
         "--set", "challenge_genes=lr=1e-4|1e-2,n_layer=2|3", "--set", "checkpoint_interval=3")
CLOCKED = ("elapsed_ms", "ms_per_iter", "tokens_per_sec", "timing_", "cusum_tps", "cusum_flush")  # and what begins so


def helios_train(*args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "helios.cli.train", *map(str, args), "--quiet"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(folder: Path) -> int:
    """Lines of all rows, the run's and its windows'."""
    return sum(path.read_bytes().count(b"\n") for found in ("", "search/w*/*/")
               for path in folder.glob(f"{found}metrics.jsonl"))


def log(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(CLOCKED)} for row in rows(path)]


def content(folder: Path) -> dict[str, Any]:
    """What the run came to, by file, without what the clock or chance decides."""
    found = dict[str, Any]()
    for path in (p for p in folder.rglob("*") if p.is_file() and p.name != directory.LOCK):
        name = str(path.relative_to(folder))
        found[name] = (log(path) if path.name == "metrics.jsonl" else path.read_bytes()
                       if path.suffix == ".safetensors" or path.name == "windows.jsonl" else "")
    told = {(e["step"], e["kind"], e["message"]) for e in rows(folder / "events.jsonl")}
    return found | {"events": {one for one in told if one[1] in ("challenge", "kept", "switch")},
                    "champion": json.loads((folder / "config.json").read_text())["champion"]}


def test_killed_again_and_again(tmp_path: Path) -> None:
    whole, parts, chance, ends = tmp_path / "whole", tmp_path / "parts", random.Random(SEED), []
    assert helios_train(*ASKED, "--run-dir", whole).wait(300) == 0
    lines = written(whole)
    begin = lambda: helios_train(*(("--resume", parts) if checkpoint.directories(parts) else (
        *ASKED, "--run-dir", parts)))
    process = begin()
    for least in sorted(chance.randrange(lines) for _ in range(KILLS)):  # by lines, however busy the machine is
        while written(parts) < least and process.poll() is None:
            time.sleep(0.005)
        time.sleep(0.1 * chance.random())
        process.kill()
        ends.append(process.wait())
        if not checkpoint.directories(parts):
            shutil.rmtree(parts, ignore_errors=True)
        process = begin()
    assert process.wait(300) == 0 and set(ends) <= {-9, 0}
    found, expected = content(parts), content(whole)
    assert found.keys() == expected.keys()
    assert {key for key, value in found.items() if value != expected[key]} == set()
    verdicts = [json.loads(line)["verdict"] for line in expected["search/windows.jsonl"].splitlines()]
    assert len(verdicts) == 3 and "switch" in verdicts
