"""The tiles of the matmul kernels, and which of them were measured to be the fastest on this device, kept in the cache
folder.

A tile changes no bit of a product: whatever its size, every element is summed over K in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from helios.backends.vulkan import shaders
from helios.backends.vulkan.profile import DeviceProfile
from helios.host import cache_dir

Tile = dict[str, int]


def _tiles(names: str, *sizes: tuple[int, ...]) -> tuple[Tile, ...]:
    return tuple(dict(zip(names.split(), size, strict=True)) for size in sizes)


# By kernel. Those of matmul_cpu are even. Of matmul_uniform, the first is for machines of 16 vector registers, the next
# for those of 32. Of a GPU's kernel, the first is for products that keep the device busy with it; the next is for
# others, or the first after it that the device has the means for. The last of matmul needs no more than Vulkan
# guarantees, 16 KiB and 128 lanes.
TILES = {
    "matmul_cpu": _tiles("RA CB KU", (4, 4, 4), (4, 4, 2), (4, 8, 2), (2, 4, 4), (2, 4, 8), (4, 2, 4), (2, 2, 4)),
    "matmul_uniform": _tiles("R CB KB TA", (5, 2, 256, 0), (16, 1, 256, 1)),
    "matmul": _tiles("BM BN BK TM TN", (128, 128, 8, 8, 8), (64, 64, 16, 4, 4), (128, 64, 16, 8, 4),
                     (64, 128, 16, 4, 8), (64, 32, 16, 4, 4)),
    "matmul_coopmat": _tiles("BM BN BK WM WN", (128, 128, 32, 64, 32), (64, 64, 32, 32, 32), (128, 64, 32, 64, 32),
                             (64, 128, 32, 32, 64)),
}

KERNELS = ("matmul_cpu", "matmul", "matmul_coopmat")  # that compute products, by device and precision
SUBGROUPS = 4  # in a workgroup of matmul_uniform
BESIDE = {"matmul_cpu": ("matmul_uniform",)}  # kernels that may serve instead, where the device has what they need


def kernel_of(tile: Tile, kernel: str) -> str:
    """Return the kernel that a tile belongs to, where `kernel` computes products."""
    return next(name for name in (kernel, *BESIDE.get(kernel, ())) if TILES[name][0].keys() == tile.keys())


def lanes(kernel: str, tile: Tile, subgroup_size: int) -> int:
    """Return how many lanes a workgroup has."""
    if kernel == "matmul":
        return tile["BM"] // tile["TM"] * (tile["BN"] // tile["TN"])
    if kernel == "matmul_coopmat":
        return tile["BM"] // tile["WM"] * (tile["BN"] // tile["WN"]) * subgroup_size
    return SUBGROUPS * subgroup_size if kernel == "matmul_uniform" else subgroup_size


def shared_bytes(kernel: str, tile: Tile) -> int:
    """Return how many bytes of shared memory a workgroup takes, at most."""
    if kernel == "matmul":
        return 2 * 4 * tile["BK"] * (tile["BM"] + tile["BN"] + 8)
    if kernel == "matmul_uniform":
        return 4 * (-(-tile["KB"] // 8) + 1)  # a word every FENCE steps, and the last
    if kernel == "matmul_coopmat":  # at most, over the layouts and fragments
        pad, subgroups = 8, tile["BM"] // tile["WM"] * (tile["BN"] // tile["WN"])
        slice_ = lambda length: max(length * (tile["BK"] + pad), tile["BK"] * (length + pad))
        return 2 * 2 * (slice_(tile["BM"]) + slice_(tile["BN"])) + 4 * 256 * subgroups
    return 0


def shape_class(ta: bool, tb: bool, m: int, n: int, k: int) -> str:
    """Return the layout, and each length up to the next power of two: "nt 2048 1024 256"."""
    lengths = (1 << (length - 1).bit_length() for length in (m, n, k))
    return " ".join(("nt"[ta] + "nt"[tb], *map(str, lengths)))


def path(profile: DeviceProfile, kernel: str) -> Path:
    """Return the file for this device, its driver and the kernel, and those beside it, as they are now."""
    about = f"{profile.name}\n{profile.driver}\n{profile.subgroup_size}\n" + "".join(
        shaders.source(name, {}) for name in (kernel, *BESIDE.get(kernel, ())))
    return cache_dir() / f"tiles-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def candidates(profile: DeviceProfile, kernel: str) -> list[Tile]:
    """Return the tiles that the device has shared memory, lanes and 64-bit addresses for."""
    beside = BESIDE.get(kernel, ()) if "shaderInt64" in profile.features else ()
    return [tile for name in (kernel, *beside) for tile in TILES[name]
            if shared_bytes(name, tile) <= profile.shared_bytes
            and lanes(name, tile, profile.subgroup_size) <= profile.max_lanes]


def load(profile: DeviceProfile, kernel: str) -> dict[str, Tile]:
    """Return the tiles that were saved, by shape class; nothing where none were, and none that is not a candidate."""
    try:
        found = json.loads(path(profile, kernel).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    tiles = candidates(profile, kernel)
    return {name: tile for name, tile in found.items() if tile in tiles} if isinstance(found, dict) else {}


def told(tiles: Mapping[str, Tile], kernel: str) -> dict[str, str]:
    """Return in words the kernel and the tile of each shape class, where `kernel` computes products."""
    owned = {shape: (kernel_of(tile, kernel), tile) for shape, tile in sorted(tiles.items())}
    return {shape: " ".join((own, *(f"{name} {tile[name]}" for name in TILES[own][0])))
            for shape, (own, tile) in owned.items()}


def save(profile: DeviceProfile, kernel: str, tiles: Mapping[str, Tile]) -> Path:
    """Keep these tiles, by shape class, in place of those that were kept; return the file."""
    where = path(profile, kernel)
    shaders.write_cache(where, json.dumps(dict(tiles), indent=1, sort_keys=True).encode())
    return where
