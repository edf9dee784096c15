#!/usr/bin/env bash
# Collects, on a machine with network, what bench/gpu.sh needs on one without: about 35 MB of wheels for x86-64 Linux,
# and the Vulkan loader's .deb where apt-get can download it. Helios itself runs from the checkout.
#
#   bench/wheels.sh [FOLDER (wheels)] [PYTHON VERSION (3.12)]
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
folder=${1:-$root/wheels}
version=${2:-3.12}
newest_glibc=39                      # the target machine's glibc is 2.39, Ubuntu 24.04's, or newer

platforms=(--platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
for ((n = 5; n <= newest_glibc; n++)); do platforms+=(--platform "manylinux_2_${n}_x86_64"); done

download() {
  "${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" -d "$folder" "$@"
}

mkdir -p "$folder"
rm -f "$folder"/*.whl                # of two versions of a package, bench/gpu.sh could install neither
# What pyproject.toml names, but for what the host has (numpy) and what neither its tests nor its trainings take.
mapfile -t packages < <("${PYTHON:-python3}" - "$root/pyproject.toml" <<'CODE'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
named = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"] + project["optional-dependencies"]["test"]}
print(*sorted(named - {"helios-gpt", "numpy", "matplotlib", "ml_dtypes", "scipy", "mypy", "ruff", "safetensors",
                       "tokenizers"}), sep="\n")
CODE
)
download "${packages[@]}"
download --no-deps ml_dtypes safetensors tokenizers   # their dependencies are on the host or serve other features
if command -v apt-get >/dev/null; then
  (cd "$folder" && apt-get -q download libvulkan1 >/dev/null 2>&1) || echo 'no .deb of libvulkan1 from apt-get' >&2
fi
du -sh "$folder"
