"""What is not fair in an experiment, or may differ the next time."""

from __future__ import annotations

from collections.abc import Iterator

from helios.train.evolve.experiment import Experiment
from helios.train.evolve.state import State
from helios.train.evolve.summary import Summary
from helios.train.fitness import formula
from helios.train.search.selection import OBJECTIVES


def sentences(experiment: Experiment, state: State, found: Summary) -> Iterator[str]:
    """Yield each in a sentence."""
    evolve, base = experiment.asked.evolve, experiment.asked.base
    needs = formula(evolve.fitness).needs if evolve.fitness else experiment.objectives
    for name in needs:
        if name in OBJECTIVES and OBJECTIVES[name].clock:
            yield (f"{name} is measured by the clock: another machine, other work on this one or several trainings "
                   "at a time change it, and with it who is chosen.")
    if evolve.budget == "seconds":
        yield ("The budget is in seconds: steps follow from the speed of a short training, so another machine would "
               "train longer or shorter. These short trainings are not in the costs.")
    if evolve.replicates == 1:
        yield "One seed a candidate: the search does not know the noise between seeds, and chose by it, too."
    if not evolve.random_control:
        yield ("There were no random candidates, so that nothing tells whether evolving them is better than drawing as "
               "many at random.")
    if not evolve.validation_replicates:
        yield "No training at the end on fresh seeds: nothing may be called better."
    elif evolve.validation_replicates == 1:
        yield "One fresh seed at the end shows no noise: nothing can be separated."
    else:
        yield (f"The seeds of the trainings at the end are fresh, the validation text is not: all was chosen by "
               f"{base.data.val_data}, and may suit it more than others.")
    if evolve.halving:
        yield ("Candidates were stopped early by what they had come to; those that learn slowly at first had less of a "
               "chance. Figures of generations, operators and genes are of those that went on.")
    if len(experiment.objectives) > 1:
        yield (f"The finalists and the verdict are by {experiment.objectives[0]} alone; the front was not trained "
               f"again.")
    arms = {arm: found["cost"][arm] for arm in ("evolved", "random") if arm in found["cost"]}
    if len(arms) == 2 and arms["evolved"]["tokens"] != arms["random"]["tokens"]:
        yield (f"The arms did not use the same: evolved {arms['evolved']['tokens']:,} tokens in "
               f"{arms['evolved']['trainings']:,} trainings, random {arms['random']['tokens']:,} in "
               f"{arms['random']['trainings']:,}.")
    sizes = [x for e in found["ranking"] if (x := e["measured"]["parameters"]["mean"])]
    if sizes and max(sizes) > min(sizes):
        yield f"Candidates differ in size: {min(sizes):,.0f} to {max(sizes):,.0f} parameters."
    tokens = {"batch_size", "accum", "block_size"} & {key for gene in experiment.space.genes for key in gene.settings}
    if tokens and evolve.budget == "tokens":
        yield f"{', '.join(sorted(tokens))} varies: of the same tokens, candidates make more or fewer steps."
    if n := len(state.reused):
        yield (f"{n} candidate{'s' * (n > 1)} had the genome of an earlier one, whose results were used and not "
               "measured again.")
    if found["refused"]:
        yield f"{found['refused']} formulas were refused before training, since their values or slopes explode."
    yield ("Every training has a schedule of its own length, so that candidates are short runs from beginning to end, "
           "not the beginning of long ones.")
