"""The settings that candidates have of their own, on the board's page."""

from __future__ import annotations

from .boards import CONFIG, Board, row
from .browser import Tab, chromium

OWN = {"softcap": 0.0, "norm": "rms", "qk_norm": True}
SAID = "softcap 0, norm rms, qk_norm on"


def test_settings_stand_behind_the_activation(shared: Board) -> None:
    shared.run("steady", config=CONFIG | {"run_id": "steady", "search": {"mode": "ffn-activation"},
                                          "symbio_winner": "gelu", "symbio_winner_settings": OWN})
    shared.post("steady", "candidates", 0, [
        {"id": "gen0_gelu_1", "name": "G-Alpha", "activation": "gelu", "generation": 0, "parent_id": None,
         "settings": {}},
        {"id": "gen1_gelu_2", "name": "G-Alpha.1", "activation": "gelu", "generation": 1, "parent_id": "gen0_gelu_1",
         "settings": OWN},
        {"id": "gen1_gelu_3", "name": "G-Beta.1", "activation": "gelu", "generation": 1, "parent_id": "gen0_gelu_1",
         "settings": None},
        {"id": "gen1_gelu_4", "name": "G-Gamma.1", "activation": "gelu", "generation": 1, "parent_id": "gen0_gelu_1"}])
    shared.post("steady", "metrics", 0, [
        row(3 * i + n, symbio_candidate_id=name, symbio_candidate_activation="gelu", symbio_phase="search")
        for i, name in enumerate(("gen0_gelu_1", "gen1_gelu_2")) for n in (1, 2, 3)])
    with chromium() as browser:
        tab = Tab(browser, shared.url)
        page = tab.open("#runs=steady&tab=search")
        page.wait_for_selector(".tree .node")
        for label in ("Candidates", "Switch log"):
            cells = page.locator(f"table[aria-label='{label}'] td.activation").all_inner_texts()
            assert cells[:2] == ["gelu", f"gelu {SAID}"] and set(cells[2:]) <= {"gelu"}
        assert any(SAID in (about or "") for about in page.locator(".tree .node").evaluate_all(
            "all => all.map(node => node.getAttribute('aria-label'))"))
        assert f"found by the search with {SAID}" in page.locator(".figures").inner_text()
        tab.close()
