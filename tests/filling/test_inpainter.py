"""Filling holes from Python: what comes back untouched, what may influence the rest, and what is refused."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.filling import completion, inpainter
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.photos import Photo
from spn_jax.runtime import memory
from tests.tiny import KINDS, corner, photo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inpainters(checkpoints: dict[str, Path]) -> dict[str, Inpainter]:
    return {kind: Inpainter.load(path) for kind, path in checkpoints.items()}


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters[request.param]


@pytest.fixture
def plain(inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters["spn"]


@pytest.fixture
def sampler(inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters["spn-probabilistic"]


@pytest.mark.parametrize("size", [(21, 29), (1, 1), (64, 3)])
def test_any_size_is_kept_and_known_pixels_come_back_bit_for_bit(either: Inpainter, size: tuple[int, int]) -> None:
    image, mask = photo(*size), corner(*size)
    completed = either(image, mask)
    assert isinstance(completed, np.ndarray) and completed.dtype == np.uint8 and completed.shape == (1, *size, 3)
    np.testing.assert_array_equal(np.where(mask, 0, completed[0]), np.where(mask, 0, image))


@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
def test_the_photo_under_the_mask_has_no_influence(plain: Inpainter, strategy: Any) -> None:
    image, mask = photo(61, 97), corner(61, 97)
    other = np.where(mask, photo(61, 97, seed=1), image)
    completed = plain(image, mask, strategy=strategy)
    np.testing.assert_array_equal(completed, plain(other, mask, strategy=strategy))
    np.testing.assert_array_equal(np.where(mask, 0, completed[0]), np.where(mask, 0, image))


def test_the_known_part_has_influence(either: Inpainter) -> None:
    image, mask = photo(), corner()
    other = np.where(mask, image, photo(seed=1))
    assert (either(image, mask) != either(other, mask))[0][mask[..., 0] > 0].any()


def test_a_photo_that_fits_is_completed_as_evaluations_complete_it(either: Inpainter) -> None:
    image, mask = photo(32, 32), corner(32, 32)
    noise = completion.draw_noise(either.model, 3, np.zeros(1, np.int32), np.arange(1), 32, 32)
    complete = jax.jit(completion.complete, static_argnames="how")
    completions, _ = complete(either.model, image[None], mask[None], noise, how=either.config.eval.quantise)
    # Another program, whose last digits may differ, and with them an 8-bit value.
    np.testing.assert_allclose(either(image, mask, seed=3).astype(int), completions[0], atol=1)


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


def test_samples_of_several_windows(sampler: Inpainter) -> None:
    image, mask = photo(100, 100), np.zeros((100, 100, 1), np.uint8)
    mask[:5, :5] = mask[90:, 90:] = 1
    first, second = sampler(image, mask, samples=2, strategy="crop")
    for part in np.s_[:5, :5], np.s_[90:, 90:]:
        assert (first[part] != second[part]).any()
    np.testing.assert_array_equal(np.where(mask, 0, first), np.where(mask, 0, image))


def test_noise_is_a_different_one_for_each_sample_and_photo(sampler: Inpainter) -> None:
    noise = completion.draw_noise(sampler.model, 0, np.array([4, 9]), np.arange(5), 64, 32)
    assert noise is not None and noise.shape == (2, 5, 2, 1, 4)
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_array_equal(noise[1:, 3:], completion.draw_noise(sampler.model, 0, np.array([9]), np.array([3, 4]), 64, 32))


def test_odd_sizes_share_programs(checkpoints: dict[str, Path]) -> None:
    fresh = Inpainter.load(checkpoints["spn"])
    for height, width in (17, 30), (21, 29), (32, 32), (25, 18):
        fresh(photo(height, width), corner(height, width))
    assert len(fresh._programs) == 1
    sides = {inpainter.bucket(side, fresh.config) for side in range(1, 65)}
    assert sides == {16, 32, 48, 64}


def test_without_a_hole_the_photo_comes_back(either: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inpainter, "_programs_for", lambda *inputs: pytest.fail("the network ran"))
    np.testing.assert_array_equal(either(photo(), np.zeros_like(corner()))[0], photo())


def test_what_goes_in_comes_out(plain: Inpainter) -> None:
    mask, known = corner(), corner()[..., 0] == 0
    grey, deep = photo()[..., 0], photo().astype(np.uint16) * 256 + 3
    with_alpha = np.concatenate([photo(), photo(seed=1)[..., :1]], -1)
    for image in grey, grey[..., None], deep, with_alpha:
        for hole in mask, mask[..., 0] > 0, 255 * mask:
            (filled,) = plain(image, hole)
            assert isinstance(filled, np.ndarray) and (filled.dtype, filled.shape) == (image.dtype, image.shape)
            np.testing.assert_array_equal(filled[known], image[known])
    for picture in (Image.fromarray(photo()), Image.fromarray(grey), Image.fromarray(with_alpha)):
        (completed,) = plain(picture, Image.fromarray(255 * mask[..., 0]))
        assert isinstance(completed, Image.Image) and completed.mode == picture.mode
        np.testing.assert_array_equal(np.asarray(completed)[known], np.asarray(picture)[known])


def test_a_photo_keeps_all_that_belongs_to_it(plain: Inpainter) -> None:
    given = Photo(photo().astype(np.uint16) * 257, None, "TIFF", b"profile", b"Exif\0\0")
    (filled,) = plain.fill(given, corner())
    assert (filled.format, filled.icc_profile, filled.exif, filled.deep) == ("TIFF", b"profile", b"Exif\0\0", True)


@pytest.mark.parametrize("size", [(21, 29), (61, 97)])
def test_priors_are_maps_of_the_photo(either: Inpainter, size: tuple[int, int]) -> None:
    priors = either.priors(photo(*size), corner(*size))
    height, width = size if size == (21, 29) else (40, 64)  # at most twice the trained size
    assert {level: prior.shape[:2] for level, prior in priors.items()} == {
        level: (-(-height // 2 ** (level - 1)), -(-width // 2 ** (level - 1))) for level in (1, 2, 3)
    }
    hidden = np.where(corner(*size), 0, photo(*size))
    for level, prior in either.priors(hidden, corner(*size)).items():
        np.testing.assert_array_equal(prior, priors[level])


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (photo().astype(np.float32), corner(), r"photo must be uint8 or uint16, \(h, w\) or \(h, w, 1 to 4\), not float32 \(21, 29, 3\)"),
        (photo()[:0], corner()[:0], "photo must be"),
        (photo(), corner()[..., 0].repeat(2, 1), r"mask must be \(21, 29, 1\) of zeros and ones"),
        (photo(), photo()[..., :1], "of 0 and 255, not uint8 of .* values"),
        (photo(), corner().astype(float), "mask must be bool, or uint8"),
        (photo(), corner(9, 9), "mask must be"),
    ],
)
def test_arrays_that_are_no_photo_and_mask(plain: Inpainter, image: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(image, mask)


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
    monkeypatch.setattr(inpainter, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"a photo of 29 x 21 pixels needs 0\.\d GB of memory and 0\.0 GB are free; make it smaller"):
        sampler(photo(), corner())
    monkeypatch.setattr(inpainter, "free_memory", lambda device: None)
    sampler(photo(), corner())


def test_other_errors_of_the_device_are_not_hidden(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Inpainter, "_programs_for", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        sampler(photo(), corner())


def test_a_model_that_diverged_is_one_sentence(checkpoints: dict[str, Path]) -> None:
    diverged = Inpainter.load(checkpoints["spn"])
    bias = diverged.model.generator.output.bias
    assert bias is not None
    bias.set_value(bias.get_value() * np.nan)
    with pytest.raises(InputError, match="prediction is not finite"):
        diverged(photo(), corner())


def test_the_package_is_light_until_the_class_is_asked_for() -> None:
    program = "import sys, spn_jax; assert 'jax' not in sys.modules; from spn_jax import Inpainter; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_example_runs_as_written(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"Example:\n((?:\n|    .*\n)+)", inspect.getdoc(Inpainter) or "")
    assert example
    Path("runs").mkdir()
    Path("runs/celebahq_probabilistic").symlink_to(checkpoints["spn-probabilistic"])
    Image.fromarray(photo()).save("photo.jpg")
    Image.fromarray(255 * corner()[..., 0]).save("hole.png")
    exec(inspect.cleandoc(example[1]), {})
    assert sorted(path.name for path in tmp_path.glob("filled_*.png")) == ["filled_0.png", "filled_1.png", "filled_2.png"]


@pytest.mark.long
@pytest.mark.parametrize("size", [(61, 97), (256, 256), (1080, 1920), (3000, 4000)])
@pytest.mark.parametrize("hole", ["thin", "large", "border", "empty"])
def test_sizes_and_holes(plain: Inpainter, size: tuple[int, int], hole: str) -> None:
    (height, width), mask = size, np.zeros((*size, 1), np.uint8)
    if hole == "thin":
        mask[height // 2 : height // 2 + 3, width // 8 : width // 3] = 1
    if hole == "large":
        mask[height // 8 : -height // 8, width // 8 : -width // 8] = 1
    if hole == "border":
        mask[: height // 20], mask[:, -width // 20 :] = 1, 1
    (filled,) = plain(photo(*size), mask)
    np.testing.assert_array_equal(np.where(mask, 0, filled), np.where(mask, 0, photo(*size)))
    assert (filled != photo(*size)).any() == bool(mask.any())


def test_progress_is_told_before_each_pass_and_may_end_the_work(sampler: Inpainter) -> None:
    mask = np.zeros((40, 400, 1), np.uint8)
    mask[10:20, 10:20] = mask[10:20, 380:390] = 1
    filled = Photo(photo(40, 400))
    told: list[tuple[int, int]] = []
    assert len(list(sampler.fill(filled, mask, 2, strategy="crop", progress=lambda *passes: told.append(passes)))) == 2
    assert told == [(i, told[0][1]) for i in range(len(told))] and told[0][1] == len(told) > 1

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Enough

    with pytest.raises(Enough):
        list(sampler.fill(filled, mask, 2, strategy="crop", progress=stop))
