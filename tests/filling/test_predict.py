"""The command that fills holes: one photo, folders, what it refuses, and that nothing half-written
or replaced is left.
"""

import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.errors import InputError, run_command
from spn_jax.filling import folders
from spn_jax.filling.inpainter import Inpainter, SPNNetwork
from spn_jax.filling.photos import Photo, encode_photo, read_photo
from spn_jax.runtime import progress
from tests.tiny import corner, photo

ROOT = Path(__file__).resolve().parent.parent
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


def copy_photo(names: str) -> None:
    """Makes the folder photos, with one copy of photo.png for each letter."""
    Path("photos").mkdir()
    for name in names:
        shutil.copy("photo.png", f"photos/{name}.png")


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
    assert note == (
        "note: JPEG is lossy: pixels outside the hole change slightly as well. Use .png, .webp, .tif, .tiff or .bmp to keep them exact"
    )
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
    # which a slow machine says too
    told = [line for line in capsys.readouterr().out.splitlines() if "passes/s" not in line]
    assert told == [f"written: out_{i}.png" for i in range(3)]
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
    note, _ = capsys.readouterr().out.splitlines()
    assert note == (
        "note: --mask mask.png marks no hole (no white pixels); copied the photo unchanged; use --invert-mask if the hole is black"
    )


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


def names(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_folder_is_searched_through(folder: Path, run, expected: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/below/.hidden").mkdir(parents=True)
    for name in "a.png", "b.jfif.PNG", ".hidden.png", "below/a.png", "below/.hidden/c.png":
        shutil.copy("photo.png", f"photos/{name}")
    Path("photos/notes.txt").write_text("no photo")
    Image.fromarray(photo()).save("photos/d.ppm")
    assert run("--image photos --output photos/results") == 0
    assert names("photos/results") == ["a.png", "b.jfif.png", "below/a.png"]
    np.testing.assert_array_equal(read("photos/results/below/a.png"), expected)
    assert "note: left out 1 file of other formats (.ppm); convert them to .png" in capsys.readouterr().out
    # what was written is not taken for photos
    assert run("--image photos --output photos/results") == 0
    assert names("photos/results") == ["a.png", "b.jfif.png", "below/a.png"]


def test_masks_lie_as_their_photos_do(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "photos/x/a.png", "photos/y/a.png", "photos/masks/x/a_mask.png", "photos/masks/a.png":
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("photo.png", name) if "masks" not in name else save_mask(name)
    assert run("--image photos --mask photos/masks --output results") == 1
    assert names("results") == ["x/a.png"]
    assert "photos/y/a.png: no mask in photos/masks matches it" in capsys.readouterr().err


def test_the_one_mask_in_a_folder_of_photos_is_no_photo(folder: Path) -> None:
    Path("photos").mkdir()
    for name in "a.png", "hole.png":
        shutil.copy("photo.png", f"photos/{name}")
    (task,), without_mask = folders.find_tasks(Path("photos"), Path("photos/hole.png"), Path("results"))
    assert (task.photo.name, task.mask.name, without_mask) == ("a.png", "hole.png", [])
    (task,), _ = folders.find_tasks(Path("photos/a.png"), Path("photos/hole.png"), Path("photos"))
    assert task.output == Path("photos/a")


def test_finding_masks_takes_no_longer_for_each_the_more_there_are() -> None:
    photos = [folders.Found(Path(f"{i:06d}"), Path(f"{i:06d}.jpg")) for i in range(5000)]
    masks = [folders.Found(Path(f"{i:06d}_mask001"), Path(f"{i:06d}_mask001.png")) for i in range(5000)]
    start = time.perf_counter()
    pairs = folders.matched(photos, masks)
    assert folders.apart([*photos, *masks]) == (photos, masks)
    # a minute and a half when each photo looked at every mask
    assert time.perf_counter() - start < 5
    assert pairs == [(photo, [mask.file]) for photo, mask in zip(photos, masks, strict=True)]


def test_what_is_there_already_is_left_out(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Path("results").mkdir()
    for name in "abc":
        shutil.copy("photo.png", f"photos/{name}.png")
    Path("results/b.webp").write_text("filled before")
    assert run("--image photos --output results --skip-existing") == 0
    assert names("results") == ["a.png", "b.webp", "c.png"]
    assert capsys.readouterr().out.startswith("1 result there already, 2 to do\n")
    before = Path("results/a.png").stat().st_mtime_ns
    assert run("--image photos --output results --skip-existing") == 0
    assert capsys.readouterr().out == "3 results there already, 0 to do\n" and Path("results/a.png").stat().st_mtime_ns == before
    assert run("--samples 2 --skip-existing", "spn-probabilistic") == 0
    Path("out_1.png").unlink()
    capsys.readouterr()
    assert run("--samples 2 --skip-existing", "spn-probabilistic") == 0
    assert Path("out_1.png").exists() and "0 results there already, 1 to do" in capsys.readouterr().out


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
    assert capsys.readouterr().err == "error: 1 photo could not be filled:\n  --image photos/c.png: no mask in masks matches it\n"


def test_photos_and_masks_in_one_folder(folder: Path, run) -> None:
    Path("both").mkdir()
    shutil.copy("photo.png", "both/a.png")
    shutil.copy("photo.png", "both/b.png")
    for name in "a_mask001", "b_mask001", "b_mask002":
        save_mask(f"both/{name}.png")
    assert run("--image both --mask both --output results") == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "b_mask001.png", "b_mask002.png"]


def test_a_broken_photo_is_told_at_the_end_and_the_others_are_done(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    copy_photo("ac")
    Path("photos/b.png").write_bytes(Path("photo.png").read_bytes()[:500])
    Image.new("RGB", (9, 9)).save("photos/d.png")
    assert run("--image photos --output results") == 1
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "c.png"]
    output, errors = capsys.readouterr()
    head, broken, other_size = errors.splitlines()
    assert head == "error: 2 photos could not be filled:"
    assert broken.startswith("  --image photos/b.png cannot be decoded (")
    assert other_size.startswith("  --mask mask.png is 29 x 21 pixels, the photo, upright, is 9 x 9")
    assert output.splitlines()[-1].startswith("4/4 photos")


def test_a_full_disk_ends_a_folder_at_once(folder: Path, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    copy_photo("abcd")
    write = folders.write_atomically

    def write_until_it_is_full(path: Path, data: bytes) -> None:
        if path.name == "b.png":
            monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        write(path, data)

    monkeypatch.setattr(folders, "write_atomically", write_until_it_is_full)
    assert run("--image photos --output results") == 1
    assert names("results") == ["a.png"]
    assert capsys.readouterr().err.splitlines() == [
        "error: 3 photos could not be filled:",
        "  results/b.png cannot be written (No space left on device); choose another folder or free space",
        "  --image photos/c.png: not begun, because the disk is full",
        "  --image photos/d.png: not begun, because the disk is full",
    ]


def test_a_fault_of_the_program_costs_one_photo(
    folder: Path, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_photo("abcd")
    reader = folders.read_photo

    def read_and_fail(path: Path, name: str) -> Photo:
        if path.name == "b.png":
            raise struct.error("a bug")
        if path.name == "c.png":
            raise MemoryError
        return reader(path, name)

    monkeypatch.setattr(folders, "read_photo", read_and_fail)
    assert run("--image photos --output results") == 1
    assert names("results") == ["a.png", "d.png"]
    errors = capsys.readouterr().err
    assert "Traceback" in errors and errors.splitlines()[-3:] == [
        "error: 2 photos could not be filled:",
        "  --image photos/b.png: the program failed (error: a bug); please report the lines above",
        "  not enough memory for --image photos/c.png; use a smaller photo or the strategy crop",
    ]


def test_malformed_exif_data_stops_no_folder(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    malformed = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0\0") + bytes(4)
    exif = Image.Exif()
    exif[0x8769] = {0x927C: b"a preview"}
    for name, data in ("a", malformed), ("b", exif), ("c", exif):
        Image.fromarray(photo()).save(f"photos/{name}.png", exif=data)
    assert run("--image photos --output results") == 0
    assert names("results") == ["a.png", "b.png", "c.png"]
    note = capsys.readouterr().out.splitlines()[-1]
    assert note == ("note: left out malformed EXIF data (1 photo) and MakerNote (2 photos), which may show what was in the hole")
    run("--image photos/a.png")
    assert capsys.readouterr().out.splitlines()[-1] == "note: left out malformed EXIF data"


def test_a_large_photo_shows_how_far_it_is(folder: Path, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photo(100, 100)).save("photo.png")
    mask = np.zeros((100, 100), np.uint8)
    mask[:5, :5] = mask[90:, 90:] = 255
    Image.fromarray(mask).save("mask.png")
    run("--strategy crop")
    assert capsys.readouterr().out == "written: out.png\n"  # it took no time
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e-9)
    run("--strategy crop")
    *_, line, written = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1/2 passes, \d+\.\d passes/s, 0:00:\d\d left", line) and written == "written: out.png"


def test_a_killed_run_ends_with_the_signal_and_leaves_nothing_half_written(folder: Path, checkpoints: dict[str, Path]) -> None:
    program = (
        "import os, signal, sys; from spn_jax import predict; from spn_jax.filling import folders; from spn_jax.errors import run_command\n"
        "folders.encode_photo = lambda *inputs: os.kill(os.getpid(), signal.SIGTERM)\n"
        "run_command(predict.main)"
    )
    command = [sys.executable, "-c", program, *arguments(checkpoints["spn"])]
    before = sorted(folder.rglob("*"))
    process = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGTERM  # 143 to a shell: `&&` and make go no further
    assert sorted(folder.rglob("*")) == before


# --- masks of other kinds ---


def test_a_hole_that_is_transparent(folder: Path, run, expected: np.ndarray) -> None:
    erased = np.concatenate([photo(), 255 - 255 * corner()], -1)
    Image.fromarray(erased).save("erased.png")
    run("--mask erased.png --mask-from alpha")
    np.testing.assert_array_equal(read("out.png"), expected)
    run("--image erased.png --mask erased.png --mask-from alpha --output own.png")
    own = read_photo(Path("own.png"), "own")
    assert own.alpha is not None and (own.alpha == 255).all()
    np.testing.assert_array_equal(own.pixels, expected)
    strokes = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    strokes[corner()[..., 0] > 0] = (255, 0, 0, 255)  # red on nothing
    Image.fromarray(strokes).save("strokes.png")
    run("--mask strokes.png --mask-from alpha --invert-mask --output strokes_out.png")
    np.testing.assert_array_equal(read("strokes_out.png"), expected)


@pytest.mark.parametrize("inverted", ["", "--invert-mask"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "labels",
            "its brightest value is 1 of 255, and white begins at 128; it looks like a mask of 0 and 1, so multiply its values by 255",
        ),
        ("deep labels", "its brightest value is 1 of 65535, and white begins at 32768; it looks like a mask of 0 and 1"),
        ("deep", "its brightest value is 255 of 65535, .*8 bits in a file of 16, so multiply them by 257"),
        ("red", "its brightest value is 76 of 255, and white begins at 128; mark the hole in white"),
        ("red on nothing", "its brightest value is 76 of 255, .*--mask-from alpha"),
        ("erased", "looks like a photo whose transparent part is the hole; take the hole from its transparency"),
        ("opaque", "has no transparent part"),
    ],
)
def test_a_mask_that_marks_its_hole_in_another_way_is_refused(folder: Path, run, kind: str, message: str, inverted: str) -> None:
    mask = corner()[..., 0]
    red = np.concatenate([255 * corner(), 0 * corner().repeat(2, 2), 255 * corner()], -1)
    images = {
        "labels": Image.fromarray(mask),
        "deep labels": Image.fromarray(mask.astype(np.uint16)),
        "deep": Image.fromarray(mask.astype(np.uint16) * 255),
        "red": Image.fromarray(red[..., :3]),
        "red on nothing": Image.fromarray(red),
        "erased": Image.fromarray(np.concatenate([photo(), 255 - 255 * corner()], -1)),
        "opaque": Image.fromarray(255 * mask),
    }
    if kind == "red on nothing" and inverted:
        # laid on white it is a mask: what is not painted is white, and the strokes are the hole
        return
    images[kind].save("mask.png")
    with pytest.raises(InputError, match=f"--mask mask.png .*{message}"):
        run(f"{inverted} --mask-from {'alpha' if kind == 'opaque' else 'white'}")
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("mask", "more", "note"),
    [
        (np.full((HEIGHT, WIDTH), 255), "", "the hole in --mask mask.png is 100% of the photo; use --invert-mask if the hole is black"),
        (np.zeros((HEIGHT, WIDTH)), "--invert-mask", "the hole in --mask mask.png is 100% of the photo; leave out --invert-mask"),
        (np.full((HEIGHT, WIDTH), 255), "--invert-mask", "--mask mask.png marks no hole (no black pixels); copied the photo unchanged"),
        (np.full((HEIGHT, WIDTH), 9), "", "--mask mask.png marks no hole (no white pixels)"),
        (photo()[..., 0], "", "% of --mask mask.png is neither black nor white; the brighter half of the range counts as white"),
    ],
)
def test_a_mask_that_looks_mistaken_is_used_with_a_note(
    folder: Path, run, mask: np.ndarray, more: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(mask.astype(np.uint8)).save("mask.png")
    assert run(more) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("note: ") and note in first


def test_an_ordinary_mask_has_no_notes(folder: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    soft = cv2.GaussianBlur(255 * corner(), (0, 0), 0.5)
    Image.fromarray(soft).save("mask.png")
    run()
    assert capsys.readouterr().out == "written: out.png\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--image nowhere.png", "--image nowhere.png does not exist"),
        ("--mask nowhere.png", "--mask nowhere.png does not exist"),
        ("--image text.png", "--image text.png cannot be read as an image"),
        ("--mask text.png", "--mask text.png cannot be read as an image"),
        ("--mask small.png", "--mask small.png is 9 x 8 pixels, the photo, upright, is 29 x 21"),
        ("--output out.gif", "--output out.gif must name an image file: its suffix is none of .png, .jpg"),
        ("--image circle", "--image circle is a link that leads to nothing"),
        ("--output photo.png", "--output photo.png would overwrite an input file; choose another name"),
        ("--output ./mask.png", "--output mask.png would overwrite an input file"),
        ("--output .", "--output photo.png would overwrite an input file"),
        ("--output to_photo.png", "--output to_photo.png would overwrite an input file"),
        ("--output text.png/out.png", "folder text.png cannot be written to"),
        ("--samples 0", "--samples 0 must be at least 1"),
        ("--samples 2", "--samples 2: the checkpoint's model is deterministic"),
        ("--seed -1", "--seed -1 must lie between 0 and 4294967295"),
        ("--dilate -1", "--dilate -1 must be at least 0"),
        ("--checkpoint nowhere", "checkpoint nowhere is not a folder"),
        ("--image empty", "--image empty contains no photo; looked in it for .png .jpg"),
        ("--image twice --output results", "a.bmp and a.png would both be saved as a; rename all but one"),
        ("--image twice", "--output out.png names one file, and there are several results; pass a folder"),
        ("--image twice --output twice", "--output twice is the folder of --image, whose files could be replaced"),
        ("--mask empty", "no mask in empty matches photo.png; name it photo.png or photo_mask001.png for photo.jpg"),
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
    Path("circle").symlink_to("circle")
    Path("to_photo.png").symlink_to("photo.png")
    before = sorted(folder.rglob("*"))
    # Nothing of the kind may come after the work.
    monkeypatch.setattr(SPNNetwork, "predictions", lambda *inputs: pytest.fail("the network ran"))
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
