"""The board's page in a browser: real runs, a real server, and no other host."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from helios.train import history

from .browser import Tab, tabs, train, trained

HISTORIC = {history.read(name).run_id for name in history.names()}
PAGE = Path(__file__).parents[2] / "train" / "board" / "page"
SEARCH = ("--search", "ffn-activation", *(word for setting in (
    "activation_pool=gelu,relu,swiglu", "population_size=3", "generations=3", "replicates=2", "steps_per_candidate=6",
    "candidate_eval_interval=3", "mutation_rate=0.9", "steps=60", "eval_interval=6", "checkpoint_interval=20",
    "sample_interval=20", "cusum_window=5", "metrics_interval=5", "track_mi_profiles=true",
) for word in ("--set", setting)))
SEARCHED = {"loss", "throughput", "grad_norm", "lr", "step_time", "timing", "perplexity", "gap", "clip_coef",
            "clip_pct", "cusum", "weight_entropy", "effective_rank", "free_energy", "fitness", "heat_capacity",
            "complexity", "mutual", "layers"}
ONLY_ON_GPUS = {"memory", "gpu", "ops", "loss_scale", "batch"}
LONG, SPIKE, LOST = 5000, 3210, 1234  # rows of the run "long", and steps of its spike and of a loss that is none
MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
DRAWN = """figure => [...figure.querySelectorAll('canvas')].every(canvas => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value, i) => i % 4 === 3 && value > 0);
})"""

# Whether there is blue in the loss's plot, at a share of its width, and above a share of its height.
BLUE = """([across, high]) => {
  const [canvas, over] = ['canvas', '.u-over'].map(name => document.querySelector(`#chart-loss ${name}`));
  const ratio = devicePixelRatio, plot = over.getBoundingClientRect(), all = canvas.getBoundingClientRect();
  const {data} = canvas.getContext('2d').getImageData((plot.left - all.left + across * plot.width) * ratio - 3,
    (plot.top - all.top + 0.1 * plot.height) * ratio, 6, (high - 0.1) * plot.height * ratio);
  return data.some((_, i) => i % 4 === 0 && data[i] < 60 && data[i + 2] > 140 && data[i + 3] > 40);
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """searched: with a search. plain: without. long: plain's, with 5,000 rows. hostile: full of markup."""
    path = tmp_path_factory.mktemp("board") / "runs"
    path.mkdir()
    trained(path / "searched", *SEARCH)
    trained(path / "plain", "--steps", "20", "--lr", "0.003", "--set", "checkpoint_interval=10")
    _rename(path / "searched", "searched")
    _rename(path / "plain", "plain")
    _rename(shutil.copytree(path / "plain", path / "long"), "long")
    _lengthen(path / "long" / "metrics.jsonl")
    _rename(shutil.copytree(path / "searched", path / "hostile"), "hostile", device={"name": MARKUP}, note=MARKUP)
    with open(path / "hostile" / "samples.jsonl", "a") as file:
        file.write(json.dumps({"step": 99, "prompt": MARKUP, "text": f"{MARKUP} said", "seed": 1}) + "\n")
    with open(path / "hostile" / "events.jsonl", "a") as file:
        file.write(json.dumps({"step": 99, "kind": "failed", "message": MARKUP}) + "\n")
    candidates = path / "hostile" / "search" / "candidates.jsonl"
    candidates.write_text(re.sub(r'"name": "[^"]*"', f'"name": {json.dumps(MARKUP)}'.replace("\\", r"\\"),
                                 candidates.read_text(), count=1))
    return path


def _rename(run: Path, run_id: str, **more: Any) -> None:
    config = json.loads((run / "config.json").read_text()) | {"run_id": run_id} | more
    (run / "config.json").write_text(json.dumps(config))


def _lengthen(metrics: Path) -> None:
    """Repeat the rows, with a spike, a loss that is not finite, and what only GPUs have."""
    known = [json.loads(line) for line in metrics.read_text().splitlines()]
    for step in range(1, LONG + 1):
        row = known[step % len(known)] | {
            "step": step, "elapsed_ms": 10.0 * step, "loss": 5 - step / LONG, "gpu_vram_used_mb": 100 + step % 7,
            "gpu_vram_total_mb": 1000, "gpu_mem_pool_mb": 200, "gpu_util_pct": 50, "gpu_ops_count": 128,
            "loss_scale": 1024, "adaptive_batch_size": 4}
        if step == SPIKE:
            row |= {"loss": 77.5, "grad_norm": 500.0}
        if step == LOST:
            row["loss"] = None
        known.append(row)
    metrics.write_text("".join(json.dumps(row) + "\n" for row in known[-LONG:]))


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[..., Tab]]:
    with tabs(browser, address) as make:
        yield make


def _charts(page: Any) -> set[str]:
    page.wait_for_selector("figure.chart canvas")
    names = page.eval_on_selector_all("figure.chart", "all => all.map(f => f.id)")
    return {name.removeprefix("chart-") for name in names}


def _asked(tab: Tab, what: str) -> list[dict[str, str]]:
    """The queries of the requests for `what`."""
    return [{k: v[0] for k, v in parse_qs(urlsplit(url).query).items()} for url in tab.asked
            if urlsplit(url).path.endswith(f"/{what}")]


def test_the_page_sets_text_alone() -> None:
    for script in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script.read_text())
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|//", html)


def test_list_filters_sorts_and_says_the_status(tab: Callable[..., Tab]) -> None:
    page = tab().open()
    page.wait_for_selector("text=hostile")
    names = lambda: [name for name in page.locator("td.run_id a").all_inner_texts() if name not in HISTORIC]
    assert set(names()) == {"searched", "plain", "long", "hostile"}
    assert page.locator("tr", has_text="searched").locator("span.status").inner_text() == "✓ completed"
    assert page.locator("tr", has_text="hostile").locator("span.status").inner_text() == "✕ failed"
    page.get_by_role("button", name="Run", exact=True).click()
    assert names() == ["hostile", "long", "plain", "searched"]
    page.get_by_role("button", name="Run", exact=True).click()
    assert names() == ["searched", "plain", "long", "hostile"]
    assert page.locator("th.run_id").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="failed").click()
    assert names() == ["hostile"]
    page.get_by_role("button", name="all").click()
    page.get_by_label("Filter runs").fill("plai")
    assert names() == ["plain"]
    page.reload()
    page.wait_for_selector("text=plain")
    assert names() == ["plain"]
    page.get_by_role("link", name="plain").click()
    page.get_by_role("link", name="Runs").click()
    page.wait_for_selector("td.run_id a")
    assert names() == ["plain"]  # as it was left


def test_historic_runs_are_marked_as_what_is_known(tab: Callable[..., Tab]) -> None:
    page = tab().open()
    page.wait_for_selector("text=searched")
    page.get_by_role("button", name="historic").click()
    assert set(page.locator("td.run_id a").all_inner_texts()) == HISTORIC
    page.get_by_role("link", name=history.read("4kwo").run_id).click()
    page.wait_for_selector("#chart-loss canvas")
    assert page.locator(".tag", has_text="what is known of it").is_visible()
    assert "5,539" in page.locator("main").inner_text()


def test_every_chart_with_data_is_there(tab: Callable[..., Tab]) -> None:
    page = tab().open("#runs=searched")
    assert _charts(page) == SEARCHED
    for figure in page.query_selector_all("figure.chart"):
        assert figure.evaluate(DRAWN), figure.get_attribute("id")
        assert figure.query_selector(".legend b").inner_text() not in ("", "–"), figure.get_attribute("id")
    legend = page.locator("#chart-throughput .legend").inner_text()
    assert "gelu" in legend and "relu" in legend
    assert page.locator("#chart-loss .sign").all_inner_texts() == [
        "┆ activation switch", "╎ warm-up end", "▴ checkpoint", "★ best val"] or "spike" in page.locator(
        "#chart-loss .legend").inner_text()
    page.get_by_role("link", name="Search").click()
    assert _charts(page) == {"timeline", "population", "diversity"}
    page.goto(page.url.replace("searched", "long").replace("search", "charts"))
    page.wait_for_selector("#chart-memory canvas")
    assert _charts(page) == (SEARCHED | ONLY_ON_GPUS) - {"mutual", "heat_capacity", "cusum"}
    assert page.get_by_role("link", name="Search").count() == 0


def test_zoom_asks_for_the_true_points(tab: Callable[..., Tab]) -> None:
    it = tab()
    page = it.open("#runs=long")
    plot = page.locator("#chart-loss .u-over")
    plot.wait_for()
    area, legend = plot.bounding_box(), page.locator("#chart-loss .legend")
    at = lambda step, low=1, high=LONG: area["x"] + area["width"] * (step - low) / (high - low)
    middle = area["y"] + area["height"] / 2
    page.mouse.move(at(SPIKE), middle)
    assert "to 77.5)" in legend.inner_text()  # the bucket's greatest loss
    assert page.evaluate(BLUE, [(SPIKE - 1) / (LONG - 1), 0.3])  # which is drawn
    assert not page.evaluate(BLUE, [0.3, 0.3])
    before = len(_asked(it, "series"))
    page.mouse.move(at(3000), middle)
    page.mouse.down()
    page.mouse.move(at(3200), middle, steps=3)
    page.mouse.move(at(3400), middle, steps=3)
    page.mouse.up()
    with page.expect_response(lambda r: "/series?" in r.url):
        pass
    asked = _asked(it, "series")[before:][0]
    assert 2980 <= int(asked["from"]) <= 3020 and 3380 <= int(asked["to"]) <= 3420
    low, high = (float(x) for x in re.search(r"zoom=([\d.]+)~([\d.]+)", page.url).groups())
    page.mouse.move(at(SPIKE, low, high), middle)
    page.wait_for_function("() => /train 77.5(?! \\()/.test(document.querySelector('#chart-loss .legend').innerText)")
    assert f"step {SPIKE:,}" in legend.inner_text()  # a row of its own now
    page.go_back()
    page.wait_for_function("() => !location.hash.includes('zoom')")
    page.go_forward()
    page.wait_for_function("() => location.hash.includes('zoom')")
    plot.dblclick()
    page.wait_for_function("() => !location.hash.includes('zoom')")
    page.locator("#chart-loss .plot").focus()
    page.keyboard.press("+")
    page.wait_for_function("() => location.hash.includes('zoom=1250')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => location.hash.includes('zoom=1875')")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('zoom')")


def test_what_is_not_finite_is_marked(tab: Callable[..., Tab]) -> None:
    red = """() => { const canvas = document.querySelector('#chart-loss canvas');
      const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return data.some((_, i) => i % 4 === 0 && data[i] === 208 && data[i + 1] === 0 && data[i + 2] === 0
                                 && data[i + 3] === 255); }"""
    page = tab().open("#runs=long")
    page.wait_for_selector("#chart-loss canvas")
    assert page.evaluate(red)
    page = tab().open(f"#runs=long&zoom={LOST - 10}~{LOST + 10}")
    page.wait_for_selector("#chart-loss canvas")
    page.wait_for_function(red)
    page = tab().open("#runs=plain")
    page.wait_for_selector("#chart-loss canvas")
    assert not page.evaluate(red)


def test_tree_and_tables_select_each_other(tab: Callable[..., Tab]) -> None:
    page = tab().open("#runs=searched&tab=search")
    page.wait_for_selector(".tree .node")
    picked = lambda: page.eval_on_selector_all(".tree .node.picked", "all => all.map(n => n.dataset.id)")
    log = page.locator("table[aria-label='Switch log']")
    log.get_by_role("button").nth(1).click()
    (node,) = picked()
    assert node.startswith("gen") and f"pick={node}" in page.url
    assert log.locator("tr.picked").count() >= 1
    assert page.locator("table[aria-label=Candidates] tr.picked").count() == 1
    other = page.locator(".tree .node").first
    other.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("id => !location.hash.includes(id)", arg=node)
    (chosen,) = picked()
    name = page.locator(".tree .node.picked tspan").first.text_content()
    assert chosen != node and other.get_attribute("aria-pressed") == "true"
    assert name in page.locator("table[aria-label=Candidates] tr.picked").inner_text()
    if log.locator("tr.picked").count():
        assert name in log.locator("tr.picked").first.inner_text()
    assert page.locator(".tree .lines path").count() >= 3  # children


def test_two_runs_are_compared(tab: Callable[..., Tab]) -> None:
    page = tab().open()
    page.get_by_label("Compare plain").check()
    page.get_by_label("Compare searched").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.wait_for_selector("#chart-loss canvas")
    legend = page.locator("#chart-loss .legend").inner_text()
    assert all(word in legend for word in ("plain train", "plain val", "searched train", "searched val"))
    for axis in ("tokens", "time"):
        page.get_by_role("button", name=f"By {axis}").click()
        page.wait_for_function("axis => location.hash.includes(`x=${axis}`)", arg=axis)
    page.get_by_label("Smoothing").fill("0.5")
    page.get_by_label("Logarithmic axis of Loss", exact=True).click()
    assert page.get_by_label("Logarithmic axis of Loss", exact=True).get_attribute("aria-pressed") == "true"
    page.get_by_role("link", name="What differs").click()
    rows = page.locator("table[aria-label='Settings that differ'] tbody tr")
    rows.first.wait_for()
    settings = {row.split("\t")[0] for row in rows.all_inner_texts()}
    assert {"train.lr", "train.steps"} <= settings and "train.batch_size" not in settings
    page.go_back()
    page.wait_for_selector("#chart-loss canvas")


def test_a_link_shows_the_same(tab: Callable[..., Tab]) -> None:
    page = tab().open("#runs=plain,long&x=tokens&smooth=0.5&log=loss,grad_norm&zoom=500~900")
    page.wait_for_selector("#chart-loss canvas")
    pressed = lambda name: page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed")
    assert pressed("By tokens") == pressed("Logarithmic axis of Loss") == "true"
    assert pressed("By step") == pressed("Logarithmic axis of Gradient norm") == "false"
    assert page.locator("#smooth").input_value() == "0.5"
    assert page.locator("output.where").inner_text() == "500 to 900"


def test_new_rows_alone_are_transferred(tab: Callable[..., Tab], runs: Path) -> None:
    it = tab()
    page = it.open()
    page.wait_for_selector("text=searched")
    process = train(runs / "growing", "--steps", "100000", "--set", "checkpoint_interval=0")
    try:
        row = page.locator("tr", has_text="synth_")
        row.locator("span.status.active").wait_for()
        row.get_by_role("link").click()
        page.wait_for_selector("#chart-loss canvas")
        step = "Number(document.querySelector('.figures b').textContent.replaceAll(',', ''))"
        first = page.evaluate(step)
        shown = page.locator("#chart-loss .legend b").first.inner_text()
        before = len(it.asked)
        page.wait_for_function(f"() => {step} > {first} + 40")
        page.wait_for_function("old => document.querySelector('#chart-loss .legend b').textContent !== old", arg=shown)
        assert not [url for url in it.asked[before:] if "/series" in url]
        assert page.locator("#live").inner_text() == "live"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    page.locator(".title .status.interrupted").wait_for()
    last = json.loads((runs / "growing" / "metrics.jsonl").read_text().splitlines()[-1])
    page.wait_for_function(f"() => {step} === {last['step']}")
    assert page.locator("#chart-loss .legend b").first.inner_text() == f"{last['loss']:.5g}"


def test_markup_is_shown_as_text(tab: Callable[..., Tab]) -> None:
    it = tab()
    page = it.open("#runs=hostile&tab=samples")
    page.wait_for_selector(f"text={MARKUP} said")
    assert page.locator("figcaption", has_text=MARKUP).count() == 1
    for name in ("Events", "Settings", "Search", "Charts"):
        page.get_by_role("link", name=name).click()
        page.wait_for_selector({"Search": ".tree .node", "Charts": "#chart-loss canvas"}.get(name, f"text={MARKUP}"))
    page.goto(page.url.split("#")[0] + "#")
    page.wait_for_selector(f"td.device:has-text({json.dumps(MARKUP)})")
    page.goto(page.url.split("#")[0] + "#runs=nosuchrun")
    page.wait_for_selector("[role=alert]:not([hidden])")
    assert page.locator("img, main script").count() == 0 and "owned" not in page.title()
    it.complaints = [text for text in it.complaints if "404" not in text]  # the browser's own, of the run that is none


def test_dark_and_light(tab: Callable[..., Tab]) -> None:
    page = tab(color_scheme="dark").open("#runs=plain")
    page.wait_for_selector("#chart-loss canvas")
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    ground = lambda: sum(map(int, re.findall(r"\d+", page.evaluate(colour))[:3]))
    assert ground() < 150
    page.get_by_role("button", name="Switch to light").click()
    assert ground() > 600
    page.reload()
    page.wait_for_selector("#chart-loss canvas")
    assert ground() > 600  # kept
    page = tab(color_scheme="light").open()
    assert ground() > 600


def test_narrow_screens_need_no_sideways_scroll(tab: Callable[..., Tab]) -> None:
    it = tab(viewport={"width": 400, "height": 800})
    for view, there in (("", "text=searched"), ("#runs=searched", "#chart-loss canvas"),
                        ("#runs=searched&tab=search", ".tree .node"), ("#runs=plain,long", "#chart-loss canvas"),
                        *((f"#runs=hostile&tab={name}", f"[data-tab={name}][aria-current]")
                          for name in ("samples", "events", "settings", "files"))):
        page = it.open(view)
        page.wait_for_selector(there)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, view


def test_the_keyboard_reaches_everything(tab: Callable[..., Tab]) -> None:
    page = tab().open()
    page.wait_for_selector("text=searched")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("""() => { const e = document.activeElement, style = getComputedStyle(e);
            return `${e.getAttribute('aria-label') ?? e.textContent.trim()} ${style.outlineStyle !== 'none'}`; }"""))
    assert {"Runs true", "Filter runs true", "Status true", "Compare plain true", "plain true"} <= reached
    page.get_by_role("link", name="plain", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#chart-loss canvas")
