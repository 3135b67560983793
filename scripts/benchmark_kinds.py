"""Says where a pass's time goes: a table by kind of operation and by network.

A profile knows how long each instruction of a compiled program took, and the program's text knows
which line of the networks an instruction comes from, and under which `jax.named_scope`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

KINDS = (
    "forward convolutions",
    "gradients of inputs",
    "gradients of kernels",
    "1x1 convolutions and other matrix products",
    "norms",
    "copies, transposes, padding",
    "other elementwise work, sums",
    "optimisers, moving average",
)
# scopes of op_name, and what a table calls them; the first that fits counts
NETWORKS = {
    "optimizer": "updates",
    "power_iteration": "discriminator",
    "discriminator": "discriminator",
    "teacher": "teacher, VGG19",
    "vgg19": "teacher, VGG19",
    "prior_learner": "prior learner",
    "generator": "generator",
}
REST = "losses, rest"
COLUMNS = (*dict.fromkeys(NETWORKS.values()), REST)
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\([^=]*?\)|\S+) ([\w\-]+)\(", re.MULTILINE)
OP_NAME = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
AROUND_OTHERS = ("while", "call", "conditional")  # their bodies' instructions are timed by themselves
MOVES = {
    *("transpose", "copy", "slice", "pad", "concatenate", "reshape", "rev", "dynamic_slice", "dynamic_update_slice"),
    *("broadcast_in_dim", "gather", "squeeze", "split"),
}


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    name: str
    opcode: str
    scopes: tuple[str, ...]  # named scopes and, last, JAX's primitive
    target: str  # library function of a custom call


def instructions(program: str) -> dict[str, Instruction]:
    """Lists the instructions in the text of a compiled program by name."""
    found = {}
    for match in INSTRUCTION.finditer(program):
        line = program[match.start() : program.find("\n", match.end())]
        op_name, target = OP_NAME.search(line), TARGET.search(line)
        scopes = tuple(op_name[1].split("/")) if op_name else ()
        found[match[1]] = Instruction(match[1], match[2], scopes, target[1] if target else "")
    return found


def kind(instruction: Instruction) -> str:
    """Returns which of KINDS an instruction is. A fusion is what its last operation is."""
    scopes, target = set(instruction.scopes), instruction.target
    primitive = instruction.scopes[-1] if instruction.scopes else ""
    if "optimizer" in scopes:
        return "optimisers, moving average"
    if primitive == "conv_general_dilated" or instruction.opcode == "convolution" or "winograd" in scopes:
        if "kernel_gradient" in scopes or "BackwardFilter" in target:
            return "gradients of kernels"
        backward = "input_gradient" in scopes or "BackwardInput" in target or any(scope.startswith("transpose(") for scope in scopes)
        return "gradients of inputs" if backward else "forward convolutions"
    if primitive == "dot_general" or instruction.opcode == "dot":
        return "1x1 convolutions and other matrix products"
    if "norm" in scopes:
        return "norms"
    if primitive in MOVES or instruction.opcode in MOVES or re.match(r"copy|transpose", instruction.name):
        return "copies, transposes, padding"
    return "other elementwise work, sums"


def network(instruction: Instruction) -> str:
    """Returns which of COLUMNS an instruction belongs to. Scopes may stand in `jvp(...)`."""
    words = set(re.findall(r"\w+", "/".join(instruction.scopes)))
    return next((column for scope, column in NETWORKS.items() if scope in words), REST)


def seconds_of_instructions(folders: Sequence[Path]) -> dict[str, float]:
    """Returns the seconds of each instruction in profiles of equal calls, one call a folder: of
    those the least, because another program may have run in between.
    """
    calls = []
    for folder in folders:
        of_call: dict[str, float] = defaultdict(float)
        for file in folder.rglob("*.xplane.pb"):
            for name, seconds in events(file):
                of_call[name] += seconds
        calls.append(of_call)
    return {name: min(call[name] for call in calls if name in call) for name in set().union(*calls)}


def events(file: Path) -> Iterator[tuple[str, float]]:
    """Yields instruction and seconds of every event of a profile that executes one."""
    for plane in ProfileData.from_file(str(file)).planes:
        lines = list(plane.lines)
        # An accelerator's plane has the same events once more, by stream and by scope.
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            for event in line.events:
                name = next((value for key, value in event.stats if key == "hlo_op"), None)
                if name is not None:
                    yield str(name), event.duration_ns / 1e9


def by_kind(program: str, seconds: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Adds up the seconds of a program's instructions by kind and network."""
    known = instructions(program)
    total: dict[tuple[str, str], float] = defaultdict(float)
    for name, spent in seconds.items():
        instruction = known.get(name, Instruction(name, "", (), ""))
        if instruction.opcode not in AROUND_OTHERS:
            total[kind(instruction), network(instruction)] += spent
    return total


def table(title: str, total: Mapping[tuple[str, str], float]) -> str:
    """Formats milliseconds and shares, one line a kind, one column a network."""
    columns = [column for column in COLUMNS if any(total.get((kind, column)) for kind in KINDS)]
    whole = sum(total.values())

    def line(name: str, cells: Sequence[float]) -> str:
        of_kind = sum(cells)
        return f"| {name} | {1e3 * of_kind:.1f} | {of_kind / whole:.1%} | " + " | ".join(f"{1e3 * cell:.1f}" for cell in cells) + " |"

    rows = [line(kind, [total.get((kind, column), 0.0) for column in columns]) for kind in KINDS]
    rows.append(line("all", [sum(total.get((kind, column), 0.0) for kind in KINDS) for column in columns]))
    heads = " | ".join(["milliseconds", "all", "share", *columns])
    return "\n".join([title, "", f"| {heads} |", "|---" * (3 + len(columns)) + "|", *rows])
