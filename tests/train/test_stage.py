"""The plan of a run: it is for its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios.errors import UserError
from helios.train.run import Planner, Run
from helios.train.search.search import Search, planned
from helios.train.stage import Plan

from .runs import SMALL, configured


@pytest.mark.parametrize(("plan", "settings", "message"), [
    (Plan, SMALL, r"ask for a search \(mode = ffn-activation\), and this run has no plan of one; make it with plan="),
    (Search, {}, "for settings without one; set mode"),
    (planned, SMALL | {"max_cost": 10}, "more than --max-cost 10"),
])
def test_a_plan_for_other_settings_is_refused(tmp_path: Path, plan: Planner, settings: dict[str, str], message: str
                                              ) -> None:
    with pytest.raises(UserError, match=message):
        Run.create(configured(**settings), tmp_path, plan=plan)
