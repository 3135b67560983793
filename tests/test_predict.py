"""Filling the hole of one photo: what comes back untouched, what may influence the rest, and what is refused."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.checkpoint import Checkpoints
from spn_jax.config import to_dict
from spn_jax.errors import InputError, run_command
from spn_jax.parameters import named_arrays, with_named_arrays
from spn_jax.predict import Inpainter
from tests.tiny import CHANNELS, new_state, tiny

KINDS = {
    "spn": (),
    "spn-probabilistic": ("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm"),
}
SIGMA = "prior_learner.variational.sigma.bias"
HEIGHT, WIDTH = 21, 29  # neither is a multiple of 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's folder by kind of model, with initial parameters, but for a latent that varies enough to be seen in 8 bits."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, overrides in KINDS.items():
        config = tiny(*overrides)
        info = {"config": to_dict(config), "teacher": {"channels": {str(level): c for level, c in CHANNELS.items()}}}
        state = new_state(config)[1]
        if config.model.variational:
            names = named_arrays(state.model)
            names[SIGMA] = names[SIGMA] + 20
            state = dataclasses.replace(state, model=with_named_arrays(state.model, names, what=kind))
        with Checkpoints(folder / kind, 1, 0) as saved:
            saved.save(1, state, info, None)
            saved.wait()
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def inpainters(checkpoints: dict[str, Path]) -> dict[str, Inpainter]:
    return {kind: Inpainter.from_checkpoint(path) for kind, path in checkpoints.items()}


@pytest.fixture(params=KINDS)
def inpainter(request: pytest.FixtureRequest, inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters[request.param]


@pytest.fixture
def sampler(inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters["spn-probabilistic"]


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def corner(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A hole that touches the right and the lower border, where the photo is continued."""
    mask = np.zeros((height, width, 1), np.uint8)
    mask[height // 2 :, width // 3 :] = 1
    return mask


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
    noise = predict.draw_noise(inpainter.model, 3, np.zeros(1, np.int32), np.arange(1), 32, 32)
    complete = jax.jit(predict.complete, static_argnames="how")
    completions, _ = complete(inpainter.model, image[None], mask[None], noise, how=inpainter.config.eval.quantise)
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
    noise = predict.draw_noise(sampler.model, 0, np.array([4, 9]), np.arange(5), 64, 32)
    assert noise is not None and noise.shape == (2, 5, 2, 1, 4)
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_array_equal(noise[1:, 3:], predict.draw_noise(sampler.model, 0, np.array([9]), np.array([3, 4]), 64, 32))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (photo().astype(np.float32), corner(), r"photo must be uint8 \(h, w, 3\), not float32 \(21, 29, 3\)"),
        (photo()[..., :1], corner(), "photo must be uint8"),
        (photo(), corner()[..., 0], r"mask must be uint8 \(21, 29, 1\) of zeros and ones"),
        (photo(), 255 * corner(), "of zeros and ones, not uint8 .* up to 255"),
        (photo(), corner(9, 9), "mask must be"),
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
    free = predict.free_memory(jax.devices("cpu")[0])
    assert free is not None and 1e6 < free < 1e15
    sampler(photo(), corner())
    monkeypatch.setattr(predict, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"a photo of 29 x 21 pixels needs 0\.\d GB of memory and 0\.0 GB are free; make it smaller"):
        sampler(photo(), corner())
    monkeypatch.setattr(predict, "free_memory", lambda device: None)
    sampler(photo(), corner())


def test_other_errors_of_the_device_are_not_hidden(sampler: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Inpainter, "_programs_for", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        sampler(photo(), corner())


def test_a_model_that_diverged_is_one_sentence(checkpoints: dict[str, Path]) -> None:
    inpainter = Inpainter.from_checkpoint(checkpoints["spn"])
    bias = inpainter.model.generator.output.bias
    assert bias is not None
    bias.set_value(bias.get_value() * np.nan)
    with pytest.raises(InputError, match="prediction is not finite"):
        inpainter(photo(), corner())


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photo.png and mask.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("photo.png")
    Image.fromarray(255 * corner()[..., 0]).save("mask.png")
    return tmp_path


def arguments(checkpoint: Path, more: str = "") -> list[str]:
    """A command line; what comes last counts."""
    return f"--checkpoint {checkpoint} --image photo.png --mask mask.png --output out.png {more}".split()


def read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "webp", "TIFF", "bmp"])
def test_command_writes_the_completed_photo(
    folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(arguments(checkpoints["spn"], f"--output new/out.{suffix}"))
    np.testing.assert_array_equal(read(f"new/out.{suffix}"), inpainters["spn"](photo(), corner())[0])
    assert capsys.readouterr().out == f"written: new/out.{suffix}\n"


def test_jpeg_is_said_to_change_known_pixels(folder: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(arguments(checkpoints["spn"], "--output out.jpg"))
    assert read("out.jpg").shape == (HEIGHT, WIDTH, 3)
    written, note = capsys.readouterr().out.splitlines()
    assert note.startswith("note: JPEG changes every pixel a little") and ".png, .webp" in note
    assert written == "written: out.jpg"


def test_command_writes_several_samples(
    folder: Path, checkpoints: dict[str, Path], sampler: Inpainter, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(arguments(checkpoints["spn-probabilistic"], "--samples 3 --seed 7"))
    for i, expected in enumerate(sampler(photo(), corner(), samples=3, seed=7), 1):
        np.testing.assert_array_equal(read(f"out-{i}.png"), expected)
    assert capsys.readouterr().out.splitlines() == [f"written: out-{i}.png" for i in (1, 2, 3)]
    assert not (folder / "out.png").exists()


def variants() -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """The same photo and mask as other files hold them: (name, photo, mask)."""
    image, mask = Image.fromarray(photo()), Image.fromarray(255 * corner()[..., 0])
    yield "soft mask in colour", image, Image.fromarray(np.where(corner() > 0, 128, 127).astype(np.uint8).repeat(3, 2))
    yield "mask on a transparent ground", image, Image.merge("LA", (Image.new("L", mask.size, 255), mask))
    yield "opaque RGBA", image.convert("RGBA"), mask.convert("1")


@pytest.mark.parametrize(("image", "mask"), [pytest.param(*files, id=name) for name, *files in variants()])
def test_files_of_other_kinds(
    folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter], image: Image.Image, mask: Image.Image
) -> None:
    image.save("photo.png")
    mask.save("mask.png")
    predict.main(arguments(checkpoints["spn"]))
    np.testing.assert_array_equal(read("out.png"), inpainters["spn"](photo(), corner())[0])


def test_black_is_the_hole_of_an_inverted_mask(folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter]) -> None:
    Image.fromarray(255 - 255 * corner()[..., 0]).save("mask.png")
    predict.main(arguments(checkpoints["spn"], "--invert-mask"))
    np.testing.assert_array_equal(read("out.png"), inpainters["spn"](photo(), corner())[0])


def test_a_grey_photo_becomes_rgb_and_one_lying_on_its_side_upright(folder: Path, checkpoints: dict[str, Path]) -> None:
    grey = photo()[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(grey).copy()).save("photo.png", exif=exif)
    predict.main(arguments(checkpoints["spn"]))
    known = corner()[..., 0] == 0
    np.testing.assert_array_equal(read("out.png")[known], grey[..., None].repeat(3, 2)[known])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--image nowhere.png", "--image nowhere.png is not a file"),
        ("--mask .", "--mask . is not a file"),
        ("--image text.png", "--image text.png cannot be read as an image"),
        ("--mask text.png", "--mask text.png cannot be read as an image"),
        ("--mask small.png", "--mask small.png is 9 x 8 pixels, the photo photo.png, upright, is 29 x 21"),
        ("--mask black.png", "nothing to fill: no pixel of --mask black.png is white (white is the hole; --invert-mask"),
        ("--mask white.png --invert-mask", "nothing to fill: no pixel of --mask white.png is black (black is the hole"),
        ("--output out", "--output out must name an image file: its suffix is none of .png, .jpg"),
        ("--output out.gif", "--output out.gif must name an image file"),
        ("--output folder.png", "--output folder.png is a folder"),
        ("--output photo.png", "--output photo.png would replace what is read"),
        ("--output ./mask.png", "--output mask.png would replace what is read"),
        ("--output text.png/out.png", "folder text.png cannot be written to"),
        ("--samples 0", "--samples 0 must be at least 1"),
        ("--samples 2", "--samples 2: the checkpoint's model is deterministic"),
        ("--seed -1", "--seed -1 must lie between 0 and 4294967295"),
        ("--checkpoint nowhere", "checkpoint nowhere is not a folder"),
        ("--checkpoint folder.png", "folder.png holds no complete checkpoint"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(
    folder: Path,
    checkpoints: dict[str, Path],
    more: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("text.png").write_text("no image")
    Path("folder.png").mkdir()
    Image.new("L", (9, 8), 255).save("small.png")
    Image.new("L", (WIDTH, HEIGHT), 0).save("black.png")
    Image.new("L", (WIDTH, HEIGHT), 255).save("white.png")
    before = sorted(folder.rglob("*"))
    # Nothing of the kind may come after the work.
    monkeypatch.setattr(Inpainter, "completions", lambda *inputs: pytest.fail("the network ran"))
    monkeypatch.setattr(sys, "argv", ["predict", *arguments(checkpoints["spn"], more)])
    with pytest.raises(SystemExit) as ended:
        run_command(predict.main)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_picture_too_large_for_its_format_is_one_sentence() -> None:
    with pytest.raises(InputError, match="wide.webp cannot be written as WEBP .*; choose an --output that ends in .png"):
        predict.encode(np.zeros((1, 16384, 3), np.uint8), Path("wide.webp"))
