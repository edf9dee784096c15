"""The board's page as runs and the board itself come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .boards import TOKEN, Board, board, event, row
from .browser import Tab, chromium

STEP = "Number(document.querySelector('.figures b')?.textContent.replaceAll(',', ''))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Any, shared: Board) -> Iterator[Tab]:
    tab = Tab(browser, shared.url)
    yield tab
    tab.close()


def _begin(of: Board, run_id: str, steps: int) -> None:
    of.run(run_id)
    of.post(run_id, "events", 0, [event(0, "run_start")])
    of.post(run_id, "metrics", 0, [row(step) for step in range(1, steps + 1)])


def _shows(page: Any, step: int, loss: str) -> None:
    page.wait_for_function(f"""() => {STEP} === {step}
        && document.querySelector('#chart-loss .legend b')?.textContent === '{loss}'""")


def test_steps_that_a_resumed_run_repeats_are_shown_anew(tab: Tab, shared: Board) -> None:
    _begin(shared, "cut", 20)
    page = tab.open("#runs=cut")
    _shows(page, 20, "0.5")
    shared.post("cut", "metrics", 20, [row(21, loss=9.5, grad_norm=2.0), row(22, loss=9.25)])
    _shows(page, 22, "9.25")
    page.wait_for_selector("#chart-grad_norm canvas")  # a chart whose first value has come
    fetched = len(tab.asked)
    shared.cut("cut", 15)
    _shows(page, 15, "0.6667")
    shared.post("cut", "metrics", 15, [row(16, loss=3.0)])
    _shows(page, 16, "3")
    assert page.locator("#chart-grad_norm").count() == 0
    assert len(tab.asked) > fetched  # for a bucket may have held rows that are gone


def test_search_grows_as_it_goes_on(tab: Tab, shared: Board) -> None:
    _begin(shared, "search", 3)
    page = tab.open("#runs=search")
    page.wait_for_selector("#chart-loss canvas")
    assert page.get_by_role("link", name="Search").count() == 0
    first = {"id": "gen0_gelu_1", "name": "G-Alpha", "activation": "gelu", "generation": 0, "parent_id": None}
    child = {"id": "gen2_relu_5", "name": "R-Beta", "activation": "relu", "generation": 2, "parent_id": first["id"]}
    shared.post("search", "candidates", 0, [first])
    page.get_by_role("link", name="Search").click()
    assert page.locator(".tree .node").count() == 1
    shared.post("search", "candidates", 0, [first | {"val_loss_mean": 4.25, "status": "complete"}, child])
    page.wait_for_selector(".tree .node >> nth=1")
    assert page.locator(".tree .node").first.text_content().endswith("G-Alpha4.2500")
    shared.post("search", "metrics", 3, [
        row(step, symbio_candidate_id=id, symbio_candidate_activation=name, symbio_generation=0, symbio_phase="search")
        for step, (id, name) in enumerate([(first["id"], "gelu")] * 2 + [(child["id"], "relu")] * 2, 4)])
    log = page.locator("table[aria-label='Switch log']")
    log.get_by_role("button", name="R-Beta").click()
    assert page.locator(".tree .node.picked").get_attribute("data-id") == child["id"]
    page.get_by_role("link", name="Charts").click()
    page.wait_for_selector("#chart-loss canvas")
    legend = page.locator("#chart-throughput .legend").inner_text()
    assert "gelu" in legend and "relu" in legend


def test_samples_events_and_checkpoints_come_in(tab: Tab, shared: Board) -> None:
    _begin(shared, "news", 3)
    page = tab.open("#runs=news&tab=events")
    page.wait_for_selector("text=run_start")
    shared.post("news", "samples", 0, [{"step": 3, "prompt": "Who?", "text": "I am Socrates."}])
    shared.run("news", checkpoints=[{"step": 3, "val_loss": 3.5, "bytes": 2048}])
    shared.post("news", "events", 1, [event(3, "checkpoint", "checkpoint step-000003")])
    page.wait_for_selector("text=checkpoint step-000003")
    page.get_by_role("link", name="Samples").click()
    page.wait_for_selector("text=I am Socrates.")
    page.get_by_role("link", name="Files").click()
    page.wait_for_selector("text=2.0 KiB")
    shared.post("news", "events", 2, [event(3, "diverged", "the loss is not finite")])
    page.locator(".title .status.failed").wait_for()
    assert page.locator(".reason").inner_text() == "the loss is not finite"


def test_page_goes_on_after_the_board_was_away(browser: Any, tmp_path: Path) -> None:
    with board(tmp_path / "runs") as first:
        _begin(first, "one", 5)
        tab = Tab(browser, first.url)
        page = tab.open("#runs=one")
        _shows(page, 5, "2")
    page.wait_for_function("() => document.querySelector('#live').textContent === 'reconnecting'")
    with board(tmp_path / "runs", "--port", first.url.rpartition(":")[2]) as second:
        second.post("one", "metrics", 5, [row(6, loss=1.25)])
        _shows(page, 6, "1.25")
        assert page.locator("#live").inner_text() == "live"
        assert len([url for url in tab.asked if "/series" in url]) == 1
    tab.complaints = [text for text in tab.complaints if "ERR_" not in text]  # the browser's own, while it was away
    tab.close()


def test_token_is_asked_for_where_reading_needs_one(browser: Any, tmp_path: Path) -> None:
    with board(tmp_path / "runs", "--host", "0.0.0.0") as found:
        _begin(found, "one", 5)
        tab = Tab(browser, found.url.replace("0.0.0.0", "127.0.0.1"))
        page = tab.open()
        for word in ("wrong", TOKEN):
            page.get_by_role("dialog").get_by_label("Token").wait_for()
            page.locator("#token").fill(word)
            page.get_by_role("button", name="Open").click()
        page.wait_for_selector("td.run_id a")
        page.reload()
        page.wait_for_selector("td.run_id a")  # kept for the session
        assert page.get_by_role("dialog").count() == 0
        tab.complaints = [text for text in tab.complaints if "401" not in text]  # the browser's own
        tab.close()
