"""Settings: dataclasses whose fields say what they take.

A field is declared once, with its default, the values that it accepts, a line of help and, where it has one, the name
of its flag. Every way to set it reads by that declaration: Python, TOML, JSON, `--set`, flags.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from helios.errors import UserError, nearest
from helios.model.genes import Gene


class Range(NamedTuple):
    """The values that a setting accepts: in words, as a test, and by name where they are a few names."""

    words: str
    accepts: Callable[[Any], bool]
    names: tuple[str, ...] = ()


ANY = Range("", lambda x: True)
COUNT = Range("at least 1", lambda x: x >= 1)
BLOCKS = Range("from 1 to 1,000", lambda x: 1 <= x <= 1000)
CHANNELS = Range("from 1 to 1,000,000", lambda x: 1 <= x <= 1_000_000)
NATURAL = Range("at least 0", lambda x: x >= 0)
POSITIVE = Range("greater than 0", lambda x: x > 0)
PORTION = Range("from 0 to 1", lambda x: 0 <= x <= 1)
SHARE = Range("at least 0 and less than 1", lambda x: 0 <= x < 1)


def one_of(*names: str) -> Range:
    return Range(f"one of {', '.join(names)}", lambda x: x in names, names)


class Kind(NamedTuple):
    """A type of value: what it is called in a message and in help, and how it is read; `read` raises ValueError, or
    OverflowError, which says what was expected, for a number that is too large or too small, or UserError, which says
    all but where it stands."""

    words: str
    metavar: str
    read: Callable[[Any], Any]


DIGITS = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
SMALLEST = 2.0**-126  # float32; devices take smaller ones for 0


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    if isinstance(value, str) and not DIGITS.fullmatch(value.strip()):  # int() takes 1_0 and digits of all scripts
        raise ValueError
    if abs(number := int(value)) >= 2**63:
        raise OverflowError("a whole number below 2⁶³")
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if isinstance(value, str) and not DECIMAL.fullmatch(value.strip()):
        raise ValueError
    try:
        (single,) = struct.unpack("f", struct.pack("f", x := float(value)))
    except OverflowError:
        single = x = math.inf
    if math.isnan(x):
        raise ValueError
    if math.isinf(single) or (x and abs(single) < SMALLEST) or (x < 1 and single == 1):
        raise OverflowError("a number that float32 can tell from 0, 1 and infinity")
    return x


def _text(value: Any) -> str:
    # Devices are also chosen by number, and TOML and JSON know numbers.
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value):
        raise ValueError
    if b"\0" in str(value).encode():  # which raises ValueError for the name of a file that is not UTF-8
        raise ValueError
    return str(value)


def _switch(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


def as_list(value: Any) -> Any:
    """Return the list that a text spells in JSON, so that a flag takes what a file takes; any other value as it is."""
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _terms(value: Any) -> str:
    if isinstance(value, str):
        value = dict(term.partition("=")[::2] for term in value.split(",") if term.strip())
    if not isinstance(value, dict):
        raise ValueError
    return ",".join(f"{name.strip()}={_number(x)}" for name, x in sorted(value.items()))


def _texts(value: Any) -> str | tuple[str, ...]:
    with suppress(ValueError, RecursionError):  # the name of a file may begin like a list
        value = as_list(value)
    found = tuple(map(_text, value)) if isinstance(value, list | tuple) else (_text(value),)
    if not found:
        raise ValueError
    return found[0] if len(found) == 1 else found


INT = Kind("a whole number", "N", _integer)
FLOAT = Kind("a number", "X", _number)
TEXT = Kind("text in UTF-8 without null bytes", "TEXT", _text)
SWITCH = Kind("true or false", "BOOL", _switch)
TEXTS = Kind("text, or a list of several", "TEXT", _texts)
TERMS = Kind("NAME=NUMBER, several with commas between", "NAME=X[,NAME=X…]", _terms)
WIDTH = Kind("a whole number or matched", "N", lambda x: x if x == "matched" else _integer(x))
KINDS = {"int": INT, "float": FLOAT, "str": TEXT, "bool": SWITCH}  # by the annotation of a field


def setting(default: Any, range: Range = ANY, help: str = "", *, flag: str = "", kind: Kind | None = None,
            bits: bool = True, gene: Gene | None = None) -> Any:
    """Declare a field of a dataclass of settings.

    help: half a sentence. flag: the name of its command line flag, without dashes; "" where it has none. kind: needed
    only where the annotation does not tell it. bits: whether the bits of a training depend on it, but for the device,
    which a run's fingerprint names itself. gene: what an evolution may make of it; None: nothing unless told. A number
    whose default is None also takes "auto", which means None.
    """
    return dataclasses.field(default=default, metadata={
        "range": range, "help": help, "flag": flag, "kind": kind, "bits": bits, "gene": gene})


class Setting(NamedTuple):
    """A declared setting."""

    section: str
    key: str
    flag: str
    kind: Kind
    range: Range
    help: str
    default: Any
    bits: bool = True
    gene: Gene | None = None

    @property
    def default_text(self) -> str:
        """The default as it would be given, "" where the setting is not given."""
        if self.default is None:
            return "auto" if self.takes_auto else ""
        return spelt(self.default)

    @property
    def takes_auto(self) -> bool:
        """Whether "auto" stands for None."""
        return self.default is None and self.kind is not TEXT

    def read(self, value: Any, origin: str) -> Any:
        """Return the value that `value` stands for. Raises UserError, which begins with `origin`, for any other."""
        if (value is None and self.default is None) or (value == "auto" and self.takes_auto):
            return None
        try:
            found = self.kind.read(value)
        except OverflowError as error:
            raise UserError(f"{origin}: expected {error}, got {shown(value)}") from None
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        except (ValueError, TypeError, RecursionError):
            also = " or auto" if self.takes_auto else ""
            plain = " (in plain decimal, as 20, 0.1 or 3e-4)" * (isinstance(value, str) and "number" in self.kind.words)
            raise UserError(f"{origin}: expected {self.kind.words}{also}, got {shown(value)}{plain}") from None
        if not self.range.accepts(found):
            near = nearest(str(found), self.range.names) if self.range.names else ""
            raise UserError(f"{origin}: expected {self.range.words}, got {shown(value)}{near}")
        return found


def spelt(value: Any) -> str:
    """Return a value as a flag would take it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    """Return a value for a message, shortened: a text in quotes, anything else as TOML and JSON spell it."""
    text = repr(value) if isinstance(value, str) else _spelt(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"


def _spelt(value: Any) -> str:
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a list in a list in a list…
        return f"a very long {type(value).__name__}"


def declared(cls: type, section: str = "") -> tuple[Setting, ...]:
    """The settings that the dataclass `cls` declares, in order."""
    if (known := _DECLARED.get((cls, section))) is not None:
        return known

    def of(f: dataclasses.Field) -> Setting:
        kind = f.metadata["kind"] or KINDS[str(f.type).removesuffix(" | None")]
        return Setting(section, f.name, f.metadata["flag"], kind, f.metadata["range"], f.metadata["help"], f.default,
                       f.metadata["bits"], f.metadata["gene"])

    found = _DECLARED[cls, section] = tuple(of(f) for f in dataclasses.fields(cls))
    return found


_DECLARED: dict[tuple[type, str], tuple[Setting, ...]] = {}


class Settings:
    """A frozen dataclass of settings, every value of which is checked when one is made. Raises UserError."""

    def __post_init__(self) -> None:
        for s in declared(type(self)):
            object.__setattr__(self, s.key, s.read(getattr(self, s.key), s.key))
        self.check()

    def check(self) -> None:
        """Raise UserError where values cannot be used together."""

    def replaced(self, **values: Any) -> Self:
        """Return these settings with other values, which alone are read. Raises UserError."""
        found = object.__new__(type(self))
        vars(found).update(vars(self))
        for s in declared(type(self)):
            if s.key in values:
                vars(found)[s.key] = s.read(values.pop(s.key), s.key)
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")
        found.check()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, as JSON has them: numbers, texts, switches, None, lists of texts."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of values by name. Raises UserError for an unknown name, with the nearest known one."""
        known = [s.key for s in declared(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"unknown setting {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        return cls(**values)
