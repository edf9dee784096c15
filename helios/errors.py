"""What a user can put right is a UserError; everything else is a bug or a broken machine."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """Bad input, with what was given, what was expected and what to do, in one line.

    The command line prints it without a traceback and exits with 2.
    """


class DeviceLost(RuntimeError):
    """The driver gave up the device: a kernel ran too long or went astray, or the machine lost its GPU."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.4, others: Mapping[str, str] | None = None) -> str:
    """"; did you mean …?", or nothing where none of `names` is as like as `cutoff`, from 0 to 1.

    others: further spellings, each with the name that it stands for.
    """
    known = {n: n for n in names} | dict(others or {})
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return f"; did you mean {known[found[0]]}?" if found else ""
