"""The cache folder, and what the processor is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios import host


@pytest.mark.parametrize(("set_", "expected"), [
    ({}, "home/.cache/helios"), ({"XDG_CACHE_HOME": ""}, "home/.cache/helios"),
    ({"XDG_CACHE_HOME": "xdg"}, "xdg/helios"),
    ({"XDG_CACHE_HOME": "xdg", "HELIOS_CACHE": "own"}, "own"),
    ({"HELIOS_CACHE": "~/own"}, "home/own")])
def test_cache_folder(set_: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HELIOS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {"HOME": "home", **set_}.items():
        monkeypatch.setenv(name, folder if folder[:1] in ("", "~") else str(tmp_path / folder))
    assert host.cache_dir() == tmp_path / expected


def test_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        text = "processor\t: 0\nmodel name\t: A CPU: 3 GHz\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: none\n"
        monkeypatch.setattr(Path, "read_text", lambda *_: text)
        host._cpuinfo.cache_clear()
        assert host.processor() == "A CPU: 3 GHz" and host.cpu_flags() == {"fpu", "avx2"}
        monkeypatch.setattr(Path, "read_text", lambda *_: "processor\t: 0\n\n")  # as on ARM
        host._cpuinfo.cache_clear()
        assert host.processor() and host.cpu_flags() == set()
    finally:
        host._cpuinfo.cache_clear()
