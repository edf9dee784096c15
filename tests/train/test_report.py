"""The report of a made-up search: what it says, what it draws, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helios.errors import UserError
from helios.model.activations import TABLE
from helios.train.search import files, plots, ranking, report
from helios.train.search.births import Candidate

from .made_up import PER_BLOCK, SPEED, STEPS, Make


def page_of(run: Path) -> str:
    """The page, without new pictures."""
    return report.write(run, plots=False).read_text("utf-8")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(page: str, title: str) -> dict[str, dict[str, str]]:
    """The table of a section: by the name in a row, its cells by the column's title."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in section(page, title).splitlines() if line.startswith("|")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return {row.get("name", row["activation"]): row for row in rows}


def printed(candidates: Sequence[Candidate], summary: Any) -> str:
    console = Console(width=300, color_system=None)
    with console.capture() as capture:
        console.print(report.table(candidates, summary))
    return capture.get()


# -- the page ----------------------------------------------------------------------------------------------------------

def test_separated(made: Make) -> None:
    page = report.write(made(noise=0.002).run).read_text()
    assert page.splitlines()[0] == "# relu (R-Gamma) won, separated from every other genome."
    assert "not separated" not in page


def test_not_separated(made: Make) -> None:
    page = report.write(made(noise=0.03).run).read_text()
    assert page.splitlines()[0] == ("# relu (R-Gamma) came first, but not separated: the data do not say which of relu "
                                    "(R-Gamma), swiglu (Sw-Delta) and gelu (G-Alpha) is best.")


def test_one_replicate_separates_nothing(made: Make) -> None:
    page = report.write(made(noise=0.0, replicates=1).run).read_text()
    first = page.splitlines()[0]
    assert "not separated" in first and all(name in first for name in ("R-Gamma", "Sw-Delta", "G-Alpha", "S-Beta"))
    assert cells(page, "Ranking")["R-Gamma"]["val loss ± SE"] == "3.3000"
    assert "one training of 100 steps" in page


def test_the_first_line_follows_the_summary(made: Make) -> None:
    run = made(noise=0.002)
    summary = files.read(run.run)[1]
    tied = [e | {"separated": None if e["separated"] is None else e["activation"] != "swiglu"}
            for e in summary["ranking"]]
    first = lambda **more: report.result(run.candidates, dict(summary) | more)
    assert first(separated=False, ranking=tied).endswith("which of relu (R-Gamma) and swiglu (Sw-Delta) is best.")
    assert first(ranking=tied) == "relu (R-Gamma) won, separated from the next best genome, though not from every one."
    assert first(separated=False, ranking=summary["ranking"][:1]) == (
        "relu (R-Gamma) won, not separated: there was no other genome to compare it with.")
    assert first(winner=None, separated=False) == "There is no winner: no candidate came to a result."


def test_many_rivals_are_counted(made: Make) -> None:
    plan = [(f"X-{i}", f"{name},{other}", 0, None, 3.0) for i, (name, other) in
            enumerate((a, b) for a in ("gelu", "relu", "silu") for b in TABLE if a != b)]
    run = made(plan, replicates=1, noise=0.0, genome="per_block")
    first = page_of(run.run).splitlines()[0]
    assert first.endswith(f"and {len(plan) - 1 - report.RIVALS} more is best.")
    assert first.count("X-") == 2 + report.RIVALS  # the winner twice


def test_every_candidate_is_in_the_ranking(made: Make) -> None:
    run = made(noise=0.002)
    page = page_of(run.run)
    ranking_, names = cells(page, "Ranking"), [c.name for c in run.candidates]
    assert sorted(ranking_) == sorted(names) and next(iter(ranking_)) == "R-Gamma"
    winner, child, last = ranking_["R-Gamma"], ranking_["G-Delta.1"], ranking_["S-Beta"]
    assert winner | {"rank": "1", "parent": "–", "behind ± SE": "–", "separated": "–", "parameters": "6,800,002",
                     "tok/s": "7,000", "clip %": "25.0", "spikes": "3", "alerts": "9", "status": "complete"} == winner
    assert (child["parent"], child["gen."], child["status"]) == ("Sw-Delta", "1", "reused")
    assert float(last["behind ± SE"].split(" ± ")[0]) == pytest.approx(0.15, abs=0.01) and last["separated"] == "yes"
    for c in run.candidates:
        assert ranking_[c.name]["val loss ± SE"] == f"{c.val_loss_mean:.4f} ± {c.val_loss_se:.4f}"
        assert all(c.name in section(page, title) for title in ("Ranking", "Lineage"))


def test_what_was_fair(made: Make) -> None:
    fair = section(page_of(made(match="params").run), "What was fair, and what was not")
    assert "3 replicates of 100 steps" in fair and "the same batches" in fair and "as many parameters" in fair


def test_what_was_switched_off(made: Make) -> None:
    run = made(shared_batches=False, candidate_schedule="run", budget="seconds", seconds_per_candidate=2.5)
    fair = section(page_of(run.run), "What was fair, and what was not")
    given, _, off = fair.partition("switched off")
    assert "2.5 seconds" in given and "the same seeds" in given
    assert "the same batches" not in given and "learning rate" not in given
    assert "shared_batches" in off and "candidate_schedule" in off
    run.save(unfair=[])
    assert "Nothing that makes candidates comparable was switched off." in page_of(run.run)


def test_cost(made: Make) -> None:
    cost = section(page_of(made().run), "Budget and cost")
    assert "12 trainings, 1,200 steps, 2,457,600 tokens; 6 min 12 s of training on a device." in cost
    assert "n_layer 6, n_embd 256." in cost


def test_speed_leaves_out_the_first_rows(made: Make) -> None:
    run = made()
    rows = cells(page_of(run.run), "Speed by activation")
    assert list(rows) == ["relu", "gelu", "silu", "swiglu"]
    for name, row in rows.items():
        assert float(row["median"].replace(",", "")) == pytest.approx(SPEED[name], rel=0.01)
        assert row["steps"] == str(3 * (STEPS - 2))
    rates = plots.speeds(run.candidates, report.tracks(run.run, run.candidates))
    assert all(values.min() > 0.8 * SPEED[name] for name, values in rates.items())


def test_lineage_is_nested(made: Make) -> None:
    lines = section(page_of(made().run), "Lineage").splitlines()
    mother = next(i for i, line in enumerate(lines) if line.startswith("* **R-Gamma**"))
    assert lines[mother + 1].startswith("  * **R-Gamma.1**, relu (unchanged): ")
    assert lines[mother + 2].startswith("  * **S-Gamma.1**, silu (relu→silu): ")
    assert lines[mother + 2].endswith(", reused")


def test_alerts_and_skips(made: Make) -> None:
    run = made()
    table = cells(page_of(run.run), "Alerts and skipped updates")
    assert list(table) == [c.name for c in run.candidates if c.status == "complete"]
    assert table["G-Alpha"] | {"steps with alerts": "9", "alerts for": "persistent clipping onset: 3",
                               "updates skipped": "6", "skipped for": "overflow: 3; spike: 3",
                               "highest gradient norm": "12.5"} == table["G-Alpha"]


def test_genomes_of_blocks(made: Make) -> None:
    run = made(PER_BLOCK, genome="per_block")
    page = report.write(run.run).read_text()
    row = cells(page, "Ranking")["M-Gamma"]
    assert row["activation"] == "gelu×4 relu×2" and row["blocks"] == "gelu, relu, gelu, gelu, relu, gelu"
    assert list(row)[-1] == "blocks" and "gelu×4 relu×2" in cells(page, "Speed by activation")
    assert {"M-Gamma.1 #5", "M-Gamma.1 #7"} <= cells(page, "Ranking").keys()  # they have one name


def test_blocks_of_formulas_are_told_apart(made: Make) -> None:
    run = made([("M-Alpha", "gelu|min(x, a); a=1", 0, None, 3.3)], genome="per_block")
    assert report.table(run.candidates, None).columns[-1].header == "blocks"
    assert "gelu | min(x, a); a=1" in printed(run.candidates, None)


def test_cells_are_escaped(made: Make) -> None:
    run = made([("G|Alpha", "gelu", 0, None, 3.4), ("R-Beta", "relu", 0, None, 3.3)])
    page = page_of(run.run)
    assert "| G\\|Alpha |" in page and cells(page, "Ranking")["G\\|Alpha"]["activation"] == "gelu"


def test_what_is_not_finite(made: Make) -> None:
    run = made()
    lost, *rest = run.candidates
    broken = [dataclasses.replace(r, val_loss=math.nan, fitness=math.nan) for r in lost.replicates]
    rest[0] = dataclasses.replace(rest[0], tokens_per_sec_mean=None)
    run.candidates = [ranking.aggregate(lost, broken), *rest]
    for row in run.rows[:5]:
        row |= {"loss": None, "tokens_per_sec": None, "val_loss": math.nan}
    run.save()
    page = report.write(run.run).read_text()
    row = cells(page, "Ranking")["G-Alpha"]
    assert row | {"rank": "–", "val loss ± SE": "not finite", "fitness": "–", "status": "diverged"} == row
    assert cells(page, "Ranking")["S-Beta"]["tok/s"] == "–"
    assert "nan" not in page and "None" not in page


def test_a_search_in_progress(made: Make) -> None:
    run = made()
    whole, run.rows = run.candidates, run.rows[:650]
    run.candidates = whole[:2] + [Candidate(c.id, c.name, c.activation, c.generation, 0) for c in whole[2:4]]
    run.save("running")
    page = report.write(run.run).read_text()
    assert page.splitlines()[0] == "# The search is in progress: 2 candidates measured; gelu (G-Alpha) leads."
    assert cells(page, "Ranking")["Sw-Delta"] == dict.fromkeys(report.PAGE_TITLES, "–") | {
        "name": "Sw-Delta", "activation": "swiglu", "gen.": "0"}
    assert list(cells(page, "Speed by activation")) == ["relu", "gelu", "silu"]
    run.save(None)
    page = report.write(run.run).read_text()
    assert page.splitlines()[0] == "# The search is in progress: 2 candidates measured."
    (run.run / "metrics.jsonl").unlink()
    (run.run / "search" / "candidates.jsonl").write_text("")
    assert "0 candidates measured" in report.write(run.run).read_text()


def test_the_summary_may_be_ahead(made: Make) -> None:
    run = made()
    run.save("running")
    lines = (run.run / "search" / "candidates.jsonl").read_text().splitlines(keepends=True)
    (run.run / "search" / "candidates.jsonl").write_text("".join(lines[:4]))
    assert len(cells(page_of(run.run), "Ranking")) == 4


def test_the_table(made: Make) -> None:
    run = made(noise=0.002)
    text = printed(run.candidates, files.read(run.run)[1])
    lines = text.splitlines()
    assert len(lines) == 9 and lines[0].split()[:4] == ["rank", "name", "activation", "gen."]
    assert lines[1].split()[:3] == ["1", "R-Gamma", "relu"] and "[" not in text
    new = [Candidate("gen0_gelu_1", "[red]G", "gelu", 0, 0), *run.candidates[1:]]
    lines = printed(new, None).splitlines()
    assert lines[1].split()[:4] == ["–", "[red]G", "gelu", "0"] and lines[2].split()[1] == "S-Beta"


# -- what is damaged ---------------------------------------------------------------------------------------------------

def test_no_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no search"):
        files.find(tmp_path)


def test_a_run_is_found_by_its_search(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made().run
    monkeypatch.chdir(run / "search")
    assert files.find(Path(".")) == files.find(run) == files.find(run / "search") == run


def spoil(path: Path, number: int, change: Callable[[str], str]) -> None:
    """The line of that number, from 1."""
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    path.write_text("".join(lines))


def instead(old: str, new: str) -> Callable[[str], str]:
    return lambda line: line.replace(old, new, 1)


@pytest.mark.parametrize(("name", "change", "why"), [
    ("search/candidates.jsonl", lambda line: line[:-20] + "\n", "line 3, is damaged"),
    ("search/candidates.jsonl", lambda line: "[]\n", "line 3, is damaged: no JSON object"),
    ("search/candidates.jsonl", lambda line: "{}\n", "line 3, .*missing required field"),
    ("search/candidates.jsonl", instead('"generation": 0', '"generation": "0"'), "line 3, .*generation"),
    ("search/candidates.jsonl", instead('"relu"', '"rulu"'), "line 3, .*rulu"),
    ("search/candidates.jsonl", instead('"seed": 2', '"seed": null'), "line 3, .*seed"),
    ("search/candidates.jsonl", instead('"parent_id": null', '"parent_id": "me"'), "line 3, .*parent"),
    ("search/candidates.jsonl", instead("gen0_relu_3", "gen0_gelu_1"), "line 3, .*twice"),
    ("search/summary.json", instead(":", ""), "line 3, is damaged"),
    ("search/summary.json", instead("{", "3, "), "is damaged"),
    ("search/summary.json", instead('"config"', '"konfig"'), "is damaged: .*config"),
    ("metrics.jsonl", lambda line: line[:-20] + "\n", "line 3, is damaged"),
    ("metrics.jsonl", instead('"step": 3', '"step": "3"'), "line 3, .*step"),
])
def test_damage_is_named(made: Make, name: str, change: Callable[[str], str], why: str) -> None:
    run = made().run
    before = (run / name).read_text()
    spoil(run / name, 3, change)
    assert (run / name).read_text() != before
    with pytest.raises(UserError, match=why) as error:
        report.write(run)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"winner": "me"}, {"separated": None}, {"ranking": [{"id": "gen0_gelu_1"}]},
                                   {"config": {"budget": "miles"}}, {"config": {"miles": 3}}, {"cost": {"steps": "3"}}])
def test_a_summary_that_cannot_be_used(made: Make, wrong: dict[str, Any]) -> None:
    run = made()
    run.save(**wrong)
    with pytest.raises(UserError, match=r"summary\.json is damaged: "):
        files.read(run.run)


def test_bytes_that_are_no_text(made: Make) -> None:
    run = made().run
    path = run / "search" / "summary.json"
    path.write_bytes(path.read_bytes().replace(b'"a device"', b'"\xff"'))
    with pytest.raises(UserError, match=r"summary\.json is damaged: no UTF-8"):
        files.read(run)


def test_a_row_cut_short_at_the_end_is_left_out(made: Make) -> None:
    run = made().run
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 1201, "symbio_cand')
    assert "1,200 steps" in page_of(run)


def test_the_training_after_the_search_is_left_out(made: Make) -> None:
    run = made()
    before = page_of(run.run)
    run.rows.append({"step": 1201, "loss": 1.0, "val_loss": None, "tokens_per_sec": 9.0, "symbio_phase": "after"})
    run.save()
    assert page_of(run.run) == before


def test_nothing_can_be_written(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made().run
    def full(path: object, write: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(report, "write_atomic", full)
    with pytest.raises(UserError, match=r"cannot write to .*search: No space left"):
        report.write(run, plots=False)
