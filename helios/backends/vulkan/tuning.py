"""Which tile of matmul_cpu.comp is the fastest here: what `helios-bench tune` measured, kept in the cache folder.

A tile changes no bit of a product: whatever its size, every element is summed over K in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios.backends.vulkan import environment, shaders

KERNEL = "matmul_cpu"  # all three numbers of a tile are even
Tile = dict[str, int]
TILES: tuple[Tile, ...] = tuple(dict(zip(("RA", "CB", "KU"), sizes, strict=True)) for sizes in (
    (4, 4, 4), (4, 4, 2), (4, 8, 2), (2, 4, 4), (2, 4, 8), (4, 2, 4), (2, 2, 4)))


def shape_class(ta: bool, tb: bool, m: int, n: int, k: int) -> str:
    """The layout, and each length up to the next power of two: "nt 2048 1024 256"."""
    lengths = (1 << (length - 1).bit_length() for length in (m, n, k))
    return " ".join(("nt"[ta] + "nt"[tb], *map(str, lengths)))


def path(profile: Any) -> Path:
    """Of this device, its driver and the kernel as it is now."""
    about = f"{profile.name}\n{profile.driver}\n{profile.subgroup_size}\n{shaders.source(KERNEL, {})}"
    return environment.cache_dir() / f"tiles-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def load(profile: Any) -> dict[str, Tile]:
    """By shape class; nothing where nothing was measured, and no entry that is not one of TILES."""
    if profile.profile != "cpu":
        return {}
    try:
        found = json.loads(path(profile).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: tile for name, tile in found.items() if tile in TILES} if isinstance(found, dict) else {}


def save(profile: Any, tiles: Mapping[str, Tile]) -> Path:
    """In the place of what is there."""
    where = path(profile)
    shaders.write_cache(where, json.dumps(dict(tiles), indent=1, sort_keys=True).encode())
    return where
