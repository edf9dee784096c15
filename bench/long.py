"""Whether anything but its records grows in a long training: one of a tiny model, watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from helios.train import checkpoint
from helios.train.device import MIB
from helios.train.records import overview
from helios.train.records.layout import METRICS
from helios.train.records.rows import lines, parse
from helios.train.report import reading

FIRST = 1000  # steps before the first mark
POLL = 0.1  # seconds
TAIL = 1 << 14  # bytes, more than two rows
TITLES = ("steps", "ms a step", "memory, MiB", "open files", "records, MiB", "checkpoints, MiB")


class Mark(NamedTuple):
    """A training at a step."""

    step: int
    ms: float  # of a step since the mark before, with evaluations, checkpoints and all
    memory_mib: float  # resident memory of its process
    files: int  # that its process has open
    records_mib: float
    checkpoints_mib: float


def settings(steps: int) -> list[str]:
    """Return the settings of the training, KEY=VALUE each: a hundred evaluations and checkpoints, ten samples."""
    each = max(1, steps // 100)
    return [f"steps={steps}", "n_layer=1", "batch_size=1", "dropout=0", "lr=1e-3", "lr_min=1e-3", "eval_iters=1",
            f"eval_interval={each}", f"checkpoint_interval={each}", f"sample_interval={10 * each}"]


def marks(steps: int) -> list[int]:
    """Return the steps at which a training of so many is looked at."""
    return [n for k in range(9) for i in (1, 2, 5) if (n := i * 10**k * FIRST) < steps] + [steps]


def watched(steps: int, run: Path, say: Callable[[str], None]) -> Iterator[Mark]:
    """Train in a process of its own, into the directory `run`, and yield the marks; exit as it does where it fails."""
    command = [sys.executable, "-m", "helios.cli.train", "--preset", "tiny", "--quiet", "--run-dir", str(run)]
    command += [part for setting in settings(steps) for part in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        due, before, latest, alive = marks(steps), (0, 0.0), (0.0, 0), True
        try:
            while alive and due:
                time.sleep(POLL)
                alive = process.poll() is None
                latest = _process(process.pid) or latest
                row = _last_row(run / METRICS)
                if row and row["step"] >= due[0]:
                    ms = (row["elapsed_ms"] - before[1]) / (row["step"] - before[0])
                    before, due = (row["step"], row["elapsed_ms"]), [n for n in due if n > row["step"]]
                    yield Mark(row["step"], ms, *latest, (run / METRICS).stat().st_size / MIB, _checkpoints(run))
                    say(f"step {row['step']:,}: {ms:.2f} ms a step, {latest[0]:,.0f} MiB")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.exit(process.returncode)  # it has said why


def _process(pid: int) -> tuple[float, int] | None:
    """Return MiB of resident memory of a process and how many files it has open; None where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return (pages * os.sysconf("SC_PAGE_SIZE") / MIB, files) if pages else None
    except (OSError, IndexError):
        return None


def _checkpoints(run: Path) -> float:
    """Return MiB of the checkpoints that are kept."""
    size = 0
    for place in checkpoint.directories(run):
        with suppress(FileNotFoundError):  # removed meanwhile
            size += sum(file.stat().st_size for file in place.iterdir())
    return size / MIB


def _last_row(path: Path) -> dict[str, Any] | None:
    """Return the last whole row of a file of metrics; None where there is none yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            whole = file.read().rpartition(b"\n")[0]
    except OSError:
        return None
    found: dict[str, Any] | None = parse(whole.rpartition(b"\n")[2]) if whole else None
    return found


def reading_times(run: Path) -> dict[str, float]:
    """Return in seconds how long it takes to read the run's records, by what reads them."""
    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return {"a row at a time": seconds(lambda: sum(1 for _ in lines(run / METRICS))),
            "helios-runs": seconds(lambda: overview.read(run)), "helios-report": seconds(lambda: reading.read(run))}


def cells(found: Sequence[Mark]) -> Iterator[list[str]]:
    """Yield the rows of a table."""
    for m in found:
        yield [f"{m.step:,}", f"{m.ms:.3f}", f"{m.memory_mib:,.1f}", f"{m.files}", f"{m.records_mib:,.1f}",
               f"{m.checkpoints_mib:.2f}"]
