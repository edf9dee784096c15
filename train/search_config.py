"""The settings of searches: for an activation before a training, and which search there is at all."""

from __future__ import annotations

from dataclasses import dataclass

from helios.model.activations import ACTIVATIONS, GENOMES, parsed
from helios.model.settings import (
    ANY,
    COUNT,
    NATURAL,
    PORTION,
    POSITIVE,
    TERMS,
    Settings,
    one_of,
    setting,
)
from helios.train.fitness import FITNESS


@dataclass(frozen=True)
class SearchConfig(Settings):
    """The search for the MLPs' activation before the training; docs/search.md explains it. It is true where there is
    one; a search that goes on while the run trains has settings of its own, in ChallengeConfig."""

    mode: str = setting("none", one_of("none", "ffn-activation", "continuous"), "what to search for: ffn-activation, "
                        "the best activation of the MLPs, before the training; continuous, better settings while the "
                        "run trains (docs/challenge.md); none: nothing", flag="search")
    max_cost: float = setting(1e9, POSITIVE, "most training tokens of a search; one that may need more is refused",
                              flag="max-cost")
    activation_pool: str = setting("gelu,silu,relu,swiglu,universal,kan_spline", ANY, "activations that may be tried",
                                   kind=ACTIVATIONS)
    genome: str = setting("global", one_of("global", "per_block", "formula", "operators"), "one activation for all "
                          "blocks, one for each, one whose formula mutates, or that and what steadies the model")
    genomes: str = setting("", ANY, "candidates of generation 0; not given: made from activation_pool", kind=GENOMES)
    population_size: int = setting(6, COUNT, "candidates in a generation")
    generations: int = setting(2, COUNT, "generations, the first one included")
    replicates: int = setting(3, COUNT, "trainings of each candidate, with a seed each; two or more show the noise")
    budget: str = setting("steps", one_of("steps", "tokens", "seconds"), "unit of a candidate's budget, which one of "
                          "the next three settings gives")
    steps_per_candidate: int = setting(100, COUNT, "steps of each training of a candidate")
    tokens_per_candidate: int = setting(200_000, COUNT, "tokens that each training of a candidate reads")
    seconds_per_candidate: float = setting(60.0, POSITIVE, "seconds that each training of a candidate takes")
    candidate_eval_interval: int = setting(25, NATURAL, "steps between a candidate's evaluations; 0: at its end only")
    selection: str = setting("topk", one_of("topk", "tournament", "exhaustive", "random"), "who has children: the "
                             "better half; winners of tournaments; or nobody, and all genomes or random ones are tried")
    tournament_size: int = setting(3, COUNT, "candidates in a tournament")
    elitism: bool = setting(True, ANY, "let parents be chosen again, by the results they have, like their children")
    mutation_rate: float = setting(0.5, PORTION, "probability that a child (with per_block: each block of it) mutates")
    crossover_rate: float = setting(0.5, PORTION, "probability that a child has two parents; per_block, operators")
    diversity_bonus: float = setting(0.05, NATURAL, "lead of a new genome when parents are chosen, in score units")
    diversity_decay: str = setting("cosine", one_of("none", "linear", "cosine"), "how the bonus falls over generations")
    rank_by: str = setting("val_loss", one_of("val_loss", "fitness"), "what candidates are ranked by")
    fitness: str = setting("quality", ANY, f"formula of the fitness: {', '.join(FITNESS)}, or one of measurements, as "
                           "'-val_loss+0.02*log(tokens_per_sec)'; docs/search.md has them")
    fitness_coefficients: str = setting("", ANY, "coefficients of the formula that differ from its own", kind=TERMS)
    match: str = setting("rule", one_of("rule", "params"), "MLPs' width: by a rule for each activation, or so that all "
                         "candidates have as many parameters")
    shared_init: bool = setting(True, ANY, "give all candidates the same initial values")
    shared_batches: bool = setting(True, ANY, "give all candidates the same batches in the same order")
    reuse: bool = setting(True, ANY, "take the result of an equal genome, where one was measured, instead of training")
    candidate_schedule: str = setting("constant", one_of("constant", "run"), "learning rate of candidates: a warm-up, "
                                      "then constant; or the run's schedule, which goes on through all of them")
    candidate_lr: float | None = setting(None, POSITIVE, "highest learning rate of a candidate; auto: the run's lr")
    candidate_warmup: int | None = setting(None, NATURAL, "warm-up of a candidate, in steps; auto: half of the budget, "
                                           "at most the run's warmup")
    early_stop: bool = setting(False, ANY, "end trainings of candidates that cannot win any more")
    after: str = setting("restart", one_of("restart", "continue", "none"), "how the winner is trained: from fresh "
                         "weights, from its own, or not at all")
    after_schedule: str = setting("own", one_of("own", "run"), "learning rate after the search: a schedule of its own, "
                                  "or the rest of the run's")

    @property
    def pool(self) -> tuple[str, ...]:
        """Return the activations in activation_pool."""
        return tuple(act.text for act in parsed("activation_pool", self.activation_pool))

    @property
    def reuses(self) -> bool:
        """Return whether equal genomes are trained once, which needs that a second training would repeat the first."""
        return self.reuse and self.shared_init and self.shared_batches and self.candidate_schedule == "constant"

    @property
    def coefficients(self) -> dict[str, float]:
        """Return the values in fitness_coefficients by name."""
        terms = (term.split("=") for term in self.fitness_coefficients.split(",") if term)
        return {name: float(value) for name, value in terms}

    def __bool__(self) -> bool:
        return self.mode == "ffn-activation"

    @property
    def continuous(self) -> bool:
        """Return whether the search goes on while the run trains."""
        return self.mode == "continuous"
