"""A program: compiles the smallest model's training step and prints what its devices tell each
other, a JSON object a line.

python -m tests.compiled_step DEVICES [DEVICES ...]      for so many devices of this process
python -m tests.compiled_step split:DEVICES              the same with parameters split
python -m tests.compiled_step bfloat16:DEVICES           the same with networks in bfloat16
python -m tests.compiled_step ADDRESS PROCESSES PROCESS  for all devices of several processes
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh

from scripts.benchmark_aot import collectives
from scripts.benchmark_step import CHANNELS, draw_batch, stepper
from spn_jax.config import apply_overrides, load_config
from spn_jax.runtime.sharding import make_mesh
from spn_jax.training.state import Frozen, build_networks

OPTIONS = {"": (), "split": ("train.shard_parameters=true",), "bfloat16": ("train.compute_dtype=bfloat16",)}


def describe(mesh: Mesh, options: Sequence[str] = ()) -> dict[str, object]:
    """The collectives of a step on the mesh, one photo a device, the bytes of each network's
    kernels, and how many sums are too narrow.

    The CPU backend adds up bfloat16 in float32, and calls the function that adds "promoted" there:
    an accelerator would not.
    """
    config = apply_overrides(load_config("configs/tiny.py", []), [f"train.batch_size={mesh.size}", *options])
    local = apply_overrides(config, [f"train.batch_size={mesh.size // jax.process_count()}"])
    compiled, _ = stepper(config, mesh, CHANNELS, draw_batch(local), Frozen())
    kernels = [sum(x.nbytes for x in jax.tree.leaves(nnx.state(network)) if x.ndim == 4) for network in build_networks(config, CHANNELS)]
    text = compiled.program.as_text()
    sums = [line for line in text.splitlines() if " all-reduce(" in line]
    return {
        "collectives": [dataclasses.asdict(found) for found in collectives(text)],
        "kernel_bytes": kernels,
        "narrow_sums": sum("bf16[" in line or "promoted" in line for line in sums),
    }


def main(arguments: Sequence[str]) -> None:
    if len(arguments) == 3 and "." in arguments[0]:
        jax.distributed.initialize(arguments[0], int(arguments[1]), int(arguments[2]))
        print(json.dumps(describe(make_mesh())))
    else:
        for devices in arguments:
            name, _, number = devices.rpartition(":")
            print(json.dumps(describe(make_mesh(int(number)), OPTIONS[name])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
