"""The commands of the `run` script, and the Python environment that it makes."""

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .checkout import SCRIPT, Checkout, program


@pytest.mark.parametrize("script", [SCRIPT, SCRIPT.parent / ".ci" / "run"], ids=["run", ".ci/run"])
def test_scripts_parse_and_are_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_scripts_name_no_host() -> None:
    """A mirror comes from the machine's own apt sources, a package index from pip's own settings."""
    for script in (SCRIPT, SCRIPT.parent / ".ci" / "run"):
        assert not re.search(r"\w+://|\.(org|com|net|io)\b", script.read_text())


def test_help_needs_no_set_up(checkout: Checkout) -> None:
    result = subprocess.run([str(checkout.root / "run"), "help"], capture_output=True, text=True, check=True)
    for command in ("train", "test", "bench", "board", "setup", "help"):
        assert re.search(rf"^  {command}\b", result.stdout, re.MULTILINE)
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("args", [[], ["trian"], ["setup", "--tset"], ["bench"]], ids=str)
def test_wrong_command_is_one_exit_2_and_installs_nothing(checkout: Checkout, args: list[str]) -> None:
    result = checkout.run(*args)
    assert result.returncode == 2
    assert result.stderr and not result.stdout
    assert not checkout.calls("")


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["--preset", "quickstart"]),
        (["--steps", "20"], ["--preset", "quickstart", "--steps", "20"]),
        (["--preset", "small"], ["--preset", "small"]),
        (["--preset=small"], ["--preset=small"]),
        (["--config", "a b.toml"], ["--config", "a b.toml"]),
        (["--resume", "runs/1"], ["--resume", "runs/1"]),
    ],
    ids=str,
)
def test_train_starts_with_a_preset_unless_told_otherwise(
    checkout: Checkout, given: list[str], passed: list[str]
) -> None:
    assert program(checkout.run("train", *given))[2:] == passed


def test_programs_start_in_the_callers_folder(checkout: Checkout, tmp_path: Path) -> None:
    assert program(checkout.run("train", cwd=tmp_path))[:2] == ["helios-train", str(tmp_path)]


def test_pytest_finds_its_settings_and_tests_from_anywhere(checkout: Checkout, tmp_path: Path) -> None:
    settings, tests = str(checkout.root / "pyproject.toml"), str(checkout.root / "tests")
    (tmp_path / "test_mine.py").touch()
    assert program(checkout.run("test", "-q", LAYERS="yes"))[2:] == ["-q"]
    assert program(checkout.run("test", "-q", cwd=tmp_path, LAYERS="yes"))[2:] == ["-c", settings, tests, "-q"]
    mine = program(checkout.run("test", "test_mine.py::test_a", cwd=tmp_path, LAYERS="yes"))
    assert mine[2:] == ["-c", settings, "test_mine.py::test_a"]


# ---- the Python environment ------------------------------------------------------------------------------------------


def test_second_run_installs_nothing(checkout: Checkout) -> None:
    first = checkout.run("train")
    assert first.stderr.count("helios: installing") == 2
    assert checkout.calls("python -m pip install") == [f"python -m pip install -q -e {checkout.root}"]
    second = checkout.run("train")
    assert program(second) == program(first)
    assert not second.stderr
    assert len(checkout.calls("")) == 2  # which Python .venv has, and whether there is a device


def test_tests_add_their_packages_and_training_keeps_them(checkout: Checkout) -> None:
    checkout.run("train")
    checkout.calls("")
    checkout.run("test", LAYERS="yes")
    assert checkout.calls("python -m pip install") == [f"python -m pip install -q -e {checkout.root}[test]"]
    checkout.run("train")
    assert not checkout.calls("python -m")


def test_board_adds_its_packages_and_training_keeps_them(checkout: Checkout, tmp_path: Path) -> None:
    started = program(checkout.run("board", "--port", "0", cwd=tmp_path))
    assert started == ["helios-board", str(tmp_path), "--port", "0"]
    assert checkout.calls("python -m pip install") == [f"python -m pip install -q -e {checkout.root}[board]"]
    checkout.run("train")
    checkout.run("board")
    assert not checkout.calls("python -m")
    checkout.run("test", LAYERS="yes")
    assert checkout.calls("python -m pip install") == [f"python -m pip install -q -e {checkout.root}[test]"]
    checkout.run("board")
    assert not checkout.calls("python -m")


def test_second_command_waits_while_the_first_installs(checkout: Checkout) -> None:
    with ThreadPoolExecutor() as threads:
        train = threads.submit(checkout.run, "train", PIP_TAKES="1")
        while not (checkout.root / ".venv" / "setup.log").exists():
            time.sleep(0.01)
        board = checkout.run("board")
        assert program(board)[0] == "helios-board" and "waiting for another ./run" in board.stderr
        assert program(train.result())[0] == "helios-train"
    assert len(checkout.calls("python -m venv")) == 1


def test_changed_pyproject_updates_the_environment(checkout: Checkout) -> None:
    checkout.run("test", LAYERS="yes")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    checkout.calls("")
    checkout.run("train")
    assert checkout.calls("python -m pip install") == [f"python -m pip install -q -e {checkout.root}[test]"]


def test_interrupted_set_up_is_made_anew(checkout: Checkout) -> None:
    checkout.run("train")
    stamp = checkout.root / ".venv" / "helios-stamp"
    done = stamp.read_text()
    stamp.write_text("unfinished\n")
    left = checkout.root / ".venv" / "left over"
    left.touch()
    program(checkout.run("train"))
    assert stamp.read_text() == done
    assert not left.exists()


def test_moved_checkout_gets_a_new_environment(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("train")
    checkout.root = checkout.root.rename(tmp_path / "moved")
    checkout.calls("")
    program(checkout.run("train"))
    assert len(checkout.calls("python -m venv")) == 1


def test_environment_made_by_hand_is_kept(checkout: Checkout) -> None:
    checkout.run("train")
    (checkout.root / ".venv" / "helios-stamp").unlink()
    checkout.calls("")
    program(checkout.run("train"))
    assert not any("-m venv" in call for call in checkout.calls("python -m"))


def test_failed_install_says_why_and_leaves_what_worked(checkout: Checkout) -> None:
    checkout.run("train")
    stamp = checkout.root / ".venv" / "helios-stamp"
    done = stamp.read_text()
    result = checkout.run("test", FAKE_PIP="1")
    assert result.returncode == 1
    assert "could not install the Python packages" in result.stderr
    assert stamp.read_text() == done
