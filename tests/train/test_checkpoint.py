"""Checkpoints are whole or absent, and a damaged one is never taken for a whole one."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helios.errors import UserError
from helios.model import GPTConfig
from helios.train import checkpoint
from helios.train.checkpoint import MODEL, OPTIMIZER, STATE

WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.float32)}
MOMENTS = {"m": np.zeros((400, 3), np.float32), "updates": np.array([7.0], np.float32)}
STATES = {"seed": 3, "position": 500, "elapsed_ms": 1.5, "best_val": None, "monitors": {}, "search": None,
          "config_hash": "c", "tokenizer": "t", "text_hash": "x", "model": {"n_layer": 2, "activation": "gelu"}}


def save(run: Path, step: int) -> Path:
    return checkpoint.save(run, step, WEIGHTS, MOMENTS, STATES)


def left_over(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 500)
    assert path == tmp_path / "checkpoints" / "step-000500"
    found, problems = checkpoint.find(tmp_path)
    assert problems == [] and found.path == path and found.state["step"] == 500 and found.state["seed"] == 3
    for given, read in ((WEIGHTS, found.model), (MOMENTS, found.optimizer)):
        assert given.keys() == read.keys()
        for name in given:
            np.testing.assert_array_equal(given[name], read[name])
    assert checkpoint.find(path)[0].path == path
    (tmp_path / "other").mkdir()
    again = save(tmp_path / "other", 500)
    assert all((path / name).read_bytes() == (again / name).read_bytes() for name in (MODEL, OPTIMIZER, STATE))


def test_latest_is_by_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        save(tmp_path, step)
    assert checkpoint.find(tmp_path)[0].state["step"] == 1_000_000
    assert [p.name for p in checkpoint.directories(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        state = json.loads((path / STATE).read_text())
        change(state)
        (path / STATE).write_text(json.dumps(state))
    return damage


def flip(path: Path) -> None:
    raw = bytearray((path / MODEL).read_bytes())
    raw[-1] ^= 1
    (path / MODEL).write_bytes(raw)


ENTRIES = [key for key in checkpoint.State.__annotations__ if key not in ("format", "val_loss", "pending")]
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated model": (lambda p: os.truncate(p / MODEL, 50), "model.safetensors is truncated"),
    "truncated optimizer": (lambda p: os.truncate(p / OPTIMIZER, 0), "optimizer.safetensors is truncated"),
    "missing model": (lambda p: (p / MODEL).unlink(), "model.safetensors: No such file"),
    "a flipped bit": (flip, "content of model.safetensors is not what was written"),
    "missing state": (lambda p: (p / STATE).unlink(), "no checkpoint of Helios"),
    "truncated state": (lambda p: os.truncate(p / STATE, 40), "state.json is truncated"),
    "foreign format": (edit(lambda s: s.update(format="torch")), "foreign: state.json says format 'torch'"),
    "a list": (lambda p: (p / STATE).write_text("[1]"), "foreign"),
    **{f"lost {key}": (edit(lambda s, key=key: s.pop(key)), f"damaged: state.json: .*{key}") for key in ENTRIES},
    **{f"{key} of another type": (edit(lambda s, key=key: s.update({key: [1]})), f"damaged: state.json: .*{key}")
       for key in ENTRIES},
    "a best without its loss": (edit(lambda s: s.update(best_val={"step": 1})), "missing required field `loss`"),
    "files of another form": (edit(lambda s: s["files"].update({MODEL: 7})), "Expected `object`.*files"),
    "one file only": (edit(lambda s: s["files"].pop(OPTIMIZER)), "state.json: lacks optimizer.safetensors"),
    "a step below 0": (edit(lambda s: s.update(step=-1)), "state.json: .*step"),
    "a changed number": (edit(lambda s: s.update(position=501)), "content of state.json is not what was written"),
    "a number that is none": (edit(lambda s: s.update(more=float("nan"))), "content of state.json is not"),
    "a space more": (lambda p: (p / STATE).write_text((p / STATE).read_text() + " "), "content of state.json is not"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_one_before_taken(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    save(tmp_path, 6)
    newest = save(tmp_path, 12)
    damage(newest)
    with pytest.raises(UserError, match=message):
        checkpoint.load(newest)
    with pytest.raises(UserError, match=message):
        checkpoint.find(newest)
    found, problems = checkpoint.find(tmp_path)
    assert found.state["step"] == 6 and len(problems) == 1 and "step-000012" in problems[0]
    assert save(tmp_path, 12) == newest  # when the run comes by again
    assert checkpoint.find(tmp_path)[0].state["step"] == 12
    assert left_over(tmp_path) == ["step-000006", "step-000012"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        checkpoint.find(tmp_path / "no")
    with pytest.raises(UserError, match="holds no checkpoint; give a run that has one"):
        checkpoint.find(tmp_path)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = checkpoint.find(tmp_path)[0]
    checkpoint.check_model(found, STATES["model"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"activation is 'gelu' there and 'relu' here, n_layer is 2 there and 3 here"):
        checkpoint.check_model(found, {"n_layer": 3, "activation": "relu"})
    checkpoint.check_model(found, {**STATES["model"], "norm": "layer"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="norm is 'layer' there and 'rms' here"):
        checkpoint.check_model(found, {**STATES["model"], "norm": "rms"})  # type: ignore[dict-item]


def test_an_older_model_lacks_settings_that_are_new(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = checkpoint.find(tmp_path)[0]
    checkpoint.check_model(found, GPTConfig(n_layer=2).to_dict())
    with pytest.raises(UserError, match="another model: qk_norm is False there and True here; resume"):
        checkpoint.check_model(found, GPTConfig(n_layer=2, qk_norm=True).to_dict())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    before = save(tmp_path, 6)
    with largest_file(1000), pytest.raises(UserError, match=r"cannot write the checkpoint .*step-000012"):
        save(tmp_path, 12)
    assert left_over(tmp_path) == [before.name]
    assert checkpoint.find(tmp_path)[0].state["step"] == 6


@pytest.mark.parametrize("call", range(1, 6))
def test_full_disk_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save(tmp_path, 6)
    calls, real = [0], os.fsync

    def fsync(fd: int) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="No space left on device; earlier checkpoints are whole"):
            save(tmp_path, 12)
    found, problems = checkpoint.find(tmp_path)
    assert not problems and found.state["step"] == (12 if call == 5 else 6)  # 5: after the rename
    assert not [name for name in left_over(tmp_path) if not name.startswith("step-")]


def test_what_a_kill_leaves_is_not_a_checkpoint_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 6)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "clean", lambda run: None)  # nor does a killed process get to it
        patch.setattr(Path, "rename", lambda a, b: os.strerror("killed"))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            save(tmp_path, 12)
    assert len(left_over(tmp_path)) == 2
    assert checkpoint.find(tmp_path)[0].state["step"] == 6
    checkpoint.clean(tmp_path)
    assert left_over(tmp_path) == ["step-000006"]


# -- replaced, and kept -----------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from helios.train import checkpoint
moment, rename = int(sys.argv[2]), Path.rename
def killed(self, target):
    global moment
    moment -= 1
    if moment < 0:
        os._exit(9)
    return rename(self, target)
Path.rename = killed
state = eval(sys.argv[3])
checkpoint.save(Path(sys.argv[1]), 500, {}, {}, state)
"""


@pytest.mark.parametrize("moment", [0, 1])
def test_a_kill_while_one_replaces_another_of_its_step(tmp_path: Path, moment: int) -> None:
    """Before the old one is set aside, and between that and the new one's taking its place."""
    save(tmp_path, 400)
    kept = (save(tmp_path, 500) / MODEL).read_bytes()
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, str(tmp_path), str(moment), repr(STATES)])
    assert done.returncode == 9
    checkpoint.clean(tmp_path)
    assert left_over(tmp_path) == ["step-000400", "step-000500"]
    assert (checkpoint.find(tmp_path)[0].path / MODEL).read_bytes() == kept
    checkpoint.save(tmp_path, 500, {"b": WEIGHTS["b"]}, MOMENTS, STATES)
    assert left_over(tmp_path) == ["step-000400", "step-000500"]
    assert list(checkpoint.find(tmp_path)[0].model) == ["b"]


def evaluated(run: Path, step: int, loss: float | None, search: Any = None) -> Path:
    """A checkpoint at a step whose validation loss is `loss`; None: it had none."""
    return checkpoint.save(run, step, WEIGHTS, MOMENTS, STATES | {"val_loss": loss, "search": search})


def steps(run: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.directories(run)]


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, loss in enumerate([5.0, 4.0, 4.5, None, None, 4.2], 1):
        evaluated(tmp_path, step, loss)
        checkpoint.prune(tmp_path, step, 3)
    assert steps(tmp_path) == [2, 4, 5, 6]
    evaluated(tmp_path, 7, 3.5)
    checkpoint.prune(tmp_path, 7, 3)
    assert steps(tmp_path) == [5, 6, 7]  # the best is among them


@pytest.mark.parametrize(("keep", "every", "left"), [
    (0, 0, [10, 20, 30, 40, 50, 60]), (1, 0, [20, 60]), (2, 30, [20, 30, 50, 60]), (9, 0, [10, 20, 30, 40, 50, 60]),
    (1, 10, [10, 20, 30, 40, 50, 60])])
def test_how_many_are_kept(tmp_path: Path, keep: int, every: int, left: list[int]) -> None:
    for step in range(10, 70, 10):
        evaluated(tmp_path, step, 4.0 if step == 20 else None)
    checkpoint.prune(tmp_path, 60, keep, every)
    assert steps(tmp_path) == left and left_over(tmp_path) == [f"step-{n:06d}" for n in left]


def test_candidates_of_a_search_are_not_the_best(tmp_path: Path) -> None:
    evaluated(tmp_path, 1, 1.0, {"at": 0, "start": None, "pending": None})
    evaluated(tmp_path, 2, None)
    evaluated(tmp_path, 3, 2.0, {"at": None, "start": None, "pending": None})
    for step in (4, 5):
        evaluated(tmp_path, step, None)
    checkpoint.prune(tmp_path, 5, 1)
    assert steps(tmp_path) == [3, 5]


def test_a_damaged_one_is_no_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        evaluated(tmp_path, step, 4.0 + step)
    (tmp_path / "checkpoints" / "step-000001" / STATE).write_text("{")
    checkpoint.prune(tmp_path, 3, 1)
    assert steps(tmp_path) == [2, 3]


def test_one_that_a_resumed_run_has_passed_over_does_not_count(tmp_path: Path) -> None:
    """Resumed from step 4, since step 6 was damaged, and now at step 5: the newest one that is whole stays."""
    for step in (2, 4, 6, 5):
        evaluated(tmp_path, step, None)
    checkpoint.prune(tmp_path, 5, 1)
    assert steps(tmp_path) == [5, 6]


def test_a_kill_while_one_is_removed_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(tmp_path, step)

    def killed(path: Path, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoint.prune(tmp_path, 2, 1)
    assert steps(tmp_path) == [2]
    checkpoint.clean(tmp_path)
    assert left_over(tmp_path) == ["step-000002"]


@pytest.mark.parametrize("linked", [True, False])
def test_a_copy_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
                                                      ) -> None:
    """Links share the files; where the file system has none each file is written and synchronised."""
    path, done = save(tmp_path, 500), list[tuple[str, str]]()
    name = lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("fsync", name(fd))), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append(("rename", self.name)), rename(self, to))[1])
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another device")))
    there = checkpoint.copy(path, tmp_path / "other")
    assert checkpoint.load(there).state == checkpoint.load(path).state
    assert all(os.path.samefile(path / file, there / file) == linked for file in (MODEL, OPTIMIZER, STATE))
    files = [] if linked else [("fsync", file) for file in (MODEL, OPTIMIZER, STATE)]
    partial = f"{checkpoint.PARTIAL}step-000500"
    assert sorted(done[:-3]) == sorted(files)
    assert done[-3:] == [("fsync", partial), ("rename", partial), ("fsync", "checkpoints")]
