"""Filling holes from Python: what comes back untouched, what may influence the rest, and what is
refused.
"""

import inspect
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from spn_jax.errors import InputError
from spn_jax.filling import completion, inpainter, padding
from spn_jax.filling.inpainter import Inpainter, SPNNetwork
from spn_jax.filling.photos import Photo
from spn_jax.models.spn import SPN
from spn_jax.runtime import memory
from tests.tiny import KINDS, corner, photo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inpainters(checkpoints: dict[str, Path]) -> dict[str, Inpainter]:
    return {kind: Inpainter.load(path) for kind, path in checkpoints.items()}


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters[request.param]


def network_of(inpainter: Inpainter) -> SPNNetwork:
    assert isinstance(inpainter.network, SPNNetwork)
    return inpainter.network


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
    # and not as evaluations quantise
    completions, _ = complete(either.model, image[None], mask[None], noise, how="round")
    # Another program, whose last digits may differ, and with them an 8-bit value.
    filled = either(image, mask, seed=3, strategy="original")
    np.testing.assert_allclose(filled.astype(int), completions[0], atol=1)


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


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (0, "samples 0 must be at least 1"),
        (
            2,
            "samples 2: the checkpoint's model is deterministic and completes a photo in one way; "
            "leave samples out, or take a checkpoint of a probabilistic model",
        ),
    ],
)
def test_a_wrong_number_of_samples_is_told_in_the_words_of_the_call(plain: Inpainter, samples: int, said: str) -> None:
    with pytest.raises(InputError) as refused:
        plain(photo(), corner(), samples=samples)
    assert str(refused.value) == said


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
    assert len(network_of(fresh)._programs) == 1
    sides = {padding.bucket(side, fresh.config) for side in range(1, 65)}
    assert sides == {16, 32, 48, 64}


def test_without_a_hole_the_photo_comes_back(either: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPNNetwork, "_programs_for", lambda *inputs: pytest.fail("the network ran"))
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_its_side_is_filled_where_a_person_sees_the_hole(plain: Inpainter, orientation: int, tmp_path: Path) -> None:
    exif, side, mask = Image.Exif(), photo(21, 29), np.zeros((21, 29, 1), np.uint8)
    mask[:5] = 1
    exif[0x0112] = orientation
    Image.fromarray(side).save(tmp_path / "photo.png", exif=exif)
    seen = ImageOps.exif_transpose(Image.open(tmp_path / "photo.png"))
    hole = np.zeros((seen.height, seen.width), np.uint8)
    hole[:5] = 255  # the upper rows that a viewer shows
    expected = plain(np.asarray(seen), hole)[0]
    (image,) = plain(Image.open(tmp_path / "photo.png"), Image.fromarray(hole))
    np.testing.assert_array_equal(np.asarray(image), expected)
    Image.fromarray(hole).save(tmp_path / "hole.png")
    for given in str(tmp_path / "photo.png"), tmp_path / "photo.png", (tmp_path / "photo.png").read_bytes():
        (filled,) = plain(given, tmp_path / "hole.png")
        assert isinstance(filled, Photo)
        np.testing.assert_array_equal(filled.pixels, expected)
    filled.save(tmp_path / "filled.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "filled.png")), expected)


def test_soft_masks_of_all_kinds_are_cut_at_half(plain: Inpainter) -> None:
    expected = plain(photo(), corner())
    soft = np.where(corner() > 0, 128, 127).astype(np.uint8)
    deep = np.where(corner() > 0, 32768, 32767).astype(np.uint16)
    part = np.where(corner() > 0, 0.5, 0.499)
    masks: list[Any] = [soft, soft.repeat(3, 2), deep, part, part.repeat(3, 2).astype(np.float32), soft.astype(int), corner().astype(float)]
    with_opacity = np.concatenate([np.full_like(soft, 255), soft], 2)
    for mask in [
        *masks,
        with_opacity,
        Image.fromarray(soft[..., 0]),
        Image.fromarray(deep[..., 0]),
        corner().astype(np.int64),
        corner() > 0,
    ]:
        np.testing.assert_array_equal(plain(photo(), mask), expected)


def test_filled_pixels_are_rounded_and_have_the_depth_of_the_photo(plain: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.float32(100.6)
    monkeypatch.setattr(SPNNetwork, "predictions", lambda self, shown, *rest: iter([np.full((*shown.mask.shape[:2], 3), value)]))
    inside = corner()[..., 0] > 0
    for strategy in "original", "crop":
        (filled,) = plain.fill(Photo(photo()), corner(), strategy=strategy)
        (deep,) = plain.fill(Photo(photo().astype(np.uint16) * 257), corner(), strategy=strategy)
        if strategy == "original":
            assert (filled.pixels[inside] == 101).all() and (deep.pixels[inside] == round(100.6 * 257)).all()
        assert len(np.unique(deep.pixels[inside])) >= len(np.unique(filled.pixels[inside]))


def test_a_small_photo_is_shown_as_it_is_and_meets_its_known_pixels(plain: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is 30 too bright everywhere: `original` shows what it says, the usual way
    leaves no step at the border.
    """
    image, mask, seen = np.full((48, 64, 3), 90, np.uint8), np.zeros((48, 64, 1), np.uint8), list[Any]()
    mask[10:40, 10:50] = 1

    def predictions(self: Any, shown: Any, *rest: Any) -> Any:
        seen.append(shown)
        return iter([np.full(image.shape, np.float32(120))])

    monkeypatch.setattr(SPNNetwork, "predictions", predictions)
    (usual,), (raw,) = plain(image, mask), plain(image, mask, strategy="original")
    for shown in seen:
        np.testing.assert_array_equal(shown.image, image)
    assert (raw[mask[..., 0] > 0] == 120).all()
    assert np.abs(usual[10, 20:40].astype(int) - 90).max() <= 1 and (usual[25, 20:40] == 120).all()


def test_the_networks_predictions_are_finer_than_eight_bits(plain: Inpainter) -> None:
    (deep,) = plain(photo().astype(np.uint16) * 257, corner())
    assert (deep[corner()[..., 0] > 0] % 257 != 0).mean() > 0.9


@pytest.mark.parametrize("strategy", ["original", "crop"])
def test_progress_is_told_between_windows_and_may_give_up(sampler: Inpainter, strategy: Any) -> None:
    image, mask = photo(100, 100), np.zeros((100, 100, 1), np.uint8)
    mask[:5, :5] = mask[90:, 90:] = 1
    told: list[tuple[int, int]] = []
    list(sampler.fill(Photo(image), mask, 2, strategy=strategy, progress=lambda done, total: told.append((done, total))))
    total = 4 if strategy == "crop" else 2
    assert told == [(done, total) for done in range(total)]

    class GivenUp(Exception):
        pass

    def give_up(done: int, total: int) -> None:
        told.append((done, total))
        if done == 1:
            raise GivenUp

    told.clear()
    with pytest.raises(GivenUp):
        list(sampler.fill(Photo(image), mask, 2, strategy=strategy, progress=give_up))
    assert told == [(0, total), (1, total)]


def test_the_memory_of_many_windows_is_that_of_few(plain: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPNNetwork, "predictions", lambda self, shown, *rest: iter([shown.image.astype(np.float32)]))
    peaks = []
    for step in 100, 20:  # dust that is 25 times as dense
        mask = np.zeros((600, 800, 1), np.uint8)
        mask[::step, ::step] = 1
        tracemalloc.start()
        try:
            list(plain.fill(Photo(photo(600, 800)), mask, strategy="crop"))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


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
        (photo(), corner()[..., 0].repeat(2, 1), "the mask is 58 x 21 pixels, the photo, upright, is 29 x 21"),
        (photo(), corner(9, 9), "the mask is 9 x 9 pixels"),
        (photo(), 3.0 * corner(), "the mask must have values from 0 to 1, not from 0 to 3"),
        (photo(), corner() * np.nan, "the mask must have values from 0 to 1, not from nan to nan"),
        (photo(), -1 * corner().astype(int), "the mask must have values from 0 to 1, not from -1 to 0"),
        (photo(), corner().astype(complex), r"the mask must be an array of numbers, \(h, w\) or \(h, w, 1 to 4\)"),
        (photo(), 100 * corner(), "the mask marks no hole: its brightest value is 100 of 255, and white begins at 128"),
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

    monkeypatch.setattr(SPNNetwork, "_programs_for", fail)
    with pytest.raises(InputError, match=r"^not enough memory for a photo of 29 x 21 pixels; use a smaller photo or the strategy crop$"):
        sampler(photo(), corner(), samples=2)


def test_memory_that_would_not_suffice_is_told_before_it_is_taken(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_memory(jax.devices("cpu")[0])
    assert free is not None and 1e6 < free < 1e15
    sampler(photo(), corner())
    monkeypatch.setattr(inpainter, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"a photo of 29 x 21 pixels needs 0\.\d GB of memory and 0\.0 GB are free; use a smaller photo"):
        sampler(photo(), corner())
    monkeypatch.setattr(inpainter, "free_memory", lambda device: None)
    sampler(photo(), corner())


def test_what_cannot_fit_is_refused_before_it_is_compiled(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Inpainter.load(checkpoints["spn"])
    monkeypatch.setattr(inpainter, "free_memory", lambda device: 1000)
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda *inputs, **options: pytest.fail("compiled"))
        with pytest.raises(InputError, match="needs 0.0 GB of memory and 0.0 GB are free"):
            fresh(photo(), corner())
    assert not network_of(fresh)._programs
    # A size between what a convolution needs and what the program does: compiled once, refused, and
    # refused at once from then on.
    shape = (32, 32, 3)
    monkeypatch.setattr(inpainter, "largest_convolution", lambda jaxpr: 0)
    for _ in range(2):
        with pytest.raises(InputError, match="GB are free"):
            fresh(photo(), corner())
        assert not network_of(fresh)._programs and list(network_of(fresh)._needed) == [shape]
        monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *inputs, **options: pytest.fail("compiled again"))


def test_a_convolutions_memory_is_what_it_reads_and_writes() -> None:
    def program(x: jax.Array, kernel: jax.Array) -> jax.Array:
        convolved = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.jit(lambda y: y + 1)(convolved)

    arguments = np.zeros((1, 8, 8, 3), np.float32), np.zeros((3, 3, 3, 5), np.float32)
    for function in program, jax.jit(program):
        assert inpainter.largest_convolution(jax.make_jaxpr(function)(*arguments).jaxpr) == 4 * (8 * 8 * 3 + 3 * 3 * 3 * 5 + 8 * 8 * 5)


def test_few_programs_are_kept_and_those_used_last(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Inpainter.load(checkpoints["spn"])
    monkeypatch.setattr(inpainter, "KEPT_PROGRAMS", 2)
    for side in 16, 32, 16, 48:
        fresh(photo(side, side), corner(side, side))
    assert list(network_of(fresh)._programs) == [(16, 16, 3), (48, 48, 3)]


def test_other_errors_of_the_device_are_not_hidden(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(SPNNetwork, "_programs_for", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        sampler(photo(), corner())


def test_a_model_that_diverged_is_one_sentence(checkpoints: dict[str, Path]) -> None:
    diverged = Inpainter.load(checkpoints["spn"])
    assert isinstance(diverged.model, SPN)
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
