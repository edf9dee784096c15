"""The run directory: a run's id, the lock of the process that writes to it, and whether a run may begin in it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from helios.errors import UserError
from helios.files import TEMPORARY, obstacle
from helios.train import checkpoint
from helios.train.checkpoint import Checkpoint
from helios.train.records.layout import CONFIG, LOCK, METRICS, TOKENIZER, had_checkpoint, read_config
from helios.train.records.rows import lines

AGAIN = "start again with another --run-dir, or remove this one first"  # where rows have no checkpoint
LOOK = 0.3  # seconds: longer than records.overview holds the lock to see whether someone has it


def run_id(data: str) -> str:
    """Return a new id for a run on that text: `<stem of data>_<UTC yyyymmddHHMMSS>_<4 random base-36 digits>`, at most
    128 characters, as boards take them."""
    stem = re.sub(r"[^0-9A-Za-z]+", "_", Path(data).stem)[:100].strip("_") or "run"
    tail = "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(4))
    return f"{stem}_{time.strftime('%Y%m%d%H%M%S', time.gmtime())}_{tail}"


def run_of(path: Path) -> Path:
    """Return the run's directory, where `path` is that or a checkpoint's. Raises UserError where there is none."""
    checkpoint.check_place(path)
    if not checkpoint.is_checkpoint(path):
        return path
    if not ((run := path.parent.parent) / CONFIG).exists():
        raise UserError(f"{path} is a checkpoint without its run, whose {CONFIG} and {TOKENIZER} it needs; give it "
                        "where it is in the checkpoints/ of its run")
    return run


def parent(path: str | Path) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint that a new run may take its first weights from, as checkpoint.find does. Raises UserError,
    which names the flag, where there is none."""
    try:
        read_config(run_of(Path(path).absolute()))
        found, problems = checkpoint.find(path)
        if checkpoint.searching(found.state):
            raise UserError(f"{found.path} is of a search that is not over; let it come to its end")
    except UserError as error:
        raise UserError(f"--init-from: {error}") from None
    return found, problems


@contextmanager
def locked(path: Path, new: bool, anew: bool = False) -> Iterator[None]:
    """Hold the lock of the run directory `path`; a new one is made, and removed again if it stays empty.
    anew: as in `check_new`.

    The lock ends with the process, even when that is killed. Raises UserError if another process holds it, if the
    directory cannot be made, or if a new run may not begin there.
    """
    if new and not (path / LOCK).exists():  # before a lock is put into a folder of other files
        check_new(path, anew)
    with held(path, new):
        if new:
            check_new(path, anew)
        yield


@contextmanager
def held(path: Path, new: bool, what: str = "run directory", option: str = "--run-dir") -> Iterator[None]:
    """Hold the lock of a directory, as `locked` does, whatever is in it; messages call it `what`."""
    made = new and not path.exists()
    lock = FileLock(path / LOCK)
    try:
        if new:
            path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOOK, poll_interval=LOOK / 10)
    except Timeout:
        raise UserError(f"the {what} {path} is in use by another process; wait for it or give another {option}"
                        ) from None
    except NotImplementedError:
        raise UserError(f"cannot use {path} as a {what}: its file system has no locks; give another {option}"
                        ) from None
    except OSError as error:
        raise UserError(f"cannot use {path} as a {what}: {error.strerror}") from error
    try:
        yield
    finally:
        if made and path.is_dir() and os.listdir(path) == [LOCK]:
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def check_new(path: Path, anew: bool = False) -> None:
    """Raise UserError unless a new run may begin in the directory `path`. anew: it may take the place of one that ended
    before its first checkpoint."""
    if found := obstacle(path):
        raise UserError(f"--run-dir {path}: {found}; give a new or empty directory")
    if not path.exists():
        return
    if (path / CONFIG).exists() and checkpoint.directories(path):
        raise UserError(f"{path} holds a run already; continue it with --resume {path}, or give another --run-dir")
    if had_checkpoint(path) or (not anew and any(lines(path / METRICS))):
        raise without_checkpoint(path)
    # A kill leaves what is being written; without a checkpoint a run begins anew.
    if any(name != LOCK and not TEMPORARY.fullmatch(name) for name in os.listdir(path)) and not _is_run(path):
        raise UserError(f"{path} is not empty and no run that can be resumed; give a new or empty --run-dir")


def without_checkpoint(path: Path) -> UserError:
    """Return what is raised for a run that cannot go on, since there is no checkpoint of it."""
    back = "put its checkpoints/ back, or " * had_checkpoint(path)
    return UserError(f"{path} holds the records of a run without a checkpoint to continue it from; {back}{AGAIN}")


def _is_run(path: Path) -> bool:
    try:
        read_config(path)
    except UserError:
        return False
    return True
