"""The logic of the `run` script, without installing anything.

Each test has a checkout of its own (the script and a pyproject.toml) and a PATH on which Python, apt-get, sudo and
nvidia-smi are stand-ins that record how they were called. `.ci/run` covers the real installation.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run"

# Answers as a Python would to what `run` asks; `-m venv` copies it into the new environment, with stand-in programs.
PYTHON = """#!/bin/bash
printf 'python %s\\n' "${*//$'\\n'/ }" >>"$CALLS"
case $* in
  '-m venv '*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    for name in helios-train pytest; do
      printf '#!/bin/bash\\nprintf "%s|" "${0##*/}" "$PWD" "$@"\\n' "%s" >"$3/bin/$name"
      chmod +x "$3/bin/$name"
    done ;;
  '-m pip install'*) exit "${FAKE_PIP:-0}" ;;
  '-I -c'*vulkan*) [[ -e $DEVICE ]] ;;
  *'sys.argv[1]'*) printf '%s 3 13\\n' "$3" ;;
  *'print("python'*) printf 'python3.13-venv\\n' ;;
esac
"""
# Installing the package named in $PROVIDES makes a device appear.
APT_GET = """#!/bin/bash
printf 'apt-get %s\\n' "$*" >>"$CALLS"
[[ $* == *install* && -n ${PROVIDES:-} && $* == *$PROVIDES* ]] && touch "$DEVICE"
[[ $* == *${REFUSED:-nothing is refused}* ]] && exit 100
exit 0
"""
SUDO = """#!/bin/bash
[[ $1 == -n ]] && shift
exec "$@"
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"  # with a space: paths must be quoted
        self.bin = folder / "bin"
        self.apt = folder / "apt"
        self.calls_file = folder / "calls"
        self.device = folder / "device"
        for path in (self.root / "tests", self.bin, self.apt / "sources.list.d"):
            path.mkdir(parents=True)
        (self.root / "run").write_bytes(SCRIPT.read_bytes())
        (self.root / "run").chmod(0o755)
        (self.root / "pyproject.toml").write_text("[project]\n")
        for name, text in {"python3.13": PYTHON, "apt-get": APT_GET, "sudo": SUDO}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.device.touch()

    def bash(
        self, code: str, *args: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `code` after sourcing the script, on a made-up Debian 12 with neither GPU nor validation layers."""
        set_up = """
source "$1/run"; shift
os_release() { echo 'debian bookworm'; }
has_nvidia() { [[ -n ${NVIDIA:-} ]]; }
has_validation() { [[ -n ${LAYERS:-} ]]; }
"""
        return subprocess.run(
            ["bash", "-c", set_up + code, "bash", str(self.root), *args],
            cwd=cwd or self.root,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "CALLS": str(self.calls_file),
                "DEVICE": str(self.device),
                "HELIOS_APT_DIR": str(self.apt),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run(self, *args: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.bash('main "$@"', *args, cwd=cwd, **environment)

    def calls(self, start: str) -> list[str]:
        """The recorded calls that begin with `start`, which are then forgotten with all others."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [line for line in lines if line.startswith(start)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def program(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Name, folder and arguments of the program that `run` became."""
    assert result.returncode == 0, result.stderr
    return result.stdout.rstrip("|").split("|")


# ---- commands --------------------------------------------------------------------------------------------------------


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
    for command in ("train", "test", "bench", "setup", "help"):
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


# ---- the Vulkan device -----------------------------------------------------------------------------------------------

DEB822 = """
# The image's own note, not a field
Types: deb deb-src
# another note
URIs: mirror+file:/etc/mirrors.list
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: mirror+file:/etc/security.list
Suites: bookworm-security
Components: main
"""
DEB822_BACKPORTS = """helios-backports.sources
Types: deb
URIs: mirror+file:/etc/mirrors.list
Suites: bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg
"""
ONE_LINE = """# deb file:/old bookworm main
deb cdrom:[Debian 12 _Bookworm_]/ bookworm main
deb-src file:/srv/debian bookworm main
deb [signed-by=/a.gpg arch=amd64] file:/srv/tools bookworm stable
deb [signed-by=/a.gpg arch=amd64] file:/srv/debian bookworm main contrib
deb file:/srv/security bookworm-security main
"""
ONE_LINE_BACKPORTS = """helios-backports.list
deb [signed-by=/a.gpg arch=amd64] file:/srv/debian bookworm-backports main contrib
"""


@pytest.mark.parametrize(
    ("deb822", "one_line", "expected"),
    [
        (DEB822, None, DEB822_BACKPORTS),
        (DEB822, "# moved to debian.sources\n", DEB822_BACKPORTS),
        ("Enabled: no\n" + DEB822.lstrip(), ONE_LINE, ONE_LINE_BACKPORTS),
        (None, ONE_LINE, ONE_LINE_BACKPORTS),
        (None, "deb file:/srv/debian trixie main\n", None),
        (None, None, None),
    ],
    ids=["deb822", "deb822 and a note", "deb822 switched off", "one-line", "another release", "none"],
)
def test_backports_source_is_the_machines_own(
    checkout: Checkout, deb822: str | None, one_line: str | None, expected: str | None
) -> None:
    if deb822 is not None:
        (checkout.apt / "sources.list.d" / "debian.sources").write_text(deb822)
    if one_line is not None:
        (checkout.apt / "sources.list").write_text(one_line)
    result = checkout.bash("backports_source bookworm")
    assert (result.returncode == 0) == (expected is not None)
    assert result.stdout == (expected or "")
    assert not result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb file:/srv/debian bookworm-backports main\n"),
        ("sources.list.d/any.list", "deb file:/srv/debian bookworm-backports main\n"),
        ("sources.list.d/any.sources", "Suites: bookworm bookworm-backports\n"),
    ],
    ids=str,
)
def test_backports_are_added_only_once(checkout: Checkout, name: str, text: str) -> None:
    (checkout.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    (checkout.apt / name).write_text(text)
    assert checkout.bash("add_backports bookworm").returncode == 0
    assert not list(checkout.apt.glob("sources.list.d/helios-*"))


def test_present_device_is_kept(checkout: Checkout) -> None:
    program(checkout.run("train"))
    assert not checkout.calls("apt-get")


def test_missing_device_is_installed_from_backports(checkout: Checkout) -> None:
    (checkout.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    checkout.device.unlink()
    result = checkout.run("train", PROVIDES="mesa-vulkan-drivers", REFUSED="update")  # a dead third-party source
    assert "--backend" not in program(result)
    update, install = checkout.calls("apt-get")
    assert "update" in update
    assert install.endswith("install -t bookworm-backports libvulkan1 mesa-vulkan-drivers")
    written = checkout.apt / "sources.list.d" / "helios-backports.sources"
    assert written.read_text() == DEB822_BACKPORTS.partition("\n")[2]


def test_mirror_without_backports_leaves_no_broken_source(checkout: Checkout) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", REFUSED="-t bookworm-backports")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert not list(checkout.apt.glob("sources.list.d/helios-*"))


def test_debian_12_without_a_source_to_derive_from(checkout: Checkout) -> None:
    checkout.device.unlink()
    result = checkout.run("train")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert "Debian 12's own Mesa is too old" in result.stderr
    assert not checkout.calls("apt-get")


def test_other_systems_serve_their_own_mesa(checkout: Checkout) -> None:
    checkout.device.unlink()
    result = checkout.bash(
        'os_release() { echo "ubuntu noble"; }; main "$@"', "train", PROVIDES="mesa-vulkan-drivers"
    )
    assert "--backend" not in program(result)
    assert checkout.calls("apt-get")[-1].endswith("install libvulkan1 mesa-vulkan-drivers")


def test_nvidia_gpu_needs_only_the_loader(checkout: Checkout) -> None:
    checkout.device.unlink()
    program(checkout.run("train", NVIDIA="yes", PROVIDES="libvulkan1"))
    assert [call.rpartition("install ")[2] for call in checkout.calls("apt-get") if "update" not in call] == [
        "libvulkan1"
    ]


def test_without_a_device_training_takes_the_reference_backend(checkout: Checkout) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", "--steps", "1", REFUSED="install")
    assert program(result)[2:] == ["--preset", "quickstart", "--backend", "cpu_ref", "--steps", "1"]
    assert "no Vulkan device" in result.stderr
    assert checkout.calls("apt-get")

    again = checkout.run("train", "--steps", "1", REFUSED="install")
    assert program(again) == program(result)
    assert not checkout.calls("apt-get")  # not tried each time

    assert checkout.run("setup", REFUSED="install").returncode == 1
    assert checkout.calls("apt-get")  # but when asked to


@pytest.mark.parametrize("chosen", ["--backend cpu_ref", "--backend=cpu_ref", "--set backend=cpu_ref"])
def test_reference_backend_needs_no_device(checkout: Checkout, chosen: str) -> None:
    checkout.device.unlink()
    assert program(checkout.run("train", *chosen.split()))[2:] == ["--preset", "quickstart", *chosen.split()]
    assert not checkout.calls("apt-get")


@pytest.mark.parametrize("chosen", ["--backend vulkan", "--backend=vulkan", "--set backend=vulkan"])
def test_chosen_backend_is_not_replaced(checkout: Checkout, chosen: str) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", *chosen.split(), REFUSED="install")
    assert program(result)[2:] == ["--preset", "quickstart", *chosen.split()]
    assert checkout.calls("apt-get")


def test_tests_get_the_validation_layers(checkout: Checkout) -> None:
    program(checkout.run("test"))
    assert checkout.calls("apt-get")[-1].endswith("install vulkan-validationlayers")
    program(checkout.run("test", LAYERS="yes"))
    assert not checkout.calls("apt-get")


def test_nothing_is_installed_where_root_cannot_be_had(checkout: Checkout) -> None:
    checkout.device.unlink()
    (checkout.bin / "sudo").write_text("#!/bin/bash\nexit 1\n")
    no_apt_for_root = 'command() { [[ $* != "-v apt-get" ]] && builtin command "$@"; }' if os.geteuid() == 0 else ":"
    result = checkout.bash(f'{no_apt_for_root}; main "$@"', "train")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert "have someone install: libvulkan1 mesa-vulkan-drivers" in result.stderr
    assert not checkout.calls("apt-get")
