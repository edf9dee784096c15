"""What must be in the environment before the Vulkan loader opens a driver.

Mesa's lavapipe computes with 256-bit vectors unless told otherwise; with AVX-512, 512 bits are twice as fast. Its disk
cache is not keyed by the width, and a kernel that was compiled at one width and is loaded at another computes wrongly,
so each width has a folder of its own.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from helios.errors import UserError
from helios.host import cache_dir, cpu_flags

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
WIDTHS = ("128", "256", "512")  # with others lavapipe computes wrongly or crashes
WIDTH = "LP_NATIVE_VECTOR_WIDTH"


@cache
def prepare() -> None:
    """Set lavapipe's SIMD width where the user has not, and its cache folder: the one of that width below the folder
    that MESA_SHADER_CACHE_DIR names, or below Helios's own. A child process that inherits both changes nothing.

    Raises UserError for a width of which lavapipe computes nothing right.
    """
    width = os.environ.get(WIDTH)
    if width and width not in WIDTHS:
        raise UserError(f"{WIDTH}: given {width!r}, expected {', '.join(WIDTHS[:-1])} or {WIDTHS[-1]}, "
                        "the bits of lavapipe's vectors; unset it to have the width chosen")
    if not width and cpu_flags() >= AVX512:
        os.environ[WIDTH] = "512"
    given = os.environ.get("MESA_SHADER_CACHE_DIR")
    base = Path(given) if given else cache_dir()
    if re.fullmatch(r"mesa-(\d+|default)", base.name):  # from a parent process, perhaps of another width
        base = base.parent
    folder = base / f"mesa-{os.environ.get(WIDTH) or 'default'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["MESA_SHADER_CACHE_DIR"] = str(folder)
    except OSError:  # nowhere to write: better no cache than one of another width
        os.environ["MESA_SHADER_CACHE_DISABLE"] = "true"


def choose_width(width: str) -> None:
    """Have lavapipe compute with one of WIDTHS in this process, whatever the environment says. Raises UserError where
    the driver may have been opened with another, which cannot change any more."""
    if prepare.cache_info().currsize and os.environ.get(WIDTH) != width:
        raise UserError(f"simd_width: given {width}, and this process computes with {os.environ.get(WIDTH) or 'auto'} "
                        f"already; give it to another process, as helios-evolve --executor processes does")
    os.environ[WIDTH] = width
