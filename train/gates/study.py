"""A study of activations: it runs the searches by which the gates are judged."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helios.train.config import Config, resolve
from helios.train.gates import judge
from helios.train.gates.judge import Verdict
from helios.train.progress import Display
from helios.train.report import reading
from helios.train.run import Run
from helios.train.search import files
from helios.train.search.births import Candidate
from helios.train.search.search import Search

PRESETS = {"small": "quickstart", "6l": "historic-6l"}  # by the study's names of the models
POOL = (judge.BASELINE, "silu", "relu", "swiglu")
STEPS = 200  # of a training, unless its tokens are given
EVALUATIONS = 8  # of a training, about; gate 2 interpolates between them
MEDIANS = ("ms_per_iter", "timing_fwd_ms", "timing_bwd_ms", "grad_norm")  # columns of metrics.jsonl


class Study(NamedTuple):
    """The results of one model's searches."""

    model: str
    config: Config
    device: str
    candidates: list[Candidate]
    blocks: list[Candidate] | None  # None: not trained
    medians: Mapping[str, Mapping[str, float | None]]  # by activation and column of MEDIANS; None: not known
    verdicts: tuple[Verdict, Verdict, Verdict]


def configured(model: str, given: Mapping[str, Any], seeds: int, tokens: int | None, genomes: Iterable[str] = (),
               more: Iterable[str] = ()) -> Config:
    """Return the settings of a model's search over POOL or, if given, over `genomes` with one activation a block.

    given: values by setting, None where not given. tokens: of each training; None: those of STEPS steps. more:
    "key=value" each, which win over the preset, for models that train in seconds. Raises UserError.
    """
    pool = [f"genomes={';'.join(genomes)}", "genome=per_block"] if genomes else []
    config = resolve(PRESETS[model], assignments=(
        "mode=ffn-activation", "selection=exhaustive", "after=none", "budget=tokens", f"replicates={seeds}",
        f"activation_pool={','.join(POOL)}", *pool, *more), flags=given)
    step = config.train.batch_size * config.train.accum * config.model.block_size
    tokens = tokens or STEPS * step
    steps = -(-tokens // step)
    config = config.replaced("search", tokens_per_candidate=tokens,
                             candidate_eval_interval=max(1, round(steps / EVALUATIONS)))
    return config.replaced("train", checkpoint_interval=steps)  # so that a kill costs one training at most


def study(model: str, folder: Path, given: Mapping[str, Any], seeds: int, tokens: int | None, all_gates: bool,
          display: Display) -> Study | None:
    """Run or continue the searches of one model, in folders below `folder`, and judge the gates.

    all_gates: train genomes for gate 3 even where gate 1 does not pass. Returns None where a signal came. Raises
    UserError where the folders hold other searches.
    """
    config = configured(model, given, seeds, tokens)
    candidates = _search(config, folder / model, display)
    if candidates is None:
        return None
    first, blocks, usual = judge.worth_it(candidates), None, medians(folder / model)
    best = judge.best_two(candidates)
    if best is not None and (first.passed or all_gates):
        genomes = judge.variants(best[0].activation, best[1].activation, config.model.n_layer)
        blocks = _search(configured(model, given, seeds, tokens, genomes), folder / f"{model}-blocks", display)
        if blocks is None:
            return None
        usual |= medians(folder / f"{model}-blocks")
    verdicts = (first, judge.survives_equal_time(candidates, first),
                judge.per_block_justified(candidates, blocks, first))
    return Study(model, config, files.read(folder / model)[1]["device"], candidates, blocks, usual, verdicts)


def medians(path: Path) -> dict[str, dict[str, float | None]]:
    """Return the medians of MEDIANS over all steps of an activation in a search, but for those in which kernels are
    prepared. Raises UserError."""
    run = reading.read(path)
    genomes = run.text("symbio_candidate_activation")
    return {c.activation: {name: reading.median(run.column(name)[run.steady & (genomes == c.activation)])
                           for name in MEDIANS} for c in run.candidates}


def _search(config: Config, path: Path, display: Display) -> list[Candidate] | None:
    run = Run.open(config, path, "search", plan=Search)
    if not run.finished and not run.train(display).finished:
        return None
    gc.collect()  # frees its memory before the next one takes its own
    shutil.rmtree(path / "checkpoints", ignore_errors=True)  # not needed once it is over
    return files.read(path)[0]
