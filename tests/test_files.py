"""Files are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

import pytest

from helios.files import write_atomic


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_file_and_then_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(fd: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), os.path.exists(tmp_path / "file")))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "file", lambda file: file.write(b"new"))
    assert synced == [(False, False), (True, True)]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "file", lambda file: file.write(b"new"))
