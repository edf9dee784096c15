"""The board's page as runs and the board itself come and go."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from .boards import CONFIG, TOKEN, Board, board, event, row
from .browser import Tab

STEP = "Number(document.querySelector('.figures b')?.textContent.replaceAll(',', ''))"


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


def test_connection_that_fell_silent_is_made_anew(browser: Any, tmp_path: Path) -> None:
    with board(tmp_path / "runs") as found:
        _begin(found, "one", 5)
        tab = Tab(browser, found.url)
        tab.page.clock.install()
        page = tab.open("#runs=one")
        _shows(page, 5, "2")
        found.process.send_signal(signal.SIGSTOP)  # as after a sleep: the connection is there, and nothing comes
        page.clock.fast_forward(50_000)
        page.wait_for_function("() => document.querySelector('#live').textContent === 'reconnecting'")
        found.process.send_signal(signal.SIGCONT)
        found.post("one", "metrics", 5, [row(6, loss=1.25)])
        _shows(page, 6, "1.25")
        tab.close()


HIDE = """hidden => { Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
  document.dispatchEvent(new Event("visibilitychange")); }"""


def test_hidden_tab_leaves_its_connection_to_others_and_catches_up(tab: Tab, shared: Board) -> None:
    _begin(shared, "hidden", 5)
    page = tab.open("#runs=hidden")
    _shows(page, 5, "2")
    page.evaluate(HIDE, True)
    shared.post("hidden", "metrics", 5, [row(6, loss=1.25)])
    page.wait_for_timeout(500)
    assert page.evaluate(STEP) == 5
    page.evaluate(HIDE, False)
    _shows(page, 6, "1.25")
    assert len([url for url in tab.asked if "/series" in url]) == 1


def test_what_could_not_be_fetched_is_fetched_later(tab: Tab, shared: Board) -> None:
    _begin(shared, "later", 5)
    failing = [503, 503]
    tab.context.route("**/api/runs/later/series?*", lambda route: (
        route.fulfill(status=failing.pop(), body='{"error": "the board is busy"}') if failing else route.fallback()))
    page = tab.open("#runs=later")
    page.wait_for_selector("[role=alert]:has-text('busy')")
    _shows(page, 5, "2")
    page.wait_for_selector("[role=alert]", state="hidden")
    tab.complaints = [text for text in tab.complaints if "503" not in text]  # the browser's own


def test_tab_that_is_chosen_while_charts_are_fetched(tab: Tab, shared: Board) -> None:
    _begin(shared, "slow", 5)
    held: list[Any] = []
    tab.context.route("**/api/runs/slow/series?*", lambda route: held.append(route))
    page = tab.open("#runs=slow")
    page.get_by_role("link", name="Events").click()
    page.wait_for_selector("text=run_start")
    for route in held:
        route.continue_()
    shared.post("slow", "events", 1, [event(5, "alert", "the loss rises")])
    page.wait_for_selector("text=the loss rises")


def test_zoom_that_is_given_up_leaves_nothing_behind(tab: Tab, shared: Board) -> None:
    _begin(shared, "zoom", 60)
    page = tab.open("#runs=zoom")
    _shows(page, 60, "0.1667")
    held: list[Any] = []
    tab.context.route("**/api/runs/zoom/series?*from=1*", lambda route: held.append(route))
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(400)
    page.get_by_role("button", name="Show all").click()
    page.wait_for_timeout(400)
    assert len(held) == 1
    held[0].continue_()
    page.wait_for_timeout(400)
    plot = page.locator("#chart-loss .u-over").bounding_box()
    page.mouse.move(plot["x"] + 2, plot["y"] + 20)
    assert page.locator("#chart-loss .where").inner_text() == "step 1"


def test_charts_stay_where_a_zoomed_range_has_nothing(tab: Tab, shared: Board) -> None:
    shared.run("sparse")
    shared.post("sparse", "metrics", 0, [
        row(step, loss=None if 40 < step < 60 else 2.0) | ({"weight_entropy": 3.0} if step % 50 == 0 else {})
        for step in range(1, 101)])
    page = tab.open("#runs=sparse&zoom=45~49")
    with page.expect_response(lambda response: "from=45" in response.url):
        pass
    page.wait_for_timeout(300)
    assert page.locator("#chart-weight_entropy canvas").count() == page.locator("#chart-loss canvas").count() == 1


def test_values_beyond_all_bounds(tab: Tab, shared: Board) -> None:
    shared.run("huge")
    shared.post("huge", "metrics", 0, [row(1, grad_norm=5e-324), *(
        row(step, loss=loss, grad_norm=norm, lr=norm, tokens_per_sec=-loss) for step, loss, norm in (
            (2, 900.0, 1e308), (3, -1.7e308, 1.7e308), (4, 1.7e308, -1.0), (5, 1e40, 0.0)))])
    page = tab.open("#runs=huge")
    page.wait_for_selector("#chart-grad_norm canvas")
    assert page.locator("#chart-perplexity .legend b").first.inner_text() != "∞"
    page.get_by_label("Logarithmic axis of Loss", exact=True).click()
    page.get_by_label("Logarithmic axis of Gradient norm").click()
    page.get_by_role("link", name="Events").click()
    page.wait_for_selector("table[aria-label=Events]")


def test_values_are_read_with_the_keyboard(tab: Tab, shared: Board) -> None:
    _begin(shared, "keys", 5)
    page = tab.open("#runs=keys")
    _shows(page, 5, "2")
    page.locator("#chart-loss .plot").focus()
    for key, step, loss in (("ArrowRight", 1, "10"), ("ArrowRight", 2, "5"), ("ArrowLeft", 1, "10")):
        page.keyboard.press(f"Shift+{key}")
        page.locator(f"#chart-loss .where span:text-is('step {step}')").wait_for()
        assert page.locator("#chart-loss .legend b").first.inner_text() == loss
    assert page.locator("#chart-throughput .legend b").first.inner_text() == "101"  # the cursor is shared


def test_runs_without_rows_and_runs_that_are_none(tab: Tab, shared: Board) -> None:
    shared.run("empty")
    page = tab.open("#runs=empty")
    page.wait_for_selector("text=Nothing to draw yet")
    _begin(shared, "there", 5)
    page = tab.open("#runs=there,nowhere,empty")
    page.wait_for_selector("#chart-loss canvas")
    assert page.locator("[role=alert]").first.inner_text() == "no run nowhere"
    assert page.locator("table.compared tbody tr").count() == 2
    tab.complaints = [text for text in tab.complaints if "404" not in text]  # the browser's own


def test_losses_that_are_all_not_finite_are_seen(tab: Tab, shared: Board) -> None:
    shared.run("nan")
    shared.post("nan", "metrics", 0, [row(step, loss=float("nan")) for step in range(1, 9)])
    page = tab.open("#runs=nan")
    page.wait_for_selector("#chart-loss canvas")


def test_tokens_are_counted_where_the_batch_changes(tab: Tab, shared: Board) -> None:
    config = CONFIG | {"run_id": "batches", "train": {"steps": 10, "batch_size": 2, "accum": 3}}
    shared.run("batches", config=config)
    shared.post("batches", "metrics", 0, [row(1), row(2), *(
        row(step, adaptive_batch_size=4) for step in (3, 4, 5))])
    page = tab.open("#runs=batches&x=tokens")
    page.wait_for_selector("#chart-loss canvas")
    assert page.locator("output.where").inner_text() == f"96 to {(2 * 2 + 3 * 4) * 3 * 16}"
    page = tab.open("#runs=batches&x=tokens&zoom=100000100~100000200")
    page.wait_for_selector("output.where:text-is('100,000,100 to 100,000,200')")  # not 100 M to 100 M


def test_list_is_sorted_as_a_whole(tab: Tab, shared: Board) -> None:
    for i in range(305):
        shared.run(f"many{i:03}", config=CONFIG | {"run_id": f"many{i:03}", "parameters": 1000 + i})
    page = tab.open("#q=many&sort=-parameters")
    page.wait_for_selector("text=Show all 305 runs")
    first = page.locator("td.run_id a").first
    assert first.inner_text() == "many304"
    page.get_by_role("button", name="Parameters").click()
    assert first.inner_text() == "many000"
    shared.run("many999", config=CONFIG | {"run_id": "many999", "parameters": 1})
    page.wait_for_selector("td.run_id a:text-is('many999')")


def test_pages_that_were_left_are_forgotten(tab: Tab, shared: Board) -> None:
    _begin(shared, "left", 9)
    page = tab.open("#runs=left")
    session = tab.context.new_cdp_session(page)
    session.send("Performance.enable")

    def nodes() -> int:  # with locators, since a handle on an element would keep it
        page.locator("#chart-loss canvas").wait_for()
        page.get_by_role("link", name="Events").click()
        page.locator("table[aria-label=Events]").wait_for()
        session.send("HeapProfiler.collectGarbage")
        found = session.send("Performance.getMetrics")["metrics"]
        page.get_by_role("link", name="Charts").click()
        return next(int(metric["value"]) for metric in found if metric["name"] == "Nodes")

    counts = [nodes() for _ in range(8)]
    assert counts[-1] < counts[1] + 300, counts


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
