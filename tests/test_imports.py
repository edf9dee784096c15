"""Modules depend on one another in one direction, also where an import is for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path

import pytest


def modules(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *(p for p in parts if p != "__init__"))), path


def imported(node: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules that a module imports as it is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            # from package import module, or from module import name
            yield from (name if (name := f"{child.module}.{alias.name}") in known else child.module
                        for alias in child.names)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(child, known)


@pytest.mark.parametrize("package", ["helios", "helios.model"])
def test_no_circles(package: str) -> None:
    found = dict(modules(package, Path(str(resources.files(package)))))
    graph = {name: {other for other in imported(ast.parse(path.read_text()), set(found)) if other in found} - {name}
             for name, path in found.items()}
    assert len(graph) > 3 and any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))
