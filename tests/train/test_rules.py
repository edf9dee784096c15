"""The language of the setting `actions`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train.config import resolve
from helios.train.monitors.cusum import CHANNELS
from helios.train.rules import ALERTS, PLATEAU, Action, rules

from .runs import configured

FACTORS = st.floats(1 / 16, 16).filter(lambda x: abs(x - 1) > 1e-3)
CALM = st.sampled_from([0, 1, 200])


def read(value: Any) -> str:
    return configured(actions=value, steps=100).monitor.actions


def test_every_channel_has_its_alert() -> None:
    assert (*(c.column for c in CHANNELS), PLATEAU) == ALERTS


@pytest.mark.parametrize(("given", "canonical"), [
    ("", ""), (" ; ", ""),
    ("cusum_grad: lr*0.5 for 200", "cusum_grad: lr*0.5 for 200"),
    ("plateau:stop;cusum_grad :  lr * .50  for 7,clip*2.0", "cusum_grad: lr*0.5 for 7, clip*2; plateau: stop"),
    ("cusum_tps: batch - 4; cusum_clip: batch+2 for 1", "cusum_clip: batch+2 for 1; cusum_tps: batch-4"),
    ("cusum_memory: guard*4; cusum_flush: lr*2", "cusum_flush: lr*2; cusum_memory: guard*4"),
    ("cusum_val: branch lr*.25", "cusum_val: branch lr*0.25"), ("plateau: branch", "plateau: branch"),
])
def test_a_rule_has_one_spelling(given: str, canonical: str) -> None:
    assert read(given) == read(canonical) == canonical


def test_what_a_rule_means() -> None:
    assert rules(read("cusum_grad: guard*4 for 9, batch-2; cusum_val: branch clip*0.5; plateau: stop")) == (
        Action("cusum_grad", "guard", 4.0, 9), Action("cusum_grad", "batch", -2),
        Action("cusum_val", "branch", change=Action("cusum_val", "clip", 0.5)), Action("plateau", "stop"))


@given(st.dictionaries(st.sampled_from(ALERTS), st.tuples(FACTORS, CALM, st.integers(1, 9), st.booleans())))
def test_a_canonical_text_is_read_as_what_it_was_made_of(made: dict[str, tuple[float, int, int, bool]]) -> None:
    actions = tuple(action for alert in ALERTS if alert in made for x, calm, n, down in [made[alert]] for action in (
        Action(alert, "clip", x, calm), Action(alert, "batch", -n if down else n, calm), Action(alert, "branch")))
    text = "; ".join(f"{a.alert}: {a.text}" for a in actions)
    grouped = {alert: ", ".join(a.text for a in actions if a.alert == alert) for alert in made}
    assert rules(read("; ".join(f"{alert}: {text}" for alert, text in grouped.items()))) == actions, text


@pytest.mark.parametrize("toml", [
    '[monitor.actions]\nplateau = "stop"\ncusum_grad = "lr*0.5 for 200, clip*0.5"',
    '[monitor.actions]\nplateau = ["stop"]\ncusum_grad = ["lr*0.5 for 200", "clip*0.5"]',
    'actions = "plateau: stop; cusum_grad: lr*0.5 for 200, clip*0.5"',
])
def test_a_file_has_a_table(tmp_path: Path, toml: str) -> None:
    (tmp_path / "a.toml").write_text(toml)
    assert resolve("tiny", tmp_path / "a.toml").monitor.actions == "cusum_grad: lr*0.5 for 200, clip*0.5; plateau: stop"


@pytest.mark.parametrize(("toml", "words"), [
    ("[monitor.actions]\nplateau = 3", "a.toml: actions: expected rules, as ALERT: ACTION"),
    ("[monitor]\nactions = true", "a.toml: actions: expected rules, as ALERT: ACTION"),
    ('[monitor.actions]\nplateu = "stop"', "a.toml: actions: unknown alert 'plateu'; did you mean plateau?"),
])
def test_a_wrong_table(tmp_path: Path, toml: str, words: str) -> None:
    (tmp_path / "a.toml").write_text(toml)
    with pytest.raises(UserError) as error:
        resolve("tiny", tmp_path / "a.toml")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("rule", "words"), [
    ("cusum_grad: lr*0.5 for", "'lr*0.5 for': expected a whole number of steps, at least 1, after for, got ''"),
    ("cusum_grad: branch lr*0.5 for 5", "'branch lr*0.5 for 5': what a branch changes stays so; leave out 'for 5'"),
    ("cusum_grad: branch for", "leave out 'for'"), ("cusum_grad: stop for", "stop is for good"),
    ("grad: lr*0.5", "unknown alert 'grad'; did you mean cusum_grad?"),
])
def test_a_wrong_rule(rule: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read(rule)
    assert words in str(error.value)


# -- rules that can never act -----------------------------------------------------------------------------------------
BESIDE = "plateau: lr*0.5, stop"


@pytest.mark.parametrize(("settings", "words"), [
    ({"actions": BESIDE}, "actions: plateau: lr*0.5 cannot act beside stop, which ends the run"),
    ({"actions": "cusum_memory: lr*0.5", "backend": "cpu_ref"}, "actions: cusum_memory: cpu_ref has no memory"),
    ({"actions": "cusum_tps: batch-2", "batch_min": 4}, "actions: batch-2: batch_size 4 is batch_min already"),
    ({"actions": "cusum_tps: batch+2; cusum_clip: branch batch+1", "batch_max": 4}, "batch_size 4 is batch_max alrea"),
])
def test_what_can_never_act_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        configured(**settings)
    assert words in str(error.value)


def test_what_may_act_is_taken() -> None:
    read("cusum_memory: lr*0.5")  # the backend may come to be another than cpu_ref
    configured(actions="cusum_clip: batch+2; cusum_tps: batch-2", batch_min=4)
    read("plateau: stop; cusum_val: lr*0.5")


def test_a_run_of_before_keeps_its_rules() -> None:
    base = configured().to_dict()
    base["monitor"]["actions"] = BESIDE
    assert resolve(base=base, assignments=["steps=20"]).monitor.actions == BESIDE
    with pytest.raises(UserError, match="cannot act beside stop"):
        resolve(base=base, assignments=["actions=plateau: stop, clip*2"])
