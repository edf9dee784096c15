"""Modules depend on one another in one direction, also where an import is for types alone."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path

import pytest


def modules(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *(p for p in parts if p != "__init__"))), path


def imported(node: ast.AST, known: set[str], later: bool = False) -> Iterator[str]:
    """The modules that a module imports as it is loaded, or also those that its functions import `later`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            # from package import module, or from module import name
            yield from (name if (name := f"{child.module}.{alias.name}") in known else child.module
                        for alias in child.names)
        elif later or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(child, known, later)


ROOMS = ("helios.kernels", "helios.model", "helios.train", "helios.bench", "helios.cli")  # each below the next
WITHIN_TRAIN = ("helios.train.records", "helios.train.history", "helios.train.board", "helios.train.monitors",
                "helios.train.search", "helios.train.evolve", "helios.train.challenge", "helios.train.gates",
                "helios.train.report")
ORDER = ("helios.train.stage", "helios.train.loop", "helios.train.run", "helios.train.search",
         "helios.train.evolve", "helios.train.challenge")  # none reaches a later one


def room(module: str) -> str:
    """The folder of train/ that a module stands in, else the module."""
    return next((name for name in WITHIN_TRAIN if f"{module}.".startswith(f"{name}.")), module)


def circle(graph: dict[str, set[str]]) -> str:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))
    return ""


def arrows(later: bool = False) -> dict[str, set[str]]:
    """The modules that each module imports."""
    found: dict[str, Path] = {}
    for package in ("helios", *ROOMS):
        found |= modules(package, Path(str(resources.files(package))))
    return {name: set(imported(ast.parse(path.read_text("utf-8")), set(found), later)) & found.keys() - {name}
            for name, path in found.items()}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows()


def test_no_circles(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 90 and circle(graph) == ""


def test_rooms_import_what_lies_below_them(graph: dict[str, set[str]]) -> None:
    floors = ("helios", *ROOMS)
    floor = lambda module: max(i for i, name in enumerate(floors) if f"{module}.".startswith(f"{name}."))
    for module, others in graph.items():
        for other in others:
            assert floor(other) <= floor(module), f"{module} imports {other}"
            if floor(other) == floors.index("helios.cli"):
                assert other == "helios.cli.common", f"{module} imports another command"


def test_no_circles_of_rooms_within_train(graph: dict[str, set[str]]) -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        if module.startswith("helios.train"):
            rooms.setdefault(room(module), set()).update(room(o) for o in others if o.startswith("helios.train"))
    assert circle({name: others - {name} for name, others in rooms.items()}) == ""


def test_a_run_knows_nothing_of_searches() -> None:
    graph = arrows(later=True)
    for at, name in enumerate(ORDER):
        found, ahead = set[str](), [module for module in graph if room(module) == name]
        assert ahead
        while ahead:
            new = graph[ahead.pop()] - found
            found |= new
            ahead += new
        assert not {room(module) for module in found} & set(ORDER[at + 1:]), f"{name} reaches what is made of it"


def test_all_packages_are_installed() -> None:
    root = Path(__file__).parents[1]
    rooms = ("helios", *(name.removeprefix("helios.") for name in ROOMS))
    there = [path.parent.relative_to(root).parts for name in rooms for path in (root / name).rglob("__init__.py")]
    named = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted(".".join(parts if parts[0] == "helios" else ("helios", *parts)) for parts in there)
