"""Rules on series of alerts: what they do, how often, and what calm undoes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.train.monitors.actions import Actions
from helios.train.monitors.cusum import CHANNELS
from helios.train.rules import ALERTS

from .runs import configured, monitor_of

AT, STEPS = 300, 900
SHIFTS = {"cusum_grad": 2.5, "cusum_clip": 0.6, "cusum_tps": 0.7, "cusum_val": 1.2, "cusum_flush": 3.0,
          "cusum_memory": 1.5}


def made(table: str, **more: Any) -> Actions:
    return Actions(configured(actions=table, **{"steps": 100, "batch_size": 16, "batch_max": 32} | more))


def fed(actions: Actions, steps: list[str], usual: float | None = None, fits: bool = True) -> list[list[str]]:
    """What was done at each step, which has the alerts named in its text."""
    return [[str(one) for one in actions.update(dict.fromkeys(step.split(), "why"), usual, lambda size: fits)]
            for step in steps]


def at_rest(seed: int, steps: int) -> np.ndarray:
    """The series of the channels [steps, channels] of a run without a shift."""
    r = np.random.Generator(np.random.Philox(key=np.array([seed, 11], np.uint64)))
    return np.stack([0.4 * np.exp(r.normal(0, 0.25, steps)), np.minimum(1, 0.95 + r.normal(0, 0.05, steps)),
                     5000 * (1 + r.normal(0, 0.05, steps)), 3 + r.normal(0, 0.01, steps),
                     40 * np.exp(r.normal(0, 0.2, steps)), np.full(steps, 200.0)], 1)


def watched(actions: Actions, rows: np.ndarray) -> list[tuple[int, str]]:
    """(step, what was done) where something was, with the monitors' own alerts."""
    monitor, found = monitor_of(), []
    for step, row in enumerate(rows.tolist()):
        usual, columns = monitor.usual_norm(), monitor.update(*row)
        alerts = {c.column: columns["cusum_alert_reason"] for c in CHANNELS if c.bit & columns["cusum_alerts"]}
        found += [(step, f"{one.alert} {one.effect}") for one in actions.update(alerts, usual, lambda size: True)]
    return found


# -- regimes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("column", SHIFTS)
def test_a_new_regime_makes_each_action_act_once_and_calm_undoes_it(column: str) -> None:
    rows = at_rest(1, STEPS)
    rows[AT:, [c.column for c in CHANNELS].index(column)] *= SHIFTS[column]
    every = "; ".join(f"{c.column}: lr*0.5 for 200, clip*0.5, guard*4 for 150, batch-4 for 100" for c in CHANNELS)
    (acted, *_), *_ = found = watched(made(every), rows)
    assert AT <= acted < AT + 50
    assert [(step - acted, said.split(" ", 1)[1].partition(" to ")[0]) for step, said in found] == [
        (0, "factor on the rate 1"), (0, "clip 1"), (0, "spike threshold none"), (0, "batch 16"),
        (100, "batch 12"), (150, found[-2][1].split(" ", 1)[1].partition(" to ")[0]), (200, "factor on the rate 0.5")]
    assert {said.split()[0] for _, said in found} == {column}


def test_the_guard_stands_at_what_was_usual_before_the_alert() -> None:
    rows = at_rest(1, STEPS)
    rows[AT:, 0] *= 2.5
    actions = made("cusum_grad: guard*4")
    watched(actions, rows)
    assert actions.value("guard") == pytest.approx(4 * 0.4, rel=0.25)  # and not of 1.0, the norm's new size


def test_nothing_is_done_in_a_run_at_rest() -> None:
    every = "; ".join(f"{c.column}: lr*0.5, clip*0.5" for c in CHANNELS)
    assert [watched(made(every), at_rest(seed, 2000)) for seed in range(10)] == [[]] * 10


# -- onsets and bounds ------------------------------------------------------------------------------------------------
def test_alerts_that_go_on_are_one_onset() -> None:
    """One alert after another, never apart by as many calm steps as a rule waits for."""
    actions = made("cusum_grad: lr*0.5 for 3, clip*0.5", calm_steps_before_restore=5)
    steps = ["cusum_grad", "cusum_grad", "", "", "cusum_grad", "", "cusum_tps", "", "cusum_grad", "", "", "", "", "",
             "cusum_grad"]
    said = fed(actions, steps)
    assert {n: len(found) for n, found in enumerate(said) if found} == {0: 2, 7: 1, 8: 1, 11: 1, 14: 2}
    assert said[7] == ["cusum_grad: lr*0.5 for 3: factor on the rate 0.5 to 1 (3 calm steps)"]
    assert said[14][1] == "cusum_grad: clip*0.5: clip 0.5 to 0.25 (why)"  # which stays, and another onset tightens


def test_factors_have_a_bound() -> None:
    actions = made("cusum_grad: lr*0.4; plateau: lr*0.4, clip*4", calm_steps_before_restore=1)
    rates = []
    for step in ["cusum_grad", "plateau", "cusum_grad", "", "cusum_grad", "", "plateau"]:
        fed(actions, [step])
        rates.append(actions.value("lr"))
    assert rates == pytest.approx([0.4, 0.16, 0.064, 0.064, 1 / 16, 1 / 16, 1 / 16])
    assert fed(actions, ["", "cusum_grad"]) == [[], []]  # at the bound nothing happens, and nothing is said
    assert actions.value("clip") == 16


def test_batches_keep_to_their_bounds() -> None:
    actions = made("cusum_clip: batch+12 for 3; cusum_tps: batch-20", batch_min=4)
    sizes = []
    for step in ["cusum_clip", "cusum_tps", "", "", ""]:
        fed(actions, [step])
        sizes.append(actions.value("batch"))
    assert sizes == [28, 8, 8, 4, 4] and all(isinstance(size, int) for size in sizes)


def test_a_batch_without_memory_waits_for_the_next_calm() -> None:
    actions = made("cusum_tps: batch-4 for 2")
    assert fed(actions, ["cusum_tps"]) == [["cusum_tps: batch-4 for 2: batch 16 to 12 (why)"]]
    no = ["cusum_tps: batch-4 for 2: no memory for a batch of 16 (2 calm steps)"]
    assert fed(actions, [""] * 4, fits=False) == [[], no, [], no] and actions.value("batch") == 12
    assert fed(actions, ["", ""]) == [[], ["cusum_tps: batch-4 for 2: batch 12 to 16 (2 calm steps)"]]


def test_the_lowest_guard_counts() -> None:
    actions = made("cusum_grad: guard*3 for 2; cusum_val: guard*2 for 4", spike_threshold=10)
    assert fed(actions, ["cusum_val"]) == [["cusum_val: guard*2 for 4: the usual gradient norm is not known yet (why)"]]
    fed(actions, [""] * 4)
    seen = [(fed(actions, [step], 2.0), actions.value("guard"))[1] for step in
            ["cusum_grad", "cusum_val", "", "", "", ""]]
    assert seen == [6, 4, 4, 4, 4, 10]
    assert made("", spike_threshold=10).value("guard") == 10 and made("cusum_grad: guard*9").value("guard") == 0


@pytest.mark.parametrize(("table", "what", "steps", "values", "told"), [
    ("cusum_grad: guard*2 for 2; cusum_val: guard*4 for 5", "guard", ["cusum_grad", "cusum_val", "", "", "", "", ""],
     [2, 2, 4, 4, 4, 4, 0], {0: "none to 2", 2: "2 to 4", 6: "4 to none"}),
    ("cusum_grad: guard*2 for 4; cusum_val: guard*4 for 2", "guard", ["cusum_val", "cusum_grad", "", "", "", ""],
     [4, 2, 2, 2, 2, 0], {0: "none to 4", 1: "4 to 2", 5: "2 to none"}),
    ("cusum_grad: lr*0.1 for 2; cusum_val: lr*0.1 for 2; plateau: lr*0.1 for 4", "lr",
     ["cusum_grad cusum_val", "plateau", "", "", "", ""], [1 / 16, 1 / 16, 0.1, 0.1, 0.1, 1],
     {0: "1 to 0.1 0.1 to 0.0625", 2: "0.0625 to 0.1", 5: "0.1 to 1"}),
    ("cusum_tps: batch-14 for 2; cusum_val: batch-20", "batch", ["cusum_tps", "cusum_val", "", "cusum_val"],
     [4, 4, 4, 4], {0: "16 to 4"}),
])
def test_what_another_rule_hides_counts_once_that_is_undone(table: str, what: str, steps: list[str],
                                                           values: list[float], told: dict[int, str]) -> None:
    actions = made(table, batch_min=4)
    done = [(fed(actions, [step], 1.0)[0], actions.value(what)) for step in steps]
    assert [value for _, value in done] == pytest.approx(values)
    changes = [" ".join(" ".join(one.split(" (")[0].split()[-3:]) for one in said) for said, _ in done]
    assert {n: text for n, text in enumerate(changes) if text} == told


@pytest.mark.parametrize(("rule", "back", "value"), [
    ("lr*0.5", "lr*4", 1 / 4), ("clip*0.5", "clip*4", 1 / 4), ("batch-5", "batch+4", 5)])
def test_at_a_bound_of_its_own_a_rule_goes_no_further(rule: str, back: str, value: float) -> None:
    """So that however often it acted, another one leads away from there."""
    actions = made(f"cusum_grad: {rule}; plateau: {back}", calm_steps_before_restore=1, batch_min=4)
    fed(actions, ["cusum_grad", ""] * 20 + ["plateau"])
    assert actions.value(rule.strip("*-.05")) == value


def test_stop_and_branch() -> None:
    actions = made("plateau: stop; cusum_val: branch lr*0.5; cusum_grad: branch")
    wanted = [(fed(actions, [step]), actions.wanted)[1] for step in ["", "cusum_val", "", "cusum_grad", ""]]
    assert wanted == [None, "lr*0.5", None, "", None] and not actions.stopped
    assert fed(actions, ["plateau"]) == [["plateau: stop: the training ends (why)"]]
    assert actions.stopped == "plateau: stop (why)"


# -- state ------------------------------------------------------------------------------------------------------------
TABLE = ("cusum_grad: lr*0.3 for 3, guard*3 for 5, clip*0.7; cusum_clip: clip*3, batch+5 for 2; cusum_tps: batch-4, "
         "lr*0.7; cusum_val: branch lr*0.5; cusum_memory: lr*1.7 for 2; plateau: guard*2, lr*0.9")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from(ALERTS), max_size=2), st.none() | st.floats(0.1, 9)), max_size=60),
       st.data())
def test_restored_is_never_stopped(steps: list[tuple[list[str], float | None]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(steps)))
    make = lambda: made(TABLE, calm_steps_before_restore=4)
    whole, first, second = make(), make(), make()
    on = lambda actions, some: [
        (fed(actions, [" ".join(alerts)], usual), [actions.value(what) for what in actions.base], actions.wanted)
        for alerts, usual in some]
    expected, begun = on(whole, steps), on(first, steps[:at])
    saved = json.dumps(first.state(), allow_nan=False, sort_keys=True)
    second.restore(json.loads(saved))
    assert begun + on(second, steps[at:]) == expected
    assert second.state() == whole.state() and json.dumps(first.state(), sort_keys=True) == saved


def test_another_table_keeps_what_is_in_both() -> None:
    old = made("cusum_grad: lr*0.5, clip*0.5; plateau: stop")
    new = made("cusum_grad: lr*0.5, clip*0.7; cusum_val: stop")
    fed(old, ["cusum_grad plateau"])
    new.restore(json.loads(json.dumps(old.state())))
    assert (new.value("lr"), new.value("clip"), new.stopped) == (0.5, 1, "")
    new.restore(json.loads(json.dumps(new.state())))  # as killed before its next step
    undone = "cusum_grad: clip*0.5: clip 1 again (the rule is no more)"
    assert fed(new, ["cusum_grad"]) == [[undone, "cusum_grad: clip*0.7: clip 1 to 0.7 (why)"]]  # the other: its onset
    new.restore(json.loads(json.dumps(new.state())))
    assert fed(new, [""]) == [[]]


def test_a_monitor_of_before_has_no_such_channels() -> None:
    monitor, whole = monitor_of(), monitor_of()
    rows = at_rest(3, 400).tolist()
    for row in rows[:200]:
        monitor.update(*row[:4])
    kept = {column: state for column, state in monitor.state().items() if column not in ("cusum_flush", "cusum_memory")}
    again = monitor_of()
    again.restore(kept)
    for row in rows[:200]:
        whole.update(*row[:4])
    older = lambda columns: [columns[c.column] for c in CHANNELS[:4]]
    assert [older(again.update(*row)) for row in rows[200:]] == [older(whole.update(*row[:4])) for row in rows[200:]]
