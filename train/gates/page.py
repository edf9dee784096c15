"""The result of a study of activations: as JSON, as a table for the terminal, and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from helios.train.gates import judge
from helios.train.gates.judge import Comparison, Verdict
from helios.train.gates.study import MEDIANS, PRESETS, Study
from helios.train.markdown import figure, loss, norm, number, percent, section, table, with_error
from helios.train.search.births import Candidate
from helios.train.search.separation import PERCENT, RATE

QUESTIONS = {1: "is the choice worth it", 2: "does it survive equal time", 3: "are per-block ones justified"}
HOW_TO_READ = (
    f"All trainings of a model read as many tokens, and those of one seed have the same initial values and batches. "
    f"The rate is constant after a warm-up, so that a loss on the way is as good as one of a shorter training. A loss "
    f"is the mean of the seeds' last evaluations, in nats a token, ± its standard error. Differences are taken seed by "
    f"seed. Better is lower by more than as many candidates that do not differ come to lie apart in {PERCENT} of "
    f"studies; so nothing passes gate 1 by its loss more often than that where nothing differs.",
    f"Gate 1 passes if some activation is better than {judge.BASELINE}, or not worse and steadier: with trouble in a "
    f"share of the steps that is lower by at least {judge.MATERIAL:g}; at {judge.ACCEPTABLE_SPEED:g} times its "
    f"tokens/s or more. Trouble is a spike, a skipped update or an alert of norm, clipping or validation loss; alerts "
    f"of the speed are the machine's.",
    f"Gate 2 passes if the activation of gate 1 is better than {judge.BASELINE} after as many tokens as it reads, at "
    f"its own speed, in the time of {judge.BASELINE}'s training. Between two evaluations the loss is taken to lie on a "
    f"line. Speeds are those of this machine, and wrong where it had other work to do meanwhile.",
    "Gate 3 passes if gate 1 does and some genome of the best two activations is better than the best single one at "
    "equal tokens. The genomes have one of the two in each half of the blocks, or both in turn.",
    "Milliseconds of a step and of its passes, and gradient norms, are medians of all seeds' steps but the first of "
    "each training. The best validation loss is the lowest of all seeds, the last one their mean. Clipped are "
    "the steps whose gradient was scaled down.",
    "What holds for this model, this text and this budget need not hold in a longer training.",
)


def json_text(studies: Iterable[Study], given: Mapping[str, Any], seeds: int) -> str:
    """Return the content of gates.json. given: the command's other settings."""
    row = lambda r: r and {**r._asdict(), "better": r.better, "steadier": r.steadier}
    content = {
        **given, "seeds": seeds, "rate": RATE, "acceptable_speed": judge.ACCEPTABLE_SPEED, "material": judge.MATERIAL,
        "models": {s.model: {
            "preset": PRESETS[s.model], "device": s.device, "tokens": s.config.search.tokens_per_candidate,
            f"{judge.BASELINE}_seconds": judge.baseline_seconds(s.candidates),
            "gates": [{**v._asdict(), "chosen": row(v.chosen), "rows": [row(r) for r in v.rows]} for v in s.verdicts],
            "candidates": [c.to_json() | {"medians": s.medians[c.activation]} for c in _all(s)],
        } for s in studies},
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def verdict_table(studies: Iterable[Study]) -> Table:
    """Return the verdicts as a table for the terminal."""
    found = Table(box=None, pad_edge=False)
    for title in ("model", "gate", "", "activation", "less the other's ± SE", "speed", "in words"):
        found.add_column(title, no_wrap=True)
    for s in studies:
        for v in s.verdicts:
            c = v.chosen
            found.add_row(*map(Text, (s.model, f"{v.gate} {QUESTIONS[v.gate]}", _verdict(v), c.activation if c else "–",
                                      _apart(c), _times(c), v.sentence)), style="bold" if v.passed else None)
    return found


def markdown(studies: Sequence[Study], seeds: int) -> str:
    """Return the page gates.md."""
    lines = ["# " + "; ".join(f"{s.model}: {_passed(s.verdicts)}" for s in studies), "",
             *table(("model", "gate", "verdict", "in words"), (
                 [s.model, f"{v.gate} {QUESTIONS[v.gate]}", _verdict(v), v.sentence]
                 for s in studies for v in s.verdicts), left=4)]
    for s in studies:
        lines += _model(s, seeds)
    return "\n".join([*lines, *section("How to read this", *HOW_TO_READ)]).rstrip() + "\n"


def _passed(verdicts: Iterable[Verdict]) -> str:
    passed = [str(v.gate) for v in verdicts if v.passed]
    return {0: "no gate passes", 1: f"gate {''.join(passed)} passes"}.get(
        len(passed), f"gates {', '.join(passed)} pass")


def _model(s: Study, seeds: int) -> Iterator[str]:
    m, (first, second, third) = s.config.model, s.verdicts
    base = next(c for c in s.candidates if c.activation == judge.BASELINE)
    yield from section(s.model, f"Preset {PRESETS[s.model]}: {m.n_layer} blocks, width {m.n_embd}, {m.block_size} "
                       f"tokens in a sequence. {s.config.search.tokens_per_candidate:,} tokens for each of {seeds} "
                       f"seeds, on {s.device}.")
    yield from ("### At equal tokens", "")
    itself = judge.compare(base, base, None)._replace(difference=None)
    yield from table(("activation", "val loss ± SE", f"less {judge.BASELINE}'s ± SE", "better", "tokens/s", "speed",
                      "trouble"),
                     ([r.activation, _loss(r), _apart(r), _better(r), _count(r.tokens_per_sec), _times(r),
                       f"{100 * r.trouble:.2f} %"] for r in (itself, *first.rows)))
    if second.rows and (seconds := judge.baseline_seconds(s.candidates)):
        yield from ("", f"### In {judge.BASELINE}'s {seconds:,.1f} seconds", "")
        yield from table(("activation", "tokens", "val loss ± SE", f"less {judge.BASELINE}'s last ± SE", "better"),
                         ([r.activation, _count(r.tokens), _loss(r), _apart(r), _better(r)] for r in second.rows))
    if third.rows:
        yield from ("", "### One activation for each block", "")
        yield from table(("genome", "val loss ± SE", f"less {third.rows[0].against}'s ± SE", "better", "speed"),
                         ([r.activation.replace(",", ", "), _loss(r), _apart(r), _better(r), _times(r)]
                          for r in third.rows))
    yield from ("", "### How they trained", "")
    yield from table(("activation", "best val loss", "last", "ms a step", "forward", "backward", "gradient norm",
                      "highest", "clipped"), (
        [c.activation.replace(",", ", "), loss(c.best_val_loss), loss(c.val_loss_mean),
         *(figure(s.medians[c.activation][name]) for name in MEDIANS[:3]), norm(s.medians[c.activation]["grad_norm"]),
         norm(c.max_grad_norm), percent(c.clip_rate)] for c in _all(s)))


def _all(s: Study) -> list[Candidate]:
    return [*s.candidates, *(s.blocks or ())]


def _verdict(v: Verdict) -> str:
    return "pass" if v.passed else "fail" if v.rows else "not run"


def _better(r: Comparison) -> str:
    return "–" if r.difference is None else "yes" if r.better else "no"


def _loss(r: Comparison) -> str:
    return with_error(r.val_loss, r.val_loss_se, ".4f")


def _apart(r: Comparison | None) -> str:
    return with_error(r.difference, r.error, "+.4f") if r else "–"


def _times(r: Comparison | None) -> str:
    return "–" if r is None or r.speed is None else f"× {r.speed:.2f}"


def _count(x: float | None) -> str:
    return number(x, ",.0f")
