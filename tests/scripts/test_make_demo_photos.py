"""The demo's photos: held-out scenes stay held out, and the folder is there whole or not at all."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_demo_photos.py"
make_demo_photos = runpy.run_path(str(SCRIPT))["make_demo_photos"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photos"
    make_demo_photos(folder, 32)
    return folder


@pytest.fixture(scope="module")
def tiles(photos) -> dict[str, dict]:
    return json.loads((photos / "scenes.json").read_text())


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, int)


def values(tiles, key, split):
    return {tile[key] for tile in tiles.values() if tile["split"] == split}


def test_no_scene_is_in_both_splits(tiles):
    assert not values(tiles, "scene", "train") & values(tiles, "scene", "test")


def test_no_photo_is_in_both_splits(tiles):
    assert not values(tiles, "photo", "train") & values(tiles, "photo", "test")


def test_stereo_pair_is_one_scene_and_on_one_side(tiles):
    pair = [tile for tile in tiles.values() if tile["photo"] in ("motorcycle_left.png", "motorcycle_right.png")]
    assert len({tile["photo"] for tile in pair}) == 2
    assert len({(tile["scene"], tile["split"]) for tile in pair}) == 1


def test_scenes_file_lists_the_tiles_there_are(photos, tiles):
    assert {f.relative_to(photos).as_posix() for f in photos.rglob("*.png")} == set(tiles)


def test_there_are_enough_tiles_to_train_and_to_test(tiles):
    splits = [tile["split"] for tile in tiles.values()]
    assert splits.count("train") >= 200
    assert splits.count("test") >= 32


def test_test_tiles_do_not_overlap(tiles):
    covered: dict[str, np.ndarray] = {}
    for tile in tiles.values():
        if tile["split"] == "test":
            left, top, right, bottom = tile["box"]
            covered.setdefault(tile["photo"], np.zeros((1500, 1500), int))[top:bottom, left:right] += 1
    assert {count.max() for count in covered.values()} == {1}


def test_test_scenes_are_in_colour(photos, tiles):
    for scene in values(tiles, "scene", "test"):
        first = pixels(photos / next(name for name, tile in tiles.items() if tile["scene"] == scene))
        assert np.abs(first[..., 0] - first[..., 2]).mean() > 5, scene


def test_tiles_have_the_size_asked_for(photos):
    assert {pixels(f).shape for f in photos.rglob("*.png")} == {(32, 32, 3)}


def test_tiles_of_another_size_are_replaced_by_the_same_bytes(photos, tmp_path):
    make_demo_photos(tmp_path / "photos", 16)
    make_demo_photos(tmp_path / "photos", 32)
    assert {pixels(f).shape for f in (tmp_path / "photos").rglob("*.png")} == {(32, 32, 3)}
    for file in photos.rglob("*.*"):
        assert (tmp_path / "photos" / file.relative_to(photos)).read_bytes() == file.read_bytes()


def test_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    saved = []

    def stop_at_the_third(self, path):
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_demo_photos(tmp_path / "photos", 32)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(photos, tmp_path) -> Path:
    """A folder of tiles of its own."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def test_where_the_wanted_tiles_are_nothing_is_done(copied):
    (copied / "train" / "mine.png").write_text("mine")
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in copied.rglob("*")}
    make_demo_photos(copied, 32)
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in copied.rglob("*")} == before


def test_tiles_that_are_missing_are_made_again(photos, copied, tiles):
    (copied / next(iter(tiles))).unlink()
    make_demo_photos(copied, 32)
    assert (copied / next(iter(tiles))).read_bytes() == (photos / next(iter(tiles))).read_bytes()


@pytest.mark.parametrize("name", ["mine.txt", "train/mine.png", "test/.mine/notes.md"])
def test_a_users_files_are_never_deleted(copied, name):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("mine")
    with pytest.raises(InputError, match=f"photos holds {name}, not made by this program; move that away, or choose another folder"):
        make_demo_photos(copied, 16)
    assert (copied / name).read_text() == "mine" and (copied / "scenes.json").is_file()


@pytest.mark.parametrize(("name", "text"), [("mine.txt", "x"), ("scenes.json", "[1, 2]"), ("scenes.json", "{"), ("scenes.json", "{}")])
def test_folder_of_something_else_is_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"holds {name}, not made by this program"):
        make_demo_photos(tmp_path, 32)
    assert (tmp_path / name).read_text() == text


def test_a_link_to_a_folder_is_not_replaced(copied, tmp_path):
    (tmp_path / "link").symlink_to(copied)
    with pytest.raises(InputError, match="is not a folder of its own"):
        make_demo_photos(tmp_path / "link", 16)


def test_missing_scikit_image_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        make_demo_photos(tmp_path / "photos", 32)
