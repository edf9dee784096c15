"""What hostile and clumsy use of the commands must come to: a table of named cases.

In arguments, {tmp} is a folder of the case's own. Where the case says `run`, {tmp}/run is a copy of a finished run of
the preset tiny, of 12 steps, with checkpoints at 6 and 12.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from helios.cli import data, sample, search, train
from helios.train import checkpoint

TINY = ("--preset", "tiny", "--backend", "cpu_ref")
NEW = (*TINY, "--run-dir", "{tmp}/new")


class Case(NamedTuple):
    """A command line, what is there before, and what must come of it. With exit code 2, one line on stderr has the
    words, and no file has changed."""

    args: tuple[str, ...]
    words: str | tuple[str, ...]
    prepare: Callable[[Path], object] = lambda tmp: None
    run: bool = False
    exit: int = 2
    command: click.Command = train.main


def bytes_of(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda tmp: (tmp / name).write_bytes(content.encode() if isinstance(content, str) else content)


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda tmp: (tmp / name).symlink_to(target)


def moved(name: str, to: str) -> Callable[[Path], object]:
    return lambda tmp: (tmp / name).rename(tmp / to)


def only_rows(tmp: Path) -> None:
    """As a run is that was killed before its first checkpoint."""
    shutil.rmtree(tmp / "run" / "checkpoints")
    (tmp / "run" / "events.jsonl").write_text("")


def renamed(tmp: Path) -> None:
    shutil.rmtree(tmp / "run" / "checkpoints" / "step-000006")
    moved("run/checkpoints/step-000012", "run/checkpoints/step-000099")(tmp)


def weight(name: str, value: float) -> Callable[[Path], None]:
    """Put a value into a weight of the newest checkpoint, which stays whole."""
    def change(tmp: Path) -> None:
        found = checkpoint.load(tmp / "run" / "checkpoints" / "step-000012")
        found.model[name][3:5] = value
        state = {k: v for k, v in found.state.items() if k not in ("format", "step", "files", "sha256")}
        checkpoint.save(tmp / "run", 12, found.model, found.optimizer, state)
    return change


def row(number: int, **values: object) -> Callable[[Path], None]:
    """Change values in a line of metrics.jsonl."""
    def change(tmp: Path) -> None:
        path = tmp / "run" / "metrics.jsonl"
        lines = path.read_text().splitlines()
        lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | values)
        path.write_text("\n".join(lines) + "\n")
    return change


def toml(text: str | bytes, words: str | tuple[str, ...]) -> Case:
    return Case((*NEW, "--config", "{tmp}/a.toml"), words, bytes_of("a.toml", text))


def resumed(where: str, words: str | tuple[str, ...], prepare: Callable[[Path], object] = lambda tmp: None,
            more: tuple[str, ...] = ()) -> Case:
    return Case(("--resume", f"{{tmp}}/{where}", *more), words, prepare, run=True)


def begun(where: str, words: str | tuple[str, ...], prepare: Callable[[Path], object] = lambda tmp: None,
          more: tuple[str, ...] = ()) -> Case:
    return Case(("--backend", "cpu_ref", "--run-dir", "{tmp}/new", "--init-from", f"{{tmp}}/{where}", *more), words,
                prepare, run=True)


SOON, NOTHING = ("--challenge-interval", "4", "--set", "challenge_steps=2"), lambda tmp: None
LONG, FOREIGN = "x" * 300, os.fsdecode(b"\xff.txt")
SAMPLE = ("--run", "{tmp}/run", "--backend", "cpu_ref", "--prompt", "Who?", "--tokens", "2")
FLOAT32 = "that float32 can tell from 0, 1 and infinity"

CASES: dict[str, Case] = {
    # data that would be lost
    "checkpoints moved away": Case((*TINY, "--run-dir", "{tmp}/run"), "put its checkpoints/ back",
                                   moved("run/checkpoints", "kept"), run=True),
    "rows without a checkpoint": Case((*TINY, "--run-dir", "{tmp}/run"), "without a checkpoint", only_rows, run=True),
    "a checkpoint renamed": resumed("run", "state.json says step 12; name it step-000012 again", renamed),
    "a run that is there": Case((*TINY, "--run-dir", "{tmp}/run"), "continue it with --resume", run=True),
    # a value that is none
    **{f"{flag} empty": Case((*TINY, flag, ""), (flag, "''" if flag in ("--data", "--init-from") else
                                                       "is empty"))
       for flag in ("--resume", "--run-dir", "--config", "--preset", "--search-config", "--data",
                    "--init-from")},
    "synth --out empty": Case(("synth", "--size", "1KB", "--out", ""), "is empty", command=data.main),
    "tokenize --out empty": Case(("tokenize", "--data", "synth:9KB", "--out", ""), "is empty", command=data.main),
    "gates --run-dir empty": Case(("gates", "--data", "synth:9KB", "--run-dir", ""), "is empty", command=search.main),
    # numbers
    **{f"{flag} {value}": Case((*NEW, flag, value), (flag, FLOAT32)) for flag, value in (
        ("--lr", "1e300"), ("--lr", "1e39"), ("--weight-decay", "1e300"), ("--eps", "1e-300"), ("--eps", "1e300"),
        ("--beta2", "0.9999999999"), ("--dropout", "0.9999999999"), ("--grad-clip", "1e-300"), ("--grad-clip", "1e300"),
        ("--softcap", "1e-300"), ("--softcap", "1e300"), ("--eps", "1e-40"))},
    **{f"{flag} {value}": Case((*NEW, flag, value), (flag, "expected a", "in plain decimal")) for flag, value in (
        ("--steps", "1e3"), ("--steps", "1_0"), ("--steps", "１２"), ("--lr", "1_0"), ("--lr", "０.１"),
        ("--lr", "inf"), ("--lr", "nan"), ("--steps", "0x10"))},
    "a whole number of thousands of digits": Case((*NEW, "--steps", "9" * 5000), ("--steps", "(5,002 characters)")),
    "--steps 2**63": Case((*NEW, "--steps", str(2**63)), "below 2⁶³"),
    "--layers 1e9": Case((*NEW, "--layers", "1000000000"), "from 1 to 1,000"),
    "more genomes than can be counted": Case(
        (*NEW, "--search", "ffn-activation", "--set", "selection=exhaustive", "--set", "genome=per_block",
         "--layers", "1000"), "e+778 trainings"),
    **{f"--temperature {value}": Case((*SAMPLE, "--temperature", value), ("--temperature", words), run=True,
                                      command=sample.main)
       for value, words in (("nan", "a number"), ("1e-320", FLOAT32), ("-1", "at least 0"), ("hot", "a number"))},
    # TOML
    "TOML with a key twice": toml("steps = 3\n[train]\nsteps = 4", "steps is given twice"),
    "TOML with a key under two names": toml("[model]\nlayers = 3\nn_layer = 4", "is given twice"),
    "TOML true for a number": toml("steps = true", "steps: expected a whole number, got true"),
    "TOML 1e3 for a whole number": toml("steps = 1e3", "steps: expected a whole number, got 1000.0"),
    "TOML nan": toml("lr = nan", "lr: expected a number, got NaN"),
    "TOML date": toml("steps = 2026-01-02", 'steps: expected a whole number, got "2026-01-02"'),
    "TOML list": toml("steps = [1, true]", "steps: expected a whole number, got [1, true]"),
    "TOML list of tables": toml("[[model]]\nlayers = 3", "unknown key 'model'"),
    "TOML nested deeply": toml(f"steps = {'[' * 5000}{']' * 5000}", "is no TOML file"),
    "TOML cut off": toml("steps = ", "is no TOML file"),
    "TOML in Latin-1": toml(b"# \xe9", "is no TOML file"),
    "TOML with a null byte in a name": toml('data = "a\\u0000b"', "data: expected text"),
    "a flag nested deeply": Case((*NEW, "--activation", "[" * 100_000), ("--activation: expected an", "100,002")),
    # formulas
    **{f"formula {text[:30]!r}": Case((*NEW, "--activation", text), ("activation: ", words)) for text, words in (
        ("geluu", "given 'geluu', expected one of gelu, "), ("x*siluu(x)", "column 3: unknown function 'siluu'"),
        ("b*x", "column 1: 'b' has no value; give it one at the end, as ;b=1"), ("x*(1+", "column 3: syntax error"),
        ("x*g*u", "column 5: x does not go with g and u"), ("x+x**7", "column 6: power 7, expected a whole number"),
        ("1+1/x", "column 5: division by x, expected a number"), ("+".join(["x"] * 200), "column 151: more than 150"),
        ("a*x; silu=1, a=1", "column 6: 'silu' is a function; choose another name"),
        ("sin: x", "'sin' is a function of formulas; choose another name"), ("gelu: x", "'gelu' is an activation"),
        ("my act: x", "'my act' is no name"), ("mine: x*y", "column 3: 'y' has no value"),
        ("__import__('os')", 'column 12: "\'" cannot be part of a formula'), ("x.__class__", "column 1: 'x.__class__'"),
        ("a*x+b+c+d+e+f; a=1, b=1, c=1, d=1, e=1, f=1", "column 41: 'f' is one too many: a formula has at most 5"),
        ("gelu|x*(", "column 3: syntax error"))},
    **{f"a formula in {key}": Case((*NEW, "--set", f"{key}=gelu{mark}x**9"), (f"{key}: ", "column 4: power 9"))
       for key, mark in (("activation_pool", "|"), ("genomes", "||"))},
    "a formula with a name, wrong": toml('[activations]\nf = "x+tan(x)"', (
        "a.toml: activations.f: formula 'x+tan(x)', column 3: unknown function 'tan'")),
    # online control
    **{f"actions: {rule}": Case((*NEW, *(f"--set={text}" for text in more), "--set", f"actions={rule}"), words)
       for rule, words, *more in (
           ("grad: stop", "--set actions: unknown alert 'grad'; did you mean cusum_grad?; there are "),
           ("plateu: stop", "did you mean plateau?"),
           ("cusum_grad: halve", "cusum_grad: 'halve': expected lr*X, clip*X, guard*X, batch+N or batch-N, branch or "),
           ("cusum_grad", "cusum_grad: '': expected lr*X"),
           ("cusum_grad: lr*0", "'lr*0': expected lr*X, with a factor from 0.0625 to 16 other than 1 for X"),
           ("cusum_grad: lr*1", "other than 1"), ("cusum_grad: lr*nan", "expected lr*X"),
           ("cusum_grad: lr*-2", "expected lr*X"), ("cusum_grad: clip*99", "expected clip*X"),
           ("cusum_grad: lr*0.5 200", "expected lr*X"), ("cusum_grad: guard*0.5", "with a number above 1 for X"),
           ("cusum_grad: batch*2", "expected batch+N or batch-N"), ("cusum_grad: batch+1.5", "a whole number"),
           ("cusum_grad: lr*0.5 for ever", "expected a whole number of steps, at least 1, after for, got 'ever'"),
           ("cusum_grad: stop for 9", "stop is for good"), ("cusum_grad: branch stop", "a branch changes one of lr, "),
           ("cusum_grad: branch", "a window of 50 steps that opens at step 1 does not end before the run's last, 12"),
           ("cusum_grad: stop; cusum_grad: lr*2", "cusum_grad is given twice"),
           ("cusum_grad: lr*0.5, lr*0.25", "lr is given twice"),
           ("cusum_grad: batch+4", "batch_size 4 is not between batch_min 5 and batch_max 64", "batch_min=5"),
           ("cusum_grad: batch+64", "batch+64 is more than there is between batch_min 1 and batch_max 64"),
           ("cusum_grad: batch+4", "changes the batch, and --accum divides it", "accum=2"),
           ("cusum_grad: batch+1", "batch+1: adaptive_batch changes the batch, too", "adaptive_batch=true"),
           ("cusum_grad: lr*2", "lr*2: dynamic_lr changes the learning rate, too", "dynamic_lr=cusum"),
           ("cusum_grad: clip*2", "clip*2: grad_clip is 0", "grad_clip=0"),
           ("cusum_grad: lr*2", "cusum = false raises no such alert", "cusum=false"),
           ("plateau: guard*2", "cusum = false knows no usual norm", "cusum=false"),
           ("plateau: stop", "plateau_evals is 0", "plateau_evals=0"),
           ("cusum_val: stop", "--eval-interval 0 evaluates nothing", "eval_interval=0"),
           ("x" * 300, "(302 characters)"))},
    "an unknown setting": Case((*NEW, "--set", "batchsize=2"), "did you mean batch_size?"),
    "an unknown setting like no other": Case((*NEW, "--set", "quiet=1"), "helios-info --settings lists them"),
    "an unknown preset": Case(("--preset", "quikstart"), "did you mean quickstart?"),
    # challengers
    **{f"challengers: {name}": Case((*NEW, "--search", "continuous", *more), words, prepare)
       for name, more, words, prepare in (
        ("no evaluation", ("--eval-interval", "0", *SOON), "--eval-interval 0: challengers are judged", NOTHING),
        ("no validation text", ("--val-data", "{tmp}/no.txt", *SOON), "No such file", NOTHING),
        ("an unknown alert", ("--challenge-on", "cusun"), ("unknown name 'cusun'", "did you mean cusum?"), NOTHING),
        ("an alert of the machine", ("--challenge-on", "tps"), "must not decide", NOTHING),
        ("an unknown gene", ("--set", "challenge_genes=lrr", *SOON), ("challenge_genes: unknown gene 'lrr'",
                                                                      "did you mean lr?"), NOTHING),
        ("a gene of the batches", ("--set", "challenge_genes=batch_size", *SOON), "on its batches", NOTHING),
        ("a window longer than the run", ("--challenge-interval", "1", "--set", "challenge_steps=11"),
         ("a window of 11 steps that opens at step 1", "the run's last, 12"), NOTHING),
        ("neither interval nor alert", ("--challenge-interval", "0"), "no window of challengers would", NOTHING),
        ("a search before it, too", (*SOON, "--search-config", "{tmp}/a.toml"), "generations is of a search before",
         bytes_of("a.toml", "generations = 3")),
        ("another search", (*SOON, "--search", "ffn-activation"), "opens windows of challengers", NOTHING),
        ("more than --max-cost", (*SOON, "--max-cost", "100"), "more than --max-cost 100", NOTHING))},
    # paths
    **{f"{flag}: {name}": Case((*(NEW if flag != "--run-dir" else TINY), flag, f"{{tmp}}/{path}"), words, prepare)
       for flag in ("--data", "--config", "--run-dir") for name, path, words, prepare in (
           ("a link to itself", "loop", "loop", link("loop", "loop")),
           ("a link to nothing", "dangling", "o", link("dangling", "nowhere")),
           ("a name of 300 characters", LONG, "File name too long", lambda tmp: None),
           ("a name that is not UTF-8", FOREIGN, "is not UTF-8", lambda tmp: None),
           ("below a file", "file/x", "file", bytes_of("file", "x")))},
    "--run-dir: the cause of a link to nothing": Case(
        (*TINY, "--run-dir", "{tmp}/dangling"), "is a link to nowhere, which is not", link("dangling", "nowhere")),
    "--run-dir: the file in the way": Case((*TINY, "--run-dir", "{tmp}/file/x"), "/file is a file",
                                           bytes_of("file", "x")),
    "--resume: a link to nothing": Case(("--resume", "{tmp}/dangling"), "is a link to nowhere",
                                        link("dangling", "nowhere")),
    "--resume: a link to itself": Case(("--resume", "{tmp}/loop"), "is a link to loop", link("loop", "loop")),
    "--resume: a name of 300 characters": Case(("--resume", f"{{tmp}}/{LONG}"), "File name too long"),
    "--out: a link to itself": Case(("synth", "--size", "1KB", "--out", "{tmp}/loop"), "symbolic links",
                                    link("loop", "loop"), command=data.main),
    "--out: a name of 300 characters": Case(("synth", "--size", "1KB", "--out", f"{{tmp}}/{LONG}"),
                                            "File name too long", command=data.main),
    "--tokens of another spelling": Case(("--run", "{tmp}", "--prompt", "a", "--tokens", "1_0"), "in plain decimal",
                                         command=sample.main),
    "--seed in full-width digits": Case(("synth", "--seed", "９"), "in plain decimal", command=data.main),
    "convert onto itself": Case(("convert", "{tmp}/a.jsonl", "--out", "{tmp}/a.jsonl"), "is the text that is read",
                                bytes_of("a.jsonl", '{"text": "a b"}\n'), command=data.main),
    "tokenize onto itself": Case(("tokenize", "--data", "{tmp}/a.txt", "--out", "{tmp}/a.txt"),
                                 "is the text that is read", bytes_of("a.txt", "a b c"), command=data.main),
    "missing data": Case((*NEW, "--data", "{tmp}/no.txt"), "No such file"),
    "a corpus of thousands of digits": Case((*NEW, "--data", f"synth:{'9' * 4000}"), "is too large"),
    "missing data in a dry run": Case((*NEW, "--data", "{tmp}/no.txt", "--dry-run"), "No such file"),
    "a vocabulary too small in a dry run": Case((*NEW, "--vocab-size", "9", "--dry-run"), "give one from 259"),
    # runs and checkpoints
    "--resume R/checkpoints": resumed("run/checkpoints", ("part of a run", "give the run's directory, ")),
    "--resume a file of the run": resumed("run/metrics.jsonl", "part of a run"),
    "--resume a file of a checkpoint": resumed("run/checkpoints/step-000012/state.json",
                                               ("part of a checkpoint", "/step-000012")),
    "sample of R/checkpoints": Case(("--run", "{tmp}/run/checkpoints", *SAMPLE[2:]), "part of a run", run=True,
                                    command=sample.main),
    "config.json nested deeply": resumed("run", "config.json is damaged", bytes_of("run/config.json", "[" * 100_000)),
    "a row with a text for a number": resumed("run", "metrics.jsonl, line 5, is damaged", row(5, clip_coef="x")),
    "a row of no step": resumed("run", "metrics.jsonl, line 5, is damaged", row(5, step="five")),
    "a damaged vocabulary": resumed("run", ("tokenizer.json is damaged", "put the file back"),
                                    bytes_of("run/tokenizer.json", "{")),
    "a damaged checkpoint": resumed("run/checkpoints/step-000012", "model.safetensors is truncated",
                                    bytes_of("run/checkpoints/step-000012/model.safetensors", "")),
    "weights that are not finite": resumed("run", ("ln_f.weight", "not finite", "/step-000006, which"),
                                           weight("ln_f.weight", np.nan)),
    "a sample of weights that are not finite": Case(SAMPLE, ("not finite", "/step-000006, which"),
                                                    weight("ln_f.weight", np.nan), run=True, command=sample.main),
    "a sample of weights that are too large": Case(SAMPLE, ("logits are not finite", "an earlier checkpoint"),
                                                   weight("lm_head.weight", 3e38), run=True, command=sample.main),
    "a dry run of another seed": resumed("run", "the run has seed 0", more=("--seed", "5", "--dry-run")),
    # weights of another run
    "--init-from nowhere": begun("no", ("--init-from: ", "/no is missing; give the directory of a run")),
    "--init-from an export": begun("a.helios", ("a.helios is a file; ", "(for an exported model, that of its run)"),
                                   bytes_of("a.helios", "x")),
    "--init-from a folder of other files": begun("new", ("--init-from: ", "/new is no run directory: config.json",
                                                         "; give that of a run"),
                                                 moved("run/checkpoints", "new")),
    "--init-from R/checkpoints": begun("run/checkpoints", ("part of a run", "give the run's directory, ")),
    "--init-from a run without a checkpoint": begun(
        "run", ("--init-from: ", "/run holds no checkpoint; give a run that has one\n"), only_rows),
    "--init-from a run whose checkpoints are gone": begun(
        "run", "put its checkpoints/ back, or give a run that has one", moved("run/checkpoints", "kept")),
    "--init-from a checkpoint without its run": begun(
        "step-000012", ("/step-000012 is a checkpoint without its run, whose config.json and tokenizer.json it needs",
                        "in the checkpoints/ of its run"), moved("run/checkpoints/step-000012", "step-000012")),
    "--init-from a checkpoint without weights": begun(
        "run/checkpoints/step-000012",
        ("is damaged: model.safetensors: No such file", "; give another checkpoint, or the run, of which the newest"),
        lambda tmp: (tmp / "run/checkpoints/step-000012/model.safetensors").unlink()),
    "--init-from a run without a whole checkpoint": begun(
        "run", "optimizer.safetensors: No such file or directory; put one of them right, or give another run",
        lambda tmp: [path.unlink() for path in tmp.glob("run/checkpoints/*/optimizer.safetensors")]),
    "--init-from weights that are not finite": begun("run", ("ln_f.weight", "not finite", "/step-000006, which"),
                                                     weight("ln_f.weight", np.nan)),
    "--init-from without the vocabulary": begun("run", "the weights need this very vocabulary",
                                                lambda tmp: (tmp / "run/tokenizer.json").unlink()),
    "--init-from with --resume": resumed("run", ("--init-from /", "the run has begun", "or start a new run"),
                                         more=("--init-from", "/")),
    "--morph with --resume": resumed("run", "--morph project: the run has begun", more=("--morph", "project")),
    "--init-from with a search": begun("run", "the candidates of a search begin with new weights",
                                       more=("--search", "ffn-activation")),
    **{f"--morph {how} of {' '.join(more)}": begun("run", f"--morph {how}: {words} can do that",
                                                   more=("--morph", how, *more))
       for how, more, words in (
           ("exact", ("--layers", "3"), "blocks.2.ln1.weight is missing there and [32] here; --morph prefix"),
           ("exact", ("--layers", "1"), "blocks.1.ln1.weight is [32] there and missing here; --morph prefix"),
           ("exact", ("--block", "9"), "wpe.weight is [16, 32] there and [9, 32] here; --morph prefix"),
           ("exact", ("--layers", "3", "--dim", "64"), "wte.weight is [300, 32] there and [300, 64] here; --morph proj"
            "ect"),
           ("prefix", ("--activation", "swiglu"), "blocks.0.mlp.fc1.weight is [128, 32] there and [256, 32] here; --mo"
            "rph project"),
           ("prefix", ("--norm", "rms"), "blocks.0.ln1.bias is [32] there and missing here; --morph project"))},
    "--morph in a dry run": begun("run", "--morph project can do that", more=("--dim", "64", "--dry-run")),
    # trainings that come to nothing
    "--lr 1e30": Case((*NEW, "--lr", "1e30"), ("warning: step ", "done, but the loss is not finite"), exit=1),
    "--weight-decay 1e38": Case((*NEW, "--weight-decay", "1e38", "--lr", "1"), "not finite", exit=1),
    "every update skipped": Case((*NEW, "--spike-threshold", "1e-9"),
                                 ("warning: step 1: ", "done, but every update was skipped (spike)"), exit=1),
}
