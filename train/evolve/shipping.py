"""Run directories that go from one machine to another, and the texts that a training needs there."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

from helios.files import write_atomic
from helios.host import cache_dir
from helios.train import checkpoint, texts
from helios.train.config import DataConfig
from helios.train.records.layout import CHECKPOINTS, CONFIG, LOCK
from helios.train.tokenizer import Tokenizer


class Package(NamedTuple):
    """A run directory. files: their bytes by name; those of checkpoints that the receiver has are left out.
    checkpoints: the names of all."""

    files: Mapping[str, bytes]
    checkpoints: Collection[str]


def packed(path: Path, known: Collection[str] = ()) -> Package | None:
    """Return the run directory `path` as it is, but for checkpoints that are `known`; None where it is not there, and
    where a file of it has just been removed. What logs say of later steps is cut off by whoever goes on."""
    found = checkpoint.directories(path)
    try:
        files = [file for folder in found if folder.name not in known for file in folder.iterdir()]
        files += [file for file in path.rglob("*") if file.is_file() and file.name != LOCK
                  and not file.name.endswith(".tmp") and CHECKPOINTS not in file.relative_to(path).parts]
        content = {str(file.relative_to(path)): file.read_bytes() for file in files}
    except FileNotFoundError:
        return None
    return Package(content, [folder.name for folder in found]) if content else None


def unpack(package: Package, path: Path) -> None:
    """Make the run directory `path` what it was when it was packed. A kill leaves each file and checkpoint whole."""
    folder = path / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(path)
    present = {found.name for found in checkpoint.directories(path)}
    new = [name for name in package.checkpoints if name not in present]
    for name, content in package.files.items():
        at, _, rest = name.removeprefix(f"{CHECKPOINTS}/").partition("/")
        if at in new:
            file = folder / f"{checkpoint.PARTIAL}{at}" / rest
        elif at not in present:
            file = path / name
        else:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, methodcaller("write", content))
    for name in new:
        if (partial := folder / f"{checkpoint.PARTIAL}{name}").is_dir():
            partial.rename(folder / name)
    for name in present - set(package.checkpoints):
        checkpoint.remove(folder / name)


def parent(place: Path) -> tuple[str, Package] | None:
    """Return of a run what another one that begins with its checkpoint `place` needs, and a digest that names it; None
    where that is not there."""
    path = place.parent.parent
    found = packed(path, {one.name for one in checkpoint.directories(path)} - {place.name})
    names = (CONFIG, f"{CHECKPOINTS}/{place.name}/{checkpoint.STATE}")  # which name the run, and digests of the rest
    if found is None or not set(names) <= found.files.keys():
        return None
    return digest(b"".join(found.files[name] for name in names)), found


def kept(found: str, fetch: Callable[[], Package], wanted: Collection[str], folder: Path) -> Path:
    """Return the run directory with the digest `found` in this machine's `folder`, fetched where it is not there yet.
    wanted: the digests of all that are of use at present; what else is in the folder is removed."""
    if not (path := folder / found).exists():
        for old in folder.iterdir() if folder.is_dir() else ():
            if old.name.partition(".")[0] not in wanted:
                shutil.rmtree(old, ignore_errors=True)
        partial = folder / f"{found}.{secrets.token_hex(4)}"
        unpack(fetch(), partial)
        try:
            partial.rename(path)
        except OSError:  # another training was first
            shutil.rmtree(partial, ignore_errors=True)
    return path


def needed(config: DataConfig) -> dict[str, bytes]:
    """Return what a training reads, by name: texts in the project's own form, and the vocabulary. Raises UserError."""
    names = [*(source.name for source in texts.sources(config.data)), *filter(None, [config.val_data])]
    found = {name: texts.read(name, config.format).encode() for name in names if not name.startswith(texts.SYNTH)}
    if config.tokenizer:
        path = Path(config.tokenizer)
        Tokenizer.of(path)
        found[config.tokenizer] = (path / "tokenizer.json" if path.is_dir() else path).read_bytes()
    return found


def digest(content: bytes) -> str:
    """Return 32 hex digits that name the content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def place(digest: str) -> Path:
    """Return where this machine keeps what has that digest."""
    return cache_dir() / "sent" / digest
