"""An experiment that is killed again and again comes to the journal that it would have come to.

HELIOS_TEST_KILLS says how often; CI kills it less often than is worth doing by hand.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KILLS, SEED = (int(os.environ.get(f"HELIOS_TEST_{name}", default)) for name, default in (("KILLS", "4"), ("SEED", "0")))
ASKED = ("--preset", "tiny", "--genes", "lr,beta2,dropout", "--val-data", "synth:64KB:1", "--backend", "cpu_ref",
         "--per-candidate", "1920", "--population", "3", "--generations", "2", "--replicates", "3", "--halving", "0.05",
         "--set", "validation_replicates=2", "--set", "checkpoint_interval=3")
CLOCKED = ("seconds", "tokens_per_sec_mean", "memory_mb")


def helios_evolve(*args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "helios.cli.evolve", *map(str, args), "--quiet"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def journal(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    del lines[0]["id"]  # of the experiment, by chance
    return [{key: value for key, value in line.items() if line["kind"] != "result" or key not in CLOCKED}
            for line in lines]


def test_killed_again_and_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert helios_evolve(*ASKED, "--dir", whole).wait(300) == 0
    seconds, chance, killed = time.monotonic() - start, random.Random(SEED), 0
    parts = tmp_path / "parts"
    process = helios_evolve(*ASKED, "--dir", parts)
    while killed < KILLS:
        deadline = time.monotonic() + 1 + chance.random() * seconds / 3
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            break  # it came to its end before so many kills
        process.kill()
        process.wait()
        killed += 1
        begun = (parts / "journal.jsonl").exists() and (parts / "journal.jsonl").stat().st_size
        process = helios_evolve(*(("--resume", parts) if begun else (*ASKED, "--dir", parts)))
    assert process.wait(300) == 0 and killed >= min(KILLS, 3)
    assert journal(parts) == journal(whole)
