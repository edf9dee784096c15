"""The machine that Python runs on: its processor, and the folder for what is made once and kept."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import platformdirs
import psutil


def cache_dir() -> Path:
    """Return $HELIOS_CACHE, else `helios` in the user's cache folder (~/.cache on Linux)."""
    given = os.environ.get("HELIOS_CACHE")
    return Path(os.path.expanduser(given) if given else platformdirs.user_cache_path("helios", appauthor=False))


def processor() -> str:
    """Return the processor's name, or its architecture where the system tells no name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """Return what the machine is: its name, system, processor, cores that this process may use, and memory in MiB."""
    return {"name": platform.node(), "os": platform.platform(), "cpu": processor(),
            "cores": len(os.sched_getaffinity(0)), "memory_mib": psutil.virtual_memory().total // 2**20}


def cpu_flags() -> set[str]:
    """Return the processor's extensions as Linux names them ("avx2", …); nothing where the system does not tell."""
    return set(_cpuinfo().get("flags", "").split())


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
