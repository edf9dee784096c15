"""A made-up search, and the files that it would have left."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios.train.config import SearchConfig
from helios.train.search import ranking
from helios.train.search.births import Candidate, Replicate

STEPS, EVERY = 100, 25
SPEED = {"gelu": 6500.0, "relu": 7000.0, "silu": 6400.0, "swiglu": 6000.0}
BASE = {"n_layer": 6, "n_embd": 256, "activation": "gelu", "ffn_dim": None}
# (name, activation, generation, its parent's position, validation loss), of a genome for all blocks and one for each.
GLOBAL = [("G-Alpha", "gelu", 0, None, 3.42), ("S-Beta", "silu", 0, None, 3.45), ("R-Gamma", "relu", 0, None, 3.30),
          ("Sw-Delta", "swiglu", 0, None, 3.36), ("R-Gamma.1", "relu", 1, 2, 3.30), ("G-Delta.1", "gelu", 1, 3, 3.42),
          ("S-Gamma.1", "silu", 1, 2, 3.45), ("Sw-Delta.1", "swiglu", 1, 3, 3.36)]
PER_BLOCK = [("G-Alpha", "gelu", 0, None, 3.42), ("R-Beta", "relu", 0, None, 3.37),
             ("M-Gamma", "gelu,relu,gelu,gelu,relu,gelu", 0, None, 3.33),
             ("M-Delta", "silu,relu,swiglu,swiglu,relu,relu", 0, None, 3.35),
             ("M-Gamma.1", "gelu,relu,gelu,relu,relu,gelu", 1, 2, 3.31),
             ("M-Delta.1", "silu,relu,swiglu,swiglu,gelu,relu", 1, 3, 3.34),
             ("M-Gamma.1", "gelu,relu,swiglu,swiglu,relu,gelu", 1, 2, 3.32),
             ("M-Delta.1", "kan_spline,relu,universal,swiglu,relu,silu", 1, 3, 3.39)]


class MadeUp:
    """A run directory of a search: candidates of the planted losses, equally noisy replicates, and their rows."""

    def __init__(self, run: Path, plan: Sequence[tuple] = GLOBAL, noise: float = 0.01, replicates: int = 3,
                 **settings: Any) -> None:
        self.run, self.config, self.rows = run, SearchConfig("ffn-activation", replicates=replicates, **settings), []
        self.rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        self.candidates: list[Candidate] = []
        noises = noise * self.rng.standard_normal((len(plan), replicates))
        for i, (name, activation, generation, parent, loss) in enumerate(plan):
            mother = self.candidates[parent] if parent is not None else None
            kind = "mixed" if "," in activation else activation
            c = Candidate(f"gen{generation}_{kind}_{i + 1}", name, activation, generation, 0,
                          mother and mother.id, mother and mother.name, [mother.id] if mother else [],
                          f"{mother.activation}→{activation}" if mother and mother.activation != activation else None,
                          parameters=6_800_000 + i)
            same = next((old for old in self.candidates if old.activation == activation), None)
            self.candidates.append(ranking.reused(c, same) if same else ranking.aggregate(
                c, [self._train(c, r, loss + noises[i, r]) for r in range(replicates)]))
        (run / "search").mkdir(parents=True)
        self.save()

    def _train(self, c: Candidate, replicate: int, end: float) -> Replicate:
        speed = np.mean([SPEED.get(name, 6200.0) for name in c.activation.split(",")])
        curve = lambda step: end + 5.0 * math.exp(-step / 18) - 5.0 * math.exp(-STEPS / 18)
        evaluations = []
        for step in range(1, STEPS + 1):
            val = float(curve(step)) if step % EVERY == 0 else None
            evaluations += [(step, val)] if val is not None else []
            self.rows.append({
                "step": len(self.rows) + 1, "loss": curve(step) + 0.06 * self.rng.standard_normal(), "val_loss": val,
                "tokens_per_sec": 400.0 if step <= 2 else speed * (1 + 0.03 * self.rng.standard_normal()),
                "symbio_phase": "search", "symbio_candidate_id": c.id, "symbio_candidate_name": c.name,
                "symbio_candidate_activation": c.activation, "symbio_generation": c.generation,
                "symbio_replicate": replicate})
            if step == 40:
                self.rows[-1] |= {"cusum_alerts": 2, "cusum_alert_reason": "persistent clipping onset"}
            if step in (60, 61):
                self.rows[-1] |= {"skipped": True, "skip_reason": "spike" if step == 60 else "overflow"}
        return Replicate(replicate, end, end, end + 0.02, 1 / end, STEPS, STEPS * 2048, evaluations, 1, 2, 0.25, 12.5,
                         float(speed), 3, 31.0)

    def save(self, status: str | None = "complete", **summary: Any) -> None:
        """status: None for no summary."""
        folder = self.run / "search"
        lines = "".join(json.dumps(c.to_json(), ensure_ascii=False) + "\n" for c in self.candidates)
        (folder / "candidates.jsonl").write_text(lines)
        (self.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        (folder / "summary.json").unlink(missing_ok=True)
        if status:
            found = ranking.summary(self.config, self.candidates, BASE, "a device", status) | summary
            (folder / "summary.json").write_text(json.dumps(found, indent=2))


Make = Callable[..., MadeUp]
