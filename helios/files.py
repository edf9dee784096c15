"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from threading import get_ident
from typing import IO, Any

from helios.errors import UserError

TEMPORARY = re.compile(r"\..*\.\d+-\d+\.tmp")  # names of files that write_atomic writes


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Make the file `path` by `write(file)`; a kill or power cut at any moment leaves the old file or the new.

    Links are followed. What is there and no regular file (a device, a pipe) is written to as it is. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a link to itself, which open() refuses
        with open(path, "wb") as file:
            write(file)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file with `write_atomic`. Raises UserError where that fails."""
    try:
        write_atomic(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name, each with `write_atomic`, into a folder, which is made where it is not there. Raises
    UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, methodcaller("write", content))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises UserError."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a TOML file") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a null byte in the name
        raise UserError(f"{path} is no TOML file: {error}") from error


def check_writable(path: Path | None) -> None:
    """Raise UserError where no file can be written at `path`, before the work whose result it is to hold."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"cannot write {path}: " + ("it is a folder" if path.is_dir() else f"no folder {path.parent}"))


def obstacle(path: Path) -> str:
    """Return what keeps `path` from being a folder, or from becoming one: a file or a broken link where it or a parent
    should be; "" where nothing does."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return f"{place} is a link to {os.readlink(place)}, which is not there"
        if place.exists():
            return "" if place.is_dir() else f"{place} is a file"
    return ""


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
