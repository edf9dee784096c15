"""An experiment in its directory: what is kept when it is interrupted, and what it refuses before any work."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helios.bench.planted import Planted, question
from helios.errors import UserError
from helios.train.evolve.driver import Driver
from helios.train.evolve.journal import Journal
from helios.train.evolve.trainings import Job, Results
from helios.train.progress import Display
from helios.train.records.journal import JOURNAL
from helios.train.synth import corpus

QUIET = Display(quiet=True)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/train/evolve/test_report.py has them."""
    monkeypatch.setattr("helios.train.evolve.plots.draw", lambda *given: {})


class Interrupted(Planted):
    """Gives results in any order, and is interrupted now and then."""

    def __init__(self, *given: Any, often: float = 0.05) -> None:
        super().__init__(*given)
        self.random, self.often = random.Random(1), often

    def __call__(self, jobs: Sequence[Job]) -> Results:
        found = list(super().__call__(jobs))
        self.random.shuffle(found)
        for pair in found:
            if self.random.random() < self.often:
                raise KeyboardInterrupt
            yield pair


def journal(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    assert found[0].pop("id")  # a random one
    return found


@pytest.mark.parametrize("together", [1, 5])
def test_interrupted_and_resumed_the_journal_is_the_same(tmp_path: Path, together: int) -> None:
    whole = Driver.create(question(), tmp_path / "whole", QUIET)
    assert whole.run(Planted(whole.experiment.space))
    driver, times = Driver.create(question(), tmp_path / "parts", QUIET), 0
    executor = Interrupted(driver.experiment.space)
    while not driver.run(executor, together):
        driver, times = Driver.resume(tmp_path / "parts", QUIET), times + 1
        if times % 3 == 0:  # a kill in the middle of writing
            with open(tmp_path / "parts" / JOURNAL, "ab") as file:
                file.write(b'{"kind": "result", "id": "ge')
    assert times > 3 and journal(tmp_path / "parts") == journal(tmp_path / "whole")
    before = (tmp_path / "parts" / JOURNAL).read_bytes()
    assert Driver.resume(tmp_path / "parts", QUIET).run(Planted(driver.experiment.space))  # nothing is left to do
    assert (tmp_path / "parts" / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("left", ["", '{"kind": "exper'])
def test_killed_before_its_first_line_it_can_begin_anew(left: str, tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / JOURNAL).write_text(left)
    driver = Driver.create(question(generations=1, validation_replicates=0), tmp_path, QUIET)
    assert driver.run(Planted(driver.experiment.space)) and journal(tmp_path)[-1]["kind"] == "end"


def test_a_text_that_has_changed(tmp_path: Path) -> None:
    """Its results would not compare with those before; of an experiment that is over nothing is trained any more."""
    text, rest = tmp_path / "text.txt", tmp_path / "rest.txt"
    whole, end = corpus(64_000, 0), corpus(8_000, 1)
    text.write_text(whole)
    rest.write_text(end)
    asked = question(generations=2)
    asked = replace(asked, base=asked.base.replaced("data", data=str(text), val_data=str(rest)))
    driver = Driver.create(asked, tmp_path / "x", QUIET)
    assert not driver.run(Interrupted(driver.experiment.space, often=0.5))
    assert not Driver.resume(tmp_path / "x", QUIET).run(Interrupted(driver.experiment.space, often=1))
    text.write_text(whole[::-1])
    with pytest.raises(UserError, match=r"text\.txt or .*rest\.txt is no longer what the experiment began with"):
        Driver.resume(tmp_path / "x", QUIET)
    text.write_text(whole[:-7])  # the same in all, divided elsewhere
    rest.write_text(whole[-7:] + end)
    with pytest.raises(UserError, match="is no longer what the experiment began with"):
        Driver.resume(tmp_path / "x", QUIET)
    text.write_text(whole)
    rest.write_text(end)
    assert Driver.resume(tmp_path / "x", QUIET).run(Planted(driver.experiment.space))
    text.unlink()
    assert Driver.resume(tmp_path / "x", QUIET).run(Planted(driver.experiment.space))


def test_a_result_is_written_before_the_next_training(tmp_path: Path) -> None:
    class Watched(Planted):
        def __call__(self, jobs: Sequence[Job]) -> Results:
            for pair in super().__call__(jobs):
                yield pair
                assert journal(tmp_path / "x")[-1].get("run") == jobs[pair[0]].name

    driver = Driver.create(question(generations=2), tmp_path / "x", QUIET)
    assert driver.run(Watched(driver.experiment.space))


def test_what_the_disk_refuses_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = list[Any]()

    def append(own: Journal, entries: Sequence[Any]) -> None:
        if entries[0]["kind"] == "result":
            refused.append(entries)
            raise UserError("no room")
        write(own, entries)

    write = Journal.append
    monkeypatch.setattr(Journal, "append", append)
    driver = Driver.create(question(), tmp_path / "x", QUIET)
    with pytest.raises(UserError, match="no room"):
        driver.run(Planted(driver.experiment.space))
    assert len(refused) == 1


def test_where_a_line_cannot_be_written_trainings_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, ended = Driver.create(question(), tmp_path / "x", QUIET), []

    def results(jobs: Sequence[Job]) -> Results:
        monkeypatch.setattr(Journal, "append", refuse)
        try:
            yield from Planted(driver.experiment.space)(jobs)
        finally:
            ended.append(True)

    def refuse(*given: object) -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room") as refusal:
        driver.run(results)
    assert ended and refusal  # while something still refers to where it was


def damaged(folder: Path, change: Any) -> None:
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(("change", "message"), [
    (lambda lines: [*lines[:5], lines[5][:20] + b"\n", *lines[6:]], "line 6, is damaged"),
    (lambda lines: lines[1:], "its first line is not that of an experiment"),
    (lambda lines: [lines[0].replace(b'"version": 1', b'"version": 9'), *lines[1:]], "no journal of version 1"),
    (lambda lines: [*lines[:5], lines[4], *lines[5:]], "is born twice"),
    (lambda lines: [*lines, b'{"kind": "weather"}\n'], "weather"), (lambda lines: [], "holds no experiment"),
    (lambda lines: [*lines, lines[0]], "two experiments"),
    (lambda lines: [lines[0], lines[2]], "the journal is damaged: birth"),
    (lambda lines: [*lines[:3], *lines[4:]], "the journal is damaged: result: gen0_.* was not born"),
    (lambda lines: [b'{"kind": "experiment", "version": 1, "id": "x"}\n'], "its first line is not what an experiment")])
def test_a_damaged_journal_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    driver = Driver.create(question(generations=1, validation_replicates=0), tmp_path / "x", QUIET)
    assert driver.run(Planted(driver.experiment.space))
    damaged(tmp_path / "x", change)
    with pytest.raises(UserError, match=message):
        Driver.resume(tmp_path / "x", QUIET)


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("")
    driver = Driver.create(question(generations=1, validation_replicates=0), tmp_path / "there", QUIET)
    assert driver.run(Planted(driver.experiment.space))
    for name, message in (("file", "is a file"), ("full", "is not empty"), ("there", "go on with it with --resume")):
        with pytest.raises(UserError, match=message):
            Driver.create(question(), tmp_path / name, QUIET)
    with pytest.raises(UserError, match="holds no experiment"):
        Driver.resume(tmp_path / "full", QUIET)
    with FileLock(tmp_path / "there" / "lock"), pytest.raises(UserError, match="is in use by another process"):
        Driver.resume(tmp_path / "there", QUIET).run(Planted(driver.experiment.space))


@pytest.mark.parametrize(("settings", "message"), [
    ({"objectives": "val_los"}, "unknown objective 'val_los'; did you mean val_loss"),
    ({"objectives": ""}, "objectives"), ({"fitness": "-val_loss + lr"}, "nothing measured is called 'lr'"),
    ({"fitness": "__import__('os')"}, "cannot be part|unknown function"),
    ({"fitness": "inverse"}, "needs free_energy, which is not measured in an experiment"),
    ({"population_size": 1}, "at least 2"), ({"per_candidate": 0}, "greater than 0"), ({"budget": "steps"}, "budget"),
    ({"max_cost": 1000}, "may come to 178,000 tokens, more than --max-cost 1,000;"),
    ({"total": 10}, "do not suffice for one generation"),
    ({"population_min": 9}, "expected from population_min 9"), ({"generations": 0}, "at least 1"),
    ({"halving": 0.05, "objectives": "val_loss,instability"}, "--halving stops those that are behind in one"),
    ({"mode": "ffn-activation"}, "do not search themselves; leave search = ffn-activation out"),
    ({"actions": "plateau: branch"}, "do not search themselves; leave branch in actions out"),
    ({"challenge_interval": 5}, "do not search themselves; leave challenge_interval out"),
    ({"steps_per_candidate": 5}, "do not search themselves; leave steps_per_candidate out"),
    ({"adaptive_batch": "true"}, "adaptive_batch makes steps of different sizes"),
    ({"actions": "cusum_clip: batch+4"}, "a batch in actions makes steps of different sizes"),
    ({"genes": "adaptive_batch=true|false,accum"}, "gene adaptive_batch: candidates are compared by trainings"),
    ({"genes": "cusum=true|false", "fitness": "-instability"}, "gene cusum: it says what an alert is"),
    ({"genes": "lr,cusum_sensitivity=1..99", "objectives": "val_loss,alerts"}, "gene cusum_sensitivity: it says what"),
    ({"genes": "activation=gelu", "activations": "global"}, "gene activation: gelu alone leaves nothing to vary"),
    ({"genes": "lr,lr=1e-4..1e-3"}, "gene lr is there twice"),
    ({"genes": "lr=,beta2"}, "gene lr: nothing follows the ="), ({"per_candidate": 10}, "less than a step"),
    ({"stop_loss": 5.0}, "stop_loss 5 ends nothing while stop_loss_after is 0"),
    ({"fitness": "quality", "objectives": "val_loss"}, "--set: fitness and objectives are both given"),
    ({"generations": 10**13}, "more than --max-cost"), ({"seed": 2**63 - 1}, "have the seeds after it")])
def test_what_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Driver.create(question(**settings), tmp_path / "x", QUIET)
    assert not (tmp_path / "x").exists()


def test_what_it_comes_to_in_words(tmp_path: Path) -> None:
    asked = question("activation", population_min=4, population_max=12)
    said = Driver.create(asked, tmp_path / "x", QUIET).preview()
    assert said.startswith("genes: activation\nchosen by val_loss\nat most 4 generations of 4 to 12 and as many random "
                           "ones, 2 trainings each of 1,000 tokens\nat most 178 trainings of 15 steps, and 24 of 31 ")


def test_steps_and_disk_in_words(tmp_path: Path) -> None:
    asked = question("batch=2|4|8", fitness="-val_loss", generations=1)
    said = Driver.create(replace(asked, given=[{"run": "runs/a", "batch_size": 8, "lr": 9.0}, {"lr": 1.0}]),
                         tmp_path / "x", QUIET).preview().splitlines()
    assert said[1:4] == ["a first candidate has of runs/a: batch_size 8; all else is the preset's",
                         "a first candidate has of a run: nothing that varies here; all else is the preset's",
                         "chosen by the fitness -val_loss"]
    size = 24 * asked.base.model.parameters() * 58 / 1e6
    assert "at most 34 trainings of 7 to 31 steps, and 24 of 15 to 62 steps at the end" in said[5]
    assert said[7].startswith(f"at most {size:,.0f} MB of disk")


@pytest.mark.parametrize(("how", "genes", "others"), [
    ("fresh", "lr,n_layer", None), ("project", "lr,n_embd=16|32", ""), ("exact", "lr,beta2", ""),
    ("exact", "lr,n_layer,n_embd=16|32,activation=gelu|swiglu", "n_layer or n_embd or activation"),
    ("prefix", "lr,n_layer,n_embd=16|32,activation=gelu|relu", "n_embd")])
def test_what_children_begin_with_in_words(how: str, genes: str, others: str | None, tmp_path: Path) -> None:
    said = Driver.create(question(genes, warm_start=how), tmp_path / "x", QUIET).preview().splitlines()
    fresh = f"; those of other shapes, by {others}, with new ones" if others else ""
    line = f"children begin with the weights of their parents, --warm-start {how}{fresh}"
    assert [x for x in said if x.startswith("children")] == ([line] if others is not None else [])


class Told(Display):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines = list[str]()

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_what_is_said_meanwhile(tmp_path: Path) -> None:
    told = Told()
    driver = Driver.create(question(generations=3, halving=0.5, replicates=2), tmp_path / "x", told)
    assert driver.run(Planted(driver.experiment.space))
    text, arms = "\n".join(told.lines), {id: c.arm for id, c in driver.state.born.items()}
    assert told.lines[0] == f"experiment {driver.experiment.id} in {tmp_path / 'x'}"
    assert "generation 0: the preset, 8 candidates and as many random ones, as asked" in text
    assert "generation 1: 8 candidates and as many random ones" in text
    for id, arm in arms.items():
        if id not in driver.state.reused:
            assert f"{id}.s0{'' if arm == 'evolved' else f' ({arm})'} at 25%: val " in text
    assert {arms[id] for id in driver.state.dropped} == {"evolved", "random"}
    for id, why in driver.state.dropped.items():
        assert f"worse than the best {arms[id]} one " in why
        assert f"{id}{' (random)' * (arms[id] == 'random')} goes no further: " in text
    trained = {(r.id, r.phase, r.replicate) for r in driver.state.results.values()}
    assert told.lines[-1].endswith(f"; 0 to come in this round, {len(trained)} of at most 122 made")
    told.lines.clear()
    assert Driver.resume(tmp_path / "x", told).run(Planted(driver.experiment.space))
    assert len(told.lines) == 2 and told.lines[1].startswith(f"it is finished after {len(trained)} trainings")


@pytest.mark.parametrize(("genes", "texts", "message"), [
    ("block_size=16|1024", {"val_data": "hello world " * 40}, "a block of 1,024 needs at least 1,025"),
    ("lr", {"val_data": "hello"}, "the validation text has . tokens, but a block of 16 needs at least 17"),
    ("lr", {"data": "hello world " * 99}, "vocabulary")])
def test_texts_that_do_not_suffice(genes: str, texts: dict[str, str], message: str, tmp_path: Path) -> None:
    asked = question(genes, per_candidate=10_000)
    for key, text in texts.items():
        (tmp_path / key).write_text(text)
        asked = replace(asked, base=asked.base.replaced("data", **{key: str(tmp_path / key)}))
    with pytest.raises(UserError, match=message):
        Driver.create(asked, tmp_path / "x", QUIET)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("genes", "settings", "given"), [
    ("batch=1|2", {}, [{"batch_size": 64}]), ("batch=1|2,accum=1|4", {}, [{"batch_size": 16}]),
    ("batch=1|2", {"batch_size": 64}, []), ("lr", {"batch_size": 64}, [])])
def test_no_step_is_more_than_the_budget(genes: str, settings: dict[str, Any], given: list[dict[str, Any]],
                                         tmp_path: Path) -> None:
    """Whoever reads more would have an advantage, be it the preset or a run that it began from."""
    with pytest.raises(UserError, match="are less than a step of the largest batch that may be tried, 1,024"):
        Driver.create(replace(question(genes, **settings), given=given), tmp_path / "x", QUIET)


def test_more_seeds_than_candidates(tmp_path: Path) -> None:
    asked = replace(question(population_size=2), given=[{"lr": 1e-3 * i} for i in (1, 2, 3)])
    with pytest.raises(UserError, match="--seed-from was given 3 times, and a generation has 2"):
        Driver.create(asked, tmp_path / "x", QUIET)


def test_without_validation_data(tmp_path: Path) -> None:
    asked = replace(question(), base=question().base.replaced("data", val_data=None))
    with pytest.raises(UserError, match="give a text with --val-data"):
        Driver.create(asked, tmp_path / "x", QUIET)
