"""What was asked of an experiment, and what its candidates are chosen by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from helios.train.evolve.config import Asked
from helios.train.evolve.state import Result, State, row
from helios.train.fitness import Measurements, fitness
from helios.train.search import selection
from helios.train.search.operators import Space


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What was asked for, and what follows from it."""

    asked: Asked
    space: Space
    id: str
    texts: str = ""  # digest of what it trains on, of text and vocabulary; "" in experiments of an older version

    @property
    def seed(self) -> int:
        """Return the seed of all that is random, and of the first replicates."""
        return self.asked.base.train.seed

    @property
    def objectives(self) -> tuple[str, ...]:
        """Return the names of what candidates are chosen by."""
        return ("fitness",) if self.asked.evolve.fitness else selection.parse_objectives(self.asked.evolve.objectives)

    def values(self, measured: Sequence[Mapping[str, float | None]], statuses: Sequence[str | None]) -> np.ndarray:
        """Return what candidates are chosen by [N, M], lower being better, NaN where they are out of the running."""
        if not self.asked.evolve.fitness:
            return selection.objective_values(measured, statuses, self.objectives)
        found = [self._fitness(m) if status in selection.CHOSEN else -math.inf
                 for m, status in zip(measured, statuses, strict=True)]
        return np.array([[-x if math.isfinite(x) else math.nan] for x in found]).reshape(-1, 1)

    def _fitness(self, measured: Mapping[str, float | None]) -> float:
        try:
            return fitness(str(self.asked.evolve.fitness), Measurements(**measured), {})  # type: ignore[arg-type]
        except ValueError:  # something was not measured
            return -math.inf

    def of(self, state: State, ids: Sequence[str]) -> np.ndarray:
        """Return the same of the candidates with these ids."""
        whose = [state.reused.get(id, id) for id in ids]
        if new := [id for id in dict.fromkeys(whose) if id not in state.rows]:
            found = self.values([*map(state.measured, new)], [*map(state.status, new)])
            state.rows.update(zip(new, found.tolist(), strict=True))
        return np.array([state.rows[id] for id in whose]).reshape(-1, len(self.objectives))

    def replicates(self, state: State, id: str, phase: str = "search") -> list[float | None]:
        """Return the first objective, lower being better, of each training of a candidate."""
        return [self.value(result) for result in state.trained(id, phase)]

    def value(self, result: Result) -> float | None:
        """Return the first objective, lower being better, of a training."""
        x = self.values([row(result)], [result.status])[0, 0]
        return None if math.isnan(x) else float(x)
