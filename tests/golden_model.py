"""The full-size models with the golden files' weights, the released files they come in, and their
inputs in our layout.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.released import (
    FULL_SIZE,
    LEAVES,
    TEACHER_CHANNELS,
    discriminator_from_released,
    from_released,
    model_from_released,
    model_modules,
)
from spn_jax.checkpoints.weights import vgg19_names
from spn_jax.config import Config, LossConfig, ModelConfig, TeacherConfig, TrainConfig
from spn_jax.models.abstract import abstract_network
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN, merge_samples
from spn_jax.models.vgg import VGG19
from spn_jax.runtime.sharding import make_mesh, replicate
from spn_jax.training.gradients import generate
from spn_jax.training.state import Frozen, Schedule, create_state
from spn_jax.training.step import compile_train_step
from tests import parity_fill

GOLDEN = Path(__file__).parent / "golden"
UNTRAINABLE = [  # read only by normalisations without parameters, so their true gradient is zero
    *(f"encoder_conv{i}.bias" for i in (1, 2, 3)),
    *(f"middle.{i}.conv_block.{j}.bias" for i in range(8) for j in (3, 7)),
    *(f"decoder.1.{name}.bias" for name in ("conv_block.2", "conv_block.5", "conv_s")),
    "decoder.3.conv_block.2.bias",
]
SCHEDULE = Schedule(length=3, learning_rate=1e-4, drops=(), drop_factor=0.1, prior_loss_until=None)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One of the three models: what its golden files are called, and the settings they were made
    with.
    """

    name: str
    kind: str
    loss: LossConfig = LossConfig()
    samples: int = 1

    @property
    def model(self) -> ModelConfig:
        return FULL_SIZE[self.kind]

    @property
    def config(self) -> Config:
        return Config(model=self.model, loss=self.loss, train=TrainConfig(samples=self.samples))

    @property
    def teacher_channels(self) -> dict[int, int]:
        return {level: channels for level, channels in TEACHER_CHANNELS.items() if level in self.model.prior_levels}

    def file(self, what: str) -> Any:
        return np.load(GOLDEN / f"{self.name}_{what}.npz")


DETERMINISTIC = Golden("det", "spn")
PROBABILISTIC = Golden(
    "prob",
    "spn-probabilistic",
    LossConfig(adversarial="hinge", feature_matching=10, perceptual=10, diversity=1, kl=0.05, kl_direction="released"),
    samples=2,
)
SPL = Golden("spl", "spl")


def layout(name: str, part: str) -> dict[str, tuple[int, ...]]:
    """{released name: shape} of one part of a golden model."""
    return {entry: tuple(shape) for entry, shape in json.loads((GOLDEN / f"{name}_state_dict.json").read_text())[part]}


def released_generator(golden: Golden) -> dict[str, np.ndarray]:
    return {name: parity_fill.weight(name, shape) for name, shape in layout(golden.name, "generator").items()}


def released_discriminator(golden: Golden) -> dict[str, np.ndarray]:
    """Values from names, singular vectors at the power iteration's fixed point; `conv1` is
    `features` by another name.
    """
    arrays = {}
    entries = layout(golden.name, "discriminator")
    first = "features." if "features.0.weight_orig" in entries else "conv1."
    for name, shape in entries.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("weight_u", "weight_v"):
            continue
        arrays[name] = parity_fill.weight("discriminator." + name.replace("conv1.", first), shape)
        if leaf == "weight_orig":
            left, _, right = np.linalg.svd(arrays[name].reshape(shape[0], -1).astype(np.float64), full_matrices=False)
            arrays |= {f"{module}.weight_u": left[:, 0], f"{module}.weight_v": right[0]}
    return arrays


def load(module: nnx.Module, arrays: dict[str, np.ndarray], dtype: DTypeLike) -> None:
    """Puts named arrays into an abstract module in place, as `dtype`."""
    pure = nnx.as_pure(nnx.state(module))
    nnx.update(module, with_named_arrays(pure, {n: jnp.asarray(a, dtype) for n, a in arrays.items()}, what="golden"))


def golden_networks(golden: Golden, dtype: DTypeLike) -> tuple[SPN, Discriminator]:
    config = golden.model
    model = abstract_network(lambda rng: SPN(config, golden.teacher_channels, rng=rng, dtype=dtype))
    discriminator = abstract_network(lambda rng: Discriminator(config, rng=rng, dtype=dtype))
    load(model, model_from_released(released_generator(golden), config), dtype)
    load(discriminator, discriminator_from_released(released_discriminator(golden), config), dtype)
    return model, discriminator


def golden_frozen(golden: Golden, dtype: DTypeLike) -> Frozen:
    """VGG19 with the golden weights, where the losses need it."""
    if not golden.loss.perceptual:
        return Frozen()
    vgg = abstract_network(lambda rng: VGG19(rng=rng, dtype=dtype))
    values = {name.partition(".")[2]: parity_fill.weight("vgg." + name, shape) for name, shape in layout("prob", "vgg19").items()}
    arrays = {ours: values[theirs.partition(".")[2]] for ours, theirs in vgg19_names().items()}
    load(vgg, {name: from_released(array) for name, array in arrays.items()}, dtype)
    return Frozen(vgg=vgg)


def nhwc(array: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    return np.moveaxis(array, 1, -1).astype(dtype)


def nchw(array: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


def golden_noise(golden: Golden, cases: list[str], batch: int, dtype: DTypeLike = np.float32) -> np.ndarray | None:
    """The noise (b, s, 2, 2, 128) that the golden files call by these names, one a sample; None for
    a deterministic model.
    """
    if not golden.model.variational:
        return None
    return np.stack([nhwc(parity_fill.noise(case, (batch, 128, 2, 2)), dtype) for case in cases], axis=1)


@jax.jit
def call(network: nnx.Module, image: Any) -> Any:
    """A network's maps, whose parameters are no constants of the program."""
    return network(image)  # type: ignore[operator]


def relative_error(ours: np.ndarray, golden: np.ndarray) -> float:
    """Largest difference in units of the golden array's largest value."""
    assert ours.shape == golden.shape, (ours.shape, golden.shape)
    return float(np.abs(np.asarray(ours, np.float64) - golden).max() / np.abs(golden).max())


def released_names(golden: Golden) -> dict[str, str]:
    """{our parameter name: released name} of prior learner and generator."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in model_modules(golden.model) for a, b in LEAVES.items()}


def golden_batch(golden: Golden, targets: dict[int, np.ndarray], dtype: DTypeLike) -> dict[str, Any]:
    """The training case's batch with the teacher's features."""
    case = f"train_{golden.name}_a"
    image, mask = (nhwc(values(case, 2, 64, 64), dtype) for values in (parity_fill.image, parity_fill.mask))
    return {"image": image, "mask": mask, "targets": {level: f.astype(dtype) for level, f in targets.items()}}


def golden_targets(golden: Golden, folder: Path, double: bool) -> dict[int, np.ndarray]:
    """The teacher's features {level: (2, h, w, c)} of the training case, from a file in the layout
    of the ASL release.
    """
    import torch  # here: forward parity needs none

    from teacher_export.teachers import load_teacher

    layout = json.loads((GOLDEN / "teacher_state_dict.json").read_text())
    torch.save({"model": {name: torch.from_numpy(parity_fill.weight(name, shape)) for name, shape in layout}}, folder / "asl.pth")
    teacher = load_teacher(TeacherConfig(), str(folder / "asl.pth"), "cpu", 64)
    photo = torch.from_numpy(nhwc(parity_fill.image(f"train_{golden.name}_a/2x", 2, 128, 128)))
    if double:
        teacher.extractor.model.double()
        photo = photo.double()
    return {level: features.numpy() for level, features in teacher(photo).items()}


def compare_training(golden: Golden, networks: tuple[SPN, Discriminator], batch: dict[str, Any], steps: int) -> dict[str, float]:
    """Largest relative errors of some steps on the golden batch: of losses, of the first step's
    gradient norms, of final parameters.
    """
    graph, state = create_state(golden.config, SCHEDULE, *networks)
    dtype = batch["image"].dtype
    mesh, frozen, names = make_mesh(1), golden_frozen(golden, dtype), released_names(golden)
    step, state, errors = compile_train_step(graph, mesh), replicate(state, mesh), {"losses": 0.0}
    with golden.file("train") as file:
        values = dict(file)
    for i in range(steps):
        noise = golden_noise(golden, [f"train_{golden.name}_a/{i}/{k}" for k in (1, 2)], 2, dtype)
        inputs = batch if noise is None else batch | {"noise": noise}
        # the golden image is what the last of three steps sees: first samples of all photos, then
        # second samples
        if i == 2:
            images = jax.jit(lambda parameters, inputs: generate(graph, parameters, inputs).image)(state.model, inputs)
            errors["image"] = relative_error(nchw(merge_samples(images.swapaxes(0, 1))), values["image_after"])
        state, metrics = step(state, frozen, inputs)
        losses = {name.removeprefix("loss/"): value[i] for name, value in values.items() if name.startswith("loss/")}
        totals = {"discriminator": "discriminator/loss", "generator": "generator/loss"}
        ours = {name: float(metrics[totals.get(name, f"generator/{name}")]) for name in losses}
        errors["losses"] = max(errors["losses"], *(abs(ours[name] / float(value) - 1) for name, value in losses.items()))
        if i == 0:  # after one step Adam's second moment is (1 - beta2) times the gradient's square
            share = 1 - golden.config.optimizer.beta2
            norms = {names[ours]: float(np.sqrt(np.sum(g / share))) for ours, g in named_arrays(state.model_optimizer.nu).items()}
            largest = max(norms.values())
            errors["untrainable"] = max(norms.pop(name) / largest for name in UNTRAINABLE)
            of_norms = [abs(norm / values[f"grad_norm/{name}"] - 1) for name, norm in norms.items()]
            errors["gradients"], errors["typical_gradient"] = max(of_norms), float(np.sqrt(np.mean(np.square(of_norms))))
    if steps == 3:  # what the golden file's final values are of
        final = {names[ours]: float(np.abs(value).mean()) for ours, value in named_arrays(state.model).items()}
        errors["final"] = max(abs(value / values[f"final/{name}"][1] - 1) for name, value in final.items() if name not in UNTRAINABLE)
    return errors


def compare_training_in_float64(golden: Golden, steps: int, folder: Path) -> dict[str, float]:
    """`compare_training` in a process with JAX_ENABLE_X64, in which every convolution becomes a
    matrix product.

    The CPU backend writes loops for convolutions in float64 and calls a library for matrix
    products: a third of the time.
    """
    lax.conv_general_dilated = convolve_by_matrix_product  # type: ignore[assignment]
    batch = golden_batch(golden, golden_targets(golden, folder, double=True), np.float64)
    return compare_training(golden, golden_networks(golden, np.float64), batch, steps)


def convolve_by_matrix_product(
    x: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    rhs_dilation: tuple[int, int] = (1, 1),
    dimension_numbers: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """`lax.conv_general_dilated` for the layouts that the models use, as a product of matrices.

    The rows of the first are what each pixel of the output sees. It is put together from one view
    of x for every pixel of the kernel, or for every pixel of the output where those are fewer, as
    in a gradient for a kernel.
    """
    assert dimension_numbers == ("NHWC", "HWIO", "NHWC")
    (stride, _), (dilation, _), (rows, columns) = strides, rhs_dilation, kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((n - (k - 1) * dilation - 1) // stride + 1 for n, k in zip(x.shape[1:3], (rows, columns), strict=True))

    def views(offset: int, step: int, count: tuple[int, int], offsets: tuple[int, int]) -> list[Array]:
        tall, wide = (step * (n - 1) + 1 for n in count)
        starts = [(offset * i, offset * j) for i in range(offsets[0]) for j in range(offsets[1])]
        return [x[:, i : i + tall : step, j : j + wide : step] for i, j in starts]

    if height * width < rows * columns:
        seen = jnp.stack(views(stride, dilation, (rows, columns), (height, width)), 1)
        return jnp.einsum("bpyxi,yxio->bpo", seen, kernel).reshape(-1, height, width, kernel.shape[-1])
    seen = jnp.concatenate(views(dilation, stride, (height, width), (rows, columns)), -1)
    return jnp.einsum("bhwi,io->bhwo", seen, kernel.reshape(-1, kernel.shape[-1]))
