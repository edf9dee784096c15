"""What a start from a smaller model's weights is worth: its command, and the other ways to begin."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from helios.bench import morph
from helios.cli import bench
from helios.model import GPT, GPTConfig
from helios.model.gpt import initial_state

WAS = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_embd=16, n_head=2)


def test_the_command(tmp_path: Path) -> None:
    words = ["morph", "--data", "synth:64KB", "--dir", str(tmp_path / "runs"), "--steps", "8", "--seeds", "1"]
    for setting in ("backend=cpu_ref", "vocab_size=300", "n_embd=16", "n_head=2", "block_size=8", "batch_size=2",
                    "eval_iters=1", "warmup=2", "n_layer=1"):
        words += ["--set", setting]
    result = CliRunner().invoke(bench.main, [*words, "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path)])
    assert result.exit_code == 0, result.output
    curves = json.loads((tmp_path / "x.json").read_text())["curves"]
    arms = [(case, arm.name) for case in morph.CASES for arm in (morph.AGAIN, morph.FRESH, *morph.ARMS)
            if case in arm.cases]
    assert [(c["case"], c["arm"]) for c in curves] == [("", "parent"), *arms]
    for c in curves:
        assert c["start"] == (0 if c["arm"] in ("parent", "fresh") else 128)
        assert c["points"][-1][0] == (128 if c["arm"] == "parent" else 256)
    assert (tmp_path / "morph.png").stat().st_size > 10_000
    again = CliRunner().invoke(bench.main, [*words, "--json", str(tmp_path / "y.json")])
    assert again.exit_code == 0 and (tmp_path / "y.json").read_bytes() == (tmp_path / "x.json").read_bytes()


def test_ways_to_begin() -> None:
    weights, tokens = initial_state(WAS, 1), np.arange(8)[None]
    before = GPT(WAS, "cpu_ref", 1).logits(tokens).numpy()
    for make, case, close in ((morph.fresh_blocks, "depth", 1e-6), (morph.doubled, "width", 1e-2)):
        now = WAS.replaced(**morph.CASES[case](WAS))
        model = GPT(now, "cpu_ref")
        model.load_state_dict(make(weights, WAS, now, 0))
        assert np.abs(model.logits(tokens).numpy() - before).max() < close * np.abs(before).max()
    now = WAS.replaced(n_layer=4)
    found = morph.stacked(weights, WAS, now, 0)
    assert all(np.array_equal(found[f"blocks.3.{part}"], weights[f"blocks.1.{part}"])
               for part in ("attn.out.weight", "mlp.fc1.weight"))


def test_tokens_to_a_loss() -> None:
    points = [(10, 4.0), (20, 3.0), (30, 3.5), (40, 2.0)]
    assert morph.reached(points, 3.5) == 15 and morph.reached(points, 2.5) == 30 + 10 * 1.0 / 1.5
    assert morph.reached(points, 5.0) == 10 and math.isinf(morph.reached(points, 1.0))
