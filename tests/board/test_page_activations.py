"""Activations on the board's page: named, coloured and ordered as in the reports."""

from __future__ import annotations

from typing import Any

from helios.model import activations
from helios.model.activations import TABLE

from .boards import Board, row
from .browser import Tab

LEAKY, MINE = "max(x, 0.1*x)", "mine: a*max(x, 0.1*x); a=1"
TEXTS = [
    *TABLE, "relu, gelu,gelu ,relu", "swiglu,relu,gelu", "gelu|relu", "gelu×4 relu×2", "mixed", LEAKY, MINE,
    f"{LEAKY}|gelu|gelu", f"gelu|{MINE}|sin(x)|{MINE}", "mine: x*2|mine: x*3", f"gelu:{LEAKY}", "constructor",
    "__proto__,gelu", "x*sigmoid(1.702*x)+max(x, 0.5)", "+".join(["x*sigmoid(x)"] * 9), "é: x|𝛂𝛂𝛂𝛂𝛂", "𝛂" * 40,
    *(f"x+{n}*sin(x)" for n in range(20))]


def test_names_and_colours_are_those_of_the_reports(tab: Tab) -> None:
    ours: dict[str, Any] = {name: [getattr(activations, name)(text) for text in TEXTS]
                            for name in ("short_name", "kind", "colour")}
    assert len(set(ours["colour"])) == len(TABLE) + len(activations.MORE) + 1
    few = TEXTS[:30]
    ours |= {"split": [[*activations.split(text)] for text in TEXTS],
             "kinds": [activations.kinds(reversed(TEXTS)), activations.kinds(few)],
             "among": [[activations.kind(text, activations.kinds(given)) for text in TEXTS] for given in (TEXTS, few)]}
    assert activations.FORMULAS in ours["kinds"][0] and activations.FORMULAS not in ours["kinds"][1]
    found = tab.open().evaluate("""async (texts) => {
      const {split, kinds, shortName, kind, colourOf} = await import('/colours.js');
      const few = texts.slice(0, 30);
      return {split: texts.map(split), kinds: [kinds([...texts].reverse()), kinds(few)],
              among: [texts, few].map((given) => texts.map((text) => kind(text, kinds(given)))),
              short_name: texts.map(shortName), kind: texts.map((text) => kind(text)),
              colour: texts.map(colourOf)}; }""", TEXTS)
    assert found == ours


def test_they_are_shown_in_the_tables_order(tab: Tab, shared: Board) -> None:
    given = [LEAKY, "relu", f"gelu|{MINE}|{MINE}", "gelu", "elu,elu,gelu"]
    candidates = [{"id": f"gen0_{i}", "name": f"C-{i}", "activation": text, "generation": i // 4, "parent_id": None}
                  for i, text in enumerate(given)]
    shared.run("ordered")
    shared.post("ordered", "candidates", 0, candidates)
    shared.post("ordered", "metrics", 0, [
        row(3 * i + n, symbio_candidate_id=f"gen0_{i}", symbio_candidate_activation=text, symbio_generation=i // 4,
            symbio_phase="search") for i, text in enumerate(given) for n in (1, 2, 3)])
    page = tab.open("#runs=ordered&tab=search")
    page.wait_for_selector(".tree .node")
    order = ["gelu", "relu", LEAKY, "mixed"]
    assert page.locator(".search .key span").all_inner_texts() == [*order, "◯ winner has a ring"]
    order = ["gelu", "relu", "elu", LEAKY, "mine"]
    for place, counts in enumerate(({"gelu": 4, "relu": 3, LEAKY: 3, "mine": 2}, {"gelu": 1, "elu": 2})):
        bars = page.locator(".shares g").nth(place).locator("rect")
        names = [name for name in order if name in counts]
        assert bars.locator("title").all_text_contents() == [
            f"generation {place}: {counts[name]} {name}" for name in names]
        assert bars.evaluate_all("all => all.map(bar => bar.getAttribute('fill'))") == [*map(activations.colour, names)]
    cell = page.locator("table[aria-label=Candidates] td.activation span").nth(2)
    assert (cell.inner_text(), cell.get_attribute("title")) == ("mine×2 gelu×1", given[2])
    page.get_by_role("link", name="Charts").click()
    page.wait_for_selector("#chart-throughput canvas")
    lines = page.locator("#chart-throughput .legend li[title]")
    shown = [given[i] for i in (3, 1, 0, 2, 4)]
    assert lines.evaluate_all("all => all.map(line => line.title)") == shown
    assert [text.rpartition(" ")[0] for text in lines.all_inner_texts()] == [*map(activations.short_name, shown)]
