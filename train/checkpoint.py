"""Checkpoints: one directory a step, whole or not there at all.

checkpoints/step-000500/ holds model.safetensors, optimizer.safetensors and state.json, which is written last. It names
the sizes and SHA-256 of the others and a SHA-256 of its own, so that a damaged checkpoint is recognised before use.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from helios.errors import UserError
from helios.files import obstacle, sync_folder
from helios.model.config import GPTConfig
from helios.train.records.layout import CHECKPOINTS, had_checkpoint, way_on

FORMAT = "helios-checkpoint-2"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{6,})")
PARTIAL, _OLD = ".partial-", ".old-"  # prefixes of a directory being written, and of one being replaced

Tensors = Mapping[str, np.ndarray]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Evaluation(TypedDict):
    step: Count
    loss: float  # nats


class File(TypedDict):
    size: Count  # bytes
    sha256: str


class State(TypedDict):
    """What state.json holds."""

    format: str
    step: Count
    seed: Count
    position: Count  # batches drawn so far
    elapsed_ms: float
    best_val: Evaluation | None
    val_loss: NotRequired[float | None]  # at this step; None: not evaluated, or not finite
    config_hash: str
    tokenizer: str  # its fingerprint
    text_hash: str
    model: dict[str, Any]  # its settings
    monitors: dict[str, Any]
    search: dict[str, Any] | None
    pending: NotRequired[str]  # the row, in JSON, of a step whose evaluation was interrupted
    files: dict[str, File]
    sha256: str  # of the file without this entry


class Checkpoint(NamedTuple):
    """A checkpoint that was read and verified."""

    path: Path
    state: State
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]


class Damaged(UserError):
    """A checkpoint that cannot be used; the message says why."""


def save(run_dir: Path, step: int, model: Tensors, optimizer: Tensors, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step`, replacing one of the same step, and return its directory.
    A kill at any moment leaves the old one or the new one whole. Raises UserError where it cannot be written."""
    clean(run_dir)
    parent = run_dir / CHECKPOINTS
    path, partial = path_of(run_dir, step), parent / f"{PARTIAL}{step:06d}"
    try:
        parent.mkdir(exist_ok=True)  # without its parents: a run directory that was removed stays so
        partial.mkdir()
        files = {}
        for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
            raw = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
            _write(partial / name, raw)
            files[name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        _write(partial / STATE, _sealed({"format": FORMAT, "step": step, **state, "files": files}))
        sync_folder(partial)
        if path.exists():  # a directory cannot be renamed onto another; `clean` puts this one back after a kill
            path.rename(parent / f"{_OLD}{step:06d}")
        partial.rename(path)
        sync_folder(parent)
    except OSError as error:
        why = obstacle(parent) or error.strerror
        raise UserError(f"cannot write the checkpoint {path}: {why}; {way_on(run_dir)}") from error
    finally:
        clean(run_dir)
    return path


def copy(path: Path, run_dir: Path) -> Path:
    """Put the files of a checkpoint, linked where the file system can, to where one of the directory `run_dir` would
    be, which is made, and return that. A kill at any moment leaves it whole or absent."""
    there = run_dir / CHECKPOINTS / path.name
    partial = there.with_name(f"{PARTIAL}{path.name}")
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file in path.iterdir():
            try:
                os.link(file, partial / file.name)  # which nothing writes to any more
            except OSError:
                _write(partial / file.name, file.read_bytes())
        sync_folder(partial)
        partial.rename(there)
        sync_folder(there.parent)
    except OSError as error:
        raise UserError(f"cannot write to {run_dir}: {obstacle(there.parent) or error.strerror or error}") from error
    return there


def clean(run_dir: Path) -> None:
    """Undo an interrupted save: put back a replaced checkpoint that has no successor yet, remove partial ones."""
    parent = run_dir / CHECKPOINTS
    for old in parent.glob(f"{_OLD}*"):
        path = parent / f"step-{old.name.removeprefix(_OLD)}"
        if not path.exists():
            old.rename(path)
    for rest in (*parent.glob(f"{_OLD}*"), *parent.glob(f"{PARTIAL}*")):
        shutil.rmtree(rest, ignore_errors=True)


def prune(run_dir: Path, step: int, keep: int, every: int = 0) -> None:
    """Remove checkpoints but for the latest `keep` up to `step` (0: all), the best, and those at multiples of `every`
    (0: none). Later ones than `step`, which a run that was resumed could not read, neither count nor go. The best has
    the lowest validation loss of those that were evaluated at their own step, and not during a search."""
    present = [path for path in directories(run_dir) if step_of(path) <= step]
    older = present[:-keep] if keep else []
    losses = {path: _own_loss(path) for path in present} if older else {}
    best = min(losses, key=losses.__getitem__, default=None)
    for path in older:
        if (path != best or losses[path] == math.inf) and not (every and step_of(path) % every == 0):
            remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint directory; a kill at any moment leaves it whole or absent."""
    gone = path.with_name(f"{PARTIAL}{path.name}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def states(run_dir: Path) -> list[State]:
    """Return the states of the run's checkpoints, by step, without damaged ones."""
    found = []
    for path in directories(run_dir):
        with suppress(Damaged):
            found.append(_state(path))
    return found


def _own_loss(path: Path) -> float:
    try:
        state = _state(path)
    except Damaged:
        return math.inf
    loss = state.get("val_loss")
    return math.inf if loss is None or searching(state) else loss


def path_of(run_dir: Path, step: int) -> Path:
    """Return the directory of the run's checkpoint of a step."""
    return run_dir / CHECKPOINTS / f"step-{step:06d}"


def directories(run_dir: Path) -> list[Path]:
    """Return the run's checkpoint directories, whole or damaged, by step."""
    found = [p for p in (run_dir / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint directory."""
    return int(path.name.removeprefix("step-"))


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` means a checkpoint directory, not a run's."""
    return bool(_NAME.fullmatch(path.name)) or (path / STATE).exists()


def check_place(path: Path) -> None:
    """Raise UserError, with the directory that was probably meant, unless `path` may be that of a run or checkpoint."""
    if path.is_dir() and (path.name != "checkpoints" or (path / CHECKPOINTS).is_dir()):
        return
    for parent in path.parents:
        if path.exists() and (is_checkpoint(parent) or (parent / CHECKPOINTS).is_dir()):
            kind = "checkpoint" if is_checkpoint(parent) else "run"
            raise UserError(f"{path} is a part of a {kind}; give the {kind}'s directory, {parent}")
    why = obstacle(path) or f"{path} is missing"
    export = " (for an exported model, that of its run)" * path.is_file()
    raise UserError(f"{why}; give the directory of a run or of a checkpoint{export}")


def latest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, None where there is none, and what is wrong with each newer one."""
    problems: list[str] = []
    for path in reversed(directories(run_dir)):
        try:
            return load(path), problems
        except Damaged as error:
            problems.append(str(error))
    return None, problems


def find(path: str | Path) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint `path`, or the newest whole one of the run `path`, and what is wrong with newer ones.
    Raises UserError where there is none, and where its weights are of no use; it names an earlier one."""
    path = Path(path).absolute()
    check_place(path)
    try:
        checkpoint, problems = (load(path), []) if is_checkpoint(path) else latest(path)
    except Damaged as error:
        raise Damaged(f"{error}; give another checkpoint, or the run, of which the newest whole one is taken") from None
    if checkpoint is None and problems:
        raise UserError(f"{'; '.join(problems)}; put one of them right, or give another run")
    if checkpoint is None:
        back = "put its checkpoints/ back, or " * had_checkpoint(path)
        raise UserError(f"{path} holds no checkpoint; {back}give a run that has one")
    if not searching(checkpoint.state) and (wrong := not_finite(checkpoint.model)):
        earlier = [p for p in directories(checkpoint.path.parent.parent) if step_of(p) < checkpoint.state["step"]]
        good = next((p for p in reversed(earlier) if _is_good(p)), None)
        raise UserError(f"the weights in {checkpoint.path} are not finite ({wrong}): the training had diverged; "
                        + (f"give {good}, which is from before" if good else "there are none from before"))
    return checkpoint, problems


def not_finite(tensors: Tensors) -> str:
    """Return the name of a tensor with NaN or infinity in it; "" where there is none."""
    return next((name for name, value in tensors.items() if not np.isfinite(value).all()), "")


def _is_good(path: Path) -> bool:
    try:
        return not not_finite(load(path).model)
    except Damaged:
        return False


def searching(state: State) -> bool:
    """Return whether a checkpoint is of a search under way, in which a candidate may diverge."""
    return state["search"] is not None and state["search"].get("at") is not None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint directory and verify every byte of it. Raises Damaged, which says what is wrong."""
    if not path.is_dir():
        raise Damaged(f"the checkpoint {path} is missing")
    state = _state(path)
    if _NAME.fullmatch(path.name) and path.name != (own := f"step-{state['step']:06d}"):
        raise Damaged(f"the checkpoint {path} was renamed: {STATE} says step {state['step']}; name it {own} again")
    tensors = []
    for name in (MODEL, OPTIMIZER):
        try:
            raw = (path / name).read_bytes()
        except OSError as error:
            raise Damaged(f"the checkpoint {path} is damaged: {name}: {error.strerror}") from error
        expected = state["files"][name]
        if len(raw) != expected["size"]:
            raise Damaged(f"the checkpoint {path} is damaged: {name} is truncated or foreign, {len(raw):,} bytes "
                          f"where {expected['size']:,} were written")
        if hashlib.sha256(raw).hexdigest() != expected["sha256"]:
            raise Damaged(f"the checkpoint {path} is damaged: the content of {name} is not what was written")
        try:
            tensors.append(safetensors.numpy.load(raw))
        except (safetensors.SafetensorError, KeyError) as error:
            raise Damaged(f"the checkpoint {path} is foreign: {name}: {error}") from error
    return Checkpoint(path, state, *tensors)


def check_model(checkpoint: Checkpoint, model: Mapping[str, Any]) -> None:
    """Raise UserError, naming each difference, unless the checkpoint is of a model with these settings. Those that an
    older version did not have had their defaults."""
    defaults = GPTConfig().to_dict()
    theirs, ours = defaults | dict(checkpoint.state["model"]), defaults | dict(model)
    differing = [f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here"
                 for k in sorted(theirs.keys() | ours.keys()) if theirs.get(k) != ours.get(k)]
    if differing:
        raise UserError(f"the checkpoint {checkpoint.path} is of another model: {', '.join(differing)}; "
                        f"resume with its settings or start a new run")


def _state(path: Path) -> State:
    try:
        raw = (path / STATE).read_bytes()
        state = json.loads(raw)
    except OSError as error:
        raise Damaged(f"{path} is no checkpoint of Helios: {STATE}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"the checkpoint {path} is damaged: {STATE} is truncated or no JSON") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise Damaged(f"{path} is foreign: {STATE} says format {found!r}, expected {FORMAT!r}")
    try:
        found = msgspec.convert(state, State)
        if missing := {MODEL, OPTIMIZER} - found["files"].keys() | {"activation"} - found["model"].keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except ValueError as error:
        raise Damaged(f"the checkpoint {path} is damaged: {STATE}: {error}") from error
    try:
        whole = raw == _sealed({key: value for key, value in state.items() if key != "sha256"})
    except ValueError:  # a number that is not finite
        whole = False
    if not whole:
        raise Damaged(f"the checkpoint {path} is damaged: the content of {STATE} is not what was written")
    return found


def _sealed(state: Mapping[str, Any]) -> bytes:
    """Return the bytes of state.json: these entries, and the SHA-256 of the bytes without it."""
    text = json.dumps(state, indent=2, allow_nan=False)  # by Python, not C: once
    return f'{text[:-2]},\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}'.encode()


def _write(path: Path, raw: bytes) -> None:
    with open(path, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
