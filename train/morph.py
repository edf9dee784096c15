"""Morphs: the first weights of a model, made from those of a model with other settings.

Each axis of a tensor has a role. A role gives an index map: for each index of the new model's axis the one of the old
model's that it continues, or -1 where it is new. Every tensor is gathered by the maps of its axes. What is new begins
as in a new model where it reads the residual stream, and at zero where it writes to it, so that a model that only grows
stays the same function. docs/morph.md has the rules by setting.

Width. A norm sees the mean of squares of the stream's d channels, with layer norm of their distances from the mean. On
the way to D channels all that writes to the stream is multiplied by s = √(D/d), with layer norm once its mean over the
channels, which none sees, is taken off; each new channel is 0. The mean of squares is then s²·σ²·d/D = σ², also against
the norm's epsilon. A normed channel is s times the old one, which the norm's weight, divided by s, undoes; a new one is
0, whatever then reads it. On the way back channels are cut off, and with ρ, the share of the writers' (centred) squares
in the channels that stay, s = √(d/(D·ρ)): 1 for a net whose channels are alike, and the inverse of what a growth did.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from helios.backends.backend import SPLINE_POINTS
from helios.errors import UserError
from helios.model.activations import Activation, short_name
from helios.model.config import GPTConfig
from helios.model.gpt import OUTPUTS, initial_state
from helios.model.settings import spelt
from helios.optim import check_state

MODES = ("exact", "prefix", "project")  # each does what the ones before it do

Index = np.ndarray  # ints: for each of an axis the old model's index, or -1
Texts = tuple[Sequence[str], Sequence[str]]  # of all tokens by id, in the old model and in the new one


class Line(NamedTuple):
    """What became of one tensor of the new model."""

    name: str
    how: str  # copied, as it was; projected, in part or scaled; cloned, from another block; fresh, as in a new model
    was: tuple[int, ...] | None  # shape of the old model's tensor; None where nothing is taken from one
    now: tuple[int, ...]
    note: str


class Morph(NamedTuple):
    """The first weights of a model. changes: why it is another function than the old one on the tokens and positions
    that both have, a setting each; none where it is the same up to rounding."""

    weights: dict[str, np.ndarray]
    table: list[Line]
    changes: list[str]


def morph(state: Mapping[str, np.ndarray], was: GPTConfig, now: GPTConfig, how: str, seed: int,
          tokens: Texts | None = None) -> Morph:
    """Return weights for a model `now`, made from the weights `state` of a model `was`.

    how: one of MODES. exact: all tensors have their shapes, and the vocabulary is the same. prefix: there may also be
    more or fewer blocks and positions, and one vocabulary may be the leading part of the other. project: all else.
    seed: of what is new. tokens: both vocabularies by id; None: one is the leading part of the other. Raises UserError,
    which names a tensor and the mode that can do it, where `how` cannot.
    """
    check_state(state, was.shapes(), "what the weights are made from")
    check(was, now, how, tokens)
    c = _Change(was, now, tokens)
    scale = _scale(state, was, now)
    found = {name: _tensor(name, own, state, c, scale) for name, own in initial_state(now, seed).items()}
    return Morph({name: value for name, (value, _) in found.items()}, [line for _, line in found.values()],
                 list(changes(was, now)))


# -- axes -------------------------------------------------------------------------------------------------------------

def _leading(was: int, now: int) -> Index:
    index = np.arange(now)
    return np.where(index < was, index, -1)


def _parts(index: Index, size: int, was: int, now: int) -> Index:
    """Return the map of `now` parts one behind the other, each of which has the map `index` into one of `was` parts of
    that size."""
    return np.concatenate([np.where((index >= 0) & (p < was), index + p * size, -1) for p in range(now)])


@dataclass(frozen=True)
class _Change:
    """Two models, and the maps between those of their axes that all blocks share."""

    was: GPTConfig
    now: GPTConfig
    texts: Texts | None

    @property
    def head_sizes(self) -> tuple[int, int]:
        return self.was.n_embd // self.was.n_head, self.now.n_embd // self.now.n_head

    @property
    def within(self) -> bool:
        """Whether heads stay, and their size changes."""
        return self.was.n_head == self.now.n_head and self.was.n_embd != self.now.n_embd

    @cached_property
    def heads(self) -> Index:
        """Return the map of concatenated heads. They lead one another where their size, or the width, is the same."""
        if not self.within:
            return _leading(self.was.n_embd, self.now.n_embd)
        size = self.head_sizes[0]
        return _parts(_leading(*self.head_sizes), size, self.was.n_head, self.now.n_head)

    @cached_property
    def tokens(self) -> Index:
        if self.texts is None:
            return _leading(self.was.vocab_size, self.now.vocab_size)
        ids = {text: i for i, text in enumerate(self.texts[0]) if text}
        return np.array([ids.get(text, -1) for text in self.texts[1]])


# Role of an axis → its map in the new model's block i, made from the old one's block j.
ROLES: Mapping[str, Callable[[_Change, int, int], Index]] = {
    "tokens": lambda c, i, j: c.tokens,
    "positions": lambda c, i, j: _leading(c.was.block_size, c.now.block_size),
    "channels": lambda c, i, j: _leading(c.was.n_embd, c.now.n_embd),
    "heads": lambda c, i, j: c.heads,
    "q, k, v": lambda c, i, j: _parts(c.heads, c.was.n_embd, 3, 3),
    "head size": lambda c, i, j: _leading(*c.head_sizes),
    "units": lambda c, i, j: _leading(c.was.ffn_dims[j], c.now.ffn_dims[i]),
    "inputs of units": lambda c, i, j: _parts(_leading(c.was.ffn_dims[j], c.now.ffn_dims[i]), c.was.ffn_dims[j],
                                               c.was.activations[j].parts, c.now.activations[i].parts),
    "points": lambda c, i, j: np.arange(SPLINE_POINTS),
}
AXES: Mapping[str, tuple[str, ...]] = {
    "wte.weight": ("tokens", "channels"), "wpe.weight": ("positions", "channels"),
    "lm_head.weight": ("tokens", "channels"),
    **{f"{norm}.{part}": ("channels",) for norm in ("ln1", "ln2", "ln_f") for part in ("weight", "bias")},
    "attn.qkv.weight": ("q, k, v", "channels"), "attn.out.weight": ("channels", "heads"),
    "attn.q_norm.weight": ("head size",), "attn.k_norm.weight": ("head size",),
    "mlp.fc1.weight": ("inputs of units", "channels"), "mlp.fc2.weight": ("channels", "units"),
}
LEARNED = ("points", "units")  # the last of them are the axes of all else, mlp.act.<name>
# What writes to the residual stream → its axis of channels.
WRITERS: Mapping[str, int] = {"wte.weight": 1, "wpe.weight": 1, "attn.out.weight": 0, "mlp.fc2.weight": 0}
NORM_WEIGHTS = ("ln1.weight", "ln2.weight", "ln_f.weight")


def _place(name: str) -> tuple[int | None, str]:
    """Return the number of the block that a tensor is in, None where in none, and its name there."""
    first, _, rest = name.partition(".")
    if first != "blocks":
        return None, name
    block, _, part = rest.partition(".")
    return int(block), part


# -- tensors ----------------------------------------------------------------------------------------------------------

def _tensor(name: str, own: np.ndarray, state: Mapping[str, np.ndarray], c: _Change, scale: float
            ) -> tuple[np.ndarray, Line]:
    """Return a tensor's first value, and its line of the table. own: its value in a new model."""
    block, part = _place(name)
    i = block or 0
    added, j = i >= c.was.n_layer, i % c.was.n_layer
    origin = name if block is None else f"blocks.{j}.{part}"
    silent = added and part in OUTPUTS
    if origin not in state or (
            part.startswith("mlp.act.") and c.was.activations[j].function != c.now.activations[i].function):
        return np.zeros_like(own) if silent else own, Line(name, "fresh", None, own.shape, "zero" if silent else "")
    value, fill = state[origin].astype(np.float64), own.astype(np.float64)
    roles = AXES.get(part, LEARNED[-own.ndim:])
    maps = [ROLES[role](c, i, j) for role in roles]
    notes = _notes(c, roles, maps, value.shape)
    if part in WRITERS:
        value, fill = (_written(x, WRITERS[part], by, c) for x, by in ((value, scale), (fill, 1.0)))
        maps[WRITERS[part]] = np.arange(c.now.n_embd)
    if part in NORM_WEIGHTS:
        value /= scale
    if part in WRITERS or part in NORM_WEIGHTS:
        notes += [f"{'×' if part in WRITERS else '÷'} {scale:.4g}"] * (scale != 1)
    if part in OUTPUTS:
        fill[:] = 0
    if part == "attn.qkv.weight" and c.within:
        # New places of a head's keys are 0, and scores, q·k/√size, are as before. A block that adds nothing yet has no
        # scores to keep, and with keys of 0 its queries would learn a step later.
        if not added:
            fill[c.now.n_embd:2 * c.now.n_embd][c.heads < 0] = 0
        if not c.now.qk_norm:
            ratio = math.sqrt(c.head_sizes[1] / c.head_sizes[0])
            value[:c.was.n_embd] *= ratio
            notes.append(f"q × {ratio:.4g}")
    kept = [np.flatnonzero(index >= 0) for index in maps]
    fill[np.ix_(*kept)] = value[np.ix_(*(index[k] for index, k in zip(maps, kept, strict=True)))]
    if added:
        notes.insert(0, f"from {i - j} blocks before")
    if silent:
        fill[:] = 0
        notes = ["zero"]
    result = fill.astype(np.float32)
    how = "cloned" if added else "copied" if np.array_equal(result, state[origin]) else "projected"
    return result, Line(name, how, state[origin].shape, own.shape, ", ".join(notes))


def _written(value: np.ndarray, axis: int, scale: float, c: _Change) -> np.ndarray:
    """Return a writer with the channels on that axis that both models have, scaled, and behind them the new ones, 0."""
    new = c.now.n_embd - c.was.n_embd
    kept = np.take(value, np.arange(min(c.was.n_embd, c.now.n_embd)), axis)
    if new > 0 and c.now.norm == "layer":
        kept = kept - kept.mean(axis, keepdims=True)
    return np.pad(scale * kept, [(0, max(0, new) * (i == axis)) for i in range(kept.ndim)])


def _scale(state: Mapping[str, np.ndarray], was: GPTConfig, now: GPTConfig) -> float:
    """Return s, which what is written to the stream is multiplied by, and what the norms give is divided by."""
    share = 1.0
    if now.n_embd < was.n_embd:
        kept = total = 0.0
        for name, value in state.items():
            if (part := _place(name)[1]) in WRITERS:
                x = np.moveaxis(value.astype(np.float64), WRITERS[part], 0)
                squares = (x - x.mean(0) * (was.norm == "layer"))**2
                kept, total = kept + squares[:now.n_embd].sum(), total + squares.sum()
        share = kept / total if kept else now.n_embd / was.n_embd
    return math.sqrt(now.n_embd / (was.n_embd * share))


def _notes(c: _Change, roles: Sequence[str], maps: Sequence[Index], shape: Sequence[int]) -> list[str]:
    notes = []
    for role, index, size in zip(roles, maps, shape, strict=True):
        same = size == len(index) and np.array_equal(index, np.arange(size))
        if role in ("heads", "q, k, v"):
            (h, d), (there, here) = (c.was.n_head, c.now.n_head), c.head_sizes
            notes += [f"heads {h} of {there} → {d} of {here}"] * ((h, there) != (d, here))
        elif role == "tokens" and c.texts and not same:
            notes.append(f"{(index >= 0).sum():,} of {len(index):,} tokens known")
        elif not same:
            notes.append(f"{role} {size:,} → {len(index):,}")
    return notes


# -- what a mode allows, and what changes -----------------------------------------------------------------------------

def check(was: GPTConfig, now: GPTConfig, how: str, tokens: Texts | None = None) -> None:
    """Raise the UserError that `morph` does where the mode `how` cannot make the one of the other."""
    found = list(_obstacles(_Change(was, now, tokens)))
    if refused := [text for level, text in found if level > MODES.index(how)]:
        raise UserError(f"--morph {how}: {refused[0]}; --morph {MODES[max(level for level, _ in found)]} can do that")


def _obstacles(c: _Change) -> Iterator[tuple[int, str]]:
    """Yield for each tensor that is not copied the place in MODES of the first one that can do it, and why."""
    there, here = c.was.shapes(), c.now.shapes()
    shown = lambda shape: "missing" if shape is None else str(list(shape))
    shared = min(c.was.n_layer, c.now.n_layer)
    for name in dict.fromkeys((*here, *there)):
        a, b = there.get(name), here.get(name)
        block, part = _place(name)
        others = "tokens" in AXES.get(part, ()) and c.texts is not None and list(c.texts[0]) != list(c.texts[1])
        if a == b and not others:
            continue
        why = f"{name} is {shown(a)} there and {shown(b)} here"
        rows = a is not None and b is not None and a[1:] == b[1:]  # whether the number of rows alone may differ
        if "tokens" in AXES.get(part, ()) and rows:
            leads = c.texts is None or all(x == y for x, y in zip(*c.texts, strict=False))
            yield 1 if leads else 2, why + ", for a vocabulary of other tokens" * (not leads)
        else:
            yield 1 if (block or 0) >= shared or (part == "wpe.weight" and rows) else 2, why


def changes(was: GPTConfig, now: GPTConfig) -> Iterator[str]:
    """Yield why a model `now` that is made from a model `was` is another function, as Morph.changes has it."""
    there, here = _Change(was, now, None).head_sizes
    told = lambda key: f"{key} {spelt(getattr(was, key))} → {spelt(getattr(now, key))}"
    yield from (told(key) for key in ("n_layer", "n_embd") if getattr(now, key) < getattr(was, key))
    if was.n_head != now.n_head and there != here:
        yield f"{told('n_head')}, of {there} → {here} channels"
    elif there != here and now.qk_norm:
        yield f"heads of {there} → {here} channels, with qk_norm"
    blocks = list(zip(was.activations, now.activations, was.ffn_dims, now.ffn_dims, strict=False))
    yield from [f"ffn_dim {a} → {b}" for *_, a, b in blocks if b < a][:1]
    if not all(_agree(a, b) for a, b, *_ in blocks):
        yield f"activation {short_name(was.activation)} → {short_name(now.activation)}"
    yield from (told(key) for key in ("norm", "softcap", "logit_softcap", "qk_norm")
                if getattr(was, key) != getattr(now, key))


def _agree(was: Activation, now: Activation) -> bool:
    """Whether the new one begins as the function that the old one is, as far as values in [-20, 20] tell; where gated
    all pairs of them are tried."""
    if was.function == now.function:
        return True
    if not (was.formula and now.formula) or was.coefficients or was.parts != now.parts:
        return False
    side = np.linspace(-20, 20, 801)
    given = (side,) if was.parts == 1 else (side[:, None], side)
    starts = [np.array(value, np.float64) for value in now.coefficients.values()]
    return np.allclose(now.formula.value(*given, *starts), was.formula.value(*given), 1e-9, 1e-12)


# -- the table --------------------------------------------------------------------------------------------------------

def grouped(table: Sequence[Line]) -> list[Line]:
    """Return the table with the lines of blocks that are alike as one: `blocks.0-3.ln1.weight`."""
    found: dict[Line, list[int]] = defaultdict(list)
    for line in table:
        block, part = _place(line.name)
        found[line if block is None else line._replace(name=f"blocks.{{}}.{part}")] += [] if block is None else [block]
    return [line._replace(name=line.name.format(_ranges(blocks))) for line, blocks in found.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `0-3,5`."""
    starts = [n for n, before in zip(numbers, [None, *numbers], strict=False) if before is None or n != before + 1]
    ends = [n for n, after in zip_longest(numbers, numbers[1:]) if after is None or after != n + 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def summary(found: Morph) -> str:
    """Return a morph in a line: how many tensors were copied, projected, cloned and are fresh, and what changes."""
    often = Counter(line.how for line in found.table)
    counts = ", ".join(f"{often[how]} {how}" for how in ("copied", "projected", "cloned", "fresh") if often[how])
    function = f"another function: {', '.join(found.changes)}" if found.changes else (
        "the same function of tokens and positions that both have")
    return f"tensors: {counts}; {function}"


def told(found: Morph, whole: bool = False) -> str:
    """Return a morph in lines: the summary, and the tensors that are not plain copies; `whole`: all of them."""
    shape = lambda x: "×".join(map(str, x)) if x else ""
    rows = [(line.name, line.how, f"{shape(line.was)} → {shape(line.now)}" if line.was != line.now else shape(line.now),
             line.note) for line in grouped(found.table) if whole or line.how != "copied"]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(text.ljust(n) for text, n in zip(row, wide, strict=True)).rstrip() for row in rows]
    return "\n".join([summary(found), *lines])
