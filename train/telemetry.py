"""The run directory: what a run leaves for others to read, and the lock that keeps it to one process.

config.json, tokenizer.json, and one JSON object a line in metrics.jsonl, events.jsonl and samples.jsonl. No NaN or
Infinity literals: a non-finite metric is null, and an event says what it was.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import shutil
import string
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from helios.errors import UserError
from helios.files import write_atomic
from helios.train import checkpoint

CONFIG, TOKENIZER, LOCK = "config.json", "tokenizer.json", "lock"
METRICS, EVENTS, SAMPLES = LOGS = ("metrics.jsonl", "events.jsonl", "samples.jsonl")

# In every row, null where unknown. Times in milliseconds, memory in MiB. clip_pct is the share of the last CLIP_WINDOW
# steps whose gradient was clipped, in percent. A guarded step also has "skipped": true and "skip_reason": spike,
# overflow, gradient not finite or loss not finite. In mixed precision there is "loss_scale", that of the next step.
COLUMNS = (
    "step", "loss", "val_loss", "lr", "grad_norm", "elapsed_ms", "ms_per_iter", "tokens_per_sec", "clip_coef",
    "clip_pct", "gpu_util_pct", "gpu_vram_used_mb", "gpu_vram_total_mb", "gpu_mem_pool_mb", "gpu_ops_count",
    "timing_data_ms", "timing_fwd_ms", "timing_bwd_ms", "timing_grad_norm_ms", "timing_optim_ms", "timing_flush_ms",
)
# In the rows where they are known: what watches a run (train/monitors/), and what a search is at (train/search/).
MORE_COLUMNS = (
    "skipped", "skip_reason", "loss_scale", "cusum_grad", "cusum_clip", "cusum_tps", "cusum_val", "cusum_alerts",
    "cusum_alert_reason", "plateau", "heat_capacity", "lr_change_reason", "adaptive_batch_size", "batch_change_reason",
    "weight_entropy", "effective_rank", "free_energy", "fitness_score", "complexity_score", "per_layer_grad_norms",
    "mi_input_repr", "mi_repr_output", "mi_compression", "population_entropy", "activation_distribution",
    "architecture_diversity", "symbio_phase", "symbio_candidate_id", "symbio_candidate_name",
    "symbio_candidate_activation", "symbio_candidate_parent_id", "symbio_candidate_parent_name", "symbio_generation",
    "symbio_mutation_applied", "symbio_replicate",
)
CLIP_WINDOW = 100


def run_id(data: str) -> str:
    """`<data stem with _>_<UTC yyyymmddHHMMSS>_<4 base36>`"""
    stem = re.sub(r"[^0-9A-Za-z]+", "_", Path(data).stem).strip("_") or "run"
    tail = "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(4))
    return f"{stem}_{time.strftime('%Y%m%d%H%M%S', time.gmtime())}_{tail}"


@contextmanager
def locked(path: Path, new: bool) -> Iterator[None]:
    """Hold the run directory `path`; a new one is made, and removed again if nothing came to be in it.

    Raises UserError if another process holds it, it cannot be made, or a new run may not begin there.
    """
    made = new and not path.exists()
    if new and not (path / LOCK).exists():  # before a file of ours is put among those of others
        check_new(path)
    try:
        if new:
            path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise UserError(f"cannot use {path} as a run directory: {error.strerror}") from error
    try:
        if new:
            check_new(path)
        yield
    finally:
        if made and os.listdir(path) == [LOCK]:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)  # and the kernel lets the lock go, as it does after a kill


def _lock(path: Path) -> int:
    while True:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(f"the run directory {path} is in use by another process; "
                            f"wait for it or give another --run-dir") from None
        if (path / LOCK).exists() and os.path.samestat(os.fstat(fd), os.stat(path / LOCK)):
            return fd
        os.close(fd)  # the one who held it has removed the directory
        path.mkdir(parents=True, exist_ok=True)


def check_new(path: Path) -> None:
    """Raises UserError unless a new run may begin in the directory `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"--run-dir {path} is a file; give a new or empty directory")
    if (path / CONFIG).exists() and checkpoint.steps(path):
        raise UserError(f"{path} holds a run already; continue it with --resume {path}, or give another --run-dir")
    if set(os.listdir(path)) - {LOCK} and not _is_run(path):  # a run that never came to a checkpoint begins anew
        raise UserError(f"{path} is not empty and no run that can be resumed; give a new or empty --run-dir")


def _is_run(path: Path) -> bool:
    try:
        read_config(path)
    except UserError:
        return False
    return True


def read_config(path: Path) -> dict[str, Any]:
    """config.json of the run directory `path`. Raises UserError."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{path} is no run directory: {CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from error
    kinds = {"model": dict, "train": dict, "data": dict, "run_id": str}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path / CONFIG} is foreign: it lacks model, train, data or run_id")
    return config


class Records:
    """Writes a run's files. Every line is on its way to the disk, whole, when a method returns."""

    def __init__(self, path: Path, config: Mapping[str, Any], tokenizer: Any, keep: int = 0) -> None:
        """Begin anew, or with `keep` go on after that step: later rows, and one cut short by a kill, are removed."""
        self.path, self.about = path, dict(config)
        try:
            for name in LOGS:
                _cut(path / name, keep)
            self.config()
            if not keep:
                tokenizer.save(path / TOKENIZER)
            self.files: dict[str, IO[bytes]] = {}
            for name in LOGS:
                self.files[name] = open(path / name, "ab", buffering=0)  # noqa: SIM115 (close() below)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error
        # The window goes on over a resume, so that the column does not depend on where it was.
        self.clipped = [row["clip_coef"] is not None and row["clip_coef"] < 1 for row in rows(path / METRICS)]

    def metrics(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write the row of a step, completed, and return it."""
        self.clipped = [*self.clipped, row["clip_coef"] < 1][-CLIP_WINDOW:]
        full = dict.fromkeys(COLUMNS) | {"clip_pct": 100 * sum(self.clipped) / len(self.clipped)} | dict(row)
        if wrong := {k: str(v) for k, v in full.items() if isinstance(v, float) and not math.isfinite(v)}:
            self.event(row["step"], "non_finite", f"not finite at step {row['step']}: {', '.join(wrong)}", values=wrong)
        self._line(METRICS, full)
        return full

    def config(self, **more: Any) -> None:
        """Write config.json, with `more` in it from now on."""
        self.about |= more
        text = json.dumps(_clean(self.about), indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomic(self.path / CONFIG, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def event(self, step: int, kind: str, message: str, **more: Any) -> None:
        self._line(EVENTS, {"step": step, "time": _now(), "kind": kind, "message": message, **more})

    def sample(self, step: int, **more: Any) -> None:
        self._line(SAMPLES, {"step": step, "time": _now(), **more})

    def sync(self) -> None:
        """On the disk, also after a power cut: before a checkpoint that says these rows are there."""
        try:
            for file in self.files.values():
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _line(self, name: str, value: Mapping[str, Any]) -> None:
        raw = json.dumps(_clean(value), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        file = self.files[name]
        start = os.fstat(file.fileno()).st_size
        try:
            while raw:
                raw = raw[file.write(raw):]
        except OSError as error:
            os.ftruncate(file.fileno(), start)  # no half line
            raise UserError(f"cannot write {self.path / name}: {error.strerror}; "
                            f"free space and continue with --resume {self.path}") from error


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a line cut short is left out."""
    return [row for _, row in _lines(path)]


def finished(path: Path) -> bool:
    """Whether the run directory `path` holds a run that came to its end."""
    return any(event.get("kind") == "run_complete" for event in rows(path / EVENTS))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and line.endswith(b"\n"):
                yield line, row


def _cut(path: Path, keep: int) -> None:
    if path.exists():
        kept = b"".join(line for line, row in _lines(path) if keep and row.get("step", 0) <= keep)
        if kept != path.read_bytes():
            write_atomic(path, lambda file: file.write(kept))


def _clean(value: Any) -> Any:
    """With null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
