"""helios.model, helios.train … are found wherever helios is: installed, or in a checkout that is first on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "model", "train", "cli", "bench")
SITE = os.pathsep.join(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
IMPORT = """
from importlib import resources
import helios.kernels.lib, helios.model.gpt, helios.train.presets, helios.cli.common, helios.bench
for module in (helios, helios.kernels, helios.model, helios.train, helios.cli, helios.bench):
    print(resources.files(module))
print(resources.files("helios.kernels").joinpath("adamw.comp").is_file())
"""


def python(*args: str, path: str, folder: Path, safe: bool = False) -> subprocess.CompletedProcess[str]:
    """In a process that sees nothing installed but through `path`: without site, .pth files are not read."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")} | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-S", *["-P"] * safe, *args], cwd=folder, env=env, capture_output=True,
                          text=True)


def checked(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("first", ["current folder", "path"])
def test_in_a_checkout(first: str, tmp_path: Path) -> None:
    if first == "current folder":
        done = python("-c", IMPORT, path=SITE, folder=ROOT)
    else:
        done = python("-c", IMPORT, path=f"{ROOT}{os.pathsep}{SITE}", folder=tmp_path, safe=True)
    assert checked(done) == [str(ROOT / room) for room in ("helios", *ROOMS)] + ["True"]


def test_a_module_as_a_command(tmp_path: Path) -> None:
    done = python("-m", "helios.cli.info", "--help", path=f"{ROOT}{os.pathsep}{SITE}", folder=tmp_path)
    assert "List devices" in "".join(checked(done))


def test_installed(tmp_path: Path) -> None:
    """The package under test, however it is installed."""
    code = "import helios.kernels, helios.model, helios.train.presets, helios.cli, helios.bench"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("beside", [(), ("model",), ROOMS])
def test_folders_beside_an_installed_package_are_not_its_own(beside: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "helios", tmp_path / "helios", ignore=shutil.ignore_patterns("__pycache__"))
    for room in beside:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    done = python("-c", "import helios; print(*helios.__path__)\nimport helios.model",
                  path=f"{tmp_path}{os.pathsep}{SITE}", folder=tmp_path, safe=True)
    assert done.stdout.split() == [str(tmp_path / "helios")]
    assert done.stderr.endswith("No module named 'helios.model'\n")
