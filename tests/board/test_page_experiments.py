"""Experiments on the board's page: the list, the front, what is selected, brushes, and a journal that grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from helios.train.records.journal import measured

from .boards import lines
from .browser import Tab, tabs
from .experiments import GENES, add, journal, write

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
DRAWN = "figure => [...figure.querySelectorAll('canvas')].some(c => c.width > 0)"
SMALL, LARGE, GROWING = (list(journal(n, name, end=end)) for n, name, end in (
    (120, "small", True), (2000, "large", False), (60, "growing", True)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "runs"
    write(path / "stability", SMALL, trained=24)
    write(path / "large", LARGE)
    write(path / "growing", GROWING[:30])
    rows = [row | ({"name": MARKUP, "operator": MARKUP, "difference": {"__proto__": [MARKUP, [1]]}}
                   if row["kind"] == "birth" else {"why": MARKUP} if "why" in row else {})
            for row in journal(40, "hostile", end=True)]
    rows[0] |= {"genes": [*GENES, {"name": MARKUP, "kind": "set", "values": [MARKUP, None, {"a": 1}]}, 3, None]}
    rows[-1]["verdict"]["sentences"] = [MARKUP]
    write(path / "hostile", [rows[0], {"kind": "birth", "id": 7}, {"kind": "result", "id": 7}, *rows[1:]])
    return path


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[..., Tab]]:
    with tabs(browser, address) as make:
        yield make


def shown(page: Any, id_: str) -> Any:
    page.goto(f"{page.url.split('#')[0]}#experiment={id_}")
    page.wait_for_selector(".scatter .point")
    return page


def means(rows: list[Any], name: str) -> dict[str, float]:
    """The value of each candidate of which all trainings in the search are complete, and that was not dropped."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        if row["kind"] == "result" and row["phase"] == "search":
            found.setdefault(row["id"], []).append(row if row["status"] == "complete" else None)
    out = {row["id"] for row in rows if row["kind"] == "dropped"}
    known = {id_: mean(measured(row, name) for row in all_) for id_, all_ in found.items()
             if id_ not in out and None not in all_}
    reused = {row["id"]: row["of"] for row in rows if row["kind"] == "reused"}
    return known | {id_: known[of] for id_, of in reused.items() if of in known}


def front(rows: list[Any], less: str, more: str) -> set[str]:
    a, b = means(rows, less), means(rows, more)
    return {one for one in a if not any(a[o] <= a[one] and b[o] >= b[one] and (a[o], b[o]) != (a[one], b[one])
                                        for o in a)}


def points(page: Any) -> set[str]:
    return set(page.eval_on_selector_all(".scatter .point", "all => all.map(p => p.dataset.id)"))


def test_runs_are_folded_under_their_experiment(tab: Callable[..., Tab]) -> None:
    page = tab().open()
    row = page.locator("table.groups tr", has_text="stability")
    row.locator("text=val_loss").wait_for()
    assert row.locator("td").all_inner_texts()[2:4] == ["5", "120"]
    assert row.locator("td.status").inner_text() == "✓ completed"
    assert page.locator("table.groups tr", has_text="large").locator("td.status").inner_text() == "● active"
    page.wait_for_function("() => document.querySelector('table.groups').innerText.includes('▸ 24')")
    names = page.locator("table[aria-label=Runs] td.run_id a")
    assert not [name for name in names.all_inner_texts() if name.startswith("stability.")]
    page.get_by_role("button", name="Runs of stability").press("Enter")
    assert len([name for name in names.all_inner_texts() if name.startswith("stability.")]) == 24
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Runs of stability"
    page.reload()
    page.wait_for_selector("text=stability.gen0")  # the address says so
    names.filter(has_text="stability.gen0").first.click()
    page.wait_for_selector("#chart-loss canvas")
    page.locator(".facts a", has_text="gen0").click()
    page.wait_for_selector(".scatter .point")
    assert page.locator(".chosen h3").count() == 1
    page.go_back()
    page.wait_for_selector("#chart-loss canvas")


def test_the_front_has_the_right_points(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "small")
    expected = front(SMALL, "val_loss", "tokens_per_sec")
    assert points(page) == expected and len(expected) > 3
    counted = means(SMALL, "val_loss")
    clouds = {name: int(n) for name, n in page.eval_on_selector_all(
        ".scatter .cloud", "all => all.map(p => [p.getAttribute('class'), p.dataset.count])")}
    arms = {row["id"]: row["arm"] for row in SMALL if row["kind"] == "birth"}
    for arm in ("evolved", "random", "preset"):
        there = sum(arms[id_] == arm for id_ in counted if id_ not in expected)
        assert clouds.get(f"cloud {arm}", 0) == there
    assert clouds["cloud out"] > 0
    # Each point lies where its values are; the line joins them.
    xs = page.eval_on_selector_all(".scatter .point", """all => all.map(p => {
        const box = p.getBBox(); return [p.dataset.id, box.x + box.width / 2]; })""")
    speed = means(SMALL, "tokens_per_sec")
    (low, left), *_, (high, right) = sorted((speed[id_], x) for id_, x in xs)
    for id_, x in xs:
        assert x == pytest.approx(left + (speed[id_] - low) / (high - low) * (right - left), abs=0.2)  # pixels
    assert page.locator(".scatter .front").get_attribute("d").count("H") == len(expected) - 1
    page.get_by_label("Across").select_option("instability")
    a, b = means(SMALL, "val_loss"), means(SMALL, "instability")
    page.wait_for_function("() => location.hash.includes('across=instability')")
    assert points(page) == {one for one in a if not any(
        a[o] <= a[one] and b[o] <= b[one] and (a[o], b[o]) != (a[one], b[one]) for o in a)}


def test_selecting_marks_it_everywhere(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "small")
    point = page.locator(".scatter .point").nth(2)
    id_ = point.get_attribute("data-id")
    birth = next(row for row in SMALL if row["kind"] == "birth" and row["id"] == id_)
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f".chosen:has-text('{id_}')")
    assert f"pick={id_}" in page.url
    assert page.locator(".scatter circle.picked").get_attribute("visibility") == "visible"
    assert page.locator(".parallel path.picked").get_attribute("d").startswith("M")
    assert page.locator(".tree .node.picked").get_attribute("data-id") == id_
    assert page.locator("table.candidates tr.picked").count() == 1
    text = page.locator(".chosen").inner_text()
    for key in birth["difference"]:
        assert key in text
    assert all(name in text for name in ("val_loss", "tokens_per_sec", "instability", "±"))
    assert birth["operator"] in text
    # One that was dropped says why; a click on its name in the table selects it.
    dropped = next(row for row in SMALL if row["kind"] == "dropped")
    page.get_by_label("Filter candidates").fill(dropped["id"])
    page.locator("table.candidates button.link").first.click()
    page.wait_for_selector(f".chosen .reason:has-text('{dropped['why']}')")
    page.get_by_label("Filter candidates").fill("diverged")
    page.locator("table.candidates button.link").first.click()
    page.wait_for_selector(".chosen .reason:has-text('the loss is not finite')")
    # One that has the results of another, whose settings were tried before.
    reused = next(row for row in SMALL if row["kind"] == "reused")
    page.goto(f"{page.url.split('#')[0]}#experiment=small&pick={reused['id']}")
    page.locator(".chosen .note button").click()
    page.wait_for_selector(f".chosen h3:has-text('{reused['of']}')")
    # Its runs, where the board has them.
    page.goto(f"{page.url.split('#')[0]}#experiment=small&pick={SMALL[2]['id']}")
    link = page.locator(".chosen td a").first
    link.wait_for()
    assert link.inner_text() == f"{SMALL[2]['id']}.s0"
    page.locator(".chosen a", has_text="Compare its 2 runs").click()
    page.wait_for_selector("#chart-loss canvas")


def test_zoom_and_keyboard(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "small")
    box = page.locator(".scatter").bounding_box()
    before = page.locator(".scatter .axes").inner_html()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 160, steps=3)
    page.mouse.move(box["x"] + 300, box["y"] + 260, steps=3)
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('area=')")
    assert page.locator(".scatter .axes").inner_html() != before
    page.reload()
    page.wait_for_selector(".scatter .point")
    assert page.locator(".scatter .axes").inner_html() != before
    page.locator(".scatter").focus()
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('area=')")
    assert page.locator(".scatter .axes").inner_html() == before
    for key in ("+", "ArrowRight"):
        page.keyboard.press(key)
        page.wait_for_function("old => document.querySelector('.scatter .axes').innerHTML !== old", arg=before)
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("() => location.hash.includes('pick=')")
    first = page.url
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("old => location.href !== old", arg=first)
    page.locator(".scatter .point").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.getAttribute('aria-pressed') === 'true'")


def test_brushes_filter_all(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "small")
    layers = page.locator(".tree .node").count()
    axis = page.locator(".parallel [data-axis=qk_norm]")
    axis.scroll_into_view_if_needed()
    box = axis.locator("path").bounding_box()
    page.mouse.move(box["x"], box["y"] - 3)
    page.mouse.down()
    page.mouse.move(box["x"], box["y"] + box["height"] / 3, steps=4)
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('brush=qk_norm')")
    on = {row["id"] for row in SMALL if row["kind"] == "birth" and row["settings"].get("qk_norm")}
    assert f"{len(on)} of 120 within the brushes" in page.locator(".experiment").inner_text()
    rows = page.locator("table.candidates tbody tr")
    assert rows.count() == len(on)
    assert page.locator(".scatter .faded").count() > 0 and page.locator(".tree .node").count() == layers
    page.locator(".parallel [data-axis=val_loss]").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("() => /qk_norm.*val_loss/.test(location.hash)")
    assert rows.count() < len(on)
    assert page.evaluate("document.activeElement.dataset.axis") == "val_loss"  # kept
    page.reload()
    page.wait_for_selector(".scatter .point")
    assert 0 < rows.count() < len(on)
    page.get_by_role("button", name="Clear the brushes").click()
    page.wait_for_function("() => document.querySelectorAll('table.candidates tbody tr').length === 120")
    page.get_by_role("button", name="tokens_per_sec", exact=True).click()
    page.get_by_role("button", name="tokens_per_sec", exact=True).click()
    counted = {row["id"]: 0.0 for row in SMALL if row["kind"] == "birth"}
    texts = page.locator("table.candidates td.m1").all_inner_texts()
    values = [float(text.split()[0].replace(",", "")) for text in texts if text != "–"]
    assert values == sorted(values, reverse=True) and len(texts) == len(counted)


def test_generations_hypervolume_and_lineage(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "small")
    for name in ("spread", "hypervolume", "size"):
        figure = page.locator(f"#chart-{name}")
        assert figure.evaluate(DRAWN), name
    born = {row["id"]: row for row in SMALL if row["kind"] == "birth"}
    last = [v for id_, v in means(SMALL, "val_loss").items()
            if born[id_]["generation"] == 5 and born[id_]["arm"] == "evolved"]
    legend = page.locator("#chart-spread .legend").inner_text()
    assert f"best evolved {min(last):.5g}" in legend and "preset" in legend and "best random" in legend
    end = next(row for row in SMALL if row["kind"] == "end")
    assert f"{end['hypervolume']:.4g}" in page.locator("#chart-hypervolume .legend").inner_text()
    assert "20: the hypervolume grows" in page.locator("#chart-size .legend").inner_text()
    page.get_by_label("Objective", exact=True).select_option("instability")
    page.wait_for_function("old => document.querySelector('#chart-spread .legend').innerText !== old", arg=legend)
    # The front's family: each of it, and all their ancestors.
    family, wait = set(), [*front(SMALL, "val_loss", "tokens_per_sec")]
    while wait:
        if (id_ := wait.pop()) not in family:
            family.add(id_)
            wait += born[id_]["parents"]
    nodes = lambda: set(page.eval_on_selector_all(".tree .node", "all => all.map(n => n.dataset.id)"))
    assert nodes() == family
    page.get_by_role("button", name="of all").click()
    assert nodes() == set(born)
    edges = page.locator(".tree .lines path")
    assert edges.count() == sum(len(row["parents"]) for row in born.values())
    assert page.locator(".tree .lines .other").count() == sum(len(row["parents"]) > 1 for row in born.values())
    child = next(row for row in SMALL if row.get("operator") == "crossover")
    about = page.locator(f".tree [data-id={child['id']}]").get_attribute("aria-label")
    assert "crossover" in about and "evolved" in about


def test_it_grows_as_its_journal_does(tab: Callable[..., Tab], runs: Path) -> None:
    it = tab()
    page = shown(it.open(), "growing")
    said = lambda number: page.wait_for_function(
        "n => document.querySelectorAll('.figures b')[1]?.textContent === n", arg=number)
    count = lambda rows: str(sum(row["kind"] == "birth" for row in rows))
    said(count(GROWING[:30]))
    asked = len(it.asked)
    add(runs / "growing", lines(GROWING[30:100]) + lines(GROWING[100:101])[:30])  # and half a line
    said(count(GROWING[:100]))
    expected = front(GROWING[:100], "val_loss", "tokens_per_sec")
    page.wait_for_function("n => document.querySelectorAll('.scatter .point').length === n", arg=len(expected))
    assert points(page) == expected
    add(runs / "growing", lines(GROWING[100:101])[30:] + lines(GROWING[101:]))
    page.wait_for_selector(".title .status.completed")
    assert GROWING[-1]["verdict"]["sentences"][0] in page.locator(".about").inner_text()
    said("60")
    assert points(page) == front(GROWING, "val_loss", "tokens_per_sec")
    assert not [url for url in it.asked[asked:] if "/journal" in url]  # new lines alone were sent
    (runs / "growing" / "journal.jsonl").write_text(lines(GROWING[:50]))  # cut
    said(count(GROWING[:50]))
    page.wait_for_selector(".title .status.active")


def test_whose_weights_candidates_began_with(tab: Callable[..., Tab], runs: Path) -> None:
    rows, why = list(journal(60, "warm", end=True)), "n_layer is 3, that of its parent 2"
    children = [row for row in rows if row["kind"] == "birth" and row["parents"]]
    for i, row in enumerate(children):
        row["start"] = ({"how": "project", "of": row["parents"][0], "why": None} if i % 3 else
                        {"how": "fresh", "of": None, "why": why})
    heirs = {row["id"] for row in children if row["start"]["of"]}
    for row in rows:
        if row["kind"] == "result":
            row["inherited"] = 123_456 if row["id"] in heirs and row["phase"] == "search" else 0
    write(runs / "warm", rows)
    page = tab().open()
    page.locator("table.groups a", has_text="warm").click()
    page.wait_for_selector(".scatter .point")
    page.get_by_role("button", name="of all").click()
    assert page.locator(".tree .lines .inherits").count() == len(heirs) < len(children)
    assert page.locator(".key", has_text="thick: with its weights").is_visible()
    measured_ = {row["id"] for row in rows if row["kind"] == "result"}
    names = {row["id"]: row["name"] for row in rows if row["kind"] == "birth"}
    heir = next(row for row in children if row["id"] in heirs & measured_)
    fresh = next(row for row in children if row["id"] not in heirs)
    founder = next(row for row in rows if row["kind"] == "birth" and row["arm"] == "random")
    chosen = page.locator(".chosen")
    for one in (heir, fresh, founder):
        page.locator(f".tree [data-id={one['id']}]").focus()
        page.keyboard.press("Enter")
        chosen.locator("h3", has_text=one["id"]).wait_for()
        if one is heir:
            said = chosen.locator("p", has_text="Began with the weights of").inner_text()
            assert said.endswith("(project), which had read 123,456 tokens") and names[one["start"]["of"]] in said
        elif one is fresh:
            assert f"Began with new weights: {why}" in chosen.inner_text()
        else:
            assert "Began with" not in chosen.inner_text()
    page.goto(f"{page.url.split('#')[0]}#experiment=small")
    page.wait_for_selector(".scatter .point")
    assert not page.locator(".key", has_text="dashed").locator("text=thick").is_visible()


def test_two_thousand_candidates(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "large")
    assert points(page) == front(LARGE, "val_loss", "tokens_per_sec")
    assert page.locator("table.candidates tbody tr").count() == 200
    born = [row for row in LARGE if row["kind"] == "birth"]
    page.get_by_label("Filter candidates").fill(born[-1]["id"])
    page.locator("table.candidates button.link").first.click()
    page.wait_for_selector(".chosen .note:has-text('waiting')")  # the last generations are under way
    page.get_by_label("Filter candidates").fill("")
    assert page.locator("table.candidates tr.picked").count() == 1  # though it is not among the first
    page.get_by_role("button", name="of the selected one").click()
    page.get_by_role("button", name="Show all 2,000 candidates").click()
    assert page.locator("table.candidates tbody tr").count() == 2000
    assert page.locator("svg *").count() < 5000
    page.get_by_role("button", name="of all").click()
    assert page.locator(".tree .node").count() == 2000


def test_markup_is_shown_as_text(tab: Callable[..., Tab]) -> None:
    page = shown(tab().open(), "hostile")
    assert MARKUP in page.locator(".about").inner_text()
    page.locator("table.candidates button.link").first.click()
    page.wait_for_selector(".chosen h3")
    assert MARKUP in page.locator(".chosen").inner_text()
    page.get_by_role("button", name="of all").click()
    page.goto(page.url.split("#")[0] + "#")
    page.wait_for_selector("table.groups td")
    assert page.locator("img, main script").count() == 0 and "owned" not in page.title()


def test_a_fitness_is_one_objective_of_which_more_is_better(tab: Callable[..., Tab], runs: Path) -> None:
    rows = [row | ({"fitness": -row["val_loss"]} if row["kind"] == "result" and row["val_loss"] else {})
            for row in journal(30, "fit", end=True, fitness="-val_loss")]
    write(runs / "fit", rows)
    page = tab().open()
    page.locator("table.groups a", has_text="fit").click()
    page.wait_for_selector(".scatter .point")
    assert page.get_by_label("Up", exact=True).input_value() == "fitness"
    page.get_by_label("Across").select_option("tokens_per_sec")
    page.wait_for_function("() => location.hash.includes('across=')")
    assert points(page) == front(rows, "val_loss", "tokens_per_sec")
    assert page.locator("table.candidates th[aria-sort=descending]").inner_text() == "fitness"
    best = max(-value for id_, value in means(rows, "val_loss").items() if next(
        row["arm"] for row in rows if row["kind"] == "birth" and row["id"] == id_) == "evolved")
    assert page.locator(".figures b").last.inner_text() == f"{best:.5g}"


def test_dark_and_narrow(tab: Callable[..., Tab]) -> None:
    colour = "s => getComputedStyle(document.querySelector(s)).fill"
    light = shown(tab(color_scheme="light").open(), "small").evaluate(colour, ".point.evolved")
    page = shown(tab(color_scheme="dark", viewport={"width": 400, "height": 800}).open(), "small")
    assert page.evaluate(colour, ".point.evolved") != light
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.goto(page.url.split("#")[0] + "#")
    page.wait_for_selector("table.groups td")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert math.isfinite(page.locator("table.groups").bounding_box()["width"])
