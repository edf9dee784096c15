"""A checkout whose `run` script is tested without installing anything.

Each test has its own (the script and a pyproject.toml) and a PATH on which Python, apt-get, sudo and
nvidia-smi are stand-ins that record how they were called. `.ci/run` covers the real installation.
"""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "run"

# Answers as a Python would to what `run` asks; `-m venv` copies it into the new environment, with stand-in programs.
PYTHON = """#!/bin/bash
printf 'python %s\\n' "${*//$'\\n'/ }" >>"$CALLS"
case $* in
  '-m venv '*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    for name in helios-train helios-board pytest; do
      printf '#!/bin/bash\\nprintf "%s|" "${0##*/}" "$PWD" "$@"\\n' "%s" >"$3/bin/$name"
      chmod +x "$3/bin/$name"
    done ;;
  '-m pip install'*) sleep "${PIP_TAKES:-0}"; exit "${FAKE_PIP:-0}" ;;
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
        """Runs `code` after sourcing the script, on a made-up Debian 12 without GPU, validation layers and chromium."""
        set_up = """
source "$1/run"; shift
os_release() { echo 'debian bookworm'; }
has_nvidia() { [[ -n ${NVIDIA:-} ]]; }
has_validation() { [[ -n ${LAYERS:-} ]]; }
has_chromium() { [[ -n ${CHROMIUM:-} ]]; }
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


def program(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Name, folder and arguments of the program that `run` became."""
    assert result.returncode == 0, result.stderr
    return result.stdout.rstrip("|").split("|")
