"""The terms of an experiment: what was asked, and what is not fair in it or may differ the next time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from helios.model.settings import Settings
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.space import MICRO_BATCH, SECTIONS, given
from helios.train.evolve.state import State
from helios.train.evolve.summary import Summary
from helios.train.evolve.warm import FRESH
from helios.train.fitness import formula
from helios.train.markdown import escaped, listed, table
from helios.train.records.journal import MEASURES


def unfair(experiment: Experiment, state: State, found: Summary) -> Iterator[str]:
    """Yield what is not fair, or may differ, a sentence each."""
    evolve, base = experiment.asked.evolve, experiment.asked.base
    needs = formula(evolve.fitness).needs if evolve.fitness else experiment.objectives
    nobody = found["verdict"] is not None and found["leader"] is None  # is there to train again
    for name in needs:
        if name in MEASURES and MEASURES[name].clock:
            yield (f"{name} is measured by the clock: another machine, other work on this one or several trainings "
                   "at a time change it, and with it who is chosen.")
    if evolve.budget == "seconds":
        yield ("The budget is in seconds: steps follow from the speed of a short training, so another machine would "
               "train longer or shorter. These short trainings are not in the costs.")
    if evolve.warm_start != FRESH:
        yield (f"Children began with their parents' weights ({evolve.warm_start}), so that their figures tell how good "
               "it is to go on with their settings, and compare with those of who began with new weights not token for "
               "token. The trainings at the end begin with new weights, and ask what settings are worth from there.")
        yield ("Who was chosen again beside its children had read less than they, and was better all the same.")
    if evolve.replicates == 1:
        yield "One seed a candidate: the search does not know the noise between seeds, and chose by it, too."
    if not evolve.random_control:
        yield ("There were no random candidates, so that nothing tells whether evolving them is better than drawing as "
               "many at random.")
    if nobody:
        pass
    elif not evolve.validation_replicates:
        yield "No training at the end on fresh seeds: nothing may be called better."
    elif evolve.validation_replicates == 1:
        yield "One fresh seed at the end shows no noise: nothing can be separated."
    else:
        yield (f"The seeds of the trainings at the end are fresh, the validation text is not: all was chosen by "
               f"{base.data.val_data}, and may suit it more than others.")
    if experiment.asked.stops.stop_speed:
        yield "stop_speed ends trainings by the clock: the next time others may be ended."
    if evolve.halving:
        yield ("Candidates were stopped early by what they had come to; those that learn slowly at first had less of a "
               "chance. Figures of generations, operators and genes are of those that went on.")
    if len(experiment.objectives) > 1 and not nobody:
        yield (f"The finalists are the best by {experiment.objectives[0]}, and better means better in that, without "
               "being worse in another; the front was not trained again.")
    arms = {arm: found["cost"][arm] for arm in ("evolved", "random") if arm in found["cost"]}
    if len(arms) == 2 and arms["evolved"]["tokens"] != arms["random"]["tokens"]:
        yield (f"The arms did not use the same: evolved {arms['evolved']['tokens']:,} tokens in "
               f"{arms['evolved']['trainings']:,} trainings, random {arms['random']['tokens']:,} in "
               f"{arms['random']['trainings']:,}.")
    sizes = [x for e in found["ranking"] if (x := e["measured"]["parameters"]["mean"])]
    if sizes and max(sizes) > min(sizes):
        yield f"Candidates differ in size: {min(sizes):,.0f} to {max(sizes):,.0f} parameters."
    tokens = {"batch_size", "accum", "block_size"} & {key for gene in experiment.space.genes for key in gene.settings
                                                      if gene.name != MICRO_BATCH}  # whose product stays
    if tokens and evolve.budget == "tokens":
        yield f"{', '.join(sorted(tokens))} varies: of the same tokens, candidates make more or fewer steps."
    if n := len(state.reused):
        alike = " and began with the same weights as it" * (evolve.warm_start != FRESH)
        yield (f"{count(n, 'candidate')} had the genome of an earlier one{alike}, whose results were used and not "
               "measured again.")
    if found["refused"]:
        yield f"{count(found['refused'], 'formula')} refused before training, since values or slopes explode."
    yield ("Every training has a schedule of its own length, so that candidates are short runs from beginning to end, "
           "not the beginning of long ones.")


def asked(experiment: Experiment) -> Iterator[str]:
    """Yield the lines that say what was asked."""
    evolve, base, space = experiment.asked.evolve, experiment.asked.base, experiment.space
    preset = {key: value for section in SECTIONS for key, value in other(getattr(base, section)).items()}
    stops = other(experiment.asked.stops)
    texts = [base.data.data] if isinstance(base.data.data, str) else base.data.data
    sizes = str(evolve.population_size) if evolve.bounds[0] == evolve.bounds[1] else (
        f"{evolve.population_size} at first, then {evolve.bounds[0]} to {evolve.bounds[1]}")
    yield from bullets([
        f"The preset: {', '.join(f'{key} {value}' for key, value in preset.items()) or 'nothing'}; "
        f"other settings as by default.",
        f"Text {listed(list(texts))}; validation text {base.data.val_data}.",
        f"Chosen by {chosen_by(experiment)}.", *(f"{line}." for line in seeds(experiment)),
        f"At most {count(evolve.generations, 'generation')} of {sizes}"
        + " and as many random candidates" * evolve.random_control
        + f"; each trained {count(evolve.replicates, 'time')}, on the seeds from "
        f"{experiment.seed} on, with {evolve.per_candidate:,.10g} {evolve.budget}.",
        f"At the end the best of each arm again, on {count(evolve.validation_replicates, 'fresh seed')}, with "
        f"{evolve.validation_factor:g} times the budget.",
        *[f"Trainings end early by {listed([f'{key} {spelt(x)}' for key, x in stops.items()])}."] * bool(stops)])
    own = space.own
    rows = [[escaped(one.name), one.part, _scale(one), _range(one), escaped(spelt(one.of(own)))]
            for one in space.genes]
    rows += [["activation", "architecture", "no order", escaped(", ".join(space.pool))
              + " and formulas" * space.formulas, escaped(space.activation)]] if space.pool else []
    yield from ("", *table(("gene", "part", "scale", "from", "preset"), rows, left=5))


def chosen_by(experiment: Experiment) -> str:
    """Return what candidates are chosen by."""
    if fitness := experiment.asked.evolve.fitness:
        return f"the fitness {fitness}"
    several = len(experiment.objectives) > 1
    return listed(experiment.objectives) + ", none worth more than another; finalists by the first alone" * several


def seeds(experiment: Experiment) -> Iterator[str]:
    """Yield what each of the first candidates has that was given, as far as it varies."""
    space = experiment.space
    for values, genome in zip(experiment.asked.given, given(experiment.asked, space), strict=True):
        taken = {key: value for key, value in genome.settings.items() if value != space.own.get(key)}
        taken |= {"activation": genome.activation} if genome.activation != space.activation else {}
        told = ", ".join(f"{key} {spelt(value)}" for key, value in taken.items()) or "nothing that varies here"
        yield f"a first candidate has of {values.get('run', 'a run')}: {told}; all else is the preset's"


def other(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not as by default."""
    return {key: value for key, value in settings.to_dict().items() if value != getattr(type(settings)(), key)}


def _scale(one: Any) -> str:
    return {"linear": "by differences", "log": "by ratios", "of_rest": "by ratios of what lacks to 1",
            "steps": "in steps", "set": "no order"}.get(one.kind, one.kind)


def _range(one: Any) -> str:
    return f"{one.low:g} to {one.high:g}" if one.numeric else escaped(", ".join(map(spelt, one.values)))


def spelt(value: Any) -> str:
    """Return a value of a gene in short."""
    if isinstance(value, list | tuple):
        return "/".join(map(spelt, value))
    return ("off", "on")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def count(n: int, word: str) -> str:
    """Return a number of things."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def bullets(lines: Iterable[str]) -> list[str]:
    """Return sentences as a list."""
    return [f"* {escaped(line)}" for line in lines]
