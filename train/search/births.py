"""Candidates of an experiment, and how they are born.

All of this is a pure function of its arguments, random choices included, so that an experiment that was killed goes on
as it would have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helios import random
from helios.model.activations import activation, is_name, short_name, split
from helios.train.search import operators
from helios.train.search.mutations import Draws
from helios.train.search.operators import Born, Genome, Rates, Space

GREEK = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta", "Iota", "Kappa", "Lambda", "Mu", "Nu",
         "Xi", "Omicron", "Pi", "Rho", "Sigma", "Tau", "Upsilon", "Phi", "Chi", "Psi", "Omega")
DECAYS = {"none": lambda p: 1.0, "linear": lambda p: 1.0 - p, "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p))}
STREAM = int.from_bytes(b"genomes", "little")  # of random numbers, apart from those of batches and weights
CHILD, TOURNAMENT, MUTATION = 0, 1, 2  # purposes of a draw


@dataclass(frozen=True)
class _Record:
    """A record of plain values, None for numbers that are not finite, so that reading back gives what was written."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            kind = type(value)
            if kind in _PLAIN or (kind is float and math.isfinite(value)):
                continue
            if (plain := _plain(value)) is not value:
                object.__setattr__(self, name, plain)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


_PLAIN = frozenset((str, int, bool, type(None)))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value) if value else value
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Replicate(_Record):
    """One training of a candidate. Losses are in nats; None: not finite or not measured."""

    seed: int
    val_loss: float | None  # of the last evaluation
    best_val_loss: float | None
    train_loss: float | None  # mean of the last tenth of the steps
    fitness: float | None
    steps: int
    tokens: int
    evaluations: list[tuple[int, float | None]]  # step of this training, loss
    spikes: int
    skipped: int
    clip_rate: float  # share of the steps that were clipped, 0 to 1
    max_grad_norm: float | None
    tokens_per_sec_mean: float | None
    cusum_alerts: int  # steps with an alert, not counting those of the machine alone
    seconds: float
    trouble: int = 0  # steps in trouble, as monitors/trouble.py defines it


@dataclass(frozen=True)
class Candidate(_Record):
    """A genome, its descent and, in `parameters` and below, what was measured over its replicates."""

    id: str
    name: str
    activation: str  # as GPTConfig takes it
    generation: int
    seed: int  # of the search
    parent_id: str | None = None
    parent_name: str | None = None
    lineage: list[str] = field(default_factory=list)  # ids, the eldest first
    mutation: str | None = None  # how it differs from its parent or, of a random formula, from one of the pool; blocks
    # count from 0, as in weights' names
    settings: dict[str, Any] = field(default_factory=dict)  # of the model, those that are not as the run has them
    refused: int = 0  # formulas that were drawn before this one and refused, since they explode
    arm: str = "evolved"  # or random, or preset, of what is compared with it
    operator: str | None = None  # how it was born
    parents: list[str] = field(default_factory=list)  # ids, parent_id being the first
    bonus: float = 0.0  # of a new genome when parents are chosen, in units of the score
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    best_val_loss: float | None = None
    val_loss_mean: float | None = None
    val_loss_se: float | None = None
    fitness: float | None = None
    spikes: int | None = None
    skipped: int | None = None
    clip_rate: float | None = None
    max_grad_norm: float | None = None
    tokens_per_sec_mean: float | None = None
    cusum_alerts: int | None = None
    trouble: int | None = None
    status: str | None = None  # complete, reused, stopped or diverged; None: not measured yet
    replicates: list[Replicate] = field(default_factory=list)

    @property
    def genome(self) -> Genome:
        """Return what its model differs in from the run's."""
        return Genome(self.activation, self.settings)

    def named(self, text: str) -> str:
        """Return the activation's name, as `text` says it, with the settings, if there are any."""
        return operators.described(text, self.settings)


def genome_key(candidate: Candidate) -> str:
    """Return the genome as a text, equal for candidates of equal genomes."""
    return operators.key(candidate.genome)


Breed = Callable[[Candidate, Sequence[Candidate], Collection[str], int], Born]


def bred(space: Space, rates: Rates
         ) -> Callable[[Candidate, Sequence[Candidate], Collection[str], Draws], Born]:
    """Return what makes a child in a space of a parent, the other parents, the keys of its siblings, and draws."""
    return lambda parent, others, taken, numbers: operators.child(
        space, parent.genome, others, taken, rates, numbers)


def children(parents: Sequence[Candidate], living: Sequence[Candidate], size: int, before: int, generation: int,
             seed: int, bonus: float, breed: Breed) -> list[Candidate]:
    """Return `size` children; child i comes from parent i modulo their number. `bonus` goes to new genomes.

    living: those whose genomes are not new. before: candidates of the experiment so far. breed: makes the child i.
    """
    known = {genome_key(c) for c in living}
    found, taken = list[Candidate](), set[str]()
    for i in range(size):
        at = i % len(parents)
        parent, others = parents[at], [*parents[:at], *parents[at + 1:]]
        born = breed(parent, others, taken, i)
        text, key = born.genome.activation, operators.key(born.genome)
        met = [] if born.other is None else [others[born.other].id]
        found.append(Candidate(
            id=_id(text, generation, before + i + 1), name=f"{_prefix(text)}-{_greek_part(parent)}.{generation}",
            activation=text, generation=generation, seed=seed, parent_id=parent.id, parent_name=parent.name,
            lineage=[*parent.lineage, parent.id], mutation="; ".join(born.changes) or None,
            settings=dict(born.genome.settings), refused=born.refused, operator=born.operator,
            parents=[parent.id, *met], bonus=0.0 if key in known else bonus))
        known.add(key)
        taken.add(key)
    return found


def founder(genome: Genome, before: int, generation: int, seed: int, operator: str = "founder", **fields: Any
            ) -> Candidate:
    """Return a candidate without parents. before: candidates of the experiment so far. fields: its others."""
    lap, text = before // len(GREEK), genome.activation
    greek = GREEK[before % len(GREEK)] + (str(lap + 1) if lap else "")
    return Candidate(id=_id(text, generation, before + 1), name=f"{_prefix(text)}-{greek}", activation=text,
                     generation=generation, seed=seed, settings=dict(genome.settings), operator=operator, **fields)


def living_before(generation: int, candidates: Sequence[Candidate], elitism: bool) -> list[Candidate]:
    """Return the generation before this one and, with elitism, its parents."""
    last = max(c.generation for c in candidates if c.generation < generation)
    parents = {c.parent_id for c in candidates if c.generation == last} if elitism else set()
    return [c for c in candidates if c.generation == last or c.id in parents]


def tournaments(best_first: Sequence[Candidate], count: int, size: int, generation: int, seed: int) -> list[Candidate]:
    """Return `count` winners: each is the best of `size` drawn from those that have not won yet."""
    left, winners = list(best_first), []
    for i in range(count):
        drawn = np.argsort(uniform(len(left), seed, generation, i, TOURNAMENT))[:size]
        winners.append(left.pop(int(drawn.min())))
    return winners


def draws(seed: int, generation: int, index: int, purpose: int = MUTATION) -> Draws:
    """Return the random choices of a birth, a pure function of the arguments."""
    return Draws(_numbers(seed, generation, index, purpose))


def _numbers(seed: int, generation: int, index: int, purpose: int) -> Iterator[float]:
    found: list[float] = []
    while True:  # few are nearly always enough
        more = uniform(max(64, 8 * len(found)), seed, generation, index, purpose)
        yield from more[len(found):]
        found = more


def _greek_part(candidate: Candidate) -> str:
    return candidate.name.partition("-")[2].partition(".")[0]


def _id(genome: str, generation: int, number: int) -> str:
    """Return a candidate's id, which also names files."""
    genes = split(genome)
    kind = "mixed" if len(genes) > 1 else short_name(genome)
    return f"gen{generation}_{kind if is_name(kind) else 'formula'}_{number}"


def _prefix(genome: str) -> str:
    genes = split(genome)
    return "M" if len(genes) > 1 else activation(genes[0]).prefix


def uniform(count: int, seed: int, generation: int, index: int, purpose: int = CHILD) -> list[float]:
    """Return `count` numbers in [0, 1), a pure function of the arguments."""
    return random.uniform(count, seed, STREAM, index, generation, purpose).tolist()
