"""Compiles the training step for absent TPUs or GPUs: memory of one, and communication between
them.

The compilers are packages that need no such device: libtpu for TPUs, which `pip install -e
'.[tpu]'` installs, and for GPUs jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12.
"""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from scripts.absent_devices import NAMES, PTXAS, memory_gib, mesh_of_absent
from scripts.benchmark_step import CHANNELS, ROOT, draw_batch, draw_frozen, jitted_step, numbers
from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.errors import InputError, counted
from spn_jax.runtime.compiling import compile_timed
from spn_jax.training.state import build_networks, create_state, resolve_schedule
from spn_jax.training.step import matmul_precision

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")  # such as bf16[3,3,64,64]
FUSION = re.compile(r" = .*? fusion\(")
# what TPUs and GPUs compute products of float32 in, unless train.precision is highest
DEFAULT_NUMBERS = {"tpu": "bf16 passes", "gpu": "TF32"}


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
    """Returns (letters, bits, shape) of each array that a collective returns.

    One that is only started has the type (operands, results, ...), but for an all-reduce.
    """
    text, kind, started = match.groups()
    if started and kind != "all-reduce" and text.startswith("("):
        text = elements(text)[1]
    return ARRAY.findall(text)


def elements(text: str) -> list[str]:
    """Splits the type of a tuple, such as `((f32[4], f32[]), f32[8]{0})`, into those of its
    elements.
    """
    depth, found = 0, [""]
    for letter in text[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def item_bytes(kind: str, bits: str) -> int:
    """Returns the bytes of one number; `pred` has no bits in its name."""
    return max(1, int(bits or 8) // 8)


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py aot`."""
    part.add_argument("topology", help=NAMES)
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "celeba.py")
    part.add_argument("--batch", type=int, nargs="+", default=[8], help="photos a device; several are compiled one after the other")
    part.add_argument("--memory", type=float, metavar="GIB", help="of a device, in units of 2^30 bytes; a GPU's or v5e's own if not given")
    part.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as train.compute_dtype=bfloat16")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown, and prints each line as JSON as soon as it is known."""
    mesh, measured = mesh_of_absent(options.topology), []
    gib = options.memory or memory_gib(options.topology)
    for batch in options.batch:
        config = apply_overrides(load_config(options.config, options.overrides), [f"train.batch_size={batch * mesh.size}"])
        measured.append(compile_for(config, mesh))
        print(json.dumps({"topology": options.topology, **measured[-1]}), flush=True)
    fitting = [line["batch"] for line in measured if line["memory_gb"] is not None and 1e9 * line["memory_gb"] <= 2**30 * gib]
    largest = f"of these batches, the largest that fits {gib:g} GiB: {max(fitting, default='none')} photos a device"
    lines = [f"{options.config.stem} on {options.topology}, jax {jax.__version__}", "", *rows(measured), "", largest]
    if mesh.devices.flat[0].platform == "gpu":
        lines.append("cuDNN chooses its algorithms on a GPU, so their memory is not counted")
    return "\n".join(lines)


def compile_for(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Compiles the step and returns what it needs; `memory_gb` and `compile_s` are None if the
    compiler found that it does not fit.
    """
    networks = build_networks(config, {level: CHANNELS[level] for level in config.model.prior_levels})
    graph, state = create_state(config, resolve_schedule(config, 1000), *networks)
    step, _ = jitted_step(config, graph, state, mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, draw_frozen(config), draw_batch(config)))
    known = {
        "batch": config.train.batch_size // mesh.size,
        "numbers": numbers_there(config, mesh),
        "rematerialise": config.train.rematerialise,
    }
    try:
        with matmul_precision(config):
            made = compile_timed(step, *shapes)
    except jax.errors.JaxRuntimeError as error:
        if "No PTX compilation provider" in str(error):
            raise InputError(
                f"compiling for a GPU needs NVIDIA's program ptxas, which is not here; pip install --no-deps --target DIR {PTXAS} "
                "brings it, into the folder of JAX's packages for GPUs"
            ) from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return known | {"compile_s": None, "memory_gb": None, "temporary_gb": None, "fusions": None, "collectives": []}
    memory, text = made.program.memory_analysis(), made.program.as_text()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return known | {
        "compile_s": made.compile_s,
        "memory_gb": (held + memory.generated_code_size_in_bytes) / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "fusions": len(FUSION.findall(text)),
        "collectives": [dataclasses.asdict(found) for found in collectives(text)],
    }


def numbers_there(config: Config, mesh: Mesh) -> str:
    """Returns the type that the matrix units of absent devices compute in."""
    if config.train.compute_dtype == "float32" and config.train.precision != "highest":
        return DEFAULT_NUMBERS.get(mesh.devices.flat[0].platform, "float32")
    return numbers(config)


def rows(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| photos a device | numbers | rematerialised | compile s | GB a device | temporary GB | fusions | collectives (together MB) |"
    yield "|---|---|---|---|---|---|---|---|"
    for m in measured:
        fits = m["memory_gb"] is not None
        memory = f"{m['memory_gb']:.2f} | {m['temporary_gb']:.2f} | {m['fusions']}" if fits else "does not fit | - | -"
        seconds = f"{m['compile_s']:.0f}" if fits else "-"
        yield f"| {m['batch']} | {m['numbers']} | {m['rematerialise']} | {seconds} | {memory} | {talk(m['collectives'])} |"


def talk(found: Sequence[Mapping[str, Any]]) -> str:
    """Sums up collectives by kind: how many, of how many arrays and megabytes together."""
    parts = []
    for kind in KINDS:
        if same := [c for c in found if c["kind"] == kind]:
            arrays, size = sum(c["arrays"] for c in same), sum(c["bytes"] for c in same)
            parts.append(f"{len(same)} {kind} of {counted(arrays, 'array')} ({size / 1e6:.1f})")
    return ", ".join(parts) or "none"
