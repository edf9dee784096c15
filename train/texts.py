"""The texts that --data names: files, patterns of files with a weight, and the embedded corpus."""

from __future__ import annotations

import glob
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from helios.errors import UserError
from helios.train import synth
from helios.train.formats import ended, own

SYNTH = "synth:"
# What came from another machine: names there → places here, of texts, in the project's own form, vocabularies, and
# checkpoints that a run begins with.
sent: dict[str, str] = {}
# How files begin that hold text in another form, and what to do with them.
FORMS = {
    b"\x1f\x8b": "is compressed by gzip; unpack it with gzip -d",
    b"BZh": "is compressed by bzip2; unpack it with bzip2 -d",
    b"\xfd7zXZ\0": "is compressed by xz; unpack it with xz -d",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it with zstd -d",
    b"\x04\x22\x4d\x18": "is compressed by lz4; unpack it with lz4 -d",
    b"PK\3\4": "is a zip archive; unpack it with unzip",
    b"7z\xbc\xaf": "is a 7z archive; unpack it with 7z x",
    b"PAR1": "is a Parquet table; export it as JSONL",
    b"%PDF": "is a PDF; extract its text",
    b"\xff\xfe": "is UTF-16; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16; convert it to UTF-8",
}


class Source(NamedTuple):
    """A text that is trained on, and how often it is drawn from, for each of its tokens and relative to the others."""

    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        return Path(self.name).name


def sources(data: str | Sequence[str]) -> list[Source]:
    """Return what --data names. Raises UserError for a weight that is not positive and for a name given twice."""
    found = [_source(entry) for entry in ([data] if isinstance(data, str) else data)]
    names = [source.name for source in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--data names {twice} twice; give it once, with a weight: --data {twice}=2")
    return found


def _source(entry: str) -> Source:
    """Read NAME or NAME=WEIGHT; a file of the whole name goes first."""
    name, equals, weight = entry.rpartition("=")
    if not equals or entry in sent or os.path.exists(entry):
        return Source(entry)
    try:
        value = float(weight)
    except ValueError:
        return Source(entry)
    if not (0 < value < math.inf and name):
        raise UserError(f"--data {entry}: expected FILE=WEIGHT with a weight greater than 0")
    return Source(name, value)


def located(entry: str) -> str:
    """Return an entry of --data with an absolute path, so that it can be found from any folder.

    Raises UserError for what is there and is not a file.
    """
    name = _source(entry).name
    if name.startswith(SYNTH) or name in sent:
        return entry
    if os.path.exists(name):
        _check_regular(name)
    elif is_pattern(name):
        return os.path.join(glob.escape(os.getcwd()), entry)
    return os.path.realpath(name) + entry[len(name):]


def is_pattern(name: str) -> bool:
    """Return whether a name stands for all files that match it."""
    return any(c in name for c in "*?[") and not os.path.exists(name)


def read(name: str, format: str = "auto") -> str:
    """Return a text in the project's own form. Raises UserError.

    It is that of a file; of all files that match a pattern, in the order of their names, each a document at least; or
    of the embedded corpus, for "synth:SIZE[:SEED]".
    """
    if name in sent:
        return Path(sent[name]).read_bytes().decode()
    if name.startswith(SYNTH):
        return _corpus(name)
    if is_pattern(name):
        paths = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not paths:
            raise UserError(f"no file matches {name}; give a file or another pattern")
        texts = ((path, read_text(path)) for path in paths)
        text = "".join(ended(own(content, path, format)) for path, content in texts if content.strip())
    else:
        text = own(read_text(name), name, format)
    if not text or text.isspace():
        raise UserError(f"{name} is empty; give a UTF-8 text file")
    return text


def read_text(path: str | Path) -> str:
    """Return a file's text with its own line ends, without a byte order mark.
    Raises UserError if it is no file, cannot be read or is not UTF-8."""
    try:
        _check_regular(path)
        raw = Path(path).read_bytes()
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if form := next((form for magic, form in FORMS.items() if raw.startswith(magic)), None):
            raise UserError(f"{path} {form}") from error
        raise UserError(f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
                        f"convert it to UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}; give a UTF-8 text file") from error


def _check_regular(path: str | Path) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read {path}: it is a directory; give a file, or all its files as '{path}/*.txt'")
    if not stat.S_ISREG(mode):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise UserError(f"cannot read {path}: it is a {kind}, and a text is read again when a run is resumed; "
                        f"write it to a file, and give that")


def _corpus(name: str) -> str:
    size, _, seed = name.removeprefix(SYNTH).partition(":")
    if not re.fullmatch(r"\d*", seed, re.ASCII):
        raise UserError(f"the seed in {name} is no number; write synth:2MB or synth:2MB:7")
    count, free = synth.parse_size(size), psutil.virtual_memory().available
    if count > free:
        raise UserError(f"{name} is {count:,} bytes, and {free:,} bytes of memory are free; ask for less")
    return synth.corpus(count, int(seed or 0))
