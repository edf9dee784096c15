"""The plan that a run's settings ask for."""

from __future__ import annotations

from helios.train.challenge.leaving import Alone
from helios.train.challenge.plan import Challenge
from helios.train.config import Config
from helios.train.search.search import Search
from helios.train.stage import Plan


def planned(config: Config) -> Plan:
    """Return the plan of a search before the training or during it, or of a training alone."""
    return Search(config) if config.search else Challenge(config) if config.challenged else Alone(config)
