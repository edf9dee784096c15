"""A store in a folder of its own, a board, a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios.train.board.store import Store

from .boards import Board, board
from .browser import Tab, chromium


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "board.sqlite")
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board for the tests of a file, each with runs of its own."""
    with board(tmp_path_factory.mktemp("board") / "runs") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """A board of the runs that a file makes by its own fixture of that name."""
    with board(runs) as found:
        yield found.url


@pytest.fixture
def tab(browser: Any, shared: Board) -> Iterator[Tab]:
    tab = Tab(browser, shared.url)
    yield tab
    tab.close()
