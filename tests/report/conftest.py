"""Runs of the preset tiny, whose reports are tested."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copy(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the plain run, to change."""
    return shutil.copytree(runs["plain"], tmp_path / "copy")
