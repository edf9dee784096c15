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
    ("d97d7a3cfd5e5200", {}),
    ("348544544d67792a", {"halving": 0.1, "population_size": 12, "replicates": 3}),
    ("620501e5c9c13d66", {"budget": "seconds", "per_candidate": 5, "population_min": 3, "population_max": 12}),
    ("ae88fe529d26883c", {"genes": "lr,activation,n_embd,n_head,n_layer", "activations": "per_block",
                          "diversity_bonus": 0.2}),
    ("9bd8a79841a46ed0", {"genes": "lr,lr_min,activation,dropouts,micro_batch", "population_size": 12,
                          "diversity_bonus": 0}),
    ("69a84efcc4ce2869", {"objectives": "val_loss,instability,max_grad_norm", "selection": "tournament",
                          "population_size": 20}),
    ("4285aa60cda17d7a", {"fitness": "-val_loss + 0.1*log(max_grad_norm)", "random_control": "false",
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
