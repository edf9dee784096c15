"""What challengers may be: the settings of a run's model that may change while it trains, one at a time.

A value that does not go with the champion's other settings is not drawn, and none is put in its place; `lr_min` alone
goes down with a rate below it, unless it is a gene itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from helios.errors import UserError
from helios.model.activations import split
from helios.model.genes import Gene
from helios.train.challenge_config import ChallengeConfig
from helios.train.config import BY_KEY, Config
from helios.train.evolve.config import Asked, EvolveConfig, terms
from helios.train.evolve.space import MICRO_BATCH, configured, space_of, values_of
from helios.train.records.rows import canonical
from helios.train.rules import rules
from helios.train.search import operators
from helios.train.search.births import Candidate, children, draws, founder
from helios.train.search.operators import Born, Genome, Space
from helios.train.search_config import SearchConfig

BATCHES = ("batch_size", "accum", MICRO_BATCH, "block_size")  # genes of which a challenger's batches would be others
BEGINNING = "zero_init_outputs"  # a gene that says how a new model begins
FOLLOWING = "lr_min"  # a setting that goes along with a gene
ENDING = ("stop", "branch")  # actions that are the run's alone
DRAWS = 100  # of one challenger, before one is tried again that was judged already


def space(config: Config) -> Space:
    """Return the space of the run's challengers. Raises UserError for a gene that is unknown, that a model in training
    cannot change, or of which the run can have no value but its own."""
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
        if any(BY_KEY[name].section == "monitor" for name in one.settings):
            raise UserError(f"challenge_genes: {one.name}: monitors stay the run's, whoever wins; leave it out")
        if one.name == BEGINNING:
            raise UserError(f"challenge_genes: {one.name}: challengers begin with the model's weights, and it says how "
                            "new ones begin; leave it out")
    named = {name for one in found.genes for name in one.settings}
    found = found._replace(fitted=tuple(one for one in found.fitted if one.name == FOLLOWING and one.name not in named))
    for one in found.genes:
        _check(config, found, one)
    return found


def _check(config: Config, found: Space, one: Gene) -> None:
    """Raise UserError where the run can have no other value of a gene."""
    begun = own(config).genome
    if any(_another(config, begun, genome) for genome in _each(found, begun, _possible(config, found, begun, one))):
        return
    why = "makes another training than the run's"
    for genome in _each(found, begun, one):
        try:
            configured(config, genome)
        except UserError as error:
            why = f"goes with the run's other settings ({error})"
    raise UserError(f"challenge_genes: gene {one.name}: no value {why}; give others, or leave it out")


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


def born(config: Config, found: Space, champion: Candidate, tried: Collection[str], window: int, before: int
         ) -> list[Candidate]:
    """Return the challengers of a window, each with one gene of the champion's changed: a pure function of the
    arguments. There are fewer than the settings ask for where no more differ.

    found: the run's space. tried: keys of genomes that this champion met already, who come again only where nothing
    else was drawn. window: its number. before: candidates so far.
    """
    near, seed = within(config, found, champion.genome), config.train.seed

    def breed(parent: Candidate, others: Any, taken: Collection[str], i: int) -> Born:
        numbers, again = draws(seed, window, i), None
        for _ in range(DRAWS):
            genome, words, refused = operators.mutated(near, parent.genome, numbers, alone=True)
            key = operators.key(genome)
            if not words or key in taken or not _another(config, parent.genome, genome):
                continue
            one = Born(genome, "mutation", words, refused)
            if key not in tried:
                return one
            again = again or one
        return again or Born(parent.genome, "clone")

    made = children([champion], [champion], config.challenge.challengers, before, window, seed, 0.0, breed)
    return [c for c in made if c.operator != "clone"]


def largest(config: Config, found: Space) -> int:
    """Return how many parameters the run's model may have after some windows in the space `found`."""
    begun = own(config).genome
    near = within(config, found, begun)
    size = lambda genome: made.model.parameters() if (made := _made(config, genome)) else 0
    best = max([begun, *(near.genome(text, near.values(begun)) for text in near.pool)], key=size)
    for one in near.genes:
        best = max([best, *_each(near, best, one)], key=size)
    return size(best)


# -- what goes with a champion ----------------------------------------------------------------------------------------

def within(config: Config, found: Space, champion: Genome) -> Space:
    """Return the run's space `found`, narrowed to what goes with the champion's settings, all of which its challengers
    keep, whether they are genes or not."""
    every = values_of(config)
    found = found._replace(own={**found.own, **{name: every[name] for name in champion.settings}})
    return found._replace(genes=tuple(_possible(config, found, champion, one) for one in found.genes))


def _possible(config: Config, found: Space, champion: Genome, one: Gene) -> Gene:
    """Return a gene with those of its values that go with the champion, of those that make the same training the
    champion's own or the first."""
    values = found.values(champion)
    if one.numeric:
        return _dividing(one, values["n_head"], values["n_embd"]) if one.name in ("n_head", "n_embd") else one
    first = {effect(configured(config, champion)): one.of(values)}
    for value, genome in zip(one.values, _each(found, champion, one), strict=True):
        if made := _made(config, genome):
            first.setdefault(effect(made), value)
    return one._replace(values=tuple(value for value in one.values if value in first.values()))


def _dividing(one: Gene, heads: int, width: int) -> Gene:
    """Return a range of widths as the multiples of `heads` in it, one of heads as the divisors of `width`."""
    low, high = int(one.low), int(one.high)
    left: Sequence[int] = [n for n in range(low, min(high, width) + 1) if width % n == 0]
    if one.name == "n_embd" and len(left := range(-(-low // heads) * heads, high + 1, heads)) > 1:
        return one._replace(low=left[0], high=left[-1], whole=heads)
    return one._replace(kind="steps", values=tuple((n,) for n in left))


def _each(found: Space, genome: Genome, one: Gene) -> list[Genome]:
    """Return the genome with each value of a gene, of a range its ends."""
    values = (one.at(0.0), one.at(1.0)) if one.numeric else one.values
    return [found.genome(genome.activation, {**found.values(genome), **dict(zip(one.settings, value, strict=True))})
            for value in values]


def _made(config: Config, genome: Genome) -> Config | None:
    """Return a genome's settings; None where they cannot be used."""
    try:
        return configured(config, genome)
    except UserError:
        return None


def _another(config: Config, champion: Genome, genome: Genome) -> bool:
    """Return whether a genome can be used, and makes another training than the champion's."""
    made = _made(config, genome)
    return made is not None and effect(made) != effect(configured(config, champion))


def effect(config: Config) -> str:
    """Return a text that is the same for settings with which a training in a window is the same. Initial values of
    coefficients do not count, which the model has learned."""
    m = config.model
    model = operators.values_in_effect(m) | {"dropout": None, "ffn_dim": m.ffn_dims,
                                             "activation": [act.function for act in m.activations]}
    return canonical({"model": model, "train": config.train.to_dict()})
