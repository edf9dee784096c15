"""Pages on runs beside the historic ones, from made-up run directories with planted figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from helios.bench.reproduce import AGAIN, WAYS, plans
from helios.cli import report
from helios.train import history
from helios.train.config import Config
from helios.train.report import against, reading
from helios.train.search import ranking
from helios.train.search.births import Candidate, Replicate

from ..commands import invoke, refused

POOL = ("gelu", "silu", "relu", "swiglu")
VAL = {"gelu": 7.80, "silu": 7.90, "relu": 7.60, "swiglu": 7.70}  # after 20 steps
MODEL = {"vocab_size": 4000, "block_size": 256, "n_layer": 6, "n_head": 8, "n_embd": 256}


def config(run: str, way: str, **more: Any) -> Config:
    return plans(run, [way], {"data": "/somewhere/text.txt", "val_data": "/somewhere/val.txt"}, **more)[0].config


def write(path: Path, run: str, rows: list[dict[str, Any]], way: str = AGAIN, device: str = "llvmpipe 512",
          **about: Any) -> Path:
    """A run directory with what every run has."""
    path.mkdir(parents=True)
    events = [{"step": 0, "time": "2030-01-02T03:04:05Z", "kind": "run_start", "message": ""},
              {"step": rows[-1]["step"], "time": "2030-01-02T04:04:05Z", "kind": "run_complete", "message": ""}]
    samples = [{"step": step, "prompt": "<|user|> Who? <|assistant|>", "text": f"I, at {step}."} for step in (200, 500)]
    saved = {"run_id": run, "parameters": 6838784, **config(run, way).to_dict(),
             "device": {"backend": "vulkan", "name": device, "driver": "driver 1.2"}}
    (path / "config.json").write_text(json.dumps(saved | about))
    for name, content in (("metrics", rows), ("events", events), ("samples", samples)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in content))
    return path


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 8.35 - step / 1000, "val_loss": None, "lr": 1e-4, "grad_norm": 1.0, "clip_coef": 1.0,
            "elapsed_ms": 900.0 * step, "ms_per_iter": 900.0, "tokens_per_sec": 2048 / 0.9, "gpu_ops_count": 140,
            "gpu_vram_used_mb": 321.0, "gpu_mem_pool_mb": 123.0, "timing_fwd_ms": 200.0, "timing_bwd_ms": 400.0,
            "timing_grad_norm_ms": 1.0, "timing_optim_ms": 2.0} | more


def searched(path: Path, way: str, val: Mapping[str, float] = VAL, noise: float = 0.01,
             change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row, **about: Any) -> Path:
    """A finished run of 5ke3 in that way, whose candidates come to these validation losses, seeds `noise` apart."""
    settings = config("5ke3", way).search
    k, rows = settings.replicates, []
    names = POOL if way == "fair" else (*POOL, "swiglu", "relu", "gelu", "silu")
    candidates = []
    for i, name in enumerate(names):
        found = Candidate(f"gen{i // 4}_{name}_{i + 1}", f"{name} {i}", name, i // 4, 0, parameters=6_000_000 + i)
        replicates = []
        for r in range(k):
            # The place in the run tells, as the learning rate would.
            loss = val[name] + 0.25 * (i // 4) + noise * r * (1 + POOL.index(name))
            first = len(rows) + 1
            rows += [change(row(first + n, symbio_phase="search", symbio_candidate_id=found.id, symbio_replicate=r,
                                symbio_candidate_activation=name, val_loss=loss if n == 19 else None,
                                tokens_per_sec=2000.0 + 50 * POOL.index(name))) for n in range(20)]
            replicates.append(Replicate(r, loss, loss, loss, 1 / loss, 20, 40960, [[20, loss]], 0, 0, 0.25, 2.0, 2000.0,
                                        3, 18.0))
        candidates.append(ranking.aggregate(found, replicates))
    summary = ranking.summary(settings, candidates, MODEL, "llvmpipe", "complete")
    rows += [change(row(161 + n, symbio_phase="after", loss=8.36 - n / 100, tokens_per_sec=2100.0,
                        val_loss=8.4 - n / 100 if n % 40 == 39 else None)) for n in range(340)]
    write(path, "5ke3", rows, way, symbio_winner=summary["winner_activation"], **about)
    (path / "search").mkdir()
    (path / "search" / "candidates.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates))
    (path / "search" / "summary.json").write_text(json.dumps(summary))
    return path


def page(*paths: Path, name: str = "5ke3") -> str:
    return against.page(history.read(name), {path.name: reading.read(path) for path in paths})


def cells(text: str, first: str, after: str = "") -> list[str]:
    """The other cells of the row that begins so, the first one behind the text `after`."""
    line = next(line for line in text[text.index(after):].splitlines() if line.startswith("|")
                and line.split("|")[1].strip() == first)
    return [cell.strip() for cell in line.split("|")[2:-1]]


def finding(text: str, topic: str) -> tuple[bool, str]:
    """Whether it agrees, and what it says."""
    agrees = text[text.index("## What agrees"):text.index("## What differs")]
    line = next(line for line in text.splitlines() if line.startswith(f"* **{topic}.**"))
    return line in agrees, line


# -- 5ke3 -------------------------------------------------------------------------------------------------------------

def test_5ke3_numbers_appear(tmp_path: Path) -> None:
    before = {p for p in tmp_path.rglob("*")}
    paths = [searched(tmp_path / way, way) for way in WAYS["5ke3"]]
    made = {p for p in tmp_path.rglob("*")} - before
    text = page(*paths)
    assert {p for p in tmp_path.rglob("*")} == made  # reading writes nothing
    assert cells(text, "device") == ["NVIDIA L4", "llvmpipe 512", "llvmpipe 512"]
    assert cells(text, "driver")[1:] == ["driver 1.2"] * 2 and cells(text, "begun")[1:] == ["2030-01-02"] * 2
    assert cells(text, "training text")[1:] == ["text.txt"] * 2 and "/somewhere" not in text
    assert cells(text, "wall clock, s") == ["1,015", "450", "450"] and "0.44 times the original's 1,015 s" in text
    assert cells(text, "trainings in the search") == ["8"] * 3 and cells(text, "steps in the search") == ["160"] * 3
    assert cells(text, "winner") == ["relu"] * 3
    assert cells(text, "trained after the search") == ["likely silu", "relu", "relu"]
    assert cells(text, "10", "## Loss") == ["8.262", "8.340", "8.340", "1.28", "1.00", "1.00"]
    assert cells(text, "500", "## Loss") == ["–", "4.970", "4.970", "–", "1.00", "1.00"]
    assert cells(text, "0–49") == ["8.196", "8.325", "8.325", "8.021", "8.301", "8.301"]
    assert cells(text, "450–499")[1] == loss_between(450, 499)
    assert cells(text, "200", "## Validation") == ["7.535", "8.010", "8.010"]
    assert cells(text, "100", "## Validation") == ["8.342", "7.950", "7.600"]  # of candidates
    assert cells(text, "swiglu", "## Speed") == ["2,621", "0.39", "2,150", "1.07", "2,150", "1.07"]
    assert cells(text, "after the search", "## Speed")[2:4] == ["2,100", "1.05"]
    assert cells(text, "of these, after it") == ["52 of 283, 18.4 %", "0 of 340", "0 of 340"]
    assert cells(text, "gen0_relu_3", "\n| faithful ") == ["–", "7.600", "–", "0", "0", "25.0 %", "3", "2,000"]
    assert cells(text, "gen1_relu_6", "\n| faithful ")[:3] == ["–", "7.850", "0.250"]
    assert cells(text, "gen0_relu_3", "\n| fair ")[1] == "7.615 ± 0.015"
    assert "I, at 500." in text and "I, at 200." not in text
    # What is aligned in the file: all lines of a table are as long.
    tables = "\n".join(line if line.startswith("|") else "" for line in text.splitlines()).split("\n\n")
    assert all(len({len(line) for line in lines.split("\n") if line}) <= 1 for lines in tables)


def loss_between(first: int, last: int) -> str:
    """Mean of the planted loss after the search."""
    return f"{math.fsum(8.36 - (s - 161) / 100 for s in range(first, last + 1)) / (last - first + 1):.3f}"


def test_5ke3_one_way_alone(tmp_path: Path) -> None:
    text = page(searched(tmp_path / "fair", "fair"))
    assert cells(text, "winner") == ["relu", "relu"] and "faithful" not in text.lower()
    assert "After 500 steps, fair:" in text and "After 500 steps, original:" in text


def test_the_end(tmp_path: Path) -> None:
    low = searched(tmp_path / "low" / "faithful", "faithful")
    agrees, said = finding(page(low), "Loss")
    assert not agrees and "it is 4.990 here, 2.269 below the original's 7.259" in said and "mixed the heads" in said
    known = history.read("5ke3").column("loss")
    close = lambda r: r | {"loss": known.get(r["step"], 7.5) + 0.041}
    same = searched(tmp_path / "same" / "faithful", "faithful", change=close)
    agrees, said = finding(page(same), "Loss")
    assert agrees and "it is 7.300 here, 0.041 above the original's 7.259" in said and "mixed the heads" not in said
    high = searched(tmp_path / "high" / "fair", "fair", change=lambda r: r | {"loss": 8.0})
    agrees, said = finding(page(low, high), "Loss")
    assert not agrees and "2.269 below (faithful) and 0.741 above (fair) the original's 7.259" in said
    assert "mixed the heads" not in said
    said = finding(page(low, high), "How soon")[1]
    assert "after 112 steps (faithful) and never (fair)" in said


@pytest.mark.parametrize(("norm", "agrees", "says"), [
    (1.0, False, "Here it is 0 of 340; the highest norm is 1.00. The likely source"),
    (50.0, True, "Here it is 68 of 340, 20.0 %; the highest norm is 50.00."),
    (None, False, "Here it is 0 of 340"),  # not finite; its own row counts it
])
def test_spikes(tmp_path: Path, norm: float | None, agrees: bool, says: str) -> None:
    change = lambda r: r | ({"grad_norm": norm, "skipped": True} if r["step"] % 5 == 0 and r["step"] > 160 else {})
    text = page(searched(tmp_path / "fair", "fair", change=change))
    assert finding(text, "Spikes")[0] is agrees and says in finding(text, "Spikes")[1]
    assert cells(text, "not finite")[1] == ("68" if norm is None else "0")
    assert cells(text, "updates skipped")[1] == "68"


def test_speeds(tmp_path: Path) -> None:
    agrees, said = finding(page(searched(tmp_path / "a" / "fair", "fair")), "Speed by activation")
    assert not agrees and "2.6 times as fast" in said and "is 1.07 times" in said and "left the GPU" in said
    slow = lambda r: r | ({"tokens_per_sec": 700.0} if r.get("symbio_candidate_activation") == "silu" else {})
    agrees, said = finding(page(searched(tmp_path / "b" / "fair", "fair", change=slow)), "Speed by activation")
    assert agrees and "is 3.07 times" in said and "left the GPU" not in said


def test_a_first_step_of_a_training_has_no_part_in_speeds(tmp_path: Path) -> None:
    # With it, ten of the twenty would be slow.
    change = lambda r: r | ({"tokens_per_sec": 1.0} if r["step"] % 20 in {1, 0, *range(12, 20)} else {})
    assert cells(page(searched(tmp_path / "fair", "fair", change=change)), "gelu", "## Speed")[2] == "2,000"


def test_winner_separation_and_noise(tmp_path: Path) -> None:
    text = page(searched(tmp_path / "faithful", "faithful"), searched(tmp_path / "fair", "fair"))
    assert finding(text, "Winner") == (True, "* **Winner.** It was relu and is relu.")
    agrees, said = finding(text, "Separation, faithful")
    assert agrees and "relu came first, 0.100 before swiglu" in said and "nothing is separated" in said
    agrees, said = finding(text, "Separation, fair")
    assert not agrees and "separated from swiglu, gelu and silu." in said
    agrees, said = finding(text, "Noise")
    assert "up to 0.040 apart (swiglu), less than the 0.059 by which the original put relu before gelu" in said
    other = page(searched(tmp_path / "noisy" / "fair", "fair", VAL | {"gelu": 7.3}, noise=0.05))
    assert finding(other, "Winner") == (False, "* **Winner.** It was relu and is gelu.")
    agrees, said = finding(other, "Separation, fair")
    assert not agrees and "separated from relu, swiglu and silu." in said and "not separated" not in said
    assert "0.200 apart (swiglu), more than" in finding(other, "Noise")[1]
    close = {name: 7.6 + 0.01 * i for i, name in enumerate(POOL)}
    near = page(searched(tmp_path / "near" / "fair", "fair", close, noise=0.1))
    agrees, said = finding(near, "Separation, fair")
    assert agrees and "not separated from silu (0.060 ± 0.091), relu" in said
    assert cells(near, "gen0_silu_2", "\n| fair ")[0] == "no"


def test_what_followed_the_search(tmp_path: Path) -> None:
    text = page(searched(tmp_path / "fair", "fair"))
    assert "most likely they are silu's" in text and cells(text, "161") == ["7.833", "8.360", "54,803", "1.00"]


def test_evaluations_places_sizes_alerts_and_records(tmp_path: Path) -> None:
    change = lambda r: r | ({"cusum_alerts": 5 if r["step"] < 30 else 1} if r["step"] in (25, 26, 27, 90, 300) else {})
    text = page(searched(tmp_path / "faithful", "faithful", change=change), searched(tmp_path / "fair", "fair"))
    assert "Here 8 of 8 trainings have evaluations" in finding(text, "Selection")[1]
    said = finding(text, "Place in the run")[1]
    assert "of gelu ended 0.350 apart" in said and "In faithful, where they do as well" in said
    assert "end 0.250 apart. In fair all candidates share these" in said
    said = finding(text, "Size")[1]
    assert "5,855,744 (silu)" in said and "6,000,003 (swiglu)" in said
    said = finding(text, "Alerts")[1]
    assert "there were 66" in said and "4, 3 of them for speed (faithful) and 0 (fair)" in said
    assert cells(text, "alerts after it") == ["not watched", "1", "0"]
    assert "500 of 500 steps here and 435 of 500 there" in finding(text, "Records")[1]


def test_learning_rate_and_start(tmp_path: Path) -> None:
    known = history.read("5ke3").column("lr")
    change = lambda r: r | {"lr": known.get(r["step"], 0.0) * 1.01}
    text = page(searched(tmp_path / "faithful", "faithful", change=change))
    agrees, said = finding(text, "Learning rate")
    assert agrees and "At the 23 steps" in said and "1.0 % at most" in said
    agrees, said = finding(text, "Start")
    assert agrees and "was 8.355 and is 8.349" in said and "ln 4,000 = 8.294" in said
    text = page(searched(tmp_path / "b" / "faithful", "faithful", change=lambda r: r | {"loss": r["loss"] - 1}))
    assert not finding(text, "Learning rate")[0] and not finding(text, "Start")[0]


def test_values_that_are_not_there(tmp_path: Path) -> None:
    change = lambda r: r | {"loss": None, "grad_norm": None, "gpu_ops_count": None, "tokens_per_sec": 1.0}
    text = page(searched(tmp_path / "fair", "fair", change=change))
    assert cells(text, "10", "## Loss") == ["8.262", "–", "1.28", "–"] and "None" not in text and "nan" not in text
    assert "**Diverged**: the loss here is not finite at 500 of 500 steps (100.0 %), the last one among them." in text
    assert "**Start.**" not in text and "**Loss.**" not in text and "**How soon.**" not in text


def test_a_model_cannot_leave_its_block(tmp_path: Path) -> None:
    path = searched(tmp_path / "fair", "fair")
    sample = {"step": 500, "prompt": "Q", "text": "``` | # no\n\n```\nword " + "x " * 99}
    (path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    lines = page(path).splitlines()
    assert [line for line in lines if line.startswith("```")] == ["```", "```", "````", "````"]
    assert max(map(len, lines[lines.index("````"):lines.index("````") + 5])) <= 110


# -- 4kwo -------------------------------------------------------------------------------------------------------------

def again(path: Path, steps: int = 300, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda r: r, **about: Any
          ) -> str:
    known = history.read("4kwo").by_step()
    rows = [row(s, ms_per_iter=1800.0, val_loss=8.0 if s % 100 == 0 else None) for s in range(1, steps + 1)]
    rows = [change(r | ({"loss": p["loss"] - 0.01, "lr": p["lr"], "grad_norm": 1.2 * p["grad_norm"]}
                        if (p := known.get(r["step"])) else {})) for r in rows]
    return against.page(history.read("4kwo"), {against.HERE: reading.read(write(path, "4kwo", rows, **about))})


def test_4kwo_numbers_appear(tmp_path: Path) -> None:
    text = again(tmp_path / "run")
    assert text.startswith("# Run 4kwo, and 300 steps of Helios\n")
    assert "At step 250 the original's loss was 7.868, here it is 7.858; a step took 2,570 ms and takes 1,800" in text
    assert cells(text, "100", "## Loss") == ["8.135", "8.125", "0.72", "0.86"]
    assert cells(text, "300", "## Validation") == ["–", "8.000"] and "| 2,500" not in text
    assert cells(text, "250", "## Speed") == ["2,379", "1,800", "1,721", "2,276"]
    assert cells(text, "operations (here dispatches) a step") == ["1,224", "140"]
    assert cells(text, "memory in use, MB (here MiB)") == ["1,100–3,600", "321"]
    assert cells(text, "memory pools, alike") == ["829–945", "123"]
    assert cells(text, "backward") == ["710", "400"] and cells(text, "steps above 100") == ["18.1 %", "0.0 %"]
    assert "took the original 771 s, and they took 270 s here" in text
    assert "## Mean" not in text and "500 |" not in text.split("## Loss")[1].split("## Validation")[0]


def test_4kwo_to_the_end_of_the_first_mean(tmp_path: Path) -> None:
    text = again(tmp_path / "run", steps=499)
    planted = {step: x - 0.01 for step, x in history.read("4kwo").column("loss").items()}
    losses = [planted.get(s, 8.35 - s / 1000) for s in range(1, 500)]
    assert cells(text, "0–499", "## Mean") == ["7.866", f"{math.fsum(losses) / 499:.3f}", "7.418", f"{min(losses):.3f}"]


def test_4kwo_sentences(tmp_path: Path) -> None:
    text = again(tmp_path / "run")
    for topic in ("Start", "Learning rate", "Loss", "Gradient norm"):
        assert finding(text, topic)[0], topic
    assert "differs by 0.010 at most; at step 250 it is 7.858 here, 0.010 below" in finding(text, "Loss")[1]
    agrees, said = finding(text, "Spikes")
    assert not agrees and "That says little yet" in said and "is of step 3,500" in said
    assert "0.700 times as long" in finding(text, "Speed")[1]
    assert "140 dispatches here and was 1,224 operations" in finding(text, "Dispatches")[1]
    assert "0.500 times as long as the backward pass here and took 2.52" in finding(text, "Forward and backward")[1]
    change = lambda r: r | {"loss": r["loss"] - 0.5, "grad_norm": 150.0, "ms_per_iter": 2600.0}
    other = again(tmp_path / "other", change=change)
    assert not finding(other, "Loss")[0] and not finding(other, "Gradient norm")[0]
    assert finding(other, "Spikes")[0] and "300 of 300, 100.0 %" in finding(other, "Spikes")[1]
    assert finding(other, "Speed")[0]


def test_4kwo_where_little_is_known(tmp_path: Path) -> None:
    unknown = ("gpu_ops_count", "gpu_vram_used_mb", "gpu_mem_pool_mb", "timing_fwd_ms", "timing_bwd_ms",
               "timing_grad_norm_ms", "timing_optim_ms", "grad_norm", "loss")
    text = again(tmp_path / "run", steps=5, change=lambda r: r | dict.fromkeys(unknown), device="NVIDIA L4")
    assert all(word not in text for word in ("Dispatches", "| forward", "**Loss", "None", "nan"))
    assert "Both ran on an NVIDIA L4." in text


# -- any run beside any other -----------------------------------------------------------------------------------------

def test_what_is_no_comparison_of_equals_is_said_first(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "4kwo", [row(s) for s in range(1, 21)])
    run = reading.read(path)
    alike = against.page(history.read("4kwo"), {"here": run})
    assert "**Another text**, by its name: historic-chat.txt there, text.txt here." in alike.split("## What was run")[0]
    assert "**Diverged**" not in alike and "**Another model**" not in alike and "## Settings that differ" not in alike
    other = against.page(history.read("2ao8"), {"here": run})
    assert "**Another model** than the original's: block_size, n_layer" in other.split("## What was run")[0]
    assert cells(other, "train.lr") == ["5e-05", "3e-05"] and cells(other, "parameters")[0] == "17,437,440"
    assert cells(other, "1", "## Loss") == ["8.370", "8.349", "–", "1.00"] and "\n| 610" not in other


@pytest.mark.parametrize("name", history.names())
def test_a_search_and_a_run_without_one(tmp_path: Path, name: str) -> None:
    paths = searched(tmp_path / "fair", "fair"), write(tmp_path / "plain", "4kwo", [row(s) for s in range(1, 31)])
    for chosen in (paths, paths[1:], paths[:1]):
        text = page(*chosen, name=name)
        assert ("## The candidates" in text) == (name == "5ke3" and paths[0] in chosen)
        assert all(note in text for note in history.read(name).notes) and "None" not in text and "nan" not in text
        sections = [line for line in text.splitlines() if line.startswith("## ")]
        assert len(sections) == len(set(sections)) and "\n\n\n" not in text


@pytest.mark.parametrize("name", history.names())
def test_a_run_of_which_nothing_is_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text('{"run_id": "x_*y*", "model": {}, "train": {}, "data": {}}')
    text = page(path, name=name)
    assert "x\\_\\*y\\*" in text and "None" not in text and "nan" not in text and "## Loss" not in text


def test_the_command(tmp_path: Path) -> None:
    paths = searched(tmp_path / "fair", "fair"), write(tmp_path / "plain", "4kwo", [row(s) for s in range(1, 31)])
    result = invoke(report.main, paths[1], "--against", "4kwo")
    written = paths[1] / "report" / "against-4kwo.md"
    assert result.exit_code == 0 and result.stdout == f"{written}\n", result.output
    assert written.read_text().startswith("# Run 4kwo, and 30 steps of Helios\n")
    assert "![Loss](losses.png)" in written.read_text() and (written.parent / "losses.png").stat().st_size > 10_000
    result = invoke(report.main, *paths, "--against", "5ke3", "--html", "--out", tmp_path / "both")
    text = (tmp_path / "both" / "against-5ke3.html").read_text()
    assert result.exit_code == 0 and "774,971" in text and "gen1_relu_6" in text and "data:image/png" in text
    assert [p.name for p in (tmp_path / "both").iterdir()] == ["against-5ke3.html"]
    refused(invoke(report.main, paths[1], "--against", "5ke4"), "unknown historic run", "did you mean 5ke3?")
    assert "2ao8, 4kwo, 5ke3" in " ".join(invoke(report.main, "report", "--help").stdout.split())
