#!/usr/bin/env bash
# Installs this project with every extra into the virtual environment $1, which is made if there is none; run by `make setup`.
# An environment that this script did not make, or that it finished, keeps what it holds; one that it began and did not finish is
# made anew. The user's pip configuration is respected; only the CPU build of torch is looked for at PyTorch's own index first.
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

stop() {
    echo "error: $1" >&2
    exit 2
}

# pip compiles modules on one core; in an environment that this script made, `compile_modules` does it on all of them.
install() { "$venv/bin/python" -m pip install $([ ! -f "$marker" ] || echo --no-compile) -qq --disable-pip-version-check ${constraints[@]+"${constraints[@]}"} "$@"; }

# Modules are compiled before anybody imports them, because many processes may start at once, and some may not write .pyc files.
compile_modules() {
    local packages
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Some packages bring templates that are not Python, for which compileall fails when all else is done, and tests that nobody imports.
    "$venv/bin/python" -m compileall -qq -j 0 -x 'site-packages/.*/tests/' "$packages" spn_jax teacher_export >/dev/null || true
}

# The marker says that this script made the environment, and whether the set-up came to its end.
marker=$venv/.made-by-spn-setup

if [ -e "$venv" ] && [ ! -d "$venv" ]; then
    stop "$venv is a file; move it away, or name another environment: make VENV=FOLDER"
elif [ ! -d "$venv" ] || [ -z "$(ls -A "$venv")" ] || [ "$(cat "$marker" 2>/dev/null)" = unfinished ]; then
    python=$(find_python)
    mkdir -p "$venv"
    echo unfinished >"$marker" # before anything else, so that an interrupted set-up is known as one
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name "${marker##*/}" -exec rm -rf {} +
    echo "setup: $venv with $("$python" --version 2>&1) ($python)"
    "$python" -m venv "$venv"
else
    is_recent "$venv/bin/python" ||
        stop "$venv holds no bin/python of Python 3.11 or newer; move it away, or name another environment: make VENV=FOLDER"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        stop "$venv has no pip; run $venv/bin/python -m ensurepip, or name another environment: make VENV=FOLDER"
    if [ -n "${PYTHON:-}" ]; then
        echo "setup: PYTHON=$PYTHON is not looked at, because $venv exists; delete $venv to have it made anew"
    fi
    echo "setup: $venv exists and keeps what it holds"
fi
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

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
if [ -f "$marker" ]; then
    compile_modules
    echo finished >"$marker"
fi
echo "setup: done"
