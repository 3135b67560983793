"""The full-size deterministic SPN with the golden files' weights, and their inputs in our layout."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.convert import LEAVES, discriminator_from_released, model_from_released, model_modules
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN
from spn_jax.parameters import with_named_arrays
from tests import parity_fill

GOLDEN = Path(__file__).parent / "golden"
TEACHER_CHANNELS = {1: 76, 2: 76, 3: 152}
UNTRAINABLE = [  # read only by normalisations without parameters, so their true gradient is zero
    *(f"encoder_conv{i}.bias" for i in (1, 2, 3)),
    *(f"middle.{i}.conv_block.{j}.bias" for i in range(8) for j in (3, 7)),
    *(f"decoder.1.{name}.bias" for name in ("conv_block.2", "conv_block.5", "conv_s")),
    "decoder.3.conv_block.2.bias",
]


def layout(part: str) -> dict[str, tuple[int, ...]]:
    entries = json.loads((GOLDEN / "det_state_dict.json").read_text())[part]
    return {name: tuple(shape) for name, shape in entries}


def released_generator() -> dict[str, np.ndarray]:
    return {name: parity_fill.weight(name, shape) for name, shape in layout("generator").items()}


def released_discriminator() -> dict[str, np.ndarray]:
    """Kernels from names, singular vectors at the power iteration's fixed point; `conv1` is `features` by another name."""
    arrays = {}
    for name, shape in layout("discriminator").items():
        if not name.endswith("weight_orig"):
            continue
        kernel = parity_fill.weight("discriminator." + name.replace("conv1.", "features."), shape)
        left, _, right = np.linalg.svd(kernel.reshape(shape[0], -1).astype(np.float64), full_matrices=False)
        module = name.removesuffix("weight_orig")
        arrays.update({name: kernel, module + "weight_u": left[:, 0], module + "weight_v": right[0]})
    return arrays


def load(module: nnx.Module, arrays: dict[str, np.ndarray], dtype: DTypeLike) -> None:
    """Puts named arrays into an abstract module in place, as `dtype`."""
    pure = nnx.as_pure(nnx.state(module))
    nnx.update(module, with_named_arrays(pure, {n: jnp.asarray(a, dtype) for n, a in arrays.items()}, what="golden"))


def golden_networks(dtype: DTypeLike) -> tuple[SPN, Discriminator]:
    config = ModelConfig()
    model = nnx.eval_shape(lambda: SPN(config, TEACHER_CHANNELS, rng=np.random.default_rng(0), dtype=dtype))
    discriminator = nnx.eval_shape(lambda: Discriminator(config, rng=np.random.default_rng(0), dtype=dtype))
    load(model, model_from_released(released_generator(), config), dtype)
    load(discriminator, discriminator_from_released(released_discriminator(), config), dtype)
    return model, discriminator


def nhwc(array: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    return np.moveaxis(array, 1, -1).astype(dtype)


def relative_error(ours: np.ndarray, golden: np.ndarray) -> float:
    """Largest difference in units of the golden array's largest value."""
    assert ours.shape == golden.shape, (ours.shape, golden.shape)
    return float(np.abs(np.asarray(ours, np.float64) - golden).max() / np.abs(golden).max())


def released_names() -> dict[str, str]:
    """{our parameter name: released name} of prior learner and generator."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in model_modules(ModelConfig()) for a, b in LEAVES.items()}


def golden_batch(targets: dict[int, np.ndarray], dtype: DTypeLike) -> dict[str, Any]:
    """The training case's batch with the teacher's features."""
    image, mask = (nhwc(values("train_det_a", 2, 64, 64), dtype) for values in (parity_fill.image, parity_fill.mask))
    return {"image": image, "mask": mask, "targets": {level: f.astype(dtype) for level, f in targets.items()}}


def golden_targets(folder: Path, double: bool) -> dict[int, np.ndarray]:
    """The teacher's features {level: (2, h, w, c)} of the training case, from a file in the layout of the ASL release."""
    import torch  # here: forward parity needs none

    from teacher_export.teachers import load_teacher

    layout = json.loads((GOLDEN / "teacher_state_dict.json").read_text())
    torch.save({"model": {name: torch.from_numpy(parity_fill.weight(name, shape)) for name, shape in layout}}, folder / "asl.pth")
    teacher = load_teacher("tresnet_l", str(folder / "asl.pth"), 0, "cpu")
    photo = torch.from_numpy(nhwc(parity_fill.image("train_det_a/2x", 2, 128, 128)))
    if double:
        teacher.model.double()
        photo = photo.double()
    return {level: features.numpy() for level, features in teacher(photo).items()}
