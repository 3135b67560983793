"""VGG19's five maps equal the golden ones, from torchvision's file on; a random one has something
to say at every depth.
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spn_jax.checkpoints.weights import load_vgg19, vgg19_names, vgg19_shapes
from spn_jax.models.vgg import VGG19, WIDTHS, max_pool
from teacher_export.weights import main
from tests import parity_fill
from tests.devices import on_the_cpu
from tests.golden_model import GOLDEN, call, nhwc, relative_error


def golden_weights() -> dict[str, np.ndarray]:
    """Torchvision's names with the values that the golden maps were computed from."""
    layout = json.loads((GOLDEN / "vgg_state_dict.json").read_text())
    return {re.sub(r"slice\d", "features", name): parity_fill.weight("vgg." + name, shape) for name, shape in layout}


@functools.cache
def random_vgg(dtype: str = "float32") -> VGG19:
    """Not to be changed."""
    return VGG19(rng=np.random.default_rng(0), dtype=dtype)


def photo(height: int, width: int) -> np.ndarray:
    return nhwc(parity_fill.image("photo", 1, height, width))


def test_maps_equal_the_golden_ones_on_the_way_from_torchvisions_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in golden_weights().items()}
    beyond = {name: torch.zeros(2) for name in ("features.34.bias", "classifier.0.weight", "classifier.6.bias")}
    torch.save(tensors | beyond, tmp_path / "vgg19.pth")
    main(["vgg19", "--weights", str(tmp_path / "vgg19.pth"), str(tmp_path / "made" / "vgg19.npz")])
    assert "26 tensors" in (output := capsys.readouterr().out)
    assert "left out: features.34 (1 tensors), classifier (2 tensors)" in output
    model, origin = load_vgg19(str(tmp_path / "made" / "vgg19.npz"), 0, jnp.float32)
    assert re.fullmatch(r"file vgg19\.pth, sha256 [0-9a-f]{12}", origin)
    maps = call(model, nhwc(parity_fill.image("prob_a", 1, 64, 64)))
    with np.load(GOLDEN / "vgg_forward.npz") as golden:
        for level, features in enumerate(maps):
            assert relative_error(features[..., ::16], nhwc(golden[f"prob_a/vgg_{level + 1}"])) < 1e-4


def test_names_and_shapes_are_those_of_the_released_program() -> None:
    assert {name: array.shape for name, array in golden_weights().items()} == vgg19_shapes()
    slices = {re.sub(r"slice\d", "features", name): int(name[5]) for name, _ in json.loads((GOLDEN / "vgg_state_dict.json").read_text())}
    for ours, theirs in vgg19_names().items():
        block, conv = (int(part) for part in ours.split(".")[1:3])
        assert slices[theirs] == block + (1 if conv == 0 else 2), "a slice ends with the first convolution of a block"


@pytest.mark.parametrize(("height", "width"), [(64, 32), (16, 16), (40, 56)])
def test_shapes_of_the_maps(height: int, width: int) -> None:
    shapes = [features.shape for features in jax.eval_shape(random_vgg(), photo(height, width))]
    assert shapes == [(1, height >> i, width >> i, channels) for i, channels in enumerate(WIDTHS)]


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_pooling_is_pytorchs_with_its_gradient(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, 2)
    pooled.square().sum().backward()
    np.testing.assert_array_equal(max_pool(x), nhwc(pooled.detach().numpy()))
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(max_pool(x) ** 2))(x), nhwc(theirs.grad.numpy()))


def test_maps_of_a_random_network_keep_their_size_with_depth() -> None:
    maps = call(random_vgg(), photo(64, 64))
    mean_squares = [float(jnp.mean(features**2)) for features in maps]
    assert all(0.5 < value / mean_squares[0] < 2 for value in mean_squares), mean_squares


def test_every_level_sends_a_gradient_to_the_image() -> None:
    model, image = random_vgg(), photo(16, 16)

    def means(model: VGG19, image: jax.Array) -> jax.Array:
        return jnp.stack([jnp.mean(features) for features in model(image)])

    for level in jax.jit(jax.jacrev(means, argnums=1))(model, image):
        assert float(jnp.mean(jnp.abs(level) > 0)) > 0.9


def test_the_same_seed_is_the_same_network_and_another_is_not() -> None:
    first, again, other = (load_vgg19("random", seed, jnp.float32) for seed in (0, 0, 1))
    kernels = [model.blocks[4][0].kernel[...] for model, _ in (first, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert [origin for _, origin in (first, again, other)] == ["random(seed=0)", "random(seed=0)", "random(seed=1)"]


def test_computes_in_the_type_it_is_given() -> None:
    for dtype in ("float32", "bfloat16"):
        assert {features.dtype for features in jax.eval_shape(random_vgg(dtype), photo(16, 16))} == {jnp.dtype(dtype)}


@pytest.mark.gpu
def test_a_gpu_computes_vgg19_in_float32_at_its_default_precision() -> None:
    """TF32 would be wrong by a thousandth."""
    model = random_vgg()
    for ours, theirs in zip(call(model, photo(64, 64)), on_the_cpu(model, photo(64, 64)), strict=True):
        assert relative_error(np.asarray(ours), theirs) < 2e-5
