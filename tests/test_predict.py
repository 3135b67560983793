"""The command that fills holes in photos: files and folders, what it writes, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.errors import run_command
from spn_jax.inpainter import Inpainter
from tests.inpainting import HEIGHT, WIDTH, corner, photo


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photo.png and mask.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("photo.png")
    Image.fromarray(255 * corner()[..., 0]).save("mask.png")
    return tmp_path


@pytest.fixture(scope="module")
def inpainters(checkpoints: dict[str, Path]) -> dict[str, Inpainter]:
    return {kind: Inpainter.load(path) for kind, path in checkpoints.items()}


@pytest.fixture
def sampler(inpainters: dict[str, Inpainter]) -> Inpainter:
    return inpainters["spn-probabilistic"]


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
    for i, expected in enumerate(sampler(photo(), corner(), samples=3, seed=7)):
        np.testing.assert_array_equal(read(f"out_{i}.png"), expected)
    assert capsys.readouterr().out.splitlines() == [f"written: out_{i}.png" for i in range(3)]
    assert not (folder / "out.png").exists()


def test_a_soft_mask_is_cut_at_half(folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter]) -> None:
    Image.fromarray(np.where(corner() > 0, 128, 127).astype(np.uint8).repeat(3, 2)).save("mask.png")
    predict.main(arguments(checkpoints["spn"]))
    np.testing.assert_array_equal(read("out.png"), inpainters["spn"](photo(), corner())[0])


def test_black_is_the_hole_of_an_inverted_mask(folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter]) -> None:
    Image.fromarray(255 - 255 * corner()[..., 0]).save("mask.png")
    predict.main(arguments(checkpoints["spn"], "--invert-mask"))
    np.testing.assert_array_equal(read("out.png"), inpainters["spn"](photo(), corner())[0])


def test_a_mask_without_a_hole_gives_the_photo_and_a_note(
    folder: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (WIDTH, HEIGHT), 0).save("mask.png")
    predict.main(arguments(checkpoints["spn"]))
    assert "note: no pixel of --mask mask.png is white" in capsys.readouterr().out
    np.testing.assert_array_equal(read("out.png"), photo())


def test_a_dilated_hole_is_larger(folder: Path, checkpoints: dict[str, Path]) -> None:
    predict.main(arguments(checkpoints["spn"], "--dilate 2"))
    changed = (read("out.png") != photo()).any(-1)
    assert changed[corner()[..., 0] == 0].any()


def test_pictures_side_by_side(folder: Path, checkpoints: dict[str, Path], inpainters: dict[str, Inpainter]) -> None:
    predict.main(arguments(checkpoints["spn"], "--concat"))
    shown = np.split(read("out.png"), 3, axis=1)
    np.testing.assert_array_equal(shown[0], photo())
    np.testing.assert_array_equal(shown[1], np.where(corner(), 255, photo()))
    np.testing.assert_array_equal(shown[2], inpainters["spn"](photo(), corner())[0])


def test_a_folder_is_done_but_for_what_is_broken(folder: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Masks beside their photos; a broken photo and one without mask are named at the end."""
    Path("in").mkdir()
    for name in "ab":
        Image.fromarray(photo()).save(f"in/{name}.png")
        Image.fromarray(255 * corner()[..., 0]).save(f"in/{name}_mask001.png")
    Image.fromarray(photo()).save("in/c.png")
    whole = Path("in/b.png").read_bytes()
    Path("in/b.png").write_bytes(whole[: len(whole) // 2])
    status = predict.main(arguments(checkpoints["spn"], "--image in --mask in --output results"))
    errors = capsys.readouterr().err
    assert status == 1 and errors.startswith("error: 2 photos were not filled:")
    assert "in/c.png has no mask" in errors and "--image in/b.png cannot be read as an image" in errors
    assert [path.name for path in Path("results").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--image nowhere.png", "--image nowhere.png does not exist"),
        ("--mask folder.png", "--mask folder.png holds no mask for photo.png"),
        ("--image text.png", "--image text.png cannot be read as an image"),
        ("--mask text.png", "--mask text.png cannot be read as an image"),
        ("--mask small.png", "--mask small.png is 9 x 8 pixels, the photo, upright, is 29 x 21"),
        ("--dilate -1", "--dilate -1 must be at least 0"),
        ("--image cut.png", "--image cut.png cannot be read as an image"),
        ("--output out.gif", "--output out.gif must name an image file"),
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
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:200])
    before = sorted(folder.rglob("*"))
    # Nothing of the kind may come after the work.
    monkeypatch.setattr(Inpainter, "_fill", lambda *inputs: pytest.fail("the network ran"))
    monkeypatch.setattr(sys, "argv", ["predict", *arguments(checkpoints["spn"], more)])
    with pytest.raises(SystemExit) as ended:
        run_command(predict.main)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
