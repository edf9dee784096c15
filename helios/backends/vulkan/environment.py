"""What must be in the environment before the Vulkan loader opens a driver.

Mesa's lavapipe computes with 256-bit vectors unless told otherwise; with AVX-512, 512 bits are twice as fast. Its disk
cache is not keyed by the width: a kernel compiled at one width and loaded at another computes wrongly, so each width
has its own folder.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def cache_dir() -> Path:
    """$HELIOS_CACHE, else helios in the user's cache folder."""
    home = os.environ.get("HELIOS_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "helios"


@cache
def prepare() -> None:
    """Set lavapipe's SIMD width and its cache folder, where the user has not."""
    if "LP_NATIVE_VECTOR_WIDTH" not in os.environ and cpu_flags() >= AVX512:
        os.environ["LP_NATIVE_VECTOR_WIDTH"] = "512"
    if "MESA_SHADER_CACHE_DIR" not in os.environ:
        width = os.environ.get("LP_NATIVE_VECTOR_WIDTH", "default")
        folder = cache_dir() / f"mesa-{width}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["MESA_SHADER_CACHE_DIR"] = str(folder)
        except OSError:  # nowhere to write: better no cache than one of another width
            os.environ["MESA_SHADER_CACHE_DISABLE"] = "true"


def cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
