"""helios-search gates: three gates of a study of activations, run and judged."""

from __future__ import annotations

import gc
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from helios.bench.report import dump, write
from helios.cli.common import HeliosCommand
from helios.cli.train import finish
from helios.train import telemetry
from helios.train.config import Config, resolve
from helios.train.markdown import section, table
from helios.train.monitors.cusum import TPS
from helios.train.progress import Display, show
from helios.train.search import gates, ranking, report
from helios.train.search.evolution import Candidate
from helios.train.search.gates import Comparison, Verdict

PRESETS = {"small": "quickstart", "6l": "historic-6l"}  # by the names of the models
POOL = (gates.BASELINE, "silu", "relu", "swiglu")
STEPS = 200  # of a training, where --tokens is not given
EVALUATIONS = 8  # of a training, about; gate 2 reads between them
QUESTIONS = {1: "is the choice worth it", 2: "does it survive equal time", 3: "are per-block ones justified"}
HOW_TO_READ = (
    f"All trainings of a model read as many tokens, and those of one seed have the same initial values and batches. "
    f"The rate is constant after a warm-up, so that a loss on the way is as good as one of a shorter training. A loss "
    f"is the mean of the seeds' last evaluations, in nats a token, ± its standard error. Differences are taken seed by "
    f"seed. Better is lower by more than {gates.ERRORS} standard errors of the difference.",
    f"Gate 1 passes if some activation is better than {gates.BASELINE}, or not worse and steadier: with trouble in a "
    f"share of the steps that is lower by at least {gates.MATERIAL:g}; at {gates.ACCEPTABLE_SPEED:g} times its "
    f"tokens/s or more. Trouble is a spike, a skipped update or an alert; alerts for the speed alone are left out, for "
    f"they are the machine's.",
    f"Gate 2 passes if the activation of gate 1 is better than {gates.BASELINE} after as many tokens as it reads, at "
    f"its own speed, in the time of {gates.BASELINE}'s training. Between two evaluations the loss is taken to lie on a "
    f"line. Speeds are those of this machine, and wrong where it had other work to do meanwhile.",
    "Gate 3 passes if gate 1 does and some genome of the best two activations is better than the best single one at "
    "equal tokens. The genomes have one of the two in each half of the blocks, or both in turn.",
    "What holds for this model, this text and this budget need not hold in a longer training.",
)


class Study(NamedTuple):
    """Of one model."""

    model: str
    config: Config
    device: str
    candidates: list[Candidate]
    blocks: list[Candidate] | None  # None: not trained
    verdicts: tuple[Verdict, Verdict, Verdict]


@click.command("gates", cls=HeliosCommand)
@click.option("--data", required=True, metavar="FILE", help="Training text: a UTF-8 file, or synth:2MB[:SEED].")
@click.option("--val-data", metavar="FILE", help="Validation text; else documents of --data are set apart.")
@click.option("--run-dir", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where the searches go, or are continued; else runs/gates-…")
@click.option("--model", "models", multiple=True, type=click.Choice(list(PRESETS)),
              help=f"Of preset {' or '.join(PRESETS.values())}; can be given twice. Else both.")
@click.option("--seeds", type=click.IntRange(3), default=3, show_default=True, metavar="N", help="For each activation.")
@click.option("--tokens", type=click.IntRange(1), metavar="N",
              help=f"That each training reads; else those of {STEPS} steps.")
@click.option("--all-gates", is_flag=True, help="Train for gate 3 also where gate 1 does not pass.")
@click.option("--backend", metavar="TEXT", help="auto, vulkan or cpu_ref.")
@click.option("--device", metavar="TEXT", help="Vulkan device: its index or part of its name.")
@click.option("--quiet", is_flag=True, help="Nothing but errors, warnings, the last line of each search, the result.")
def command(data: str, val_data: str | None, folder: Path | None, models: Sequence[str], seeds: int,
            tokens: int | None, all_gates: bool, backend: str | None, device: str | None, quiet: bool) -> None:
    """Judge whether activations matter: three gates, pass or fail.

    Trains gelu, silu, relu and swiglu under equal conditions, and genomes of the best two where gate 1 passes. Writes
    gates.json and gates.md. An interrupted one goes on when the same command is given again with its --run-dir.
    """
    folder = (folder or Path("runs") / f"gates-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}").absolute()
    given = {"data": _resolved(data), "val_data": val_data and _resolved(val_data), "backend": backend,
             "device": device}
    display, studies = Display(quiet), []
    for model in [m for m in PRESETS if m in models or not models]:
        study = _study(model, folder, given, seeds, tokens, all_gates, display)
        if study is None:
            display.final(f"go on with the same command and --run-dir {folder}")
            click.get_current_context().exit(130)
        studies.append(study)
    write(folder / "gates.json", dump(_json(studies, given, seeds)))
    write(folder / "gates.md", _page(studies, seeds))
    _show(studies, seeds)
    display.final(str(folder / "gates.md"))


def _resolved(source: str) -> str:
    return source if source.startswith("synth:") else str(Path(source).resolve())


def configured(model: str, given: Mapping[str, Any], seeds: int, tokens: int | None, genomes: Iterable[str] = (),
               more: Iterable[str] = ()) -> Config:
    """The settings of a model's search over POOL, or over `genomes` of one activation for each block.

    given: {setting: value} of the command line, None where not given. more: "key=value" each, above all the others,
    for models that train in seconds. Raises UserError.
    """
    pool = [f"genomes={';'.join(genomes)}", "genome=per_block"] if genomes else []
    config = resolve(PRESETS[model], assignments=(
        "mode=ffn-activation", "selection=exhaustive", "after=none", "budget=tokens", f"replicates={seeds}",
        f"activation_pool={','.join(POOL)}", *pool, *more), flags=given)
    t, step = config.train, config.train.batch_size * config.train.accum * config.model.block_size
    tokens = tokens or STEPS * step
    steps = -(-tokens // step)
    config.search.tokens_per_candidate = tokens
    config.search.candidate_eval_interval = max(1, round(steps / EVALUATIONS))
    t.checkpoint_interval = steps  # so that a kill costs one training at most
    return config


# -- the searches ------------------------------------------------------------------------------------------------------

def _study(model: str, folder: Path, given: Mapping[str, Any], seeds: int, tokens: int | None, all_gates: bool,
           display: Display) -> Study | None:
    """The searches of one model, run to their end; None where a signal came."""
    config = configured(model, given, seeds, tokens)
    candidates = _search(config, folder / model, display)
    if candidates is None:
        return None
    first, blocks = gates.worth_it(candidates), None
    best = gates.best_two(candidates)
    if best is not None and (first.passed or all_gates):
        genomes = gates.variants(best[0].activation, best[1].activation, config.model.n_layer)
        blocks = _search(configured(model, given, seeds, tokens, genomes), folder / f"{model}-blocks", display)
        if blocks is None:
            return None
    verdicts = (first, gates.survives_equal_time(candidates, first),
                gates.per_block_justified(candidates, blocks, first))
    return Study(model, config, report.read(folder / model)[1]["device"], candidates, blocks, verdicts)


def _search(config: Config, path: Path, display: Display) -> list[Candidate] | None:
    """What the search in the run directory measured, which is begun or continued where it is not over."""
    if not finish(config, path, display, "search"):
        return None
    gc.collect()  # its memory, before the next one takes its own
    shutil.rmtree(path / "checkpoints", ignore_errors=True)  # of candidates in the middle of their trainings
    return _without_speed(path, report.read(report.find(path))[0])


def _without_speed(path: Path, candidates: Sequence[Candidate]) -> list[Candidate]:
    """With those alerts only that are not for the speed alone, which other programs on the machine change."""
    alerts = Counter((row["symbio_candidate_id"], row["symbio_replicate"])
                     for row in telemetry.rows(path / telemetry.METRICS) if (row.get("cusum_alerts") or 0) & ~TPS)
    counts = {c.id: [alerts[c.id, i] for i in range(len(c.replicates))] for c in candidates}
    return [replace(c, cusum_alerts=sum(counts[c.id]), replicates=[
        replace(r, cusum_alerts=n) for r, n in zip(c.replicates, counts[c.id], strict=True)]) for c in candidates]


# -- what is said of them ----------------------------------------------------------------------------------------------

def _json(studies: Iterable[Study], given: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    row = lambda r: r and {**r._asdict(), "better": r.better, "steadier": r.steadier}
    return {
        **given, "seeds": seeds, "standard_errors": gates.ERRORS, "acceptable_speed": gates.ACCEPTABLE_SPEED,
        "material": gates.MATERIAL, "separated_by_chance_percent": ranking.BY_CHANCE.get(seeds),
        "models": {s.model: {
            "preset": PRESETS[s.model], "device": s.device, "tokens": s.config.search.tokens_per_candidate,
            f"{gates.BASELINE}_seconds": gates.baseline_seconds(s.candidates),
            "gates": [{**v._asdict(), "chosen": row(v.chosen), "rows": [row(r) for r in v.rows]} for v in s.verdicts],
            "candidates": [c.to_json() for c in [*s.candidates, *(s.blocks or ())]],
        } for s in studies},
    }


def _show(studies: Iterable[Study], seeds: int) -> None:
    shown = Table(box=None, pad_edge=False)
    for title in ("model", "gate", "", "activation", "less the other's ± SE", "speed", "in words"):
        shown.add_column(title, no_wrap=True)
    for s in studies:
        for v in s.verdicts:
            c = v.chosen
            shown.add_row(*map(Text, (s.model, f"{v.gate} {QUESTIONS[v.gate]}", _verdict(v), c.activation if c else "–",
                                      _apart(c), _times(c), v.sentence)), style="bold" if v.passed else None)
    console = Console(highlight=False, soft_wrap=True)
    show(console, shown)
    if chance := gates.by_chance(seeds, len(POOL) - 1):
        console.print(f"\n{chance}", markup=False)


def _page(studies: Sequence[Study], seeds: int) -> str:
    lines = ["# " + "; ".join(f"{s.model}: {_passed(s.verdicts)}" for s in studies), "",
             *table(("model", "gate", "verdict", "in words"), (
                 [s.model, f"{v.gate} {QUESTIONS[v.gate]}", _verdict(v), v.sentence]
                 for s in studies for v in s.verdicts), left=4)]
    for s in studies:
        lines += _model(s, seeds)
    told = section("How to read this", *HOW_TO_READ, gates.by_chance(seeds, len(POOL) - 1))
    return "\n".join([*lines, *told]).rstrip() + "\n"


def _passed(verdicts: Iterable[Verdict]) -> str:
    passed = [str(v.gate) for v in verdicts if v.passed]
    return {0: "no gate passes", 1: f"gate {''.join(passed)} passes"}.get(
        len(passed), f"gates {', '.join(passed)} pass")


def _model(s: Study, seeds: int) -> Iterator[str]:
    m, (first, second, third) = s.config.model, s.verdicts
    base = next(c for c in s.candidates if c.activation == gates.BASELINE)
    yield from section(s.model, f"Preset {PRESETS[s.model]}: {m.n_layer} blocks, width {m.n_embd}, {m.block_size} "
                       f"tokens in a sequence. {s.config.search.tokens_per_candidate:,} tokens for each of {seeds} "
                       f"seeds, on {s.device}.")
    yield from ("### At equal tokens", "")
    itself = gates.compare(base, base)._replace(difference=None)
    yield from table(("activation", "val loss ± SE", f"less {gates.BASELINE}'s ± SE", "better", "tokens/s", "speed",
                      "trouble"),
                     ([r.activation, _loss(r), _apart(r), _better(r), _count(r.tokens_per_sec), _times(r),
                       f"{100 * r.trouble:.2f} %"] for r in (itself, *first.rows)))
    if second.rows and (seconds := gates.baseline_seconds(s.candidates)):
        yield from ("", f"### In {gates.BASELINE}'s {seconds:,.1f} seconds", "")
        yield from table(("activation", "tokens", "val loss ± SE", f"less {gates.BASELINE}'s last ± SE", "better"),
                         ([r.activation, _count(r.tokens), _loss(r), _apart(r), _better(r)] for r in second.rows))
    if third.rows:
        yield from ("", "### One activation for each block", "")
        yield from table(("genome", "val loss ± SE", f"less {third.rows[0].against}'s ± SE", "better", "speed"),
                         ([r.activation.replace(",", ", "), _loss(r), _apart(r), _better(r), _times(r)]
                          for r in third.rows))


def _verdict(v: Verdict) -> str:
    return "pass" if v.passed else "fail" if v.rows else "not run"


def _better(r: Comparison) -> str:
    return "–" if r.difference is None else "yes" if r.better else "no"


def _loss(r: Comparison) -> str:
    return "–" if r.val_loss is None else f"{r.val_loss:.4f}" + ("" if r.val_loss_se is None
                                                                   else f" ± {r.val_loss_se:.4f}")


def _apart(r: Comparison | None) -> str:
    if r is None or r.difference is None:
        return "–"
    return f"{r.difference:+.4f}" + ("" if r.error is None else f" ± {r.error:.4f}")


def _times(r: Comparison | None) -> str:
    return "–" if r is None or r.speed is None else f"× {r.speed:.2f}"


def _count(x: float | None) -> str:
    return "–" if x is None else f"{x:,.0f}"
