"""The records of a run: config.json, and a row for every step, events and samples, each a JSON object on a line."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from helios.errors import UserError
from helios.files import write_atomic
from helios.train.records.layout import CONFIG, EVENTS, LOGS, METRICS, SAMPLES, TOKENIZER, way_on
from helios.train.records.overview import utc
from helios.train.records.rows import clipped, finite, line, lines, parse

# In every row, null where unknown. Times are in milliseconds, memory in MiB. clip_pct is the percentage of the last
# CLIP_WINDOW steps whose gradient was clipped. A skipped update has "skipped": true and "skip_reason": spike, overflow,
# gradient not finite or loss not finite. In mixed precision there is "loss_scale", that of the next step.
COLUMNS = (
    "step", "loss", "val_loss", "lr", "grad_norm", "elapsed_ms", "ms_per_iter", "tokens_per_sec", "clip_coef",
    "clip_pct", "gpu_util_pct", "gpu_vram_used_mb", "gpu_vram_total_mb", "gpu_mem_pool_mb", "gpu_ops_count",
    "timing_data_ms", "timing_fwd_ms", "timing_bwd_ms", "timing_grad_norm_ms", "timing_optim_ms", "timing_flush_ms",
)
# In rows where they are known: from the monitors (train/monitors/) and from a search (train/search/).
MORE_COLUMNS = (
    "skipped", "skip_reason", "loss_scale", "cusum_grad", "cusum_clip", "cusum_tps", "cusum_val", "cusum_flush",
    "cusum_memory", "cusum_alerts", "cusum_alert_reason", "plateau", "heat_capacity", "lr_change_reason",
    "adaptive_batch_size", "batch_change_reason", "action_reason", "grad_clip", "spike_threshold",
    "weight_entropy", "effective_rank", "free_energy", "fitness_score", "complexity_score", "per_layer_grad_norms",
    "mi_input_repr", "mi_repr_output", "mi_compression", "population_entropy", "activation_distribution",
    "architecture_diversity", "symbio_phase", "symbio_candidate_id", "symbio_candidate_name",
    "symbio_candidate_activation", "symbio_candidate_parent_id", "symbio_candidate_parent_name", "symbio_generation",
    "symbio_mutation_applied", "symbio_replicate",
)
CLIP_WINDOW = 100


class Listener(Protocol):
    """Hears every row after it is written; it raises nothing."""

    def row(self, name: str, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Records:
    """Writes a run's records. When a method returns, the operating system has its whole line."""

    def __init__(self, path: Path, config: Mapping[str, Any], tokenizer: Any, keep: int = 0,
                 unfinished: bool = False) -> None:
        """Begin anew, or go on after the step `keep`: later rows, and one cut short by a kill, are removed.

        path: the run directory. config: the content of config.json. unfinished: the row of the step `keep` is still to
        come. Raises UserError where nothing can be written, or a row that is kept is damaged.
        """
        self.path, self.about = path, dict(config)
        self.listeners: list[Listener] = []
        self.files: dict[str, IO[bytes]] = {}
        try:
            for name in LOGS:
                _cut(path / name, keep - (unfinished and name == METRICS))
            if not (path / CONFIG).exists():  # else `config` replaces it
                self.config()
            if not keep:
                tokenizer.save(path / TOKENIZER)
            for name in LOGS:
                self.files[name] = open(path / name, "ab", buffering=0)  # noqa: SIM115 (close() below)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error
        # Read back, so that clip_pct does not depend on where a run was resumed.
        self.clipped = deque((clipped(row) for _, row in lines(path / METRICS)), CLIP_WINDOW)

    def metrics(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write a step's row with all COLUMNS and return it; write an event where a number in it is not finite."""
        self.clipped.append(clipped(row))
        full = dict.fromkeys(COLUMNS) | {"clip_pct": 100 * sum(self.clipped) / len(self.clipped)} | dict(row)
        if wrong := {k: str(v) for k, v in full.items() if isinstance(v, float) and not math.isfinite(v)}:
            self.event(row["step"], "non_finite", f"not finite at step {row['step']}: {', '.join(wrong)}", values=wrong)
        self._line(METRICS, full)
        return full

    def config(self, **more: Any) -> None:
        """Write config.json, with `more` added for good."""
        self.about |= more
        text = json.dumps(finite(self.about), indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomic(self.path / CONFIG, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def event(self, step: int, kind: str, message: str, **more: Any) -> None:
        """Write an event of some kind at a step."""
        self._line(EVENTS, {"step": step, "time": utc(time.time()), "kind": kind, "message": message, **more})

    def sample(self, step: int, **more: Any) -> None:
        """Write what the model said at a step."""
        self._line(SAMPLES, {"step": step, "time": utc(time.time()), **more})

    def sync(self) -> None:
        """Wait until all lines are on the disk, as they must be before a checkpoint relies on them.
        Raises UserError where the directory is no longer that of these files."""
        try:
            for name, file in self.files.items():
                os.fsync(file.fileno())
                if not (self.path / name).exists() or not os.path.samestat(
                        os.stat(self.path / name), os.fstat(file.fileno())):
                    raise UserError(f"{self.path / name} was removed or replaced while the run was training; the run "
                                    f"ends here, since its checkpoints would be of no use without its records")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the files and the listeners."""
        for file in self.files.values():
            file.close()
        for listener in self.listeners:
            listener.close()

    def _line(self, name: str, value: Mapping[str, Any]) -> None:
        raw, file = line(value), self.files[name]
        start = os.fstat(file.fileno()).st_size
        try:
            while raw:
                raw = raw[file.write(raw):]
        except OSError as error:
            os.ftruncate(file.fileno(), start)  # leaves no half line
            raise UserError(f"cannot write {self.path / name}: {error.strerror}; "
                            f"{way_on(self.path)}") from error
        for listener in self.listeners:
            listener.row(name, value)


def _cut(path: Path, keep: int) -> None:
    """Keep the lines up to the step `keep`. Raises UserError where one before the last of them is damaged; what follows
    may be, since a power cut may leave anything."""
    if not path.exists():
        return
    within = lambda step: bool(keep) and step is not None and step <= keep
    damaged, whole = 0, True
    with open(path, "rb") as file:  # a line at a time, for it may be large
        for number, raw in enumerate(file, 1):
            if within(step := _step(raw, path.name)):
                if damaged:
                    raise UserError(f"{path}, line {damaged}, is damaged; remove that line to continue without its "
                                    f"record")
                continue
            whole = False
            if step is None:
                damaged = damaged or number
        if not whole:
            file.seek(0)
            write_atomic(path, lambda new: new.writelines(raw for raw in file if within(_step(raw, path.name))))


def _step(raw: bytes, name: str) -> int | None:
    """Return the step of a line that Records wrote into the file of that name; None for any other line."""
    numbers = COLUMNS if name == METRICS else ()
    with suppress(ValueError, RecursionError):
        row = parse(raw)
        if raw.endswith(b"\n") and isinstance(row, dict) and type(row.get("step")) is int and all(
                isinstance(row.get(key, ""), int | float | None) for key in numbers):
            return int(row["step"])
    return None
