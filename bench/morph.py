"""What it is worth to begin with a smaller model's weights: children of a parent, beside fresh ones of their size."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from helios.bench.plot import save
from helios.model import GPTConfig
from helios.model.gpt import OUTPUTS, initial_state
from helios.train import checkpoint
from helios.train.config import Config
from helios.train.progress import Display
from helios.train.records.layout import CONFIG, METRICS, TOKENIZER
from helios.train.records.rows import rows
from helios.train.run import Run

Weights = Mapping[str, np.ndarray]
Maker = Callable[[Weights, GPTConfig, GPTConfig, int], dict[str, np.ndarray]]

# What grows → the settings of the child.
CASES: Mapping[str, Callable[[GPTConfig], Mapping[str, Any]]] = {
    "depth": lambda parent: {"n_layer": 2 * parent.n_layer},
    "width": lambda parent: {"n_embd": 2 * parent.n_embd, "n_head": 2 * parent.n_head},
}


class Arm(NamedTuple):
    """A way to begin. make: the first weights; None: as `helios-train --morph project` does. settings: besides the
    base's, from those."""

    name: str
    words: str
    make: Maker | None = None
    settings: Callable[[Config], Mapping[str, Any]] = lambda base: {}
    cases: Sequence[str] = tuple(CASES)


def stacked(weights: Weights, was: GPTConfig, now: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Return the parent's blocks, and behind them the same again, with what they write."""
    found = {}
    for name in now.shapes():
        origin = re.sub(r"(?<=^blocks\.)\d+", lambda found: str(int(found[0]) % was.n_layer), name)
        found[name] = weights[origin].copy()
    return found


def fresh_blocks(weights: Weights, was: GPTConfig, now: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Return the parent's blocks, and behind them new ones that write nothing yet."""
    own = {name: np.zeros_like(value) if name.endswith(OUTPUTS) else value
           for name, value in initial_state(now, seed).items()}
    return own | {name: value.copy() for name, value in weights.items()}


def doubled(weights: Weights, was: GPTConfig, now: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Return a model twice as wide in which each channel, head and unit is there twice, and whatever reads two equal
    inputs takes half of each, but for noise of a hundredth that lets them part (Chen, Goodfellow, Shlens, Net2Net,
    2016). The head size stays."""
    assert now.n_embd == 2 * was.n_embd and now.n_head == 2 * was.n_head
    rng, found = np.random.default_rng(seed), {}
    for name, shape in now.shapes().items():
        value = weights[name]
        for axis, (before, after) in enumerate(zip(value.shape, shape, strict=True)):
            if before == after:
                continue
            parts = 3 if name.endswith("qkv.weight") and axis == 0 else 1
            blocks = np.split(value, parts, axis)
            value = np.concatenate([x for block in blocks for x in (block, block)], axis)
            if axis == 1 and name not in ("wte.weight", "wpe.weight"):  # a reader
                noise = 0.01 * value.std() * rng.standard_normal(value.shape).astype(np.float32)
                noise[:, before:] = -noise[:, :before]
                value = value / 2 + noise
        found[name] = np.ascontiguousarray(value, np.float32)
    return found


ARMS = (
    Arm("project", "`--morph project`, the rate and warm-up of a new run"),
    Arm("no warm-up", "the same, from the highest rate on", settings=lambda base: {"warmup": 0}),
    Arm("a third of the rate", "the same, at a third of the rate", settings=lambda base: {"lr": base.train.lr / 3}),
    Arm("fresh blocks", "new blocks as in a new model, but for outputs of zero", fresh_blocks, cases=("depth",)),
    Arm("stacked", "the blocks twice, outputs as well", stacked, cases=("depth",)),
    Arm("doubled", "each channel, head and unit twice, as in Net2Net", doubled, cases=("width",)),
)
FRESH = Arm("fresh", "new weights, and the parent's tokens, too")
AGAIN = Arm("parent again", "the parent's own weights and size, for what a second schedule brings by itself")


class Curve(NamedTuple):
    """A training's evaluations: tokens, its parent's counted, and loss. start: tokens of its parent."""

    case: str
    arm: str
    seed: int
    start: int
    points: Sequence[tuple[int, float]]

    @property
    def end(self) -> float:
        return self.points[-1][1]


def trained(folder: Path, base: Config, steps: int, seeds: Sequence[int], cases: Sequence[str], display: Display
            ) -> Iterator[Curve]:
    """Yield a curve for each training, made or gone on with in a folder of its own. Raises KeyboardInterrupt where a
    signal ended one, and UserError."""
    for seed in seeds:
        small = base.replaced("train", seed=seed, steps=steps)
        parent = folder / f"parent.s{seed}"
        yield _curve(parent, small, "", "parent", 0, display)
        read = _tokens(small) * steps
        again = small.replaced("train", init_from=str(parent))
        for case in cases:
            yield _curve(folder / f"parent-again.s{seed}", again, case, AGAIN.name, read, display)
            big = small.replaced("model", **CASES[case](small.model))
            yield _curve(folder / f"{case}.fresh.s{seed}", big.replaced("train", steps=2 * steps), case, FRESH.name, 0,
                         display)
            for arm in ARMS:
                if case in arm.cases:
                    path = folder / f"{case}.{arm.name.replace(' ', '-')}.s{seed}"
                    source = parent if arm.make is None else _planted(parent, path.with_suffix(".weights"), big, arm)
                    child = big.replaced("train", init_from=str(source), **arm.settings(big),
                                         morph="project" if arm.make is None else "exact")
                    yield _curve(path, child, case, arm.name, read, display)


def _tokens(config: Config) -> int:
    return config.train.batch_size * config.train.accum * config.model.block_size


def _curve(path: Path, config: Config, case: str, arm: str, start: int, display: Display) -> Curve:
    run = Run.open(config, path)
    if not run.finished and not run.train(Display(quiet=True, console=display.console)).finished:
        raise KeyboardInterrupt
    found = [(start + row["step"] * _tokens(config), row["val_loss"]) for row in rows(path / METRICS)
             if row["val_loss"] is not None]
    display.say(f"{path.name}: {found[-1][1]:.4f} after {found[-1][0]:,} tokens")
    return Curve(case, arm, config.train.seed, start, found)


def _planted(parent: Path, path: Path, config: Config, arm: Arm) -> Path:
    """Return a run directory with a checkpoint of the weights that an arm makes of its parent's."""
    assert arm.make is not None
    if checkpoint.directories(path):
        return path
    path.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, TOKENIZER):
        shutil.copyfile(parent / name, path / name)
    found, _ = checkpoint.find(parent)
    weights = arm.make(found.model, GPTConfig.from_dict(found.state["model"]), config.model, config.train.seed)
    kept = {key: value for key, value in found.state.items() if key not in ("format", "step", "files", "sha256")}
    checkpoint.save(path, found.state["step"], weights, {}, kept | {"model": config.model.to_dict()})
    return path


# -- what it comes to --------------------------------------------------------------------------------------------------

def reached(points: Sequence[tuple[int, float]], level: float) -> float:
    """Return after how many tokens a curve is at that loss, on the lines between its evaluations; infinity: never."""
    for (s, a), (t, b) in pairwise(points):
        if b <= level:
            return s + (t - s) * max(0.0, a - level) / max(a - b, 1e-12) if a > level else s
    return math.inf


def cells(curves: Sequence[Curve]) -> Iterator[list[str]]:
    """Yield for each case and arm its name, the loss at its end, how much that is above the fresh one's of as many
    tokens, both with standard errors over seeds, and the share of those tokens after which it is at the fresh one's
    last loss, the parent's counted."""
    for case, arm in dict.fromkeys((c.case, c.arm) for c in curves if c.case):
        mine = [c for c in curves if (c.case, c.arm) == (case, arm)]
        fresh = {c.seed: c for c in curves if (c.case, c.arm) == (case, FRESH.name)}
        apart = [c.end - fresh[c.seed].end for c in mine]
        share = [reached(c.points, fresh[c.seed].end) / fresh[c.seed].points[-1][0] for c in mine]
        yield [case, arm, _spread([c.end for c in mine]), "–" if arm == FRESH.name else _spread(apart, "+.3f"),
               "1" if arm == FRESH.name else ", ".join("never" if math.isinf(x) else f"{x:.2f}" for x in share)]


TITLES = ("grows in", "begins with", "loss at the end", "− fresh", "tokens to the fresh one's loss, by seed")


def _spread(values: Sequence[float], spec: str = ".3f") -> str:
    error = f" ± {stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):{spec}}{error}"


def plot(path: Path, curves: Sequence[Curve]) -> None:
    """Draw the means over seeds of losses by tokens, those of parents counted, to a PNG file. Raises UserError."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(c.case for c in curves if c.case))
    drawn = Figure(figsize=(5.5 * len(cases), 4.5))
    for case, axes in zip(cases, drawn.subplots(1, len(cases), sharey=True, squeeze=False)[0], strict=True):
        for arm in dict.fromkeys(c.arm for c in curves if c.case in ("", case)):
            mine = [c.points for c in curves if c.arm == arm and c.case in ("", case)]
            tokens = [t / 1000 for t, _ in mine[0]]
            axes.plot(tokens, np.mean([[x for _, x in points] for points in mine], 0), label=arm, linewidth=1.2,
                      color="black" if arm in ("parent", AGAIN.name, FRESH.name) else None,
                      linestyle={"parent": ":", AGAIN.name: "--"}.get(arm))
        axes.set(xlabel="thousands of tokens, the parent's counted", title=case)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    drawn.axes[0].set_ylabel("validation loss")
    save(path, drawn)
