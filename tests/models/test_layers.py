"""Layers against their definitions, written out here the slow way, and against PyTorch where it has
the layer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spn_jax.models import layers
from spn_jax.models.convolution import compiled_for, convolve_reflected
from spn_jax.models.layers import ConcatNorm, Conv, LearntRegionNorm, RegionNorm, ResidualBlock, SpectralConv, dense_maps


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def from_torch(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (7, {"padding": 3, "reflect": True}),
        (3, {"padding": 2, "dilation": 2, "reflect": True}),
        (3, {"padding": 1}),
        (4, {"stride": 2, "padding": 1}),
        (1, {}),
    ],
)
def test_convolution_is_pytorchs(size: int, options: dict) -> None:
    x, conv = random(2, 12, 8, 5), Conv(5, 6, size, rng=rng(), dtype=jnp.float32, **options)
    kernel = torch.from_numpy(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1).copy())
    arguments = {name: options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    mode = "reflect" if options.get("reflect") else "zeros"
    twin = torch.nn.Conv2d(5, 6, size, padding_mode=mode, **arguments)
    assert conv.bias is not None
    twin.weight.data, twin.bias.data = kernel, torch.from_numpy(np.array(conv.bias[...]))
    np.testing.assert_allclose(conv(x), from_torch(twin(to_torch(x))), atol=1e-5)


def test_initial_parameters_are_uniform_within_pytorchs_bound() -> None:
    conv = Conv(16, 64, 3, rng=rng(), dtype=jnp.float32)
    bound = (9 * 16) ** -0.5
    assert conv.bias is not None
    for array in (conv.kernel[...], conv.bias[...]):
        assert float(jnp.abs(array).max()) <= bound
        assert float(jnp.std(array)) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_pixel_shuffle_and_enlargement_are_pytorchs() -> None:
    x = random(2, 3, 5, 8)
    np.testing.assert_array_equal(layers.pixel_shuffle(x), from_torch(torch.nn.functional.pixel_shuffle(to_torch(x), 2)))
    np.testing.assert_array_equal(layers.enlarge(x), from_torch(torch.nn.functional.interpolate(to_torch(x), scale_factor=2)))


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.2])
def test_activations_have_the_derivatives_of_jax(slope: float) -> None:
    """To the last bit, and where they have a corner."""
    x = jnp.asarray(random(4, 5, 6, 7)).at[0, 0].set(0.0).at[0, 1].set(-0.0)
    theirs = jax.nn.relu if slope == 0 else functools.partial(jax.nn.leaky_relu, negative_slope=slope)
    (our, pull_back), (their, their_pull_back) = jax.vjp(lambda x: layers.leaky_relu(x, slope), x), jax.vjp(theirs, x)
    np.testing.assert_array_equal(our, their)
    np.testing.assert_array_equal(pull_back(x + 3)[0], their_pull_back(x + 3)[0])


def test_the_backward_pass_of_an_accelerator_is_given_activated_maps_alone() -> None:
    """It gets neither what they are made of, nor the copy with a reflected border."""
    x, kernel = jnp.asarray(random(2, 16, 12, 8)), jnp.asarray(random(3, 3, 8, 8))

    def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve_reflected(layers.relu(2 * x), kernel, padding=1)

    with compiled_for("gpu"):
        kept = jax.tree.leaves(jax.vjp(layer, x, kernel)[1])
    maps = [array for array in kept if array.size >= x.size]
    assert maps
    for array in maps:
        np.testing.assert_array_equal(array, layers.relu(2 * x))


def test_mask_is_reduced_by_nearest_neighbour() -> None:
    mask = random(1, 8, 8, 1)
    wanted = from_torch(torch.nn.functional.interpolate(to_torch(mask), size=(2, 2)))
    np.testing.assert_array_equal(layers.resize_mask(mask, 2), wanted)


def test_instance_norm_is_pytorchs_and_keeps_float32_statistics_for_bfloat16() -> None:
    x = random(2, 6, 6, 3) + 100
    np.testing.assert_allclose(layers.instance_norm(x), from_torch(torch.nn.functional.instance_norm(to_torch(x))), atol=1e-4)
    low = layers.instance_norm(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    exact = layers.instance_norm(np.asarray(x.astype(jnp.bfloat16), np.float32))
    np.testing.assert_allclose(np.asarray(low, np.float32), exact, atol=0.02)


def normalised_by_definition(x: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Fill the other region with the mean, normalise the whole, scale; add both."""
    parts = np.zeros_like(x)
    for inside in (region, 1 - region):
        area = np.maximum(inside.sum((1, 2), keepdims=True), 1)
        mean = (x * inside).sum((1, 2), keepdims=True) / area
        whole = x * inside + (1 - inside) * mean
        normed = (whole - whole.mean((1, 2), keepdims=True)) / np.sqrt(whole.var((1, 2), keepdims=True) + 1e-5)
        parts = parts + normed * np.sqrt(area / (x.shape[1] * x.shape[2]))
    return parts


def region_norm_by_definition(x: np.ndarray, mask: np.ndarray, norm: RegionNorm) -> np.ndarray:
    """One affine map a region."""
    normed = normalised_by_definition(x, mask)
    hole, known = (normed * mask, norm.hole_gamma, norm.hole_beta), (normed * (1 - mask), norm.known_gamma, norm.known_beta)
    return sum(part * (1 + np.asarray(gamma[...])) + np.asarray(beta[...]) for part, gamma, beta in (hole, known))


@pytest.mark.parametrize("hole", ["some", "empty", "full"])
def test_region_norm_follows_its_definition(hole: str) -> None:
    x = random(2, 8, 8, 3).astype(np.float64)
    mask = {"some": random(2, 16, 16, 1) > 0.3, "empty": np.zeros((2, 16, 16, 1)), "full": np.ones((2, 16, 16, 1))}[hole].astype(np.float64)
    norm = RegionNorm(3)
    for i, parameter in enumerate((norm.hole_gamma, norm.hole_beta, norm.known_gamma, norm.known_beta)):
        parameter[...] = jnp.asarray(random(3, seed=i + 1))
    wanted = region_norm_by_definition(x, mask[:, ::2, ::2], norm)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32), jnp.asarray(mask, jnp.float32)), wanted, atol=2e-5)


@pytest.mark.parametrize(("left", "right", "share"), [(-10.0, 20.0, "some"), (-20.0, -20.0, "none"), (20.0, 20.0, "all")])
def test_region_norm_with_a_learnt_region_follows_its_definition(left: float, right: float, share: str) -> None:
    """The golden file of SPL has one region with nearly all pixels and one with none: here is a
    mixed one.
    """
    x, norm = random(2, 16, 16, 3), LearntRegionNorm(rng=rng(), dtype=jnp.float32)
    # moves mean and maximum, hence the importance
    x += np.linspace(left, right, 16, dtype=np.float32)[:, None]
    norm.importance.kernel[...] = jnp.abs(norm.importance.kernel[...]) / 4

    def conv(layer: Conv, maps: np.ndarray) -> np.ndarray:
        kernel = torch.from_numpy(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy())
        offset = None if layer.bias is None else torch.from_numpy(np.array(layer.bias[...]))
        return from_torch(torch.nn.functional.conv2d(to_torch(maps), kernel, offset, padding=3))

    importance = 1 / (1 + np.exp(-conv(norm.importance, np.stack([x.mean(-1), x.max(-1)], -1))))
    region = (importance >= 0.8).astype(np.float32)
    assert {"some": 0.2 < region.mean() < 0.8, "none": region.mean() == 0, "all": region.mean() == 1}[share]
    wanted = normalised_by_definition(x, region) * (1 + conv(norm.gamma, importance)) + conv(norm.beta, importance)
    np.testing.assert_allclose(norm(x), wanted, atol=1e-4)


def test_learnt_region_norms_convolutions_all_learn() -> None:
    """The region itself has no gradient; the importance has one through gamma and beta."""
    x, norm = random(2, 16, 16, 3), LearntRegionNorm(rng=rng(), dtype=jnp.float32)
    gradients = jax.grad(lambda norm: jnp.sum(norm(x) ** 2))(norm)
    for layer in (gradients.importance, gradients.gamma, gradients.beta):
        assert float(jnp.abs(layer.kernel[...]).max()) > 0
    assert gradients.importance.bias is None


def test_concatenation_in_place_of_spade_is_a_convolution_of_normalised_features_and_prior() -> None:
    norm = ConcatNorm(4, 3, rng=rng(), dtype=jnp.float32)
    x, prior = 5 + 2 * random(2, 8, 8, 4), random(2, 8, 8, 3, seed=1)
    kernel, bias = norm.conv.kernel[...], norm.conv.bias[...]  # type: ignore[index]
    halves = (
        torch.nn.functional.conv2d(
            to_torch(part), torch.from_numpy(np.asarray(kernel)[:, :, channels].transpose(3, 2, 0, 1).copy()), padding=1
        )
        for part, channels in ((layers.instance_norm(x), slice(0, 4)), (prior, slice(4, 7)))
    )
    np.testing.assert_allclose(norm(x, prior), sum(map(from_torch, halves)) + np.asarray(bias), atol=1e-5)


def test_residual_block_has_a_convolved_shortcut_only_where_the_width_changes() -> None:
    assert ResidualBlock(4, 4, rng=rng(), dtype=jnp.float32).shortcut is None
    block = ResidualBlock(4, 6, rng=rng(), dtype=jnp.float32)
    x = random(1, 8, 8, 4)
    assert block.shortcut is not None
    wanted = block.shortcut(x) + block.conv_out(jax.nn.relu(block.conv_in(x)))
    np.testing.assert_allclose(block(x), wanted)


def spectral_twin(conv: SpectralConv) -> torch.nn.Module:
    """PyTorch's classic spectral norm on the same kernel, u and v."""
    twin = torch.nn.Conv2d(5, 6, 4, 2, 1, bias=False)
    twin.weight.data = torch.from_numpy(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1).copy())
    twin = torch.nn.utils.spectral_norm(twin)
    twin.weight_u.copy_(torch.from_numpy(np.array(conv.u[...])))
    twin.weight_v.copy_(torch.from_numpy(np.array(conv.v[...])))
    return twin


def test_spectral_norm_is_pytorchs_in_training_and_in_evaluation() -> None:
    conv = SpectralConv(5, 6, 4, rng=rng(), dtype=jnp.float32, stride=2, padding=1)
    twin, x = spectral_twin(conv), random(2, 8, 8, 5)
    for _ in range(3):  # training: one power iteration a call
        conv.power_iteration()
        np.testing.assert_allclose(conv(x), from_torch(twin(to_torch(x))), atol=1e-5)
    np.testing.assert_allclose(conv.u[...], twin.weight_u, atol=1e-6)
    np.testing.assert_allclose(conv.v[...], twin.weight_v, atol=1e-6)
    np.testing.assert_allclose(conv(x), from_torch(twin.eval()(to_torch(x))), atol=1e-5)


def test_spectral_norms_gradient_flows_through_numerator_and_sigma() -> None:
    conv = SpectralConv(5, 6, 4, rng=rng(), dtype=jnp.float32, stride=2, padding=1)
    twin, x = spectral_twin(conv).eval(), random(2, 8, 8, 5)
    twin(to_torch(x)).square().sum().backward()
    gradient = jax.grad(lambda conv: jnp.sum(conv(x) ** 2))(conv).kernel[...]
    np.testing.assert_allclose(gradient, twin.weight_orig.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-4)


def test_power_iteration_finds_the_largest_singular_value_and_calls_change_nothing() -> None:
    conv = SpectralConv(3, 8, 4, rng=rng(), dtype=jnp.float32, stride=1, padding=1)
    kernel = np.asarray(conv.kernel[...])
    for _ in range(100):
        conv.power_iteration()
    u = np.asarray(conv.u[...])
    conv(random(1, 8, 8, 3))
    np.testing.assert_array_equal(conv.u[...], u)
    np.testing.assert_array_equal(conv.kernel[...], kernel)
    largest = np.linalg.svd(np.asarray(conv.matrix()), compute_uv=False)[0]
    sigma = u @ (np.asarray(conv.matrix()) @ np.asarray(conv.v[...]))
    assert sigma == pytest.approx(largest, rel=1e-4)


def test_dense_maps_are_those_of_one_convolution_after_the_other() -> None:
    draw = rng()
    convs = [Conv(5 + 2 * i, 2, 3, padding=1, rng=draw, dtype=jnp.float32) for i in range(3)]
    x = jnp.asarray(random(2, 6, 7, 5))
    maps = x
    for conv in convs:
        maps = jnp.concatenate([maps, jax.nn.relu(conv(maps))], -1)
    np.testing.assert_allclose(dense_maps(x, convs), maps[..., 5:], rtol=1e-5, atol=1e-6)
