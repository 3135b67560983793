"""Compiles the training step for absent TPUs: memory a chip, and communication between chips.

The compiler libtpu is a separate package that needs no TPU; `pip install -e '.[tpu]'` installs the
version that fits jax.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from scripts.benchmark_step import CHANNELS, ROOT, draw_batch, draw_frozen, jitted_step, numbers
from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.errors import InputError, first_line
from spn_jax.runtime.compiling import compile_timed
from spn_jax.training.state import build_networks, create_state, resolve_schedule
from spn_jax.training.step import matmul_precision

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")  # such as bf16[3,3,64,64]
QUIET = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a compiled program."""

    kind: str
    arrays: int
    bytes: int  # size of its results on one device


def collectives(program: str) -> list[Collective]:
    """Lists the collectives in the text of a compiled program. Those in a loop's body count once,
    as they are written.
    """
    found = []
    for line in program.splitlines():
        if match := COLLECTIVE.search(line):
            sizes = [
                item_bytes(kind, bits) * math.prod(map(int, shape.split(",") if shape else ())) for kind, bits, shape in results(match)
            ]
            found.append(Collective(match[2], len(sizes), sum(sizes)))
    return found


def results(match: re.Match[str]) -> list[tuple[str, str, str]]:
    """Returns (letters, bits, shape) of each array that a collective returns."""
    return ARRAY.findall(match[1])


def item_bytes(kind: str, bits: str) -> int:
    """Returns the bytes of one number; `pred` has no bits in its name."""
    return max(1, int(bits or 8) // 8)


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py aot`."""
    part.add_argument("topology", help="such as v5e:2x4")
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "celeba.py")
    part.add_argument("--batch", type=int, nargs="+", default=[8], help="photos a chip; several are compiled one after the other")
    part.add_argument("--memory", type=float, default=16.0, metavar="GIB", help="of a chip, in units of 2^30 bytes")
    part.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as train.compute_dtype=bfloat16")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown, and prints each line as JSON as soon as it is known."""
    mesh, measured = tpu_mesh(options.topology), []
    for batch in options.batch:
        config = apply_overrides(load_config(options.config, options.overrides), [f"train.batch_size={batch * mesh.size}"])
        measured.append(compile_for(config, mesh))
        print(json.dumps({"topology": options.topology, **measured[-1]}), flush=True)
    fitting = [
        line["batch_per_chip"] for line in measured if line["memory_gb"] is not None and 1e9 * line["memory_gb"] <= 2**30 * options.memory
    ]
    largest = f"of these batches, the largest that fits {options.memory:g} GiB: {max(fitting, default='none')} photos a chip"
    return "\n".join([f"{options.config.stem} on {options.topology}, jax {jax.__version__}", "", *rows(measured), "", largest])


def tpu_mesh(topology: str) -> Mesh:
    """Makes a mesh over the chips of a topology. Raises InputError if libtpu or the topology does
    not exist.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for a TPU needs libtpu, which is not installed; pip install -e '.[tpu]' brings it, a TPU is not needed")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # JAX's runtime has several kinds
        raise InputError(f"libtpu knows no topology {topology!r} ({first_line(error)}); pass one such as v5e:2x4") from error
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def compile_for(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Compiles the step and returns what it needs; `memory_gb` and `compile_s` are None if the
    compiler found that it does not fit.
    """
    networks = build_networks(config, {level: CHANNELS[level] for level in config.model.prior_levels})
    graph, state = create_state(config, resolve_schedule(config, 1000), *networks)
    step, _ = jitted_step(config, graph, state, mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, draw_frozen(config), draw_batch(config)))
    known = {
        "batch_per_chip": config.train.batch_size // mesh.size,
        "numbers": "bf16 passes" if (name := numbers(config)) == "float32" and config.train.precision != "highest" else name,
        "rematerialise": config.train.rematerialise,
    }
    try:
        with matmul_precision(config):
            made = compile_timed(step, *shapes)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return known | {"compile_s": None, "memory_gb": None, "collectives": []}
    memory = made.program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return known | {
        "compile_s": made.compile_s,
        "memory_gb": (held + memory.generated_code_size_in_bytes) / 1e9,
        "collectives": [dataclasses.asdict(found) for found in collectives(made.program.as_text())],
    }


def rows(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| photos a chip | numbers | rematerialised | compile s | GB a chip | collectives (MB) |"
    yield "|---|---|---|---|---|---|"
    for m in measured:
        memory = "does not fit" if m["memory_gb"] is None else f"{m['memory_gb']:.2f}"
        talk = ", ".join(f"{c['kind']} of {c['arrays']} arrays ({c['bytes'] / 1e6:.1f})" for c in m["collectives"]) or "none"
        seconds = "-" if m["compile_s"] is None else f"{m['compile_s']:.0f}"
        yield f"| {m['batch_per_chip']} | {m['numbers']} | {m['rematerialise']} | {seconds} | {memory} | {talk} |"
