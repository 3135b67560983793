#!/usr/bin/env bash
# bash scripts/benchmark_gpu.sh FOLDER: forward pass and training step on a GPU, every precision and batch, as JSON lines. Not yet run on one.
# A batch that does not fit ends its own line only; the others go on. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:?folder for the results}
PYTHON=${PYTHON:-python}
mkdir -p "$FOLDER"
failed=0

measure() { # NAME BATCH [option ...]
    local name=$1 batch=$2
    shift 2
    "$PYTHON" scripts/benchmark.py step --batch "$batch" --json "$FOLDER/$name-$batch.jsonl" "$@" || { echo "$name, batch $batch: failed" >&2; failed=1; }
}

for batch in 1 2 4 8 16 32; do
    measure float32 "$batch" --numbers float32
    measure tf32 "$batch" --numbers default
    measure bf16 "$batch" --numbers bfloat16
    measure bf16-rematerialised "$batch" --numbers bfloat16 train.rematerialise=true
done
exit "$failed"
