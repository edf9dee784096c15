"""Children that begin with their parents' weights: with which, what is said where they cannot, what may be compared."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from helios.bench.planted import Planted, experiment, flat, question, run
from helios.errors import UserError
from helios.train import checkpoint
from helios.train.evolve import cost, journal, plan, report
from helios.train.evolve.driver import Driver, entry, experiment_of
from helios.train.evolve.executors import executor
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.opening import opened
from helios.train.evolve.space import configured
from helios.train.evolve.state import State, key
from helios.train.evolve.summary import summary
from helios.train.evolve.training import train
from helios.train.evolve.trainings import Job
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records.journal import JOURNAL, RUNS
from helios.train.records.layout import METRICS, read_config
from helios.train.records.rows import rows
from helios.train.search.births import genome_key

from .test_plan import lines as continued

QUIET = Display(quiet=True)
STEPS = 16  # of a candidate
GUESS = math.log(300)  # loss of new weights


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helios.train.evolve.plots.draw", lambda *given: {})


def made(folder: Path, genes: str, **settings: Any) -> Driver:
    """A tiny experiment that is really trained."""
    given = {"per_candidate": STEPS * 64, "population_size": 2, "generations": 2, "replicates": 1, "evaluations": 1,
             "mutation_rate": 1, "random_control": "false", "validation_replicates": 0, "backend": "cpu_ref"}
    driver = Driver(folder, experiment_of(question(genes, **given | settings), "same"), QUIET)
    assert driver.run(executor("local", folder, None, QUIET))
    return driver


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Three generations, whose children have one block or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helios.train.evolve.plots.draw", lambda *given: {})
        return made(tmp_path_factory.mktemp("three") / "x", "lr=0.003|0.01,n_layer=1|2", warm_start="prefix",
                    generations=3)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The journal, without what a clock measures."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_sec_mean", "memory_mb")}
            for line in rows(folder / JOURNAL, strict=True)]


def losses(driver: Driver, id: str) -> list[float]:
    return [row["loss"] for row in rows(driver.folder / RUNS / f"{id}.s0" / METRICS)]


# -- with which weights -----------------------------------------------------------------------------------------------
def check_lines(driver: Driver) -> None:
    """Each child goes on where its parent ended, and all records say so."""
    state, about = driver.state, {line["id"]: line for line in lines(driver.folder) if line["kind"] == "result"}
    for id, c in state.born.items():
        if id in state.reused:
            continue
        saved = read_config(driver.folder / RUNS / f"{id}.s0")
        of, read = state.start_of(id), 64 * STEPS * c.generation
        assert about[id]["inherited"] == read and about[id]["tokens"] == 64 * STEPS
        assert checkpoint.states(driver.folder / RUNS / f"{id}.s0")[-1]["position"] == STEPS * (c.generation + 1)
        if of is None:
            assert losses(driver, id)[0] == pytest.approx(GUESS, abs=0.1) and "init" not in saved
            assert (saved["evolve"]["warm_start"], c.parents, "init" in saved["evolve"]) == ("fresh", [], False)
        else:
            assert abs(losses(driver, id)[0] - losses(driver, of)[-1]) < 0.4 < GUESS - losses(driver, id)[0]
            parent = checkpoint.directories(driver.folder / RUNS / f"{of}.s0")[-1]
            assert (saved["init"]["path"], saved["init"]["tokens"]) == (str(parent), read)
            assert saved["evolve"]["warm_start"] == saved["train"]["morph"] == driver.experiment.asked.evolve.warm_start
            assert saved["evolve"]["init"] == {"of": of, "place": str(parent.relative_to(driver.folder)),
                                               "tokens": read, "batches": STEPS * c.generation}


def test_children_go_on_where_their_parents_ended(three: Driver, tmp_path: Path) -> None:
    check_lines(three)
    births = three.state.born
    assert {c.settings.get("n_layer", 2) for c in births.values() if c.parents} == {1, 2}
    assert {births[c.parent_id].settings.get("n_layer", 2) - c.settings.get("n_layer", 2)
            for c in births.values() if c.parent_id} >= {-1, 1}
    check_lines(made(tmp_path / "exact", "lr=0.003|0.01", warm_start="exact"))


def test_a_training_that_was_under_way_goes_on_elsewhere(three: Driver, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment moves after a kill; its last training has a checkpoint, the one before it has none."""
    parts, whole = tmp_path / "parts", lines(three.folder)
    shutil.copytree(three.folder, parts)
    last, before = [line["run"] for line in whole if line["kind"] == "result"][:-3:-1]
    text = (parts / JOURNAL).read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(whole) if line.get("run") == before)
    (parts / JOURNAL).write_text("".join(text[:cut]))
    for name in (last, before):
        shutil.rmtree(parts / RUNS / name)
    driver = Driver(parts, *opened(parts)[:1], QUIET)
    jobs = [driver._placed(job) for job in plan.next_move(*opened(parts)) if isinstance(job, Job)]
    assert [job.name for job in jobs] == [before, last]
    record = Loop._record

    def interrupted(loop: Loop, row: dict[str, Any]) -> None:
        if row["step"] == STEPS // 2:
            os.kill(os.getpid(), signal.SIGINT)
        record(loop, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_record", interrupted)
        train(jobs[1], parts, QUIET)
    (parts / RUNS / before).mkdir()
    parts.rename(tmp_path / "moved")
    resumed = Driver.resume(tmp_path / "moved", QUIET)
    assert resumed.run(executor("local", tmp_path / "moved", None, QUIET)) and lines(resumed.folder) == whole
    ends = [checkpoint.states(folder / RUNS / name)[-1]["files"] for name in (last, before)
            for folder in (three.folder, resumed.folder)]
    assert ends[0] == ends[1] and ends[2] == ends[3]


@pytest.mark.parametrize(("harm", "words"), [
    (lambda path: shutil.rmtree(path), "step-000016 is missing"),
    (lambda path: (path / checkpoint.MODEL).unlink(), "is damaged: model.safetensors: No such file"),
    (lambda path: (path / checkpoint.MODEL).write_bytes(b"x" * 50), "model.safetensors is truncated or foreign")])
def test_a_parent_that_is_missing_or_damaged(harm: Any, words: str, three: Driver, tmp_path: Path) -> None:
    """It is said before anything is trained, and no earlier checkpoint is taken."""
    shutil.copytree(three.folder, tmp_path / "x", ignore=shutil.ignore_patterns("gen2_*"))
    text = (tmp_path / "x" / JOURNAL).read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(map(json.loads, text)) if line.get("run", "").startswith("gen2_"))
    (tmp_path / "x" / JOURNAL).write_text("".join(text[:cut]))
    of = three.state.start_of(three.state.generations[2][0])
    harm(checkpoint.directories(tmp_path / "x" / RUNS / f"{of}.s0")[-1])
    driver = Driver.resume(tmp_path / "x", QUIET)
    with pytest.raises(UserError, match=f"gen2_gelu_..s0 is to begin with the last weights of its parent, .*{words}.*; "
                                        "put them back, or begin anew in another --dir"):
        driver.run(executor("local", driver.folder, None, QUIET))
    assert not list((tmp_path / "x" / RUNS).glob("gen2_*"))


# -- who does, and what is trained ------------------------------------------------------------------------------------
def shapes(found: Experiment, state: State, id: str) -> dict[str, Any]:
    return dict(configured(found.asked.base, state.born[id].genome).model.shapes())


@pytest.mark.parametrize("mode", ["exact", "prefix", "project"])
def test_what_a_mode_cannot_do_begins_fresh_and_is_said(mode: str, tmp_path: Path) -> None:
    found = experiment("lr,n_embd,n_layer", warm_start=mode, replicates=1, mutation_rate=0.7)
    executor = Planted(found.space)
    jobs = dict[str, Job]()
    state = run(found, Recorded(executor, jobs))
    children = [c for c in state.born.values() if c.parents]
    assert children and state.starts.keys() == {c.id for c in children}
    kinds = set()
    for c in children:
        parent, start = state.reused.get(c.parents[0], c.parents[0]), state.starts[c.id]
        ours, theirs = shapes(found, state, c.id), shapes(found, state, parent)
        alike = {"exact": ours == theirs, "prefix": ours["wte.weight"] == theirs["wte.weight"], "project": True}[mode]
        kinds.add(alike)
        if alike:
            assert start == {"how": mode, "of": parent, "why": None}
        else:
            assert (start["how"], start["of"]) == ("fresh", None) and " there and " in start["why"]
        if c.id not in state.reused:
            job = jobs[f"{c.id}.s0"]
            assert bool(job.config.train.init_from) == bool(job.inherited) == alike
            assert job.about["init"]["of"] == (parent if alike else None)
    assert kinds == ({True} if mode == "project" else {True, False})
    others = [job for name, job in jobs.items() if name.split(".")[0] not in state.starts or job.phase != "search"]
    assert others and not any(job.config.train.init_from or job.inherited or job.batches for job in others)
    report.write(tmp_path, found, state, plots=False)
    page = (tmp_path / report.PAGE).read_text()
    for id, start in state.starts.items():
        if start["why"] and id not in state.reused:
            assert re_line(page, start["why"], id)


def re_line(page: str, *words: str) -> bool:
    plain = page.replace("\\", "")
    return any(all(word in line for word in words) for line in plain.splitlines())


class Recorded:
    """An executor that keeps the trainings it is asked for."""

    def __init__(self, executor: Planted, jobs: dict[str, Job]) -> None:
        self.executor, self.jobs = executor, jobs

    def __call__(self, jobs: Any) -> Any:
        self.jobs |= {job.name: job for job in jobs}
        return self.executor(jobs)


def test_a_clone_goes_on_and_is_not_trained_twice() -> None:
    """What would be the same training is one: of the same genome, begun with the same weights."""
    found = experiment(warm_start="exact", mutation_rate=0, crossover_rate=0)
    state = run(found, Planted(found.space))
    first = dict[str, str]()
    for id, c in state.born.items():
        same = first.setdefault(key(c, state.start_of(id)), id)
        assert state.reused.get(id, id) == same
        if c.parents:
            whose = state.reused.get(c.parents[0], c.parents[0])
            assert c.operator == "clone" and state.start_of(id) == whose and state.reused.get(id) != whose
    trained = [id for id in state.born if state.of(id) and state.born[id].parents]
    assert trained and len({genome_key(state.born[id]) for id in trained}) < len(trained)


def test_finalists_of_one_genome_are_trained_again_once() -> None:
    found = experiment(warm_start="exact", mutation_rate=0, crossover_rate=0, random_control="false", population_size=2)
    state = run(found, Planted(found.space, flat, gain=5))
    roles = state.finalists
    assert roles["evolved"] != roles["preset"]
    alike = genome_key(state.born[roles["evolved"]]) == genome_key(state.born[roles["preset"]])
    again = [r for r in state.results.values() if r.phase == "validation"]
    assert len(again) == 8 * (2 - alike) and state.verdict
    assert all(x is not None for x in state.verdict["values"]["preset"] + state.verdict["values"]["evolved"])
    if alike:
        assert state.verdict["sentences"] == [f"{state.born[roles['evolved']].name} ({roles['evolved']}) is the same "
                                              "genome as the preset"]


@pytest.mark.parametrize("settings", [{"warm_start": "exact"}, {"warm_start": "project", "budget": "seconds",
                                                                "per_candidate": 5}])
def test_cut_anywhere_it_goes_on_as_it_would_have(settings: dict[str, Any]) -> None:
    found = experiment("lr,n_embd,n_head", population_size=4, generations=3, **settings)

    rest = lambda state: continued(found, Planted(found.space), state)
    whole = rest(State())
    assert {"start", "inherited"} <= {name for line in whole for name in line}
    for cut in random.Random(0).sample(range(len(whole)), 6):
        state, kept = State(), list(journal.whole(whole[:cut], lambda line: line))
        state.take(kept)
        assert kept + rest(state) == whole


def test_fresh_ones_say_nothing_new() -> None:
    found = experiment(generations=2)
    jobs = dict[str, Job]()
    state = run(found, Recorded(Planted(found.space), jobs))
    assert not state.starts and summary(found, state)["warm"] is None
    assert all(job.about["warm_start"] == "fresh" and "init" not in job.about for job in jobs.values())
    assert "inherited" not in entry(next(iter(state.results.values())), found, next(iter(jobs.values())))


# -- what is compared -------------------------------------------------------------------------------------------------
def test_arms_are_compared_at_equal_tokens(tmp_path: Path) -> None:
    found = experiment(warm_start="project", validation_replicates=2)
    state = run(found, Planted(found.space))
    warm = summary(found, state)["warm"]
    assert warm
    spent = dict.fromkeys(("evolved", "random"), 0)
    for r in state.results.values():
        if r.phase == "search" and (arm := state.born[r.id].arm) in spent:
            spent[arm] += r.tokens
    assert warm["tokens"] == min(spent.values()) and cost.spent(found, state) <= cost.most(found)
    used, best = dict.fromkeys(spent, 0), dict.fromkeys(spent, math.inf)
    for id, c in state.born.items():
        if c.arm in spent and state.of(id):
            used[c.arm] += sum(r.tokens for r in state.of(id))
            if used[c.arm] <= warm["tokens"]:
                best[c.arm] = min(best[c.arm], state.measured(id)["val_loss"] or math.inf)
    assert warm["best"] == best
    lowest = min(state.results.values(), key=lambda r: r.val_loss or math.inf)
    assert warm["weights"] and (warm["weights"]["run"], warm["weights"]["val_loss"]) == (lowest.run, lowest.val_loss)
    line = [lowest.id]
    while (of := state.start_of(line[-1])) is not None:
        line.append(of)
    assert len(line) > 2 and warm["weights"]["tokens"] == sum(state.results[id, "search", 0].tokens for id in line)
    report.write(tmp_path, found, state, plots=False)
    page = (tmp_path / report.PAGE).read_text()
    assert f"--init-from {tmp_path / RUNS / lowest.run} --data" in page and "not token for token" in page
    assert re_line(page, f"After {warm['tokens']:,} tokens of each arm", f"{best['evolved']:.4f} for the best evolved")
    for e in summary(found, state)["ranking"]:
        own = sum(r.tokens for r in state.of(e["id"])) // 2
        assert e["inherited"] % own == 0 and (e["inherited"] > 0) == (e["id"] in state.starts)


# -- what is refused --------------------------------------------------------------------------------------------------
def test_what_is_refused(three: Driver, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--halving goes by .*, and with --warm-start project they do not begin alike"):
        Driver.create(question(warm_start="project", halving=0.05), tmp_path / "x", QUIET)
    run = next((three.folder / RUNS).iterdir())
    with pytest.raises(UserError, match="init_from: an experiment's first candidates begin with new weights"):
        Driver.create(question(init_from=str(run)), tmp_path / "x", QUIET)
    assert not (tmp_path / "x").exists()


def test_a_start_that_nobody_had(three: Driver) -> None:
    text = rows(three.folder / JOURNAL)
    at = next(i for i, line in enumerate(text) if line.get("start"))
    for start in ({"how": "exact"}, {"how": "exact", "of": "nobody", "why": None}):
        with pytest.raises(UserError, match="the journal is damaged: birth: "):
            State().take([*text[:at], text[at] | {"start": start}])
