"""What an experiment may come to, in tokens or seconds of training."""

from __future__ import annotations

import math

from helios.train.evolve.experiment import Experiment
from helios.train.evolve.space import given
from helios.train.evolve.state import State


def trainings_of(experiment: Experiment, size: int) -> int:
    """Return how many trainings a generation of that size comes to at most, the controls included."""
    evolve = experiment.asked.evolve
    return size * (2 if evolve.random_control else 1) * evolve.replicates


def most(experiment: Experiment, generations: int | None = None) -> float:
    """Return the most tokens or seconds that so many generations may use, and the trainings at the end."""
    return experiment.asked.evolve.per_candidate * trainings(experiment, generations)[0] + of_validation(experiment)


def trainings(experiment: Experiment, generations: int | None = None) -> tuple[int, int]:
    """Return how many trainings so many generations come to at most, and how many there are at the end."""
    evolve = experiment.asked.evolve
    _, largest = evolve.bounds
    count = evolve.generations if generations is None else generations
    search = evolve.replicates + trainings_of(experiment, evolve.population_size + largest * (count - 1))
    return search, evolve.validation_replicates * (3 if evolve.random_control else 2)


def at_most(experiment: Experiment) -> float:
    """Return the most tokens or seconds that the whole experiment may use."""
    whole = most(experiment)
    return min(whole, experiment.asked.evolve.total or whole)


def of_validation(experiment: Experiment) -> float:
    """Return the tokens or seconds of the trainings at the end."""
    evolve = experiment.asked.evolve
    return evolve.per_candidate * evolve.validation_factor * trainings(experiment)[1]


def disk(experiment: Experiment) -> int:
    """Return about how many bytes the checkpoints of all trainings take: the last one and the best of each."""
    return 2 * 12 * experiment.asked.base.model.parameters() * sum(trainings(experiment))


def steps(experiment: Experiment) -> tuple[int, int]:
    """Return the fewest and the most tokens that a step of a candidate may read."""
    base, left, least, most = experiment.asked.base, {"batch_size", "accum", "block_size"}, 1, 1
    own = base.model.to_dict() | base.train.to_dict()
    seeds = [own | dict(genome.settings) for genome in given(experiment.asked, experiment.space)]
    for one in experiment.space.genes:
        if names := left & set(one.settings):
            values = [*([one.at(0.0), one.at(1.0)] if one.numeric else one.values), *map(one.of, [own, *seeds])]
            products = [math.prod(v for name, v in zip(one.settings, value, strict=True) if name in names)
                        for value in values]
            least, most = least * min(products), most * max(products)
            left -= names
    rest = math.prod(own[name] for name in left)
    return least * rest, most * rest


def spent(experiment: Experiment, state: State) -> float:
    """Return the tokens or seconds that all trainings so far have used."""
    seconds = experiment.asked.evolve.budget == "seconds"
    return float(sum(r.seconds if seconds else r.tokens for r in state.results.values()))


def affordable(experiment: Experiment, state: State, size: int) -> bool:
    """Return whether what is left of the total suffices for a generation of that size, and for the end."""
    evolve = experiment.asked.evolve
    if evolve.total is None:
        return True
    next_one = evolve.per_candidate * trainings_of(experiment, size)
    return spent(experiment, state) + next_one + of_validation(experiment) <= evolve.total
