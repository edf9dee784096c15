"""The windows of a run with challengers: taken in as they come, and shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helios.train.board import ingest, queries
from helios.train.board.store import Store
from helios.train.board.watch import Watcher
from helios.train.challenge import journal
from helios.train.records.rows import rows

from .boards import CONFIG, lines, row, until
from .browser import Tab, tabs, trained

# The first window's challenger is better by construction: the model hardly learns.
CHALLENGED = ("--search", "continuous", "--steps", "24", "--lr", "1e-4", "--lr-min", "1e-5",
              *(word for setting in (
                  "warmup=0", "challenge_interval=6", "challenge_steps=4", "challenge_replicates=3", "challengers=2",
                  "eval_interval=4", "challenge_genes=lr=1e-4|1e-2,dropout=0|0.5", "plateau_evals=1",
                  "plateau_delta=9", "actions=plateau: lr*0.5 for 3") for word in ("--set", setting)))
# The colours of a chart's pixels in a column at a share of its width, between its labels and its foot.
COLUMN = """(across) => {
  const [canvas, over] = ['canvas', '.u-over'].map((name) => document.querySelector(`#chart-loss ${name}`));
  const ratio = devicePixelRatio, plot = over.getBoundingClientRect(), all = canvas.getBoundingClientRect();
  const x = Math.round((plot.left - all.left + across * plot.width) * ratio);
  const {data} = canvas.getContext('2d').getImageData(
    x - 1, (plot.top - all.top + 0.2 * plot.height) * ratio, 3, 0.7 * plot.height * ratio);
  return Array.from({length: data.length / 4}, (_, i) => [...data.slice(4 * i, 4 * i + 4)]);
}"""
# Keeps what is written on canvases.
WRITTEN = """self.written = []; const {fillText} = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
    written.push(text);
    fillText.call(this, text, ...place);
  };"""
COLOUR = """(name) => { const {style} = document.body.appendChild(document.createElement('i'));
  style.color = `var(${name})`;
  return getComputedStyle(document.body.lastChild).color.match(/\\d+/g).map(Number); }"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "runs"
    path.mkdir()
    trained(path / "challenged", *CHALLENGED)
    config = json.loads((path / "challenged" / "config.json").read_text())
    (path / "challenged" / "config.json").write_text(json.dumps(config | {"run_id": "challenged"}))
    return path


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[..., Tab]]:
    with tabs(browser, address) as make:
        yield make


def write(run: Path, found: Iterable[dict[str, Any]]) -> None:
    """Write the journal of a run's windows anew."""
    path = run / journal.FOLDER / journal.WINDOWS
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name("partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found))
    partial.rename(path)


def window(number: int, **more: Any) -> dict[str, Any]:
    """A line of the journal, in which a challenger has another rate."""
    one = {"id": f"gen{number}_gelu_{number + 1}", "name": f"G-Alpha.{number}", "parent_id": "gen0_gelu_1",
           "lineage": ["gen0_gelu_1"], "mutation": "lr 0.1→0.2", "activation": "gelu", "settings": {"lr": 0.2},
           "losses": [3.5, 3.25], "moments": True, "changes": [], "why": None, "difference": 0.5, "error": 0.25,
           "p": 0.9, "separated": False}
    return {"window": number, "opened": 6 * number, "closed": 6 * number + 4, "reason": "every 6 steps",
            "champion": "gen0_gelu_1", "losses": [3.0, 2.75], "challengers": [one | more], "verdict": "kept",
            "winner": None}


def test_they_are_taken_in_as_they_come_and_go_with_a_resume(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "runs" / "one"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "metrics.jsonl").write_text(lines([row(i) for i in range(1, 25)]))
    all_ = [window(n) for n in (1, 2, 3)]

    def held() -> list[Any]:
        with store.reading() as db:
            return [json.loads(line) for line in queries.rows(db, "one", "windows")[0]]

    def changes() -> int:
        with store.reading() as db:
            return db.execute("SELECT count(*) FROM changes WHERE kind = 'windows'").fetchone()[0]

    watcher = Watcher(tmp_path / "runs", store)
    watcher.start()
    # A resumed run goes on from a checkpoint before the last two were over, and comes to another third one.
    for there in ([], all_[:1], all_[:2], all_, all_[:1], [*all_[:2], window(3, p=0.01)], []):
        write(path, there)
        until(lambda there=there: held() == there)
    write(path, all_)
    until(lambda: held() == all_)
    told = changes()
    os.utime(path / "search" / "windows.jsonl", (0, 0))  # read again
    until(lambda: watcher.runs[str(path)].seen["search/windows.jsonl"][2] == 0)
    watcher.stop()
    again = Watcher(tmp_path / "runs", store)  # as of the next board
    again.start()
    until(lambda: str(path) in again.runs and again.runs[str(path)].seen)
    again.stop()
    assert held() == all_ and changes() == told
    with store.reading() as db:
        assert db.execute("SELECT window, opened, reason, verdict, winner FROM windows WHERE n = 1").fetchall() == [
            (2, 12, "every 6 steps", "kept", None)]
        assert ingest.counts(db, "one")["windows"] == 3


def test_windows_switches_and_actions_are_marked_in_the_loss(tab: Callable[..., Tab], runs: Path) -> None:
    it = tab()
    it.page.add_init_script(WRITTEN)
    page = it.open("#runs=challenged")
    page.wait_for_selector("#chart-loss canvas")
    assert {"lr 0.0001→0.01", "window 1", "window 3", "lr*0.5 for 3"} <= set(page.evaluate("written"))
    signs = page.locator("#chart-loss .sign").all_inner_texts()
    assert [sign for sign in signs if "checkpoint" not in sign and "spike" not in sign] == [
        "┊ challengers", "┃ a challenger won", "┊ action", "★ best val"]
    steps = {kind: {event["step"] for event in rows(runs / "challenged" / "events.jsonl") if event["kind"] == kind}
             for kind in ("challenge", "switch", "action")}
    assert steps["challenge"] == {6, 12, 18} and steps["switch"] == {10} and 8 in steps["action"]
    bare = set(range(2, 24)) - set.union(*steps.values())
    for kind, colour in (("challenge", "--muted"), ("switch", "--text"), ("action", "--alarm")):
        wanted = page.evaluate(COLOUR, colour)
        near = lambda step, wanted=wanted: sum(
            alpha > 40 and max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 8
            for *found, alpha in page.evaluate(COLUMN, (step - 1) / 23))
        assert all(near(step) > 10 for step in steps[kind]), kind
        assert not any(near(step) for step in bare), kind


def test_each_challenger_has_its_result_and_its_place_in_the_lineage(tab: Callable[..., Tab], runs: Path) -> None:
    it = tab()
    page = it.open("#runs=challenged")
    page.get_by_role("link", name="Windows 3").click()
    table = page.locator("table[aria-label=Windows]")
    found = rows(runs / "challenged" / "search" / "windows.jsonl")
    challengers = {c["id"]: (w, c) for w in found for c in w["challengers"]}
    cells = [tr.split("\t") for tr in table.locator("tbody tr").all_inner_texts()]
    assert [cell[0] for cell in cells] == ["3", "3", "2", "2", "1", "1"]  # the latest first
    won = next(c for c in found[0]["challengers"] if c["id"] == found[0]["winner"])
    assert [cell[8] for cell in cells] == ["replaces gen0_gelu_1" if c is won else "separated" if c["separated"]
                                           else "not separated" for w in reversed(found) for c in w["challengers"]]
    told = next(cell for cell in cells if cell[8].startswith("replaces"))
    assert told[1:3] == ["6–10", "every 6 steps"] and told[5] == won["mutation"] == "lr 0.0001→0.01"
    assert [float(text) for text in (*told[6].split(" ± "), told[7])] == [
        float(f"{won[name]:.{digits}g}") for name, digits in (("difference", 4), ("error", 2), ("p", 2))]

    nodes = page.locator(".tree .node")
    assert set(nodes.evaluate_all("all => all.map((node) => node.dataset.id)")) == {"gen0_gelu_1", *challengers}
    assert page.locator(".tree .lines path").count() == len(challengers)  # each from its parent
    ringed = page.locator(".tree .node:has(circle.winner)")
    assert ringed.get_attribute("data-id") == won["id"] and "replaces gen0_gelu_1" in ringed.get_attribute("aria-label")
    hollow = page.locator(".tree .node:has(circle[fill=none]:not(.winner))")
    assert set(hollow.evaluate_all("all => all.map((node) => node.dataset.id)")) == {*challengers} - {won["id"]}
    places = dict(nodes.evaluate_all("all => all.map((node) => [node.dataset.id, node.getBoundingClientRect().left])"))
    assert all(places[c["parent_id"]] < places[id_] for id_, (_, c) in challengers.items())

    page.locator(f".tree [data-id={won['id']}]").click()
    assert table.locator("tr.picked").inner_text().split("\t") == told
    assert f"pick={won['id']}" in page.url
    assert "since step 10 with lr 0.01" in page.locator(".figures").inner_text()


def test_the_page_grows_and_shrinks_with_the_journal(tab: Callable[..., Tab], runs: Path) -> None:
    path = runs / "growing"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG | {"run_id": "growing"}))
    (path / "metrics.jsonl").write_text(lines([row(i) for i in range(1, 25)]))
    write(path, [])
    page = tab().open()
    page.get_by_role("link", name="growing").click()
    page.wait_for_selector("#chart-loss canvas")
    assert page.get_by_role("link", name="Windows").count() == 0
    write(path, [window(1)])
    page.get_by_role("link", name="Windows 1").click()
    shown = lambda n: page.wait_for_function(
        "n => document.querySelectorAll('table[aria-label=Windows] tbody tr').length === n", arg=n)
    shown(1)
    markup = "<img src=x onerror=\"document.title='owned'\">"
    lost = {"losses": [None, None], "difference": None, "error": None, "p": None, "why": markup, "mutation": markup}
    write(path, [window(1), window(2, **lost)])
    shown(2)
    assert page.locator("td.verdict").first.inner_text() == markup and page.locator("main img").count() == 0
    assert page.locator("td.difference").all_inner_texts() == ["–", "0.5 ± 0.25"]
    write(path, [window(1)])
    shown(1)
    write(path, [])
    page.wait_for_function("() => !document.querySelector('[data-tab=windows]')")
