#!/usr/bin/env bash
# Creates the virtual environment $1 with this project and every extra; run by `make setup`.
# The user's pip configuration is respected; only the CPU build of torch is looked for at PyTorch's own index first.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
cpu_index=https://download.pytorch.org/whl/cpu

# A pyenv shim exists for versions that cannot be run, so every candidate is tried and not only looked up.
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
        if is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found${PYTHON:+ under PYTHON=$PYTHON}; install one, or name it: make PYTHON=/path/to/python3.11" >&2
    return 1
}

driver_version() { # of the NVIDIA driver, nothing where there is none
    if [ -r /proc/driver/nvidia/version ]; then
        grep -oE '[0-9]{3,}\.[0-9]+' /proc/driver/nvidia/version | head -n 1
    elif command -v nvidia-smi >/dev/null; then
        # Without a driver it prints a sentence where the number would be.
        nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | grep -oE '^[0-9]{3,}\.[0-9]+' | head -n 1
    fi
}

index_answers() { # a short look first, so that an unreachable index costs seconds and a slow download is not cut off
    "$venv/bin/python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$cpu_index/torch/" >/dev/null 2>&1
}

install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check ${constraints[@]+"${constraints[@]}"} "$@"; }

# An interrupted set-up leaves half an environment: --clear starts from nothing.
python=$(find_python)
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "setup: $venv with Python $version ($python)"
"$python" -m venv --clear "$venv"

constraints=()
constraint_file=constraints/py${version//./}.txt
if [ -f "$constraint_file" ]; then
    constraints=(--constraint "$constraint_file")
else
    echo "setup: no constraint file for Python $version; installing the newest versions that pyproject.toml allows"
fi

driver=$(driver_version || true)
if [ -n "$driver" ] || [ "$(uname)" != Linux ]; then
    echo "setup: torch and torchvision come from the package registry${driver:+ (NVIDIA driver $driver)}"
elif ! index_answers; then
    echo "setup: PyTorch's CPU index does not answer; torch comes from the package registry"
else
    echo "setup: torch and torchvision, CPU build"
    # Without dependencies: that index carries its own, older copies of them.
    install --no-deps --index-url "$cpu_index" torch torchvision ||
        echo "setup: PyTorch's CPU index has no fitting build; torch comes from the package registry"
fi

echo "setup: spn_jax with every extra"
install --editable '.[all]'

if [ -n "$driver" ]; then
    extra=cuda
    [ "${driver%%.*}" -ge 580 ] || extra=cuda12
    echo "setup: jax for NVIDIA (extra $extra)"
    install --editable ".[$extra]" || echo "setup: the NVIDIA packages did not install; jax will run on the CPU"
fi
echo "setup: done"
