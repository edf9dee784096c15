"""Errors that callers tell apart. A UserError is what a user can put right; the rest is a bug or a broken machine."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """Bad input: one line that says what was given, what was expected and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class NoDevice(UserError):
    """A backend found no device that it can use; the text names what is missing in that backend's own terms."""


class TooLarge(UserError):
    """A training does not fit into a device's memory."""


class DeviceLost(RuntimeError):
    """The driver gave up the device: a kernel ran too long or went astray, or the machine lost its GPU."""

    device: Mapping[str, str] | None = None  # what was lost, by whoever knows it


class Diverged(RuntimeError):
    """A training has come to weights that are not finite, from which nothing can be learned any more."""

    signal: int | None = None  # the one that asked it to end


def nearest(name: str, names: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """Return "; did you mean …?", or nothing where none of `names` is much like it.

    others: further spellings, each with the name that it stands for.
    """
    known = {n: n for n in names} | dict(others or {})
    found = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {known[found[0]]}?" if found else ""
