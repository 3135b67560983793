#!/usr/bin/env bash
# bash scripts/benchmark_gpu.sh FOLDER: forward pass and training step on a GPU, every precision and batch, as JSON lines. Not yet run on one.
# It ends with one table, which it also writes into PAGE (docs/performance.md if not given; PAGE= writes none). A batch that does not fit
# ends its own line only; the others go on. TWIN names a file of a PyTorch program's lines, see `benchmark.py table --help`.
# PYTHON names the interpreter, BATCHES the batches, OPTIONS more options of `benchmark.py step`.
set -uo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:?folder for the results}
PYTHON=${PYTHON:-python}
PAGE=${PAGE-docs/performance.md}
mkdir -p "$FOLDER"
failed=0

measure() { # NAME BATCH [option ...]
    local name=$1 batch=$2 reason="failed" file="$FOLDER/$1-$2"
    shift 2
    rm -f "$file.jsonl"
    # shellcheck disable=SC2086 # several options
    "$PYTHON" scripts/benchmark.py step --batch "$batch" --json "$file.jsonl" ${OPTIONS:-} "$@" 2> "$file.log" && return
    grep -qiE 'RESOURCE_EXHAUSTED|out of memory' "$file.log" && reason="out of memory"
    echo "{\"failed\": \"$reason\"}" >> "$file.jsonl"
    echo "$name, batch $batch: $reason, see $file.log" >&2
    failed=1
}

for batch in ${BATCHES:-1 2 4 8 16 32}; do
    measure float32 "$batch" --numbers float32
    measure tf32 "$batch" --numbers default
    measure bf16 "$batch" --numbers bfloat16
    measure bf16-rematerialised "$batch" --numbers bfloat16 train.rematerialise=true
done
"$PYTHON" scripts/benchmark.py table "$FOLDER" ${TWIN:+--twin "$TWIN"} ${PAGE:+--write "$PAGE"} || failed=1
exit "$failed"
