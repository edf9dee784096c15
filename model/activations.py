"""The table of activations: all that an activation of an MLP is, but for the B-spline a formula.

A setting names one by its name in the table, or is a formula itself (helios/formula), which a name of one's own may
precede: `gelu`, `x*sigmoid(1.702*x)`, `quick: x*sigmoid(1.702*x)`. Several, for blocks or a pool, stand with | between,
or, where all are names, with commas.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np

from helios import ops
from helios.backends.backend import SPLINE_POINTS, SPLINE_REACH
from helios.errors import UserError, nearest
from helios.formula import Formula
from helios.formula.expression import FUNCTIONS, VARIABLES
from helios.model.settings import Kind, as_list, shown
from helios.tensor import Tensor

# Okabe and Ito's colours, which colour-blind people can tell apart, then more.
TABLE: dict[str, tuple[str, str, str]] = {  # name → formula, prefix of candidates' names, colour
    "gelu": ("gelu(x)", "G", "#0072b2"),
    "silu": ("silu(x)", "S", "#e69f00"),
    "relu": ("relu(x)", "R", "#009e73"),
    "swiglu": ("silu(g)*u", "Sw", "#d55e00"),
    "universal": ("a*silu(x)+b*x; a=1, b=0", "U", "#cc79a7"),
    "kan_spline": ("c0*silu(x)+c1*relu(x)+c2*gelu(x)+c3*x+c4*x**2; c0=0.5, c1=0, c2=0.5, c3=0, c4=0", "K", "#56b4e9"),
    "gelu_exact": ("gelu_exact(x)", "Ge", "#003f5c"),
    "relu2": ("relu(x)**2", "R2", "#44aa99"),
    "tanh": ("tanh(x)", "T", "#882255"),
    "sigmoid": ("sigmoid(x)", "Si", "#aa4499"),
    "leaky_relu": ("leaky_relu(x)", "L", "#117733"),
    "elu": ("elu(x)", "E", "#999933"),
    "softplus": ("softplus(x)", "Sp", "#ddcc77"),
    "mish": ("x*tanh(softplus(x))", "Mi", "#bf812d"),
    "geglu": ("gelu(g)*u", "Gg", "#cc6677"),
    "reglu": ("relu(g)*u", "Rg", "#8c510a"),
    "kan_bspline": ("", "Kb", "#88ccee"),  # no formula: ops.spline
}
MORE = ("#332288", "#6699cc", "#b2182b", "#5aae61", "#762a83", "#e08214", "#1b7837", "#c51b7d")  # of formulas
MIXED, MIXED_COLOUR = "mixed", "#666666"  # where blocks differ
FORMULAS, FORMULAS_COLOUR = "formulas", "#999999"  # those without a name, where they are more than colours for them
SHOWN = 32  # characters of a formula, as a name


@dataclass(frozen=True)
class Activation:
    """An activation of an MLP, fc2·act(fc1·x): fc1 [parts·F, D], fc2 [D, F]. Where it is gated there are two parts: the
    first F values of fc1·x are gates of the others.

    text: as a setting spells it. formula: None of the B-spline. prefix: of the names of candidates that have it.
    """

    text: str
    formula: Formula | None
    prefix: str = "F"

    @property
    def parts(self) -> int:
        return len(self.formula.inputs) if self.formula else 1

    @property
    def fused(self) -> bool:
        """Whether the product before it computes it in the same pass."""
        return self.formula is not None and self.formula.plain

    @cached_property
    def coefficients(self) -> Mapping[str, np.ndarray]:
        """What a column learns, by name: its initial value, of shape () or [points]."""
        if self.formula:
            return {name: np.array(value, np.float32) for name, value in self.formula.coefficients.items()}
        step = 2 * SPLINE_REACH / (SPLINE_POINTS - 3)
        x = -SPLINE_REACH + step * (np.arange(SPLINE_POINTS) - 1)
        return {"points": np.asarray(Formula.parse("gelu(x)").value(x), np.float32)}

    @property
    def key(self) -> str:
        """A text that is the same for activations that are equal, and start equal."""
        return self.formula.key if self.formula else self.text

    @property
    def function(self) -> str:
        """A text that is the same for activations that are the same function of what they learn, wherever that
        starts."""
        return str(self.formula.normal) if self.formula else self.text

    @property
    def matrices(self) -> int:
        """How many there are, of D·F weights each."""
        return self.parts + 1

    def width(self, n_embd: int) -> int:
        """Return the default F: 4·D, and where gated about as many weights in all, 8/3·D, up to a multiple of 64."""
        return 4 * n_embd if self.parts == 1 else 64 * math.ceil(8 * n_embd / (3 * 64))

    def matched(self, n_embd: int) -> int:
        """Return the F with which it has as many parameters as two matrices of 4·D have, 8·D²: the multiple of 16 if
        one is within 1 %."""
        each = self.matrices * n_embd + sum(value.size for value in self.coefficients.values())
        width = 8 * n_embd**2 / each
        even = 16 * round(width / 16)
        return even if abs(even - width) <= 0.01 * width else max(1, round(width))

    def __call__(self, h: Tensor, *coefficients: Tensor) -> Tensor:
        """Return act(h) [..., F] of h [..., parts·F]."""
        return ops.activation(h, self.formula, *coefficients) if self.formula else ops.spline(h, *coefficients)


@lru_cache(4096)
def activation(text: str) -> Activation:
    """Return the activation that a setting spells. Raises UserError, which points at the place, where it is none."""
    text = text.strip()
    if text in TABLE:
        given, prefix, _ = TABLE[text]
        return Activation(text, Formula.parse(given) if given else None, prefix)
    name, colon, given = (part.strip() for part in text.rpartition(":"))
    if colon:
        _check_name(name)
    elif is_name(given) or not given:
        raise UserError(_unknown(given, TABLE))
    formula = Formula.parse(given)
    return Activation(f"{name}: {formula}" if colon else str(formula), formula)


def _check_name(name: str) -> None:
    """Raise UserError where a formula cannot be called that."""
    wrong = ("is an activation already" if name in TABLE else "is a function of formulas" if name in FUNCTIONS else
             "is a variable of formulas" if name in VARIABLES else
             "" if is_name(name) else "is no name, which has letters, digits and _")
    if wrong:
        raise UserError(f"{shown(name)} {wrong}; choose another name")


def _unknown(name: str, names: Iterable[str]) -> str:
    return (f"given {shown(name)}, expected one of {', '.join(names)}, or a formula, as x*sigmoid(1.702*x)"
            f"{nearest(name, names)}")


def parsed(origin: str, text: str) -> list[Activation]:
    """Return the activations of a list in one text. Raises UserError, which begins with `origin`."""
    try:
        return [activation(part) for part in split(text)]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def is_name(text: str) -> bool:
    """Whether it is a name rather than a formula; x is the simplest formula."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", text) is not None and text not in VARIABLES


# -- names of one's own -----------------------------------------------------------------------------------------------

def own_formulas(origin: str, table: Mapping[str, Any]) -> dict[str, str]:
    """Return by name the activations that a table of formulas adds, each spelt out: `quick: x*sigmoid(1.702*x)`.
    Raises UserError, which begins with `origin`."""
    found = {}
    for name, formula in table.items():
        where = f"{origin}: activations"
        try:
            _check_name(name)
            where += f".{name}"
            if not isinstance(formula, str):
                raise UserError(f"expected a formula in quotes, got {shown(formula)}")
            found[name] = f"{name}: {Formula.parse(formula)}"
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return found


def spelt_out(origin: str, text: str, own: Mapping[str, str]) -> str:
    """Return a list of activations, or of lists of them, with what `own_formulas` returned in place of its names.
    Raises UserError, which begins with `origin`, for names that are unknown."""
    def spelt(part: str) -> str:
        if is_name(part) and part not in TABLE and part not in own:
            raise UserError(f"{origin}: {_unknown(part, (*TABLE, *own))}")
        return own.get(part, part)

    return _joined_genomes([joined([spelt(part) for part in split(genome)]) for genome in split_genomes(text)])


# -- as plots and tables show them ------------------------------------------------------------------------------------

def short_name(text: str) -> str:
    """Return a setting's activations in short form: "gelu×4 relu×2" where blocks differ, the most frequent first."""
    names = sorted(map(_short, split(text)), key=_rank)
    counts = Counter(names)
    return names[0] if len(counts) == 1 else " ".join(f"{name}×{n}" for name, n in counts.most_common())


def _short(text: str) -> str:
    name, colon, _ = text.partition(":")
    shown = name if colon else text
    return shown if len(shown) <= SHOWN else shown[:SHOWN - 1] + "…"


def short_names(texts: Iterable[str]) -> dict[str, str]:
    """Return the short forms by text; where texts that differ have one in common, numbers are added."""
    found, often = {}, Counter[str]()
    for text in dict.fromkeys(texts):
        name = short_name(text)
        often[name] += 1
        found[text] = name if often[name] == 1 else f"{name} #{often[name]}"
    return found


def _rank(name: str) -> int:
    return [*TABLE, name].index(name)


def kinds(texts: Iterable[str]) -> list[str]:
    """Return the short forms among these activations, each once, in the table's order. The mixed ones count as one, and
    so do formulas without a name, where there are more than colours for them."""
    found = dict.fromkeys(map(short_name, dict.fromkeys(texts)))
    single = [name for name in found if "×" not in name]
    mixed = [MIXED] * (len(single) < len(found) and MIXED not in single)
    named = [name for name in single if is_name(name)]
    if len(single) > len(named) + len(MORE):
        single = [*named, FORMULAS]
    return sorted(single, key=_rank) + mixed


def kind(text: str, among: Collection[str] = ()) -> str:
    """Return what `kinds` calls an activation, where it has returned `among`."""
    (name,) = kinds([text])
    return FORMULAS if FORMULAS in among and name not in among else name


def colour(text: str) -> str:
    """Return the colour of an activation, of its short form, or of what `kind` calls it."""
    name = kind(text)
    if name in TABLE:
        return TABLE[name][2]
    if name in (MIXED, FORMULAS):
        return MIXED_COLOUR if name == MIXED else FORMULAS_COLOUR
    # The board's page computes the same.
    return MORE[reduce(lambda h, c: (31 * h + ord(c)) % 2**32, name, 0) % len(MORE)]


# -- lists of them ---------------------------------------------------------------------------------------------------

@lru_cache(4096)
def split(text: str) -> tuple[str, ...]:
    """Return the parts of a list of activations, as `joined` writes it."""
    return _split(text, "|", ",")


def joined(texts: Sequence[str]) -> str:
    """Return a list of activations as one text."""
    return ("," if all(map(is_name, texts)) else "|").join(texts)


def split_genomes(text: str) -> tuple[str, ...]:
    """Return the parts of a list of lists of activations."""
    return tuple(filter(None, _split(text, "||", ";")))


def _split(text: str, mark: str, between_names: str) -> tuple[str, ...]:
    if mark not in text and re.fullmatch(r"[\w\s,;|]*", text):
        mark = between_names
    return tuple(part.strip() for part in text.split(mark))


def _read(value: Any) -> str:
    value = as_list(value)
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given or not all(isinstance(v, str) for v in given):
        raise ValueError
    return joined([part for text in given for part in split(text)])


def _read_genomes(value: Any) -> str:
    value = as_list(value)
    given = split_genomes(value) if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError
    return _joined_genomes([_read(genome) for genome in given if genome])


def _joined_genomes(genomes: Sequence[str]) -> str:
    return (";" if all(re.fullmatch(r"[\w,]*", genome) for genome in genomes) else "||").join(genomes)


ACTIVATIONS = Kind("an activation, or several with | between", "ACTIVATION[|…]", _read)
GENOMES = Kind("genomes with || between, or a list of them", "GENOME[||…]", _read_genomes)
