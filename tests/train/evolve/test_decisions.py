"""What an experiment decides is the same for good: who is born of whom and how, who is dropped, who comes first."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from helios.bench.planted import Planted, experiment
from helios.train.evolve import plan
from helios.train.evolve.driver import entry
from helios.train.evolve.state import State
from helios.train.evolve.trainings import Job

KEPT = ("kind", "id", "of", "size", "roles", "parents", "operator", "mutation", "activation", "settings", "bonus")


@pytest.mark.parametrize(("digest", "settings"), [
    ("43dd4013536ee45d", {}),
    ("ea3af5ce3536161d", {"halving": 0.1, "population_size": 12, "replicates": 3}),
    ("eaaf80464693aca8", {"budget": "seconds", "per_candidate": 5, "population_min": 3, "population_max": 12}),
    ("10f7221261a5cfb8", {"genes": "lr,activation,n_embd,n_head,n_layer", "activations": "per_block",
                          "diversity_bonus": 0.2}),
    ("30b166cd33e8177d", {"genes": "lr,lr_min,activation,dropouts,micro_batch", "population_size": 12,
                          "diversity_bonus": 0}),
    ("e041263550b484c8", {"objectives": "val_loss,instability,max_grad_norm", "selection": "tournament",
                          "population_size": 20}),
    ("8153fbfbbf5a755d", {"fitness": "-val_loss + 0.1*log(max_grad_norm)", "random_control": "false",
                          "elitism": "false"}),
])
def test_what_is_decided(digest: str, settings: dict[str, Any]) -> None:
    found, state, decided = experiment(**settings), State(), hashlib.sha256()
    executor = Planted(found.space)
    while moves := plan.next_move(found, state):
        if isinstance(moves[0], Job):
            moves = [entry(result, found, moves[i]) for i, result in executor(moves)]
        else:
            for line in moves:
                kept = {key: line[key] for key in KEPT if key in line and line["kind"] != "experiment"}
                decided.update(json.dumps(kept, sort_keys=True).encode())
        state.take(moves)
    assert decided.hexdigest()[:16] == digest
