"""Filling holes in photos of any size: what comes back untouched, what may influence the rest, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from spn_jax import inpainter as module
from spn_jax import memory
from spn_jax.completion import complete, draw_noise
from spn_jax.errors import InputError
from spn_jax.inpainter import Inpainter, Strategy
from tests.inpainting import HEIGHT, KINDS, WIDTH, corner, photo


@pytest.fixture(scope="module")
def inpainters(checkpoints: dict[str, Path]) -> dict[str, Inpainter]:
    return {kind: Inpainter.load(path) for kind, path in checkpoints.items()}


@pytest.fixture(params=KINDS)
def inpainter(request: pytest.FixtureRequest, inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters[request.param]


@pytest.fixture
def sampler(inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters["spn-probabilistic"]


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1), (64, 3)])
def test_any_size_is_kept_and_known_pixels_come_back_bit_for_bit(inpainter: Inpainter, size: tuple[int, int]) -> None:
    image, mask = photo(*size), corner(*size)
    completed = inpainter(image, mask)
    assert completed.dtype == np.uint8 and completed.shape == (1, *size, 3)
    np.testing.assert_array_equal(np.where(mask, 0, completed[0]), np.where(mask, 0, image))


def test_the_photo_under_the_mask_has_no_influence(inpainter: Inpainter) -> None:
    mask = corner()
    image = photo()
    other = np.where(mask, photo(seed=1), image)
    np.testing.assert_array_equal(inpainter(image, mask), inpainter(other, mask))


def test_the_known_part_has_influence(inpainter: Inpainter) -> None:
    image, mask = photo(), corner()
    other = np.where(mask, image, photo(seed=1))
    assert (inpainter(image, mask) != inpainter(other, mask))[0][mask[..., 0] > 0].any()


def test_a_photo_that_fits_is_completed_as_evaluations_complete_it(inpainter: Inpainter) -> None:
    image, mask = photo(32, 32), corner(32, 32)
    noise = draw_noise(inpainter.model, 3, np.zeros(1, np.int32), np.arange(1), 32, 32)
    compiled = jax.jit(complete, static_argnames="how")
    completions, _ = compiled(inpainter.model, image[None], mask[None], noise, how=inpainter.config.eval.quantise)
    # Another program, whose last digits may differ, and with them an 8-bit value.
    np.testing.assert_allclose(inpainter(image, mask, seed=3).astype(int), completions[0], atol=1)


def test_samples_differ_inside_the_hole_and_nowhere_else(sampler: Inpainter) -> None:
    image, mask = photo(), corner()
    first, second, third = sampler(image, mask, samples=3)
    for a, b in (first, second), (first, third), (second, third):
        assert (a != b)[mask[..., 0] > 0].any()
        np.testing.assert_array_equal(a[mask[..., 0] == 0], b[mask[..., 0] == 0])


def test_the_seed_decides_the_samples(sampler: Inpainter) -> None:
    image, mask = photo(), corner()
    first = sampler(image, mask, samples=3, seed=7)
    np.testing.assert_array_equal(first, sampler(image, mask, samples=3, seed=7))
    for seed in (8, 2**32 - 1):
        assert (first != sampler(image, mask, samples=3, seed=seed)).any()
    with pytest.raises(ValueError, match="seed 4294967296 must lie between 0 and 4294967295"):
        sampler(image, mask, seed=2**32)


def test_more_samples_add_to_those_of_fewer(sampler: Inpainter) -> None:
    image, mask = photo(), corner()
    np.testing.assert_array_equal(sampler(image, mask, samples=3)[:2], sampler(image, mask, samples=2))


def test_noise_is_a_different_one_for_each_sample_and_photo(sampler: Inpainter) -> None:
    noise = draw_noise(sampler.model, 0, np.array([4, 9]), np.arange(5), 64, 32)
    assert noise is not None and noise.shape == (2, 5, 2, 1, 4)
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_array_equal(noise[1:, 3:], draw_noise(sampler.model, 0, np.array([9]), np.array([3, 4]), 64, 32))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (photo().astype(np.float32), corner(), r"photo must be uint8 or uint16, .* not float32 \(21, 29, 3\)"),
        (np.zeros((21, 29, 5), np.uint8), corner(), "photo must be uint8 or uint16"),
        (photo(), 128 * corner(), "mask must be bool, or uint8 of 0 and 1 or of 0 and 255, not uint8 of 2 values"),
        (photo(), corner(9, 9), r"mask must be \(21, 29, 1\) of zeros and ones, not uint8 \(9, 9, 1\)"),
    ],
)
def test_arrays_that_are_no_photo_and_mask(inpainter: Inpainter, image: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inpainter(image, mask)


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore"), MemoryError()]
)
def test_a_photo_too_large_for_the_memory_is_one_sentence(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(Inpainter, "_programs_for", fail)
    with pytest.raises(InputError, match=r"^a photo of 29 x 21 pixels did not fit into the memory; make it smaller$"):
        sampler(photo(), corner(), samples=2)


def test_memory_that_would_not_suffice_is_told_before_it_is_taken(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_memory(jax.devices("cpu")[0])
    assert free is not None and 1e6 < free < 1e15
    sampler(photo(), corner())
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"a photo of 29 x 21 pixels needs 0\.\d GB of memory and 0\.0 GB are free; make it smaller"):
        sampler(photo(), corner())
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    sampler(photo(), corner())


def test_other_errors_of_the_device_are_not_hidden(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Inpainter, "_programs_for", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        sampler(photo(), corner())


def test_a_model_that_diverged_is_one_sentence(checkpoints: dict[str, Path]) -> None:
    inpainter = Inpainter.load(checkpoints["spn"])
    bias = inpainter.model.generator.output.bias
    assert bias is not None
    bias.set_value(bias.get_value() * np.nan)
    with pytest.raises(InputError, match="prediction is not finite"):
        inpainter(photo(), corner())


@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
def test_every_strategy_keeps_what_is_known_in_a_photo_beyond_the_trained_size(inpainter: Inpainter, strategy: Strategy) -> None:
    image, mask = photo(97, 141), np.zeros((97, 141, 1), np.uint8)
    mask[40:44, :], mask[5:25, 100:] = 1, 1  # a thin hole from border to border, and one at a border
    (completed,) = inpainter(image, mask, strategy=strategy)
    hole = mask[..., 0] > 0
    np.testing.assert_array_equal(completed[~hole], image[~hole])
    assert (completed[hole] != image[hole]).any()
    np.testing.assert_array_equal(inpainter(np.where(mask, 0, image), mask, strategy=strategy)[0], completed)


def test_a_photo_without_a_hole_comes_back_as_it_is(inpainter: Inpainter) -> None:
    np.testing.assert_array_equal(inpainter(photo(), np.zeros((HEIGHT, WIDTH), bool))[0], photo())


def test_pillow_images_give_pillow_images(inpainters: dict[str, Inpainter]) -> None:
    """As the README shows it."""
    from spn_jax import Inpainter as exported

    image, mask = Image.fromarray(photo()), Image.fromarray(255 * corner()[..., 0])
    assert exported is Inpainter
    (completed,) = inpainters["spn"](image, mask)
    np.testing.assert_array_equal(np.asarray(completed), inpainters["spn"](photo(), corner())[0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_and_transparency_keep_known_values(inpainters: dict[str, Inpainter], channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, channels), np.uint16)
    (completed,) = inpainters["spn"](image, corner())
    known = corner()[..., 0] == 0
    assert completed.dtype == np.uint16 and completed.shape == image.shape
    np.testing.assert_array_equal(completed[known], image[known])
    if channels in (2, 4):
        assert (completed[~known][:, -1] == 2**16 - 1).all()


def test_sizes_share_programs(checkpoints: dict[str, Path]) -> None:
    inpainter = Inpainter.load(checkpoints["spn"])
    for height, width in (21, 29), (22, 30), (23, 27):
        inpainter(photo(height, width), corner(height, width))
    assert len(inpainter._programs) == 1


def test_priors_have_the_scales_of_the_pyramid(inpainter: Inpainter) -> None:
    priors = inpainter.priors(photo(), corner())
    assert {level: prior.shape[:2] for level, prior in priors.items()} == {1: (21, 29), 2: (11, 15), 3: (6, 8)}
