"""The cost that a search may come to, and the models that it may train."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import split_genomes
from helios.train.config import Config, SearchConfig
from helios.train.search.births import Candidate
from helios.train.search.evolution import trainings
from helios.train.search.operators import Genome, largest, steadying

MOST_CANDIDATES = 10_000


def candidate_model(model: GPTConfig, search: SearchConfig, candidate: Candidate | Genome) -> GPTConfig:
    """Return a candidate's model: the run's with its activation, its settings and, where match = params, a matched
    width."""
    width = "matched" if search.match == "params" else model.ffn_dim
    return replace(model, **{"activation": candidate.activation, "ffn_dim": width, **candidate.settings})


def budget(config: Config) -> tuple[int, int]:
    """Return the most (steps, tokens) of one training; where the budget is in seconds, those of max_cost."""
    s, t = config.search, config.train
    step = t.batch_size * t.accum * config.model.block_size
    if s.budget == "steps":
        return s.steps_per_candidate, s.steps_per_candidate * step
    tokens = s.tokens_per_candidate if s.budget == "tokens" else s.max_cost
    # An adaptive batch makes steps of any size, down to one sequence.
    least = config.model.block_size if config.monitor.varies_batch else step
    return math.ceil(tokens / least), math.ceil(tokens)


def check_cost(config: Config) -> None:
    """Raise UserError where the search may take more than max_cost tokens."""
    s = config.search
    n, (steps, tokens) = trainings(s, config.model.n_layer), budget(config)
    if s.budget == "seconds" and n > s.replicates * MOST_CANDIDATES:
        raise UserError(f"the search may take {_count(n)} trainings of {s.seconds_per_candidate:g} seconds; lower "
                        f"population_size, generations or replicates")
    if s.budget != "seconds" and n * tokens > s.max_cost:
        raise UserError(f"the search may take {_count(n)} trainings of {steps:,} steps, {_count(n * tokens)} tokens in "
                        f"all, more than --max-cost {s.max_cost:.3g}; lower population_size, generations, replicates "
                        f"or {s.budget}_per_candidate, or raise --max-cost")


def cost_in_words(config: Config) -> str:
    """Return in words how many trainings, steps and tokens the search may take."""
    s, n, (steps, tokens) = config.search, trainings(config.search, config.model.n_layer), budget(config)
    each = f"{s.seconds_per_candidate:g} seconds" if s.budget == "seconds" else f"{steps:,} steps, {tokens:,} tokens"
    return f"search: at most {_count(n)} trainings of {each} each{', equal ones once' if s.reuses else ''}"


def _count(n: int) -> str:
    """Return a number of any size in words: there are 6**1000 ways to give activations to 1,000 blocks."""
    return f"{n:,}" if n < 10**12 else f"{Decimal(n):.3g}"


def models(config: Config) -> list[GPTConfig]:
    """Return the models of a search's pool and genomes; children are no larger than these, which have the largest
    settings where these vary."""
    s, model = config.search, config.model
    genomes = [Genome(text) for text in (*s.pool, *split_genomes(s.genomes))]
    if s.genome == "operators":
        most = largest(steadying(model, s.pool), model)
        genomes = [Genome(text, most) for text, _ in (*genomes, Genome(model.activation))]
    return [candidate_model(model, s, genome) for genome in genomes]
