"""A browser that sees a board, and nothing else of the network; and runs to look at."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
SMALL = ("--preset", "tiny", "--backend", "cpu_ref", "--quiet")


def train(run: Path, *args: str) -> subprocess.Popen[str]:
    """Start a training of the preset tiny."""
    return subprocess.Popen([sys.executable, "-m", "helios.cli.train", *SMALL, "--run-dir", str(run), *args],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trained(run: Path, *args: str) -> str:
    """Train to the end and return the run's id."""
    process = train(run, *args)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return str(json.loads((run / "config.json").read_text())["run_id"])


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright; skips the test that has none."""
    if CHROMIUM is None:
        pytest.skip("no chromium: ./run setup --test installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


class Tab:
    """A page with what it asked for and complained about; other hosts cannot be reached from it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.asked: list[str] = []
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _route(self, route: Any) -> None:
        url = route.request.url
        if url.startswith(self.address + "/"):
            self.asked.append(url[len(self.address):])
            route.continue_()
        else:
            self.elsewhere.append(url)
            route.abort()

    def _heard(self, message: Any) -> None:
        # The browser has advice for who reads a canvas, which the tests do.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            self.complaints.append(message.text)

    def open(self, view: str = "") -> Any:
        """Show a view, given as its hash."""
        self.page.goto(f"{self.address}/{view}")
        return self.page

    def close(self) -> None:
        self.context.close()
        assert not self.elsewhere
        assert not self.complaints


@contextmanager
def tabs(browser: Any, url: str) -> Iterator[Callable[..., Tab]]:
    """Opens tabs. Each must end without a complaint, and without having asked another host."""
    opened: list[Tab] = []

    def make(**options: Any) -> Tab:
        opened.append(Tab(browser, url, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
