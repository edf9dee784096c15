"""The choice of the fastest tile for each class of product in a training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from helios.backends.backend import Backend
from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.tuning import Tile
from helios.bench.measure import Effort, Timed, time_replays
from helios.bench.registry import Row
from helios.errors import UserError

MARGIN = 1.02  # by which a tile must beat the untuned one, at best and in the median, lest noise chooses


class Choice(NamedTuple):
    name: str  # the shape class
    shape: str  # the product that was measured
    tile: Tile
    ms: float
    untuned_ms: float


def classes(table: Iterable[Row]) -> dict[str, Row]:
    """Return the table's largest product of each shape class."""
    found: dict[str, Row] = {}
    for row in (row for row in table if row.primitive == "matmul"):
        name = tuning.shape_class(*_product(row))
        if name not in found or found[name].flops < row.flops:
            found[name] = row
    return found


def tune(be: Backend, table: Iterable[Row], effort: Effort) -> Iterator[Choice]:
    """Measure tiles in turn; yield those that gain, which the backend then uses. Raises UserError where it has none."""
    if not isinstance(be, VulkanBackend):
        raise UserError(f"{be.device_name} has no tiles to choose; a Vulkan device has")
    candidates = tuning.candidates(be.profile, be.matmul_kernel)
    for name, row in classes(table).items():
        arrays = [be.array(x) for x in row.arguments()]
        ta, tb, m, n, k = _product(row)
        plain = be.matmul_tile(ta, tb, m, n, k)
        tiles, sides = [plain, *(tile for tile in candidates if tile != plain and be.fits(tile, m, n))], []
        for be.tiles[name] in tiles:
            sides.append(_timed(be, row, arrays, effort))
        for _ in range(effort.rounds):
            for side in sides:
                side.sample()
        del be.tiles[name]
        untuned, fastest = sides[0], min(sides, key=lambda side: side.best().device_ms)
        gains = (a.device_ms > MARGIN * b.device_ms for a, b in (
            (untuned.best(), fastest.best()), (untuned.median(), fastest.median())))
        if all(gains):
            be.tiles[name] = tiles[sides.index(fastest)]
            yield Choice(name, row.shape, be.tiles[name], fastest.best().device_ms, untuned.best().device_ms)


def _product(row: Row) -> tuple[bool, bool, int, int, int]:
    """Return ta, tb (whether an operand is transposed), M, N, K."""
    ta, tb = (letter == "t" for letter in row.op.removeprefix("matmul_"))
    m, n, k = map(int, row.shape.split("x"))
    return ta, tb, m, n, k


def _timed(be: Backend, row: Row, arrays: list[Any], effort: Effort) -> Timed:
    """Return the row's Timed, which records it at once, with the tile that the backend uses now."""
    return Timed(time_replays(be, partial(row.call, be, *arrays)), effort)
