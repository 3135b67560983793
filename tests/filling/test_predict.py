"""The command that fills holes: one photo, folders, what it refuses, and that nothing half-written or replaced is left."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.errors import InputError, run_command
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.photos import Photo, encode_photo, read_photo
from tests.tiny import corner, photo

HEIGHT, WIDTH = photo().shape[:2]


@pytest.fixture(autouse=True, scope="module")
def one_model(checkpoints: dict[str, Path]):
    """Each checkpoint is loaded once, and what it compiles is shared by the tests."""
    loaded = {str(path): Inpainter.load(path) for path in checkpoints.values()}
    load = Inpainter.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inpainter, "load", lambda path: loaded.get(str(path)) or load(path))
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photo.png and mask.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("photo.png")
    save_mask("mask.png")
    return tmp_path


def save_mask(path: str | Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    Image.fromarray(255 * corner(height, width)[..., 0]).save(path)


def arguments(checkpoint: Path, more: str = "") -> list[str]:
    """A command line; what comes last counts."""
    return f"--checkpoint {checkpoint} --image photo.png --mask mask.png --output out.png {more}".split()


@pytest.fixture
def run(checkpoints: dict[str, Path]):
    def run(more: str = "", kind: str = "spn") -> int:
        return predict.main(arguments(checkpoints[kind], more))

    return run


@pytest.fixture
def expected(checkpoints: dict[str, Path]) -> np.ndarray:
    return Inpainter.load(checkpoints["spn"])(photo(), corner())[0]


def read(path: str | Path) -> np.ndarray:
    return read_photo(Path(path), str(path)).pixels


@pytest.mark.parametrize("suffix", ["png", "webp", "TIFF", "bmp"])
def test_command_writes_the_completed_photo(
    folder: Path, run, expected: np.ndarray, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"--output new/out.{suffix}") == 0
    np.testing.assert_array_equal(read(f"new/out.{suffix}"), expected)
    assert capsys.readouterr().out == f"written: new/out.{suffix}\n"


def test_in_a_folder_the_name_is_the_photos(folder: Path, run, expected: np.ndarray) -> None:
    run("--output results")
    np.testing.assert_array_equal(read("results/photo.png"), expected)


def test_jpeg_is_said_to_change_known_pixels(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    run("--output out.jpg")
    assert read("out.jpg").shape == (HEIGHT, WIDTH, 3)
    written, note = capsys.readouterr().out.splitlines()
    assert note.startswith("note: JPEG changes every pixel a little") and ".png, .webp" in note
    assert written == "written: out.jpg"


def test_a_jpeg_becomes_a_png_unless_told_otherwise(folder: Path, run) -> None:
    Image.fromarray(photo()).save("photo.jpg", quality=60)
    run("--image photo.jpg --output results")
    known = corner()[..., 0] == 0
    np.testing.assert_array_equal(read("results/photo.png")[known], read("photo.jpg")[known])


def test_command_writes_several_samples(folder: Path, run, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run("--samples 3 --seed 7", "spn-probabilistic")
    for i, sample in enumerate(Inpainter.load(checkpoints["spn-probabilistic"])(photo(), corner(), samples=3, seed=7)):
        np.testing.assert_array_equal(read(f"out_{i}.png"), sample)
    assert capsys.readouterr().out.splitlines() == [f"written: out_{i}.png" for i in range(3)]
    assert not (folder / "out.png").exists()


def test_photo_hole_and_completions_side_by_side(folder: Path, run, expected: np.ndarray) -> None:
    run("--concat")
    shown, masked, result = np.split(read("out.png"), 3, axis=1)
    np.testing.assert_array_equal(shown, photo())
    np.testing.assert_array_equal(masked, np.where(corner(), 255, photo()))
    np.testing.assert_array_equal(result, expected)


def test_black_is_the_hole_of_an_inverted_mask(folder: Path, run, expected: np.ndarray) -> None:
    Image.fromarray(255 - 255 * corner()[..., 0]).save("mask.png")
    run("--invert-mask --device cpu")
    np.testing.assert_array_equal(read("out.png"), expected)


def test_a_dilated_hole_is_larger(folder: Path, run) -> None:
    run("--dilate 3")
    changed = (read("out.png") != photo()).any(-1)
    assert changed[: HEIGHT // 2, WIDTH // 3 :].any() and not changed[: HEIGHT // 2 - 3].any()


def test_an_empty_mask_gives_the_photo_back_with_a_note(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (WIDTH, HEIGHT), 0).save("mask.png")
    assert run() == 0
    np.testing.assert_array_equal(read("out.png"), photo())
    assert capsys.readouterr().out.startswith("note: no pixel of --mask mask.png is white (white is the hole; --invert-mask: black;")


def test_sixteen_bits_profile_and_transparency_come_through(folder: Path, run) -> None:
    random = np.random.default_rng(0)
    given = Photo(random.integers(0, 65536, (HEIGHT, WIDTH, 3), np.uint16), random.integers(0, 65536, (HEIGHT, WIDTH, 1), np.uint16))
    Path("photo.png").write_bytes(encode_photo(given, ".png"))
    run()
    back, known = read_photo(Path("out.png"), "out"), corner()[..., 0] == 0
    assert back.alpha is not None and given.alpha is not None
    np.testing.assert_array_equal(back.pixels[known], given.pixels[known])
    np.testing.assert_array_equal(back.alpha[known], given.alpha[known])


def test_a_photo_lying_on_its_side_becomes_upright(folder: Path, run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(photo()).copy()).save("photo.png", exif=exif)
    run()
    known = corner()[..., 0] == 0
    np.testing.assert_array_equal(read("out.png")[known], photo()[known])


# --- folders ---


def test_a_folder_with_one_mask_for_all(folder: Path, run, expected: np.ndarray) -> None:
    Path("photos/below").mkdir(parents=True)
    for name in "a.png", "b.png", ".hidden.png", "below/c.png":
        shutil.copy("photo.png", f"photos/{name}")
    Path("photos/notes.txt").write_text("no photo")
    assert run("--image photos --output results") == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "b.png"]
    np.testing.assert_array_equal(read("results/b.png"), expected)


def test_pairs_by_name_and_a_photo_without_mask(folder: Path, run, expected: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Path("masks").mkdir()
    for name in "abc":
        shutil.copy("photo.png", f"photos/{name}.png")
    save_mask("masks/a.bmp")
    save_mask("masks/b_mask.png")
    assert run("--image photos --mask masks --output results") == 1
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "b.png"]
    np.testing.assert_array_equal(read("results/a.png"), expected)
    assert capsys.readouterr().err == "error: 1 photos were not filled:\n  --image photos/c.png has no mask in masks\n"


def test_photos_and_masks_in_one_folder(folder: Path, run) -> None:
    Path("both").mkdir()
    shutil.copy("photo.png", "both/a.png")
    shutil.copy("photo.png", "both/b.png")
    for name in "a_mask001", "b_mask001", "b_mask002":
        save_mask(f"both/{name}.png")
    assert run("--image both --mask both --output results") == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "b_mask001.png", "b_mask002.png"]


def test_a_broken_photo_is_told_at_the_end_and_the_others_are_done(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for name in "ac":
        shutil.copy("photo.png", f"photos/{name}.png")
    Path("photos/b.png").write_bytes(Path("photo.png").read_bytes()[:500])
    Image.new("RGB", (9, 9)).save("photos/d.png")
    assert run("--image photos --output results") == 1
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "c.png"]
    output, errors = capsys.readouterr()
    head, broken, other_size = errors.splitlines()
    assert head == "error: 2 photos were not filled:"
    assert broken.startswith("  --image photos/b.png cannot be read as an image (")
    assert other_size.startswith("  --mask mask.png is 29 x 21 pixels, the photo, upright, is 9 x 9")
    assert output.splitlines()[-1].startswith("4/4 photos")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--image nowhere.png", "--image nowhere.png does not exist"),
        ("--mask nowhere.png", "--mask nowhere.png does not exist"),
        ("--image text.png", "--image text.png cannot be read as an image"),
        ("--mask text.png", "--mask text.png cannot be read as an image"),
        ("--mask small.png", "--mask small.png is 9 x 8 pixels, the photo, upright, is 29 x 21"),
        ("--output out.gif", "--output out.gif must name an image file: its suffix is none of .png, .jpg"),
        ("--output photo.png", "--output photo.png would replace what is read"),
        ("--output ./mask.png", "--output mask.png would replace what is read"),
        ("--output .", "--output photo.png would replace what is read"),
        ("--output text.png/out.png", "folder text.png cannot be written to"),
        ("--samples 0", "--samples 0 must be at least 1"),
        ("--samples 2", "--samples 2: the checkpoint's model is deterministic"),
        ("--seed -1", "--seed -1 must lie between 0 and 4294967295"),
        ("--dilate -1", "--dilate -1 must be at least 0"),
        ("--checkpoint nowhere", "checkpoint nowhere is not a folder"),
        ("--image empty", "--image empty holds no photo"),
        ("--image twice --output results", "2 results would be called a (of a.bmp, a.png)"),
        ("--image twice", "--output out.png is the name of one file, and there are several results; pass a folder"),
        ("--image twice --output twice", "--output twice is the folder of --image, whose files could be replaced"),
        ("--mask empty", "--mask empty holds no mask for photo.png"),
        ("--image deep.png --output out.jpg", "--output out.jpg: JPEG cannot hold 16 bits a channel"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(
    folder: Path, checkpoints: dict[str, Path], more: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("no image")
    Path("empty").mkdir()
    Path("twice").mkdir()
    for name in "a.png", "a.bmp":
        Image.fromarray(photo()).save(f"twice/{name}")
    Path("deep.png").write_bytes(encode_photo(Photo(photo().astype(np.uint16)), ".png"))
    Image.new("L", (9, 8), 255).save("small.png")
    before = sorted(folder.rglob("*"))
    # Nothing of the kind may come after the work.
    monkeypatch.setattr(Inpainter, "_predictions", lambda *inputs: pytest.fail("the network ran"))
    monkeypatch.setattr(sys, "argv", ["predict", *arguments(checkpoints["spn"], more)])
    with pytest.raises(SystemExit) as ended:
        run_command(predict.main)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_device_that_is_not_there_is_one_sentence(folder: Path, run) -> None:
    with pytest.raises(InputError, match="--device abacus: JAX finds no such device here"):
        run("--device abacus")
