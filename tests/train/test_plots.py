"""The pictures of a search: what they show, in which colours, on which axes."""

from __future__ import annotations

import math
import re

import matplotlib.image
import pytest

from helios.model import activations
from helios.model.activations import TABLE
from helios.train.search import plots, report

from .made_up import GLOBAL, PER_BLOCK, SPEED, Make


@pytest.mark.parametrize("plan", [GLOBAL, PER_BLOCK], ids=["global", "per_block"])
def test_pictures(made: Make, plan: list) -> None:
    page = report.write(made(plan).run)
    shown = re.findall(r"!\[.*\]\((.*)\)", page.read_text())
    assert shown == ["loss.png", "speed.png", "lineage.png", "activations.png"]
    for name in shown:
        image = matplotlib.image.imread(page.parent / name)
        assert image.shape[1] == plots.WIDTH * plots.DPI and image.shape[0] > 300
        assert 0.005 < (image[..., :3] < 0.9).any(axis=2).mean() < 0.7  # neither empty nor full
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(
        [*shown, "report.md", "candidates.jsonl", "summary.json"])


def test_a_picture_shows_the_colours_of_its_activations(made: Make) -> None:
    page = report.write(made().run)
    image = (255 * matplotlib.image.imread(page.parent / "activations.png")[..., :3]).round().astype(int)
    area = {name: int((image == [int(colour[i:i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum())
            for name in TABLE for colour in (activations.colour(name),)}
    assert {name for name, pixels in area.items() if pixels > 1000} == SPEED.keys()
    assert max(area.values()) < 1.1 * min(area[name] for name in SPEED)  # two candidates each


def test_short() -> None:
    assert activations.short_name("relu") == "relu"
    assert activations.short_name("relu,gelu,gelu,relu,gelu,gelu") == "gelu×4 relu×2"
    for same in ("swiglu,relu,gelu", "gelu,swiglu,relu"):
        assert activations.short_name(same) == "gelu×1 relu×1 swiglu×1"
    assert activations.short_name("mine: x*sigmoid(1.7*x)|gelu|gelu") == "gelu×2 mine×1"
    assert len(activations.short_name("+".join(["x*sigmoid(x)"] * 9))) == activations.SHOWN


def test_short_names_differ() -> None:
    long = "+".join(["x*sigmoid(x)"] * 3)
    found = activations.short_names(["gelu", f"{long}+x", "gelu", f"{long}+1", "own: x*sin(x)", "own: x*cos(x)"])
    assert list(found.values()) == ["gelu", activations.short_name(long), f"{activations.short_name(long)} #2", "own",
                                    "own #2"]
    assert activations.colour(found[f"{long}+1"]) == activations.colour(f"{long}+1")


def test_what_diverged_does_not_stretch_the_axis() -> None:
    tracks = [plots.Track("a", 1, losses=[8.0, 5.0, 3.0]), plots.Track("b", 1, losses=[8.2, 6.0, 4.0]),
              plots.Track("c", 1, losses=[8.1, 5e3, math.nan])]
    low, high = plots._reach(tracks)["ylim"]
    assert 2.0 < low < 3.0 and 8.2 < high < 12.0
    assert plots._reach([plots.Track("c", 1, losses=[math.nan])]) == {}


def test_colours() -> None:
    assert len({*map(activations.colour, TABLE), *activations.MORE, activations.colour("gelu,relu")}) == len(TABLE) + 9
    assert [activations.kind(name) for name in ("relu", "gelu,relu", "gelu×4 relu×2")] == ["relu", "mixed", "mixed"]
    assert activations.kinds(["x*sin(x)", "relu|x*sin(x)", "gelu", "a: relu(x)"]) == ["gelu", "x*sin(x)", "a", "mixed"]
    many = [f"{i}*sin(x)" for i in range(2, 11)]
    assert activations.kinds(["own: x*sin(x)", *many[1:], "gelu"]) == ["gelu", "own", *many[1:]]
    shown = activations.kinds(["own: x*sin(x)", *many, "gelu", "gelu,relu"])
    assert shown == ["gelu", "own", "formulas", "mixed"]
    assert [activations.kind(text, shown) for text in ("own: x*sin(x)", "3*sin(x)", "gelu", "relu|gelu", "formulas")
            ] == ["own", "formulas", "gelu", "mixed", "formulas"]


def test_no_pictures_where_none_are_wanted(made: Make) -> None:
    page = report.write(made().run, plots=False)
    assert "![" not in page.read_text() and not list(page.parent.glob("*.png"))


def test_bits_do_not_change(made: Make) -> None:
    run = made()
    files = lambda: {path.name: path.read_bytes() for path in report.write(run.run).parent.iterdir()}
    assert files() == files()


def test_children_are_drawn_after_their_parents_order(made: Make) -> None:
    run = made(PER_BLOCK)
    at = plots.places(run.candidates)
    heights = [at[c.id][1] for c in run.candidates]
    assert heights[4] > heights[5] and heights[6] > heights[7]  # M-Gamma's above M-Delta's
    assert len(set(at.values())) == len(at) and [at[c.id][0] for c in run.candidates] == [0] * 4 + [1] * 4
