"""An experiment as its driver leaves it: a plausible journal, and run directories."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .boards import CONFIG, event, lines, row

OBJECTIVES = ("val_loss", "tokens_per_sec", "instability")
GENES = [
    {"name": "lr", "kind": "log", "part": "dynamics", "low": 1e-5, "high": 1e-2, "values": None},
    {"name": "beta2", "kind": "linear", "part": "dynamics", "low": 0.9, "high": 0.999, "values": None},
    {"name": "n_layer", "kind": "whole", "part": "architecture", "low": 1, "high": 12, "values": None},
    {"name": "n_embd", "kind": "steps", "part": "architecture", "low": None, "high": None, "values": [64, 128, 256]},
    {"name": "qk_norm", "kind": "switch", "part": "architecture", "low": None, "high": None, "values": [False, True]},
    {"name": "activation", "kind": "set", "part": "architecture", "low": None, "high": None,
     "values": ["gelu", "relu", "silu"]},
]
BASE = {"model": {"n_layer": 4, "n_embd": 128, "qk_norm": False, "activation": "gelu"},
        "train": {"lr": 1e-3, "beta2": 0.95}}
START = BASE["model"] | BASE["train"]
OPERATORS = ("mutation", "crossover", "architecture-fusion")
GREEK = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")


def journal(count: int, id_: str = "exp", *, population: int = 20, replicates: int = 2, seed: int = 1,
            end: bool = False, **settings: Any) -> Iterator[dict[str, Any]]:
    """The lines of an experiment of `count` candidates, in the order in which its driver writes them.

    Each generation is born, then measured. One in ten candidates is a random one, the first one is the preset. Some
    diverge, are stopped early, fail or are dropped. Without `end`, the last two generations are still without most
    results, and without a last line.
    """
    draw, best = random.Random(seed), list[tuple[float, dict[str, Any]]]()
    yield {"kind": "experiment", "version": 1, "id": id_, "seed": seed, "settings": {
        "objectives": ",".join(OBJECTIVES), "population": population, "replicates": replicates} | settings,
        "base": BASE, "genes": GENES, "objectives": ["fitness"] if settings.get("fitness") else [*OBJECTIVES]}
    generations = math.ceil(count / population)
    for generation in range(generations):
        size = min(population, count - generation * population)
        yield {"kind": "generation", "generation": generation, "size": size,
               "hypervolume": 1 - math.exp(-generation / 3) if generation else None,
               "why": "as asked" if generation < 2 else "the hypervolume grows"}
        births = [_birth(generation, i, draw, [about for _, about in sorted(best, key=lambda pair: pair[0])[:5]])
                  for i in range(size)]
        yield from births
        if generation and best and size > 3 and births[3]["arm"] == "evolved":  # of which all settings were tried
            yield {"kind": "reused", "id": births.pop(3)["id"], "of": best[-1][1]["id"]}
        if not end and generation >= max(1, generations - 1):
            continue
        dropped = []
        for i, birth in enumerate(births):
            if not end and generation == max(0, generations - 2) and i > size // 2:
                break
            found = [_result(birth, r, draw) for r in range(replicates)]
            yield from found
            if all(each["status"] == "complete" for each in found):
                value = sum(each["val_loss"] for each in found) / len(found)
                best.append((value, birth))
                if value > 4.2 and birth["arm"] == "evolved":
                    dropped.append(birth)
        yield from ({"kind": "dropped", "id": birth["id"], "generation": generation,
                     "why": "worse than half of its generation at 20 % of the tokens"} for birth in dropped[:2])
    if end:
        first = min(best, key=lambda pair: pair[0])[1]
        yield from (_result(first, r, draw, "validation") for r in range(replicates))
        yield {"kind": "end", "hypervolume": 1 - math.exp(-generations / 3), "verdict": {
            "winner": first["id"], "separated": False, "sentences": [
            f"{first['name']} is best by val_loss.", "It is not separated from the preset by 2 seeds."]}}


def _birth(generation: int, i: int, draw: random.Random, parents: list[dict[str, Any]]) -> dict[str, Any]:
    arm = "preset" if generation == i == 0 else "random" if i % 10 == 9 else "evolved"
    child = arm == "evolved" and generation > 0 and parents
    operator = draw.choice(OPERATORS) if child else "founder"
    chosen = draw.sample(parents, min(len(parents), 1 if operator == "mutation" else 2)) if child else []
    old = START | (chosen[0]["settings"] if chosen else {})
    fresh = {"lr": 10 ** draw.uniform(-4.5, -2), "beta2": draw.uniform(0.9, 0.999), "n_layer": draw.randint(1, 12),
             "n_embd": draw.choice([64, 128, 256]), "qk_norm": draw.random() < 0.5,
             "activation": draw.choice(["gelu", "relu", "silu"])}
    if chosen:  # near its parent
        fresh = {key: fresh[key] if draw.random() < 0.3 else old[key] for key in fresh}
        fresh["lr"] = old["lr"] * math.exp(draw.gauss(0, 0.3))
    settings = {key: value for key, value in fresh.items() if value != START[key]} if arm != "preset" else {}
    activation = settings.get("activation", "gelu")
    name = (f"{activation[0].upper()}-{GREEK[i % 5]}{i // 5 or ''}" if not chosen else
            f"{chosen[0]['name'].partition('.')[0]}.{generation}")
    return {"kind": "birth", "id": f"gen{generation}_{activation}_{i + 1}", "name": name, "arm": arm,
            "generation": generation, "parents": [parent["id"] for parent in chosen],
            "operator": operator if arm == "evolved" else arm,
            "difference": {key: [old[key], value] for key, value in (START | settings).items() if value != old[key]},
            "settings": settings, "activation": activation}


def _result(birth: dict[str, Any], replicate: int, draw: random.Random, phase: str = "search") -> dict[str, Any]:
    own = START | birth["settings"]
    far = abs(math.log10(own["lr"]) + 2.7)
    loss = 2.5 + 0.5 * far + 1.5 / own["n_layer"] + 20 / own["n_embd"] + draw.gauss(0, 0.05)
    speed = 4e5 / (own["n_layer"] * own["n_embd"]) + draw.gauss(0, 5)
    status = draw.choices(["complete", "diverged", "stopped", "failed"], [94, 3, 2, 1])[0] if (
        phase == "search" and birth["arm"] != "preset") else "complete"
    why = {"complete": None, "diverged": "the loss is not finite at step 31", "failed": "the device was lost",
           "stopped": "plateau: no better for 50 steps"}[status]
    return {"kind": "result", "id": birth["id"], "replicate": replicate, "phase": phase,
            "run": f"{birth['id']}.{phase[0]}{replicate}", "status": status, "why": why, "seed": 1 + replicate,
            "share": 1.0, "val_loss": loss if status in ("complete", "stopped") else None, "best_val_loss": loss,
            "train_loss": loss, "tokens_per_sec_mean": speed, "fitness": None, "steps": 100, "tokens": 100_000,
            "trouble": round(max(0.0, 2 + 10 * far + draw.gauss(0, 1))), "spikes": 3, "clip_rate": 0.1, "skipped": 0,
            "max_grad_norm": 3.0, "cusum_alerts": 0, "seconds": 10.0, "memory_mb": 120.0,
            "parameters": own["n_layer"] * own["n_embd"] ** 2 * 12, "evaluations": [[50, loss + 0.1], [100, loss]]}


def write(path: Path, rows: list[dict[str, Any]], trained: int = 0) -> Path:
    """Make the experiment's directory, with run directories of its first `trained` results."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "journal.jsonl").write_text(lines(rows))
    of = lambda kind: [each for each in rows if each.get("kind") == kind]
    births = {each["id"]: each for each in of("birth")}
    for each in of("result")[:trained]:
        run, birth = path / "runs" / each["run"], births[each["id"]]
        run.mkdir(parents=True)
        about = {key: birth[key] for key in ("id", "name", "generation", "arm", "parents", "operator", "difference")}
        about |= {key: each[key] for key in ("replicate", "phase")} | {"experiment": rows[0]["id"], "warm_start": None}
        (run / "config.json").write_text(json.dumps(CONFIG | {
            "run_id": f"{path.name}.{each['run']}", "evolve": about}))
        (run / "metrics.jsonl").write_text(lines([row(i + 1) for i in range(3)]))
        (run / "events.jsonl").write_text(lines([event(0, "run_start"), event(3, "run_complete")]))
    return path


def add(path: Path, text: str) -> None:
    """Append to an experiment's journal."""
    with open(path / "journal.jsonl", "a") as file:
        file.write(text)
