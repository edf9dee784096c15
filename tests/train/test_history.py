"""What is known of the historic runs: that it loads, and that its figures agree with one another."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

from helios.errors import UserError
from helios.model import GPTConfig
from helios.train import history
from helios.train.config import SECTIONS, resolve
from helios.train.history import Historic
from helios.train.records import overview
from helios.train.records.records import COLUMNS, MORE_COLUMNS
from helios.train.schedule import learning_rate
from helios.train.search.ranking import Entry, Summary

RUNS = {name: history.read(name) for name in history.names()}
every = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def test_there_are_three() -> None:
    assert history.names() == ["2ao8", "4kwo", "5ke3"]
    with pytest.raises(UserError, match=r"run '5ke4'; did you mean 5ke3\?; there are 2ao8, 4kwo, 5ke3"):
        history.read("5ke4")


@every
def test_settings_are_ours_and_those_of_the_preset(run: Historic) -> None:
    preset = resolve(f"run-{run.name}").to_dict()
    own = {("model", "ffn_dim"), ("search", "candidate_schedule"), ("search", "shared_init"),
           ("search", "shared_batches"), ("search", "activation_pool")}  # where Helios goes another way
    for section, values in run.config.items():
        SECTIONS[section](**values)  # known keys, values in range
        for key, value in values.items():
            assert (section, key) in own or preset[section][key] == value, (section, key)
    assert GPTConfig(**run.config["model"]).parameters() == run.parameters


@every
def test_figures_agree_with_one_another(run: Historic) -> None:
    losses, norms = run.column("loss"), run.column("grad_norm")
    assert abs(losses[1] - math.log(4000)) < 0.1 and max(losses) <= run.steps < run.planned + 1
    assert all(0 < x < 9 for x in (*losses.values(), *run.column("val_loss").values()))
    tokens = run.config["train"]["batch_size"] * run.config["model"]["block_size"]
    for p in (p for p in run.by_step().values() if "ms_per_iter" in p):
        assert p["tokens_per_sec"] * p["ms_per_iter"] / 1000 == pytest.approx(tokens, rel=0.005)
    schedule = {key: run.config["train"][key] for key in ("lr", "lr_min", "warmup")}
    for step, lr in run.column("lr").items():
        assert lr == pytest.approx(learning_rate(step - 1, steps=run.planned, **schedule), rel=0.06)
    for a, b in itertools.pairwise(run.stretches):
        assert a.past == b.first and b.mean < a.mean + 0.02
    for s in run.stretches:
        within = [x for step, x in losses.items() if s.first <= step < s.past]
        assert s.low <= s.mean < max(within) + 0.1 and all(x >= s.low - 1e-3 for x in within)
        assert s.recorded is None or s.recorded <= s.past - s.first
    if run.stretches:
        assert run.stretches[0].first == 0 and run.stretches[-1].past >= run.steps
    if run.recorded and all(s.recorded for s in run.stretches):
        assert sum(s.recorded or 0 for s in run.stretches) == run.recorded
    percentiles = [x for _, x in run.norms.percentiles]
    assert percentiles == sorted(percentiles) and all(x <= (run.norms.high or math.inf) for x in norms.values())
    if run.seconds and run.ended:
        assert 0 <= overview.seconds(run.ended) - overview.seconds(run.begun) - run.seconds < 60


def test_5ke3_adds_up() -> None:
    run = RUNS["5ke3"]
    search, after = run.phases
    assert (search.steps + after.steps, search.recorded + after.recorded) == (run.planned, run.recorded)
    assert (search.spikes + after.spikes) == run.norms.above[0][1] == 61
    assert sum(s.steps for s in run.spikes) == after.spikes and max(s.norm for s in run.spikes) == run.norms.high
    for name in ("recorded", "spikes", "alerts"):
        assert sum(getattr(c, name) for c in run.candidates) == getattr(search, name), name
    for limit, count in run.norms.above:
        assert sum(x > limit for x in run.column("grad_norm").values()) < count
    # Ranked by fitness but for one, which had the lower loss.
    ranked = [c.fitness for c in run.candidates]
    assert sorted(ranked, reverse=True) == [*ranked[:3], ranked[4], ranked[3], *ranked[5:]]
    assert run.candidates[0].loss == min(c.loss for c in run.candidates) and run.winner == "relu"
    for c in run.candidates:
        assert run.column("loss")[min(c.last, 140)] >= c.loss - 0.001 or c.last > 140
        assert c.parent is None or c.parent in {d.id for d in run.candidates if d.generation == c.generation - 1}
    loss, entropy, energy = (run.column(name) for name in ("loss", "weight_entropy", "free_energy"))
    assert all(energy[s] == pytest.approx(loss[s] + 0.01 * entropy[s], abs=2e-3) for s in energy if s != 300)
    narrow = GPTConfig(**dict(run.config["model"]) | {"activation": "gelu"})
    assert f"{narrow.parameters():,}" in " ".join(run.notes)
    assert f"{dataclasses.replace(narrow, ffn_dim=None).parameters():,}" in " ".join(run.notes)


@pytest.mark.parametrize(("name", "figures"), {
    "4kwo": (6_838_784, 5539, 5297, 15_044, 8.356, 5.456, 5.674, 1590, 2570),
    "5ke3": (6_937_088, 500, 435, 1015, 8.3546, 7.2586, 7.2994, 3419, 713),
    "2ao8": (17_437_440, 610, None, None, 8.37, 7.05, None, 2400, None)}.items())
def test_what_is_told_elsewhere(name: str, figures: tuple[float, ...]) -> None:
    run = RUNS[name]
    losses, best = list(run.column("loss").values()), run.entry()["best_val_loss"]
    assert figures == (run.parameters, run.steps, run.recorded, run.seconds, losses[0], losses[-1], best,
                       run.mean["tokens_per_sec"], run.mean.get("ms_per_iter"))


@every
def test_as_files_of_a_run(run: Historic, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(run.about()))
    for name, lines in (("metrics", run.rows()), ("events", run.events()), ("samples", run.said())):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry, read = run.entry(), overview.read(path)
    assert entry.keys() == read.keys()
    assert {k for k in entry if entry[k] != read[k]} <= {
        "status", "reason", "updated", "step", "steps", "tokens_per_sec", "coverage", "historic", "best_val_loss"}
    assert entry["historic"] is True and entry["status"] == "historic" and entry["reason"] == run.status
    steps = [row["step"] for row in run.rows()]
    assert steps == sorted(set(steps)) and {*run.by_step()} == {*steps}
    for row in run.rows():
        assert row.keys() <= {*COLUMNS, *MORE_COLUMNS} and isinstance(row["step"], int)
    assert {s["step"] for s in run.said()} <= set(range(run.steps + 1))


def test_rows_say_whose_they_are() -> None:
    rows = {row["step"]: row for row in RUNS["5ke3"].rows()}
    assert rows[30]["symbio_candidate_activation"] == "silu" and rows[30]["symbio_phase"] == "search"
    assert rows[161]["symbio_phase"] == "after" and "symbio_candidate_id" not in rows[161]
    searched, summary = RUNS["5ke3"].searched(), RUNS["5ke3"].summary()
    assert [c["id"][-1] for c in searched] == list("12345678") and searched[6]["parent_id"] == "gen0_relu_3"
    assert summary and summary["winner"] == "gen1_relu_6" == summary["ranking"][0]["id"]
    assert summary["ranking"][0].keys() == Entry.__annotations__.keys()
    assert summary.keys() == Summary.__annotations__.keys()
    assert RUNS["4kwo"].saved()[0] == {"step": 2500, "val_loss": 6.063, "bytes": None}
    assert RUNS["4kwo"].summary() is None and RUNS["2ao8"].summary() is None and not RUNS["4kwo"].searched()
