from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.evaluation.results import ResultsFolder, assign, composite_stems

PHOTOS = ["data/a/1.jpg", "data/b/2.jpg", "data/b/3.jpg"]


def save(folder: Path, *names: str, size: tuple[int, int] = (16, 16), value: int = 7) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(folder / name)


@pytest.mark.parametrize("names", [("a/1.png", "b/2.bmp", "b/3.webp"), ("1.png", "2.png", "3.png")])
def test_results_are_found_by_the_stems_of_their_photos(tmp_path: Path, names: tuple[str, ...]) -> None:
    for value, name in enumerate(names):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(_made(tmp_path / name), lossless=True)
    results = ResultsFolder("other", str(tmp_path), PHOTOS, 16)
    assert [results.load(i)[0, 0, 0] for i in range(3)] == [0, 1, 2]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_known_pixels_are_the_photos_unless_raw(tmp_path: Path) -> None:
    save(tmp_path, "1.png", "2.png", "3.png")
    results = ResultsFolder("other", str(tmp_path), PHOTOS, 16)
    image, mask = np.full((16, 16, 3), 200, np.uint8), np.zeros((16, 16, 1), np.uint8)
    mask[:4] = 1
    assert sorted(set(results.completed(1, image, mask)[:, 0, 0].tolist())) == [7, 200]
    np.testing.assert_array_equal(results.raw(1, image, mask), np.full((16, 16, 3), 7))


def test_everything_that_does_not_fit_is_in_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, "1.png", "1.jpg", "4.png")
    save(tmp_path, "3.png", size=(20, 16))
    with pytest.raises(InputError) as error:
        ResultsFolder("other", str(tmp_path), PHOTOS, 16)
    text = str(error.value)
    assert f"--results other={tmp_path}" in text and "\n" not in text
    for part in (
        "expected one image per photo (3 photos of 16 x 16 pixels), named like it; missing (1): 2.png; ",
        "not named after any photo (1): 4.png",
        "more than one for a photo (1): 1.jpg and 1.png",
        "not 16 x 16 pixels (1): 3.png (20 x 16)",
    ):
        assert part in text


def test_broken_results_are_known_at_once(tmp_path: Path) -> None:
    save(tmp_path, "1.png", "2.png", "3.png", size=(64, 64))
    (tmp_path / "3.png").write_text("no picture")
    cut = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(cut[: len(cut) // 2])  # its header is whole
    with pytest.raises(InputError, match=r"; unreadable \(make these again\) \(2\): 2.png, 3.png") as error:
        ResultsFolder("other", str(tmp_path), PHOTOS, 64)
    assert "data set" not in str(error.value)


def test_a_result_that_breaks_on_the_way_is_to_be_made_again(tmp_path: Path) -> None:
    save(tmp_path, "1.png", "2.png", "3.png")
    results = ResultsFolder("other", str(tmp_path), PHOTOS, 16)
    (tmp_path / "3.png").write_text("no picture")
    with pytest.raises(InputError, match="3.png cannot be read as an image .*; make it again$") as error:
        results.load(2)
    assert "data set" not in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--results other=.*nowhere does not exist; .* --results other=DIR$"):
        ResultsFolder("other", str(tmp_path / "nowhere"), PHOTOS, 16)
    save(tmp_path, "1.png")
    with pytest.raises(InputError, match="1.png is a file; pass the folder"):
        ResultsFolder("other", str(tmp_path / "1.png"), PHOTOS, 16)


@pytest.mark.parametrize("names", [("1.png", "2.png", "3.png"), ("a/1.png", "b/2.png", "b/3.png")])
def test_a_folder_too_high_is_told_the_right_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    save(tmp_path, *(f"run/images/{name}" for name in names), "run/inputs/x.png")
    with pytest.raises(InputError, match=f"one folder further down; pass --results other={tmp_path}/run/images$"):
        ResultsFolder("other", str(tmp_path), PHOTOS, 16)
    ResultsFolder("other", str(tmp_path / "run" / "images"), PHOTOS, 16)


TWINS = ["d/p3.jpg", "d/p3.png", "d/p4.jpg"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["p3.jpg", "p3.png", "p4.jpg"], [["p3.jpg"], ["p3.png"], ["p4.jpg"]]),
        (["p3.jpg.png", "p3.png.png", "p4.jpg.png"], [["p3.jpg.png"], ["p3.png.png"], ["p4.jpg.png"]]),
        (["p3.jpg.png", "p3.png", "p4.png"], [["p3.jpg.png"], ["p3.png"], ["p4.png"]]),
    ],
)
def test_photos_that_differ_by_suffix_alone(files: list[str], expected: list[list[str]]) -> None:
    found = assign(TWINS, files)
    assert found.of_photo == expected and not found.missing and not found.foreign


def test_the_name_that_a_missing_result_should_have_is_told(tmp_path: Path) -> None:
    save(tmp_path, "p3.png", "p3.webp")
    with pytest.raises(InputError, match=r"missing \(2\): p3.jpg, p4.png; not named after any photo \(1\): p3.webp"):
        ResultsFolder("other", str(tmp_path), TWINS, 16)


def test_a_changed_result_changes_the_fingerprint(tmp_path: Path) -> None:
    save(tmp_path, "1.png", "2.png", "3.png")
    before = ResultsFolder("other", str(tmp_path), PHOTOS, 16).fingerprint()
    assert ResultsFolder("other", str(tmp_path), PHOTOS, 16).fingerprint() == before
    save(tmp_path, "2.png", value=8)
    assert ResultsFolder("other", str(tmp_path), PHOTOS, 16).fingerprint() != before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/b.jpg", "/c/../d.jpeg"], ["a/b", "c/d"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["../x.jpg"], ["x"]),
        (["data/test/1.jpg", "data/test/2.jpg"], ["1", "2"]),
        (["../x.jpg", "x.jpg"], ["_/x", "x"]),
        (["../a/../x.jpg", "a/x.jpg", "x.jpg"], ["_/a/_/x", "a/x", "x"]),
    ],
)
def test_composites_are_named_after_photos_and_stay_inside_the_folder(names: list[str], expected: list[str]) -> None:
    assert composite_stems(names) == expected


def test_composites_whose_names_differ_by_upward_steps_are_found_again(tmp_path: Path) -> None:
    photos = ["../x.jpg", "x.jpg"]
    for value, stem in enumerate(composite_stems(photos)):
        save(tmp_path, f"{stem}.png", value=value)
    results = ResultsFolder("ours", str(tmp_path), photos, 16)
    assert [results.load(i)[0, 0, 0] for i in range(2)] == [0, 1]
