"""What challengers may be: the settings of a run's model that may change while it trains, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from helios.errors import UserError
from helios.model.activations import parsed, split
from helios.train.challenge_config import ChallengeConfig
from helios.train.config import Config
from helios.train.evolve.config import Asked, EvolveConfig, terms
from helios.train.evolve.space import MICRO_BATCH, configured, space_of
from helios.train.rules import rules
from helios.train.search import operators
from helios.train.search.births import Candidate, children, draws, founder
from helios.train.search.operators import Born, Genome, Space
from helios.train.search_config import SearchConfig

BATCHES = ("batch_size", "accum", MICRO_BATCH, "block_size")  # genes of which a challenger's batches would be others
ENDING = ("stop", "branch")  # actions that are the run's alone
DRAWS = 100  # of one challenger, before one is tried again that was judged already


def space(config: Config) -> Space:
    """Return the space of the run's challengers. Raises UserError for a gene that is unknown or that a model in
    training cannot change."""
    genome = config.search.genome
    activations = genome if genome in ("global", "per_block") else "formula"  # with which an activation mutates, too
    if len(split(config.model.activation)) > 1:
        activations = "per_block"
    tokens = config.train.steps * config.train.batch_size * config.train.accum * config.model.block_size
    evolve = EvolveConfig(activation_pool=config.search.activation_pool, activations=activations,
                          per_candidate=float(tokens))
    try:
        found = space_of(Asked(config, evolve, terms(config.challenge.challenge_genes)))
    except UserError as error:
        raise UserError(f"challenge_genes: {error}") from error
    for one in found.genes:
        if one.name in BATCHES or one.part == "runtime":
            raise UserError(f"challenge_genes: {one.name}: challengers train as the run does, on its batches; leave it "
                            "out")
    return found


def own(config: Config) -> Candidate:
    """Return the run's own model as a candidate, from which all challengers descend."""
    return founder(Genome(config.model.activation), 0, 0, config.train.seed)


def configured_as(config: Config, candidate: Candidate) -> Config:
    """Return the run's settings with those of a candidate. Raises UserError."""
    return configured(config, candidate.genome)


def window_config(whole: Config, steps: int, eval_batch: int) -> Config:
    """Return the settings of a training in a window that ends after so many steps of the run, from those of a whole
    run: the same but for what is written of it on the way, and without rules that end or branch it. eval_batch: that of
    the run, whatever the batch."""
    train = whole.train.replaced(steps=steps, eval_batch=eval_batch, log="none", report="none", sample_interval=0,
                                 keep=1, keep_every=0, retries=0, init_from=None)
    monitor = whole.monitor.replaced(metrics_interval=0, actions=shared(whole.monitor.actions))
    return replace(whole, train=train, monitor=monitor, search=SearchConfig(), challenge=ChallengeConfig())


def shared(actions: str) -> dict[str, list[str]]:
    """Return the rules that hold for challengers, too, as a table."""
    found = dict[str, list[str]]()
    for rule in rules(actions):
        if rule.what not in ENDING:
            found.setdefault(rule.alert, []).append(rule.text)
    return found


def branched(config: Config, champion: Candidate, change: str, usual: float | None, window: int, before: int
             ) -> Candidate | str:
    """Return the challenger that a rule asks for, to which the action `change` is a setting of its own; in words why
    there is none. usual: the usual gradient norm, None where it is not known. window, before: as `born` takes them."""
    action = next(rule.change for rule in config.monitor.rules if rule.change and rule.change.text == change)
    t, m = configured_as(config, champion).train, config.monitor
    if action.what == "guard" and usual is None:
        return "the usual gradient norm is not known yet"
    every: dict[str, dict[str, float]] = {
        "lr": {"lr": t.lr * action.by, "lr_min": t.lr_min * action.by}, "clip": {"grad_clip": t.grad_clip * action.by},
        "guard": {"spike_threshold": action.by * (usual or 0.0)},
        "batch": {"batch_size": max(m.batch_min, min(t.batch_size + int(action.by), m.batch_max))}}
    changed = every[action.what]
    if all(getattr(t, key) == value for key, value in changed.items()):
        return f"{change} changes nothing any more"
    settings = {key: value for key, value in {**champion.settings, **changed}.items()
                if key not in changed or getattr(config.train, key) != value}
    (found,) = children([champion], [champion], 1, before, window, config.train.seed, 0.0,
                        lambda *_: Born(Genome(champion.activation, settings), "branch", [change]))
    return found


def alike(a: Genome, b: Genome) -> bool:
    """Return whether a model that goes on as the one from the other's weights is the same: they differ at most in the
    initial values of coefficients, which are learned by then."""
    one, other = (operators.alike([act.function for act in parsed("genome", genome.activation)]) for genome in (a, b))
    return one == other and a.settings == b.settings


def born(space: Space, champion: Candidate, tried: Collection[str], count: int, window: int, before: int, seed: int,
         fits: Callable[[Genome], object] = lambda genome: True) -> list[Candidate]:
    """Return the challengers of a window, each with one gene of the champion's changed: a pure function of the
    arguments. There are fewer than `count` where no more differ.

    tried: keys of genomes that this champion met already, who come again only where nothing else was drawn. window: its
    number. before: candidates so far. fits: whether a genome makes settings that can be used.
    """
    def breed(parent: Candidate, others: Any, taken: Collection[str], i: int) -> Born:
        numbers, again = draws(seed, window, i), None
        for _ in range(DRAWS):
            genome, words, refused = operators.mutated(space, parent.genome, numbers, alone=True)
            key = operators.key(genome)
            if not words or key in taken or alike(genome, parent.genome) or not fits(genome):
                continue
            found = Born(genome, "mutation", words, refused)
            if key not in tried:
                return found
            again = again or found
        return again or Born(parent.genome, "clone")

    found = children([champion], [champion], count, before, window, seed, 0.0, breed)
    return [c for c in found if c.operator != "clone"]
