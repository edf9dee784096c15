"""JSON lines: one object a line, without NaN or Infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from helios.errors import UserError


def lines(path: Path, strict: bool = False, kind: Any = Any) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of the file that holds an object, and the object; nothing where there is no file.
    kind: a TypedDict, whose keys are then the only ones that are read, which is twice as fast.

    A last line without an end, which is being written or was cut short by a kill, is left out. So is a damaged line; if
    `strict`, it raises UserError, which names the line.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    decode = msgspec.json.Decoder(kind).decode
    with file:
        for number, line in enumerate(file, 1):
            try:
                row = parse(line, decode)
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
            except (ValueError, RecursionError) as error:
                if strict and line.endswith(b"\n"):
                    why = "no UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "msg", error)
                    raise UserError(f"{path}, line {number}, is damaged: {why}") from error
                continue
            if line.endswith(b"\n"):
                yield line, row


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """Return the value as JSON; equal values give equal texts."""
    return _CANONICAL.encode(value)


def parse(line: bytes, decode: Callable[[bytes], Any] = msgspec.json.decode) -> Any:
    """Return the value of a line of JSON, which may hold NaN or Infinity. Raises ValueError or RecursionError."""
    try:
        return decode(line)  # four times as fast
    except (msgspec.MsgspecError, UnicodeError):
        return json.loads(line.decode())


def rows(path: Path, strict: bool = False) -> list[dict[str, Any]]:
    """Return the objects in a file, read as `lines` reads it."""
    return [row for _, row in lines(path, strict)]


def clipped(row: Mapping[str, Any]) -> bool:
    """Return whether a step's gradient was scaled down."""
    return row["clip_coef"] is not None and row["clip_coef"] < 1


def line(value: Mapping[str, Any]) -> bytes:
    """Return the object as a line of JSON, with null for numbers that are not finite."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace") + b"\n"  # the name of a file may be no UTF-8


def finite(value: Any) -> Any:
    """Return the value with None for numbers in it that are not finite."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
