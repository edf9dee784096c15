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

KILLS, SEED = (int(os.environ.get(f"HELIOS_TEST_{name}", default)) for name, default in (("KILLS", "2"), ("SEED", "0")))
ASKED = ("--preset", "tiny", "--genes", "lr,beta2,dropout", "--val-data", "synth:64KB:1", "--backend", "cpu_ref",
         "--per-candidate", "960", "--population", "3", "--generations", "2", "--replicates", "3", "--halving", "0.05",
         "--set", "validation_replicates=2", "--set", "checkpoint_interval=3")
CLOCKED = ("seconds", "tokens_per_sec_mean", "memory_mb")


def helios_evolve(*args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "helios.cli.evolve", *map(str, args), "--quiet"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def journal(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    del lines[0]["id"]  # of the experiment, by chance
    return [{key: value for key, value in line.items() if line["kind"] != "result" or key not in CLOCKED}
            for line in lines]


def test_killed_again_and_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert helios_evolve(*ASKED, "--dir", whole).wait(300) == 0
    seconds, chance, parts = time.monotonic() - start, random.Random(SEED), tmp_path / "parts"
    lines, ends = written(whole), []
    process = helios_evolve(*ASKED, "--dir", parts)
    for least in sorted(chance.randrange(lines // 2) for _ in range(KILLS)):  # by lines, however busy the machine is
        while written(parts) < least and process.poll() is None:
            time.sleep(0.01)
        time.sleep(2 * chance.random() * seconds / lines)  # in whatever follows that line
        process.kill()
        ends.append(process.wait())
        process = helios_evolve(*(("--resume", parts) if written(parts) else (*ASKED, "--dir", parts)))
    assert process.wait(300) == 0 and ends == [-9] * KILLS
    assert journal(parts) == journal(whole)
