"""The report of a run of any kind: nothing that is not known, and figures that follow from the rows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helios.train import history
from helios.train.markdown import escaped
from helios.train.report import against, page, reading, searching
from helios.train.search import files

from .runs import KINDS, Runs, cells, change, edit, edit_config, facts, lines, rows, section, table, text_of

# -- every kind of run -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_report(runs: Runs, kind: str) -> None:
    text = runs.text(kind)
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert {"Overview", "What to look at", "Model", "Training", "Records"} <= set(titles)
    assert not re.search(r"^(#+) .*\n+((?!\1#)#|\Z)", text, re.M)  # no section is empty
    assert not re.search(r"(?<![\w-])(nan|None|inf|null)(?![\w-])", text.partition("## Model\n")[0])
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        assert len({len(cells(line)) for line in block.splitlines()}) == 1


def test_what_is_not_known_is_left_out(runs: Runs) -> None:
    empty, old, one = (runs.text(kind) for kind in ("empty", "old", "one"))
    assert not {"Loss", "Milestones", "Gradient norms", "Throughput", "Step time", "Samples", "Weights"} & set(
        re.findall(r"^## (.*)$", empty, re.M))
    assert "No step is recorded." in section(empty, "What to look at")
    assert not {"host", "memory", "versions"} & facts(old, "Infrastructure").keys()
    assert "host" in facts(empty, "Infrastructure") and "Step time" not in re.findall(r"^## (.*)$", old, re.M)
    assert facts(old, "Overview")["begun"] == table(old, "Events of note")[0]["time (UTC)"]
    assert "Throughput" not in re.findall(r"^## (.*)$", one, re.M)  # its only step prepared kernels
    assert "Search" not in re.findall(r"^## (.*)$", one, re.M)


def test_the_status_is_told(runs: Runs) -> None:
    status = {kind: facts(runs.text(kind), "Overview")["status"] for kind in KINDS}
    assert status["plain"] == status["search"] == status["only"] == status["resumed"] == "completed"
    assert status["interrupted"].startswith("interrupted: SIGINT at step ")
    assert status["killed"] == status["empty"] == "interrupted: its process ended without a word"
    assert "The run is not finished: interrupted" in section(runs.text("killed"), "What to look at")
    assert "It was not made in one go: resumed at step" in section(runs.text("resumed"), "What to look at")
    assert [row["event"] for row in table(runs.text("resumed"), "Events of note")] == [
        "run_start", "interrupted", "resumed", "run_complete"]


def test_a_diverged_run(runs: Runs) -> None:
    text, lost = runs.text("diverged"), [row["step"] for row in rows(runs["diverged"]) if row["loss"] is None]
    assert len(lost) > 5
    assert f"Not finite: the loss at {len(lost)} of 12 steps" in section(text, "What to look at")
    assert facts(text, "Overview")["last loss"] == "not finite at step 12"
    assert table(text, "Milestones")[-1]["loss"] == "not finite"


# -- figures -----------------------------------------------------------------------------------------------------------

def test_losses(runs: Runs) -> None:
    text, kept = runs.text("plain"), rows(runs["plain"])
    loss = {row["step"]: row["loss"] for row in kept}
    by_range = table(text, "Loss")
    assert [row["steps"] for row in by_range] == [f"{a}–{a + 4}" for a in range(1, 60, 5)]
    for row in by_range:
        a, b = map(int, row["steps"].split("–"))
        part = [loss[s] for s in range(a, b + 1)]
        assert row["mean loss"] == f"{np.mean(part):.4f}" and row["lowest"] == f"{min(part):.4f}"
    single = table(text, "Milestones")
    assert [row["step"] for row in single] == ["1", "10", "50", "56", "57", "58", "59", "60"]
    for row in single:
        x = next(r for r in kept if r["step"] == int(row["step"]))
        assert row["loss"] == f"{x['loss']:.4f}" and row["grad norm"] == f"{x['grad_norm']:.2f}"
        assert float(row["perplexity"].replace(",", "")) == pytest.approx(math.exp(x["loss"]), rel=0.02)
        assert row["val loss"] == ("–" if x["val_loss"] is None else f"{x['val_loss']:.4f}")
    val = {row["step"]: row["val_loss"] for row in kept if row["val_loss"] is not None}
    best = min(val, key=lambda s: val[s])
    found = table(text, "Validation")
    assert [int(row["step"]) for row in found] == list(val) and len(val) == 12
    for row in found:
        step = int(row["step"])
        train = np.mean([loss[s] for s in range(max(1, step - 19), step + 1)])
        assert row["gap"] == f"{val[step] - train:+.4f}" and (row["best"] == "★") == (step == best)
    overview = facts(text, "Overview")
    assert overview["best validation loss"] == f"{val[best]:.4f} at step {best}"
    assert overview["first loss"] == f"{loss[1]:.4f} at step 1"
    assert overview["last loss"] == f"{loss[60]:.4f} at step 60"
    assert f"ln 300 = {math.log(300):.4f}" in section(text, "Loss")
    assert overview["steps"] == "60 of 60, 100.0 %" and overview["tokens read"] == f"{60 * 4 * 16:,}"


def test_gradients(runs: Runs) -> None:
    text, kept = runs.text("plain"), rows(runs["plain"])
    norms = np.array([row["grad_norm"] for row in kept])
    told = facts(text, "Gradient norms")
    assert told["median"] == f"{np.median(norms):.2f}" and told["highest"] == f"{norms.max():.2f}"
    assert told["90 % of the steps are below"] == f"{np.percentile(norms, 90):.2f}"
    worst = table(text, "The largest norms")
    assert [int(row["step"]) for row in worst] == [int(i) + 1 for i in np.argsort(-norms)[:10]]
    clipped = sum(row["clip_coef"] < 1 for row in kept)
    assert section(text, "Clipping").strip().startswith(f"Steps whose gradient was scaled down: {clipped} of 60")
    layer = next(row for row in table(text, "Gradient norms by layer") if row["layer"] == "block0")
    measured = [row["per_layer_grad_norms"]["block0"] for row in kept if "per_layer_grad_norms" in row]
    assert layer["median"] == f"{np.median(measured):.3g}" and layer["last"] == f"{measured[-1]:.3g}"
    entropy = [row["weight_entropy"] for row in kept if "weight_entropy" in row]
    assert [row["entropy (bits)"] for row in table(text, "Weights")] == [f"{x:.4f}" for x in entropy]


def test_skipped_updates(runs: Runs) -> None:
    kept = rows(runs["mixed"])
    skipped = sum(bool(row.get("skipped")) and row["skip_reason"] == "spike" for row in kept)
    assert skipped
    assert f"Updates were skipped at {skipped} of 12 steps" in section(runs.text("mixed"), "What to look at")
    assert table(runs.text("mixed"), "Spikes")[0]["spikes"] == str(skipped)
    assert f"The loss scale was {kept[0]['loss_scale']:,g}." in section(runs.text("mixed"), "Clipping")


def test_speed(runs: Runs) -> None:
    text, kept = runs.text("plain"), rows(runs["plain"])
    rates = [row["tokens_per_sec"] for row in kept[1:]]  # the first step prepares kernels
    told = {row[""]: row for row in table(text, "Throughput")}
    assert told["median"]["tokens/s"] == f"{np.median(rates):,.0f}"
    assert told["5 % of the steps are slower than"]["tokens/s"] == f"{np.percentile(rates, 5):,.0f}"
    forward = np.median([row["timing_fwd_ms"] for row in kept[1:]])
    phase = next(row for row in table(text, "Step time") if row["phase"] == "forward")
    assert float(phase["median ms"].replace(",", "")) == pytest.approx(forward, rel=0.01)
    share = sum(row["timing_fwd_ms"] for row in kept[1:]) / sum(row["ms_per_iter"] for row in kept[1:])
    assert phase["of the time"] == f"{100 * share:.1f} %"
    # That of a resumed run leaves out the first step of each process.
    resumed = reading.read(runs["resumed"])
    assert [int(s) for s in resumed.steps[~resumed.steady]] == [1, 1 + resumed.of_kind("resumed")[0]["step"]]


def test_shares_of_a_step_add_up(copy: Path) -> None:
    # As with two activations of which one is slow in its forward pass: medians do not add up.
    slow = lambda s: 80.0 if s % 5 in (0, 1) else 1.0
    edit(copy, change(timing_fwd_ms=lambda s, row: slow(s), timing_bwd_ms=lambda s, row: slow(s + 2),
                      timing_optim_ms=lambda s, row: slow(s + 4), timing_grad_norm_ms=lambda s, row: 0.0,
                      ms_per_iter=lambda s, row: slow(s) + slow(s + 2) + slow(s + 4)))
    text = text_of(copy)
    shares = [float(row["of the time"].rstrip(" %")) for row in table(text, "Step time")]
    assert shares[-1] == 100.0 and sum(shares[:-1]) == pytest.approx(100, abs=0.3)
    assert "in no phase" not in section(text, "What to look at")


def test_huge_figures_are_short(copy: Path) -> None:
    edit(copy, change(loss=lambda s, row: 600.0 if s == 59 else 1e30 if s > 40 else 5.0, grad_norm=lambda s, row: 1e25,
                      val_loss=lambda s, row: row["val_loss"] and 2e9))
    text = text_of(copy)
    assert table(text, "Milestones")[-1]["loss"] == "1.00e+30" and "1.00e+25" in section(text, "Gradient norms")
    assert not re.search(r"[\d,]{16}", text.partition("## Model\n")[0])


def test_a_search(runs: Runs) -> None:
    text, kept = runs.text("search"), rows(runs["search"])
    summary = json.loads((runs["search"] / "search" / "summary.json").read_text())
    trained = {(row.get("symbio_candidate_id"), row.get("symbio_replicate")) for row in kept}
    timeline = table(text, "Timeline")
    assert len(timeline) == len(trained) and timeline[0]["steps"] == "1–6"
    assert timeline[-1]["candidate"] == "training" and timeline[-1]["activation"] == summary["winner_activation"]
    for row in timeline:
        a, b = map(int, row["steps"].split("–"))
        losses = [r["loss"] for r in kept if a <= r["step"] <= b]
        assert row["first loss"] == f"{losses[0]:.4f}" and row["lowest"] == f"{min(losses):.4f}"
    for reason in summary["reasons"]:
        assert escaped(reason) in section(text, "Why")
    assert len(table(text, "Ranking")) == len(rows(runs["search"], "search/candidates.jsonl"))
    assert ("at most 12 trainings of 6 steps = **72 steps**, equal genomes once. The search took 36 steps."
            in section(text, "Settings of the search"))
    assert "The winner of the search was not trained" in section(runs.text("only"), "What to look at")
    assert "| training" not in section(runs.text("only"), "Timeline")
    under_way = runs.text("searching")
    assert "The search is in progress: 1 candidate measured" in section(under_way, "What to look at")
    assert table(under_way, "Timeline")[-1]["candidate"] == "R-Beta"
    assert "last validation loss" not in facts(under_way, "Overview")  # it is of the training that the run is for


def test_the_tracks_of_a_search_are_those_of_its_own_report(runs: Runs) -> None:
    run = reading.read(runs["search"])
    assert searching.tracks(run) == files.tracks(runs["search"], run.candidates)


def test_records(copy: Path, runs: Runs) -> None:
    assert section(runs.text("plain"), "Records").strip().startswith("Steps that have a row: 60 of 60, 100.0 %.")
    edit(copy, lambda rows: [row for row in rows if row["step"] not in (5, 20, 21, 22)])
    text = text_of(copy)
    assert "Missing: 5 and 20–22." in section(text, "Records")
    columns = {name: row for row in table(text, "Records", 1) for name in row["columns of the rows"].split(", ")}
    assert columns["loss"]["rows with a value"] == "56 of 56, 100.0 %"
    measured = [row["step"] for row in rows(copy) if "weight_entropy" in row]
    told = columns[escaped("weight_entropy")]
    assert told == columns[escaped("per_layer_grad_norms")]
    assert told["rows with a value"].split()[0] == f"{len(measured)}"
    assert (told["from step"], told["to"]) == (f"{measured[0]}", f"{measured[-1]}")
    assert escaped("gpu_util_pct") in section(text, "Records").partition("Without a value in any row:")[2]
    assert "Rows are missing: 4 of 60 steps (6.7 %) have none." in section(text, "What to look at")


def test_any_event_and_text_are_told(copy: Path) -> None:
    edit(copy, lambda kept: [*kept, {"kind": ["odd"], "step": 10**400}, {"kind": {}, "step": None, "time": 7}, {}],
         "events.jsonl")
    edit(copy, lambda kept: [row | {"temperature": 10**400, "top_k": {}} for row in kept], "samples.jsonl")
    edit_config(copy, lambda about: about["data"].update(data=[15, "a/b.txt"]))
    edit_config(copy, lambda about: about.update(chat={}, monitor=7, search=[1]))
    assert "\\['odd'\\]" in section(text_of(copy), "Events of note")
    assert facts(text_of(copy), "Training data")["training text"] == "15, b.txt"
    against.page(history.read("4kwo"), against.named([reading.read(copy)]))


def test_the_winner_of_a_search_is_no_markup() -> None:
    told = {words: mine for words, _, mine in against._facts(history.read("5ke3"), searched=True)}
    assert told["winner"](SimpleNamespace(summary={"winner_activation": "x*x*x"})) == escaped("x*x*x")


@pytest.mark.parametrize(("settings", "dropped"), [
    ({"dropout": 0.1}, True), ({"dropout": 0}, False), ({"dropout": 0, "mlp_dropout": 0.1}, True),
    ({"dropout": 0.1, "attn_dropout": 0, "resid_dropout": 0, "mlp_dropout": 0}, False), ({"embd_dropout": 0.1}, True)])
def test_losses_with_dropout(copy: Path, settings: dict[str, float], dropped: bool) -> None:
    edit_config(copy, lambda about: about["model"].update({"dropout": 0} | settings))
    assert ("It is measured with dropout" in section(text_of(copy), "Validation")) == dropped


def test_checkpoints(runs: Runs) -> None:
    kept = {int(p.name[5:]): p for p in (runs["plain"] / "checkpoints").iterdir()}
    told = {int(row["checkpoint of step"]): row["MiB"] for row in table(runs.text("plain"), "Checkpoints")}
    assert told == {step: f"{sum(f.stat().st_size for f in p.iterdir()) / 2**20:,.1f}" for step, p in kept.items()}
    assert facts(runs.text("plain"), "Overview")["checkpoints"] == f"{len(kept)}, the last of step 60"


def test_any_row_is_read(copy: Path) -> None:
    text = '{"step": 61, "loss": NaN, "grad_norm": Infinity, "lr": 1' + "0" * 400 + ', "new": [1], "skipped": true}\n'
    (copy / "metrics.jsonl").write_text("".join(lines(copy)) + text + '{"loss": 1}\n{"step": 3, "loss": 9}\n{"st')
    run = reading.read(copy)
    assert run.last == 61 and len(run) == 61 and list(run.steps) == list(range(1, 62))
    assert run.at(61, "loss") is None and run.at(61, "lr") is None and run.at(61, "skipped") == 1
    assert run.at(3, "loss") == 9 and run.at(3, "lr") is None  # the last row of a step counts
    assert run.at(62, "loss") is None and run.at(1, "unheard_of") is None
    assert "\n".join(page.of_one(run, {}))
