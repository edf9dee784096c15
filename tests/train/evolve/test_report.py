"""The report of an experiment: its figures are the journal's, its claims those of fresh seeds, its winner trains."""

from __future__ import annotations

import json
import math
import re
import statistics
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from helios.bench import planted
from helios.errors import UserError
from helios.train.config import resolve
from helios.train.evolve import report, winner
from helios.train.evolve.driver import Driver
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.opening import opened
from helios.train.evolve.space import configured
from helios.train.evolve.state import Result, State
from helios.train.evolve.stops import StopsConfig
from helios.train.evolve.summary import spearman, summary
from helios.train.evolve.terms import asked
from helios.train.evolve.trainings import Job
from helios.train.progress import Display
from helios.train.records.journal import JOURNAL
from helios.train.search.operators import Space

GENES = "lr,beta2,qk_norm,dropouts,activation"
PICTURES = {"validation.png", "progress.png", "front.png", "generations.png", "hypervolume.png", "genes.png",
            "lineage.png"}
SMALL = {"population_size": 6, "generations": 3, "validation_replicates": 4}
NOTHING = "Nothing was shown to be better than the preset."


def loss(job: Job, space: Space) -> float:
    c = job.config
    return 3 + 0.3 * abs(math.log10(c.train.lr / 2e-3)) + 0.1 * c.model.qk_norm + 0.5 * c.model.dropouts.mlp


class Unlucky(planted.Planted):
    """Some candidates diverge, and one fails."""

    def result(self, job: Job) -> Result:
        found = super().result(job)
        if job.id == "gen0_silu_2":
            return replace(found, status="failed", why="too large | for it", val_loss=None, tokens=0)
        if job.config.model.activation == "relu" and job.replicate == 1:
            return replace(found, status="diverged", why="no finite loss at step 3", val_loss=None)
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment, State]:
    """Two objectives; candidates that fail and diverge; made by the driver, with all plots."""
    question = planted.question(GENES, objectives="val_loss,max_grad_norm", **SMALL)
    driver = Driver.create(question, tmp_path_factory.mktemp("done") / "it", Display(True))
    assert driver.run(Unlucky(driver.experiment.space, loss))
    return driver.folder, driver.experiment, driver.state


def written(folder: Path, executor: type[planted.Planted] = planted.Planted, **settings: Any
            ) -> tuple[str, Experiment, State]:
    """The page of another experiment, without plots."""
    found = planted.experiment(**SMALL | settings)
    state = planted.run(found, executor(found.space))
    report.write(folder, found, state, plots=False)
    return (folder / report.PAGE).read_text(), found, state


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the table of a section, without its titles."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def of(state: State, id: str, phase: str = "search", name: str = "val_loss", form: str = ".4f") -> str:
    """A measurement's mean and error, from the results themselves."""
    values = [getattr(r, name) for (whose, when, _), r in state.results.items() if (whose, when) == (id, phase)]
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values) / math.sqrt(len(values)):{form}}"


def test_figures_are_the_journals(done: tuple[Path, Experiment, State]) -> None:
    folder, _, state = done
    page, found = (folder / report.PAGE).read_text(), json.loads((folder / report.SUMMARY).read_text())
    assert state.verdict and state.verdict["better"] and found["verdict"] == state.verdict
    for sentence in state.verdict["sentences"]:
        assert f"* {sentence}" in page
    assert page.startswith(f"# {state.verdict['sentences'][0]}\n") and "The winner is better than the preset." in page
    assert [row[2] for row in rows(page, "The verdict")] == [of(state, id, "validation")
                                                             for id in state.finalists.values()]
    best = rows(page, "Best candidates")
    assert len(best) > 15 and [row[0] for row in best] == sorted((row[0] for row in best), key=int)
    for _, _, id, arm, generation, _, value, norm, trainings, status in best:
        c = state.born[id.strip("`")]
        assert (arm, int(generation), int(trainings), status) == (c.arm, c.generation, 2, "complete")
        assert (value, norm) == (of(state, c.id), of(state, c.id, name="max_grad_norm", form="#.4g"))
    spent = {arm: sum(r.tokens for r in state.results.values() if r.phase == "search" and state.born[r.id].arm == arm)
             for arm in ("evolved", "random", "preset")}
    cost = {row[0]: row[2] for row in rows(page, "What it cost")}
    assert {arm: cost[arm] for arm in spent} == {arm: f"{tokens:,}" for arm, tokens in spent.items()}
    assert cost["all"] == f"{sum(r.tokens for r in state.results.values()):,}"
    assert int(found["spent"]) == sum(r.tokens for r in state.results.values()) <= found["most"]


def test_the_front_is_what_nobody_is_better_than(done: tuple[Path, Experiment, State]) -> None:
    folder, *_ = done
    points = {e["id"]: tuple(e["measured"][n]["mean"] for n in ("val_loss", "max_grad_norm"))
              for e in json.loads((folder / report.SUMMARY).read_text())["ranking"] if e["rank"]}
    front = {id for id, p in points.items() if not any(q != p and q[0] <= p[0] and q[1] <= p[1]
                                                       for q in points.values())}
    assert len(front) > 1
    assert {row[1].strip("`") for row in rows((folder / report.PAGE).read_text(), "Pareto front")} == front


def test_generations_and_operators(done: tuple[Path, Experiment, State]) -> None:
    _, experiment, state = done
    found = summary(experiment, state)
    value = {id: x for id in state.born if (x := state.measured(id)["val_loss"]) is not None
             and state.candidate(id).status in ("complete", "reused")}
    for g, ids in zip(found["generations"], state.generations, strict=True):
        mine = [value[id] for id in ids if state.born[id].arm == "evolved" and id in value]
        assert (g["best"]["evolved"], g["median"]["evolved"]) == (min(mine), statistics.median(mine))
    bred = [c for c in state.born.values() if c.arm != "random"]
    assert sum(o["born"] for o in found["operators"].values()) == len(bred)
    better = sum(c.id in value and c.id not in state.reused and all(value[c.id] < value[p] for p in c.parents)
                 for c in bred if c.parents)
    assert 0 < better == sum(o["better"] for o in found["operators"].values())
    volumes = [g["hypervolume"] for g in found["generations"]]
    assert volumes[:-1] == [about["hypervolume"] for about in state.about[1:]] and volumes[-1] >= volumes[0] > 0


def test_genes_that_matter_are_seen(done: tuple[Path, Experiment, State]) -> None:
    _, experiment, state = done
    genes = summary(experiment, state)["genes"]
    assert genes.keys() == {"lr", "beta2", "qk_norm", "dropouts", "activation"}
    assert genes["qk_norm"]["correlation"] > 0.3 and genes["dropouts"]["correlation"] is None  # type: ignore[operator]
    assert genes["lr"]["random_n"] > 10 and 0 <= genes["lr"]["random_p"] <= 1  # type: ignore[operator]
    winner_ = state.born[state.finalists["evolved"]]
    assert genes["lr"]["leader"] == winner_.settings.get("lr", 0.01) and genes["lr"]["preset"] == 0.01


def test_correlations() -> None:
    assert spearman([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]) is None and spearman([1.0] * 9, range(9)) is None
    assert spearman(range(8), range(8)) == (pytest.approx(1), pytest.approx(2 / math.factorial(8)))
    assert spearman(range(9), [3, 1, 2, 8, 5, 4, 9, 7, 6]) == pytest.approx((1 - 6 * 40 / 720, 0.0499), abs=1e-4)


def test_pictures(done: tuple[Path, Experiment, State]) -> None:
    folder, _, _ = done
    page = (folder / report.PAGE).read_text()
    assert set(re.findall(r"!\[.*\]\((.*)\)", page)) == {p.name for p in folder.glob("*.png")} == PICTURES
    for name in PICTURES:
        image = matplotlib.image.imread(folder / name)[..., :3]
        assert image.shape[1] >= 1350 and 0.003 < (image < 0.9).any(axis=2).mean() < 0.7


def test_who_was_lost_and_why(done: tuple[Path, Experiment, State]) -> None:
    folder, _, state = done
    text = section((folder / report.PAGE).read_text(), "Dropped, stopped, diverged, failed")
    diverged = {r.run for r in state.results.values() if r.status == "diverged"}
    assert diverged and all(f"`{run}`" in text for run in diverged)
    assert f"{len(diverged)} diverged" in text.splitlines()[1] and "too large | for it: S-Beta" in text
    entry = next(e for e in summary(done[1], state)["ranking"] if e["id"] == "gen0_silu_2")
    assert (entry["rank"], entry["status"], entry["why"]) == (None, "failed", "too large | for it")


def test_who_is_lost_is_told_of_once() -> None:
    """Halving drops what diverged, too."""
    found = planted.experiment("activation", halving=0.05, **SMALL)
    state = planted.run(found, Unlucky(found.space, loss))
    lost = [one["id"] for one in summary(found, state)["lost"]]
    assert set(state.dropped) & {id for id in state.born if state.status(id) == "failed"}
    assert len(lost) == len(set(lost)) and set(state.dropped) <= set(lost)


def test_dropped_ones_and_why(tmp_path: Path) -> None:
    page, _, state = written(tmp_path, halving=0.5)
    text = section(page, "Dropped, stopped, diverged, failed")
    assert state.dropped and all(f"`{id}`" in text or f"`{id}, " in text or f"(`{id}`" in text for id in state.dropped)
    assert f"{len(state.dropped)} dropped" in text and "more than chance explains" in text
    assert "Candidates were stopped early" in page


@pytest.mark.parametrize("blocks", ["formula", "per_block"])
def test_the_winners_file_gives_its_config(blocks: str) -> None:
    found = planted.experiment("lr,lr_min,n_embd,n_head,dropouts,qk_norm,softcap,warmup,micro_batch,activation",
                               activations=blocks, **SMALL)
    base, texts = found.asked.base.replaced("monitor", plateau_delta=0.125), set()
    found = replace(found, asked=replace(found.asked, base=base, stops=StopsConfig(stop_spikes=0.25)))
    state = planted.run(found, planted.Planted(found.space, planted.flat))
    for id, c in state.born.items():
        text = winner.text(found, state, id)
        config, meant = resolve(file=tomllib.loads(text), origin="it"), configured(base, c.genome)
        assert (config.model, config.train, config.monitor) == (meant.model, meant.train, meant.monitor)
        assert (config.train.steps, config.train.seed) == (base.train.steps, base.train.seed)
        assert config.train.eval_interval == base.train.eval_interval
        texts.add(c.activation)
    assert any(set(text) & set("(|,") for text in texts)
    assert "stop_spikes 0.25" in "".join(asked(found)) and "plateau_delta 0.125" in "".join(asked(found))


def test_the_winners_file_says_what_it_is(done: tuple[Path, Experiment, State]) -> None:
    folder, experiment, state = done
    head = [line for line in (folder / winner.FILE).read_text().splitlines() if line.startswith("#")]
    id, text = state.finalists["evolved"], "\n".join(head)
    assert id in head[0] and experiment.id in head[0] and head[2] == "# It is better than the preset:"
    for ancestor in (*winner.line(state, id), *(c for c in (state.born[id].operator,) if c)):
        assert ancestor in head[1]
    assert state.verdict and all(sentence in text for sentence in state.verdict["sentences"])
    assert "4 fresh seeds" in text and "2,000 tokens" in text and "1,000 tokens" in text


def test_nothing_is_called_better_where_all_is_noise(tmp_path: Path) -> None:
    for seed in (0, 1):
        found = planted.experiment(seed=seed, **SMALL)
        state = planted.run(found, planted.Planted(found.space, planted.flat, seed=seed))
        told = report.write(tmp_path, found, state, plots=False)
        page = (tmp_path / report.PAGE).read_text()
        assert NOTHING in page and "not separated from the preset" in page.splitlines()[0] and "separated" in told[0]
        for text in (page, (tmp_path / winner.FILE).read_text()):
            assert "nats better" not in text and "is better than the preset" not in text
        assert "# It was not shown to be better than the preset:" in (tmp_path / winner.FILE).read_text()


def test_without_fresh_seeds_nothing_is_better(tmp_path: Path) -> None:
    page, *_ = written(tmp_path, validation_replicates=0, random_control=False, replicates=1)
    assert NOTHING in page and "is better than the preset" not in page
    unfair = section(page, "What is not fair, or may differ")
    for words in ("One seed a candidate", "no random candidates", "No training at the end on fresh seeds"):
        assert words in unfair


def test_a_fitness_is_more_where_it_is_better(tmp_path: Path) -> None:
    page, found, state = written(tmp_path, fitness="-2*val_loss + 0.1*log(tokens_per_sec)")
    what = summary(found, state)
    assert what["better"] == {"fitness": "more"} and what["objectives"] == ["fitness"]
    values = [e["measured"]["fitness"]["mean"] for e in what["ranking"]]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    for e in what["ranking"]:
        wanted = -2 * e["measured"]["val_loss"]["mean"] + 0.1 * math.log(1000)  # type: ignore[operator]
        assert e["measured"]["fitness"]["mean"] == pytest.approx(wanted)
        assert e["measured"]["fitness"]["error"] == pytest.approx(2 * e["measured"]["val_loss"]["error"])  # type: ignore[operator]
    best = max(e["measured"]["fitness"]["mean"] or -math.inf for e in what["ranking"])
    assert max(g["best"]["evolved"] or -math.inf for g in what["generations"]) <= best == values[0]
    assert "tokens_per_sec is measured by the clock" in page and "Pareto" not in page.split("## How")[0]
    assert state.verdict and state.verdict["better"] and state.verdict["comparisons"][0]["difference"] < 0
    assert rows(page, "The verdict")[-1][4].startswith("+") and "“Evolved − this” above 0" in page


def test_unfinished(done: tuple[Path, Experiment, State], tmp_path: Path) -> None:
    lines = (done[0] / JOURNAL).read_text().splitlines(keepends=True)
    for n in (*range(1, len(lines) - 1, max(1, len(lines) // 8)), len(lines) - 1):
        (tmp_path / JOURNAL).write_text("".join(lines[:n]))
        told = report.write_from(tmp_path, plots=False)
        page, found = (tmp_path / report.PAGE).read_text(), json.loads((tmp_path / report.SUMMARY).read_text())
        _, state = opened(tmp_path)
        assert page.startswith("# The experiment is not finished") and "not finished" in told[0]
        assert found["status"] == "unfinished" and found["verdict"] is None and "--resume" in page
        assert not (tmp_path / winner.FILE).exists() and "is better than the preset" not in page
        assert sum(found["counts"].values()) == len(state.born)
        assert all(f"`{e['id']}`" in page for e in found["ranking"] if e["rank"] and e["rank"] <= 20)


def test_without_results_there_are_no_pictures(done: tuple[Path, Experiment, State], tmp_path: Path) -> None:
    born = [line for line in (done[0] / JOURNAL).read_text().splitlines(keepends=True) if '"result"' not in line]
    (tmp_path / JOURNAL).write_text("".join(born[:2 + json.loads(born[1])["lines"]]))
    report.write_from(tmp_path)
    assert not list(tmp_path.glob("*.png")) and "Best candidates" not in (tmp_path / report.PAGE).read_text()
    with pytest.raises(UserError, match="holds no experiment"):
        report.write_from(tmp_path / "nowhere")


class Hopeless(planted.Planted):
    def result(self, job: Job) -> Result:
        why = "too large" if job.id.endswith("_3") else "no finite loss"
        return replace(super().result(job), status="diverged", val_loss=None, why=why)


def test_nobody_comes_to_a_result(tmp_path: Path) -> None:
    page, found, state = written(tmp_path, Hopeless, objectives="val_loss,instability")
    told = f"all {len(state.born)} candidates diverged: no finite loss; too large"
    assert page.splitlines()[0] == f"# {told}" and not (tmp_path / winner.FILE).exists()
    assert report.write(tmp_path, found, state)[0] == told and NOTHING in page
    assert "fresh seed" not in section(page, "The verdict") + section(page, "What is not fair, or may differ")
    assert "finalists" not in section(page, "What is not fair, or may differ")
    assert not list(tmp_path.glob("*.png"))


def test_no_evolved_one_comes_to_a_result(tmp_path: Path) -> None:
    class Partly(planted.Planted):
        def result(self, job: Job) -> Result:
            status = {"evolved": "stopped", "preset": "failed"}.get(job.about["arm"], "complete")
            return replace(super().result(job), status=status, why=None)

    _, _, state = written(tmp_path, Partly)
    assert state.verdict
    assert re.fullmatch(r"none of \d+ evolved candidates has a value to be chosen by \(1 failed, \d+ stopped\)",
                        state.verdict["sentences"][0])


def test_the_directory_alone_gives_the_same(done: tuple[Path, Experiment, State]) -> None:
    folder, experiment, state = done
    assert summary(*opened(folder)) == summary(experiment, state) and state.verdict
    before = {name: (folder / name).read_bytes() for name in (report.SUMMARY, winner.FILE)}
    told = report.write_from(folder, plots=False)
    assert told[0] == state.verdict["sentences"][0] and str(folder / winner.FILE) in "".join(told)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "![" not in (folder / report.PAGE).read_text()
