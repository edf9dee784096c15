"""What the board's answers share: the parameters of requests, JSON, and errors."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from helios.train.board.guard import ID
from helios.train.board.schema import strict, text
from helios.train.board.store import warn
from helios.train.board.uploads import LARGEST

FAR = 2**62  # beyond every number of a row, and what SQLite holds


def named(request: Request, name: str) -> str:
    """Return a parameter of the path that is an id or a name. Raises HTTPException where it can be none."""
    given = request.path_params[name]
    if not ID.fullmatch(given):
        raise HTTPException(404, f"no such {name}")
    return given


def whole(given: Any, name: str, default: int | None = None, least: int = -FAR, most: int = FAR) -> Any:
    """Return a parameter that is a whole number; `default` where it is not given. Raises HTTPException for another."""
    value = given.get(name)
    if value is None or value == "":
        return default
    try:
        number = int(str(value))
    except ValueError:
        raise HTTPException(400, f"{name} is no whole number") from None
    if not least <= number <= most:
        raise HTTPException(400, f"{name} is not from {least:,} to {most:,}")
    return number


def content(given: Any) -> tuple[int, str]:
    """Return the size and the SHA-256 of a whole file. Raises HTTPException where they are none."""
    size, sha256 = whole(given, "size", -1, 0, LARGEST), str(given.get("sha256", "")).lower()
    if size < 0 or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise HTTPException(400, "size and sha256 of the whole file are wanted")
    return size, sha256


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value as JSON, with null for numbers that are not finite."""
    return as_text(strict(text(value)), status, headers)


def as_text(content: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON text."""
    return Response(content, status, headers, "application/json")


def refused(request: Request, error: Exception) -> Response:
    """Answer to what cannot be had: 4xx."""
    assert isinstance(error, HTTPException)
    return as_json({"error": error.detail}, error.status_code, error.headers)


def failed(request: Request, error: Exception) -> Response:
    """Answer where the disk or the database fails: 503."""
    warn(f"{request.method} {request.url.path}: {error}")
    return as_json({"error": f"the board cannot use its files: {error}"}, 503)


def broken(request: Request, error: Exception) -> Response:
    """Answer where the board has a fault: 500."""
    with suppress(OSError, ValueError):
        traceback.print_exception(error)
    return as_json({"error": "the board met an error of its own, which its output tells"}, 500)
