"""Runs that search with genome = operators: the winner's training, what is trained once, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.cli.export import main as export
from helios.cli.sample import main as sample
from helios.cli.train import main as train
from helios.errors import UserError
from helios.model import GPT
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.loop import Loop
from helios.train.report import facts, reading
from helios.train.search import files, operators, report
from helios.train.search.births import genome_key

from ..commands import invoke, refused
from . import made_up
from .runs import Make, candidates, configured, final, rows, summary
from .test_operators import VARIED, in_effect

# -- runs -------------------------------------------------------------------------------------------------------------
RUN = {"genome": "operators", "activation_pool": "gelu|swiglu", "population_size": 6, "generations": 3,
       "replicates": 1, "steps_per_candidate": 4, "candidate_eval_interval": 4, "seed": 3}


@pytest.fixture
def changed_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more of its settings differ from the run's, the better a model is."""
    own = in_effect(configured().model)
    monkeypatch.setattr(Loop, "evaluate", lambda self: 9.0 - sum(
        value != own[name] for name, value in in_effect(self.state.model.config).items() if name in VARIED))


def test_the_winner_is_trained_with_its_settings(search: Make, each_backend: Backend, changed_wins: None) -> None:
    t = search(each_backend, **RUN)
    assert t.run()
    found, told = candidates(t), summary(t)
    won = min((c for c in found if c["status"] == "complete"), key=lambda c: c["val_loss_mean"])
    own = won["settings"]
    assert own and told["winner"] == won["id"] and won["val_loss_mean"] == 9 - len(own)
    assert told["winner_settings"] == told["ranking"][0]["settings"] == own
    config = json.loads((t.records.path / "config.json").read_text())
    assert (config["symbio_winner"], config["symbio_winner_settings"]) == (won["activation"], own)
    state = checkpoint.latest(t.records.path)[0].state
    assert {name: state["model"][name] for name in own} == own
    alone = search(each_backend, "alone", mode="none", activation=won["activation"], seed=3, **own)
    assert alone.run() and alone.state.model.config == t.state.model.config and final(t) == final(alone)
    words = f"{won['activation']} with {operators.shown(own)}"
    assert t.plan.outcome().endswith(f"winner {told['winner_name']} ({words})")


def test_equal_genomes_are_trained_once(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, **RUN | {"activation_pool": "gelu", "mutation_rate": 0.5, "crossover_rate": 0})
    assert t.run()
    found, keys = candidates(t), [genome_key(c) for c in files.read(t.records.path)[0]]
    assert [c["status"] for c in found] == ["reused" if key in keys[:i] else "complete" for i, key in enumerate(keys)]
    assert {c["status"] for c in found} == {"reused", "complete"}
    # The same genome in a search whose own settings it has: the same bits.
    one = max((c for c in found if c["status"] == "complete"), key=lambda c: len(c["settings"]))
    alone = search(cpu_ref, "alone", **RUN | {"genome": "global", "activation_pool": one["activation"],
                                              "population_size": 1, "generations": 1} | one["settings"])
    assert alone.run() and candidates(alone)[0]["val_loss_mean"] == one["val_loss_mean"]
    assert candidates(alone)[0]["parameters"] == one["parameters"]


def test_diversity_counts_settings(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, **RUN | {"activation_pool": "gelu", "generations": 1, "population_size": 4, "after": "none"})
    assert t.run()
    last = rows(t)[-1]
    assert last["activation_distribution"] == {"gelu": 1.0}
    assert (last["architecture_diversity"], last["population_entropy"]) == (1.0, 2.0)


def test_equal_formulas_are_no_diversity(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, **RUN | {"genome": "global", "genomes": "gelu||gelu(x)", "generations": 1, "after": "none"})
    assert t.run()
    assert (rows(t)[-1]["architecture_diversity"], rows(t)[-1]["population_entropy"]) == (0.5, 0.0)


def test_from_the_command_line(tmp_path: Path, each_backend: Backend, changed_wins: None) -> None:
    """A search that trains its winner, which is then continued, sampled and exported, and reported on."""
    (tmp_path / "search.toml").write_text(toml("operators.toml"))
    run = tmp_path / "run"
    small = ("population_size=6", "generations=2", "replicates=1", "steps_per_candidate=2", "candidate_eval_interval=2")
    done = invoke(train, "--preset", "tiny", "--search-config", tmp_path / "search.toml", "--steps", "2", "--run-dir",
                  run, "--backend", each_backend.name, *(word for text in small for word in ("--set", text)))
    assert done.exit_code == 0, done.output
    found, told = files.read(run)
    won = next(c for c in found if c.id == told["winner"])
    assert len(found) == 12 and won.settings
    said = f"{won.activation} with {operators.shown(won.settings)}"
    assert f"winner {won.name} ({said})" in done.stdout.splitlines()[-1]
    page = (run / "search" / "report.md").read_text().replace("\\", "")
    assert page.startswith(f"# {said} ({won.name}")
    assert "| settings " in page and all(f"| {operators.shown(c.settings) or '–'} " in page for c in found)
    assert facts.activation(reading.read(run)).replace("\\", "") == f"{said}, by a search"
    refused(invoke(train, "--resume", run, "--steps", "4", "--softcap", "7"),
            "softcap was 30.0 when the search began, and is 7.0: it cannot change in a run with a search")
    done = invoke(train, "--resume", run, "--steps", "4", "--backend", each_backend.name)
    assert done.exit_code == 0, done.output
    assert json.loads((run / "config.json").read_text())["symbio_winner_settings"] == won.settings
    assert invoke(sample, "--run", run, "--prompt", "Hi", "--tokens", "4").exit_code == 0
    assert invoke(export, run, "--out", tmp_path / "model").exit_code == 0
    model = GPT.load(tmp_path / "model", each_backend).config
    assert {name: getattr(model, name) for name in won.settings} == won.settings


def toml(name: str) -> str:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    return page.partition(f"```toml\n# {name}")[2].partition("\n")[2].partition("```")[0]


def test_the_page_has_settings_that_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "operators.toml").write_text(toml("operators.toml"))
    cfg = resolve("tiny", search_file=tmp_path / "operators.toml").search
    assert (cfg.genome, len(cfg.pool)) == ("operators", 3) and cfg.population_size > 3
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    assert all(f"`{name}`" in page for name in VARIED)


# -- files of others --------------------------------------------------------------------------------------------------
PLAN = [("G-Alpha", "gelu", 0, None, 3.4), ("R-Beta", "relu", 0, None, 3.3), ("R-Beta.1", "relu", 1, 1, 3.2)]


def test_files_of_old_searches_are_read(made: made_up.Make) -> None:
    run = made(PLAN).run
    path = run / "search" / files.CANDIDATES
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.pop("settings") == {} for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = json.loads((run / "search" / files.SUMMARY).read_text())
    del told["winner_settings"]
    for entry in told["ranking"]:
        del entry["settings"]
    (run / "search" / files.SUMMARY).write_text(json.dumps(told))
    found, summary = files.read(run)
    assert [c.settings for c in found] == [{}] * 3 and "winner_settings" not in summary
    page = report.write(run, plots=False).read_text()
    assert "settings" not in page.partition("## Ranking")[2].partition("## ")[0]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"softcap": -1.0}, "softcap: expected at least 0"), ({"norm": "batch"}, "norm: expected one of layer, rms"),
    ({"colour": 1}, "unknown setting 'colour'")])
def test_damaged_settings(made: made_up.Make, wrong: dict[str, Any], message: str) -> None:
    run = made(PLAN)
    run.candidates[1] = replace(run.candidates[1], settings=wrong)
    lines = "".join(json.dumps(c.to_json()) + "\n" for c in run.candidates)
    (run.run / "search" / files.CANDIDATES).write_text(lines)
    with pytest.raises(UserError, match=f"line 2, is damaged: {message}"):
        files.read(run.run)


def test_what_differs_is_shown(made: made_up.Make) -> None:
    run = made(PLAN, genome="operators")
    last = run.candidates[2]
    run.candidates[2] = replace(
        last, settings={"softcap": 0.0, "norm": "rms"}, status="complete", mutation="softcap 30→0; norm layer→rms",
        replicates=[replace(r, val_loss=r.val_loss - 0.3) for r in last.replicates], val_loss_mean=3.0)
    run.save()
    page = report.write(run.run, plots=False).read_text().replace("\\", "")
    assert page.splitlines()[0].startswith("# relu with softcap 0, norm rms (R-Beta.1) won, separated")
    assert "R-Beta.1 (relu with softcap 0, norm rms) " in page and "| softcap 0, norm rms " in page
    assert "* **R-Beta.1**, relu with softcap 0, norm rms (softcap 30→0; norm layer→rms): 3.0000" in page
    table = report.table(*files.read(run.run))
    assert table.columns[-1].header == "settings"
    assert next(iter(table.columns[-1].cells)).plain == "softcap 0, norm rms"
