#!/usr/bin/env bash
# Tests and measures Helios on a GPU host without network, in under eight minutes, and writes a page on it:
#
#   bench/gpu.sh [WHEELS (wheels)] [RESULTS (docs/results)]
#
# The host has Python 3.11 or newer with numpy and PyTorch, and the GPU's Vulkan driver. WHEELS is a folder that
# bench/wheels.sh filled elsewhere. Nothing is installed outside a temporary folder, and Helios runs from the checkout.
# RESULTS gets DEVICE.md, DEVICE.json and DEVICE.log.
#
# Each part has a time limit. If one fails or runs out of time, that is noted and the next one starts; when the whole
# time is up, the rest is left out. Exit codes: 0 all parts done, 1 some were not, 2 nothing could be measured.
#
#   PYTHON               the interpreter (python3)
#   HELIOS_GPU_SECONDS   the time for all parts (450); the page takes a moment more
#   HELIOS_GPU_ANYWAY=1  measures a CPU device, too, with few runs, to try the script out
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
wheels=${1:-$root/wheels}
results=${2:-$root/docs/results}
python=${PYTHON:-python3}
total=${HELIOS_GPU_SECONDS:-450}
SECONDS=0

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $1"; exit 2; }

# ---- what is needed -------------------------------------------------------------------------------------------------

check_host() {
  command -v timeout >/dev/null || die 'needs timeout, of coreutils'
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is not Python 3.11 or newer"
  (cd / && "$python" -c 'import numpy, torch') || die "$python has no numpy and PyTorch of its own"
  compgen -G "$wheels/*.whl" >/dev/null || die "no wheels in $wheels: bench/wheels.sh collects them, with network"
}

install_packages() {
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --no-warn-script-location --target "$work/site" "$wheels"/*.whl ||
    die "pip could not install $wheels/*.whl for $("$python" --version)"
  # Laid out like the installed package, whose sub-packages are the folders beside helios/.
  mkdir -p "$work/path/helios"
  ln -s "$root"/helios/* "$root"/{kernels,model,train,cli,bench} "$work/path/helios"
  export PYTHONPATH=$work/path:$work/site${PYTHONPATH:+:$PYTHONPATH} PATH=$work/site/bin:$PATH
  # Python does not look into the current folder, and nothing is written into the checkout.
  export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX=$work/pycache
  export HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis TORCHINDUCTOR_CACHE_DIR=$work/inductor
  export HELIOS_CACHE=${HELIOS_CACHE:-$work/cache}
}

has_loader() { "$python" -c 'import ctypes; ctypes.CDLL("libvulkan.so.1")' 2>/dev/null; }

find_loader() {
  local deb
  has_loader && return
  for deb in "$wheels"/libvulkan1*.deb; do
    { [[ -e $deb ]] && dpkg -x "$deb" "$work/loader"; } || continue
    LD_LIBRARY_PATH=$(dirname "$(find "$work/loader" -name libvulkan.so.1 | head -n 1)"):${LD_LIBRARY_PATH:-}
    export LD_LIBRARY_PATH
    has_loader && return
  done
  die "no Vulkan loader (libvulkan.so.1): install libvulkan1, or put its .deb into $wheels"
}

# The loader looks into folders named icd.d, but in some containers NVIDIA's manifest lies elsewhere.
find_driver() {
  local manifest
  [[ -z ${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-} ]] || return 0
  ! compgen -G '/etc/vulkan/icd.d/*nvidia*.json' >/dev/null || return 0
  ! compgen -G '/usr/share/vulkan/icd.d/*nvidia*.json' >/dev/null || return 0
  ! compgen -G '/usr/local/share/vulkan/icd.d/*nvidia*.json' >/dev/null || return 0
  manifest=$(find -L /usr/share/vulkan /etc/vulkan /usr/local/nvidia -name '*nvidia_icd*.json' 2>/dev/null |
    head -n 1) || true
  [[ -n $manifest ]] || return 0
  say "NVIDIA's manifest: $manifest"
  export VK_DRIVER_FILES=$manifest VK_ICD_FILENAMES=$manifest     # the second name is older loaders'
}

# Sets type, memory, name (as files are named) and device to what Helios chooses.
choose_device() {
  local found
  found=$(timeout 60 "$python" - "$work/device.json" <<'PYTHON'
import json, pathlib, re, sys
from helios.backends.vulkan.device import choose
p, _ = choose()
about = {"device": p.name, "driver": p.driver, "profile": p.profile}
pathlib.Path(sys.argv[1]).write_text(json.dumps(about), "utf-8")
print(p.type, p.memory_bytes, re.sub("[^a-z0-9]+", "-", p.name.lower()).strip("-"), p.name)
PYTHON
  ) || die 'Helios found no device to measure'
  read -r type memory name device <<<"$found"
  [[ $type != cpu || ${HELIOS_GPU_ANYWAY:-} == 1 ]] ||
    die "$device is a CPU: this measures GPUs (HELIOS_GPU_ANYWAY=1 tries the script out all the same)"
  say "device: $device"
}

# ---- the parts ------------------------------------------------------------------------------------------------------

# part NAME SECONDS COMMAND…: runs the command within its limit and the whole time, notes how it went, never fails.
part() {
  local name=$1 budget=$2 start=$SECONDS left=$((total - SECONDS)) rc=0 result='done'
  shift 2
  ((budget <= left)) || budget=$left
  if ((budget < 5)); then
    result='no time left'
  else
    say "== $name (at most $budget s)"
    # In the background, so that an interruption is heard at once.
    timeout --kill-after=10 "$budget" "$@" &
    wait $! || rc=$?
    case $rc in
      0) ;;
      124 | 137) result="out of time ($budget s)" ;;
      *) result="failed (exit code $rc)" ;;
    esac
  fi
  say "-- $name: $result, $((SECONDS - start)) s"
  printf '{"part": "%s", "result": "%s", "seconds": %d}\n' "$name" "$result" $((SECONDS - start)) >>"$work/parts"
}

# Runs groups of tests side by side, since compiling and the oracle take the time, not the device. Of the backends',
# tests/backends/test_step.py comes first: shuffled replay and the audit of memory.
run_tests() {
  local name paths names=(ops model backends shaders) budget=160 left=$((total - SECONDS))
  ((budget <= left)) || budget=$left
  # pytest stops by itself after `enough` seconds, between two tests, and then still says how they went.
  local enough=$((budget > 80 ? budget - 40 : budget / 2))
  for name in "${names[@]}"; do
    case $name in
      backends) paths=(tests/backends/test_step.py tests/backends --ignore=tests/backends/test_shaders.py) ;;
      shaders) paths=(tests/backends/test_shaders.py) ;;
      *) paths=("tests/$name") ;;
    esac
    files+=("$work/tests-$name.xml")
    {
      trap 'kill $(jobs -p); exit 143' TERM
      part "tests of $name" $budget "$python" -m pytest -q --tb=line -p xdist -n 0 -p pytest_timeout \
        -p no:cacheprovider --timeout=100 --session-timeout=$enough --junitxml="$work/tests-$name.xml" "${paths[@]}"
    } >"$work/tests-$name.log" 2>&1 &
  done
  wait
  for name in "${names[@]}"; do
    grep -E '^(==|FAILED|ERROR) ' "$work/tests-$name.log" | cut -c 1-200 | head -n 40 || true
    tail -n 2 "$work/tests-$name.log"
    if grep -q 'session-timeout: ' "$work/tests-$name.log"; then
      sed -i "s|\(\"tests of $name\", \"result\": \)\"failed[^\"]*\"|\1\"not all ran in $enough s\"|" "$work/parts"
    fi
  done
}

matmul() { # PRECISION
  files+=("$work/matmul-$1.json")
  part "matmul $1" 60 "$python" -m helios.cli.bench --only matmul "${products[@]}" --dtype "$1" --peer torch \
    --json "$work/matmul-$1.json" "${effort[@]}"
}

step() { # PRESET PRECISION [OPTIONS…]
  files+=("$work/step-$1-$2.json")
  part "step of $1, $2" 90 "$python" -m helios.cli.bench step --preset "$1" --precision "$2" --peer torch \
    --peer torch-compile --json "$work/step-$1-$2.json" "${effort[@]}" "${@:3}"
}

write_page() {
  local found=() file
  printf '{"parts": [%s]}\n' "$(paste -sd , "$work/parts")" >"$work/parts.json"
  for file in "${files[@]}" "$work/parts.json" "$work/device.json"; do
    [[ ! -e $file ]] || found+=("$file")      # a part that failed left none
  done
  mkdir -p "$results" || die "$results cannot be made"
  timeout 60 "$python" -m helios.cli.bench page "${found[@]}" --json "$results/$name.json" \
    --markdown "$results/$name.md" || die 'no page was written'
  say "$SECONDS s in all; see $results/$name.md"
}

main() {
  local effort=() files=() products=(--product 1024 --product 2048 --product 4096) batch=8 type memory name device
  trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
  trap 'exit 130' INT TERM
  check_host
  install_packages
  find_loader
  find_driver
  choose_device
  printf '%s\n' "$name" >"$work/name"
  cd "$root"                         # pytest finds its settings there
  "$python" -c 'import torch
print("PyTorch", torch.__version__, "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU")'
  # The largest model's activations, ours and PyTorch's, must fit beside each other.
  ((memory >= 40 * 10**9)) || batch=4
  [[ $type != cpu ]] || effort=(--quick) products=(--product 256) batch=1

  part info 30 "$python" -m helios.cli.info --json
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 run_tests  # the host's plugins may be made for another pytest
  matmul mixed
  matmul f32
  # The most important first, in case the time is up.
  step historic-6l mixed
  step historic-6l f32
  step gpt2-124m mixed --batch $batch
  step small-17m mixed
  step gpt2-124m f32 --batch $batch
  step small-17m f32
  write_page
  ! grep -qv '"result": "done"' "$work/parts"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rc=0
main 2>&1 | tee -i "$work/log" || rc=${PIPESTATUS[0]}
if [[ -e $work/name && -d $results ]]; then cp "$work/log" "$results/$(<"$work/name").log"; fi
exit "$rc"
