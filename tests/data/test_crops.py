"""Random crops while reading, photos kept in memory, the fixed squares of held-out photos."""

import os

import numpy as np
import pytest
from PIL import Image

from spn_jax.config import apply_overrides
from spn_jax.data.crops import CROP_SIZE, CROPS_PER_PHOTO, write_crops
from spn_jax.data.images import KeptPhotos, PhotoSource, open_photos, random_square
from spn_jax.data.pipeline import evaluation_batches, training_batches
from spn_jax.errors import InputError
from tests.data.test_pipeline import assert_equal, masks, settings
from tests.tiny import tiny

HEIGHT, WIDTH = 96, 160


class Gradients(PhotoSource):
    """Photos whose red tells the column and whose green tells the row of a pixel."""

    def __init__(self, count: int = 5):
        self.names = [f"photo{i}" for i in range(count)]
        self.loaded: list[int] = []

    def read(self, i: int) -> bytes:
        raise AssertionError("these photos are not in files")

    def describe(self, i: int) -> str:
        return self.names[i]

    def load(self, i: int) -> np.ndarray:
        self.loaded.append(i)
        row, column = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
        return np.stack([column, row, np.full_like(row, i)], -1)

    def fingerprint(self) -> str:
        return "gradients"


def train(steps=6, start_step=0, **options):
    config = settings(crop="random", **options)
    return list(training_batches(config, Gradients(), masks(), None, start_step=start_step, steps=steps, with_2x=True))


def sides(batches) -> np.ndarray:
    """Side, in pixels of the photo, of every crop, from the distance of its first and last
    column.
    """
    image = np.concatenate([batch["image_2x"] for batch in batches]).astype(float)
    across = np.abs(image[:, 0, -1, 0] - image[:, 0, 0, 0])
    return across * image.shape[2] / (image.shape[2] - 1)


def test_crops_are_squares_of_all_sides_and_places():
    random = np.random.default_rng(0)
    photo = Gradients().load(0)
    crops = [random_square(random, photo, 16) for _ in range(2000)]
    side = np.array([len(crop) for crop in crops])
    assert all(crop.shape == (len(crop), len(crop), 3) for crop in crops)
    assert (side.min(), side.max()) == (16, HEIGHT)
    # As many between 16 and the geometric mean of both ends as between it and 96.
    assert np.mean(side < (16 * HEIGHT) ** 0.5) == pytest.approx(0.5, abs=0.05)
    assert min(crop[0, 0, 0] for crop in crops) == 0 and max(crop[0, -1, 0] for crop in crops) == WIDTH - 1
    assert min(crop[0, 0, 1] for crop in crops) == 0 and max(crop[-1, 0, 1] for crop in crops) == HEIGHT - 1


def test_a_photo_that_is_smaller_than_the_smallest_crop_gives_its_whole_shorter_side():
    assert random_square(np.random.default_rng(0), np.zeros((8, 12, 3), np.uint8), 16).shape == (8, 8, 3)


def test_crops_follow_from_seed_and_step_alone():
    assert_equal(train()[4:], train(start_step=4))
    assert_equal(train(), train(threads=1, prefetch=1))
    assert any((a["image"] != b["image"]).any() for a, b in zip(train(), train(seed=1), strict=True))


def test_photo_and_teacher_see_the_same_crop():
    for batch in train():
        halves = batch["image_2x"].reshape(len(batch["image"]), *batch["image"].shape[1:3], -1)
        assert halves.shape[:3] == batch["image"].shape[:3]
        means = batch["image_2x"].reshape(len(batch["image"]), batch["image"].shape[1], 2, batch["image"].shape[2], 2, 3).mean((2, 4))
        np.testing.assert_allclose(means, batch["image"], atol=4)


def test_the_same_photo_is_cut_anew_every_time():
    batches = train(steps=8)
    assert len(np.unique(sides(batches).round(1))) > 12


def test_evaluation_takes_the_centred_square():
    config = settings(crop="random")
    (batch,) = evaluation_batches(config, Gradients(1), masks(), [0], 1)
    centre = Gradients().load(0)[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT]
    assert abs(float(batch["image"].mean()) - float(np.concatenate([centre[..., :2], 0 * centre[..., :1]], -1).mean())) < 1


def test_random_crops_beside_a_cache_are_refused():
    with pytest.raises(InputError, match="data.crop=random draws new crops at every step, which a cache of features cannot follow"):
        tiny("data.crop=random")
    apply_overrides(tiny(), ["data.crop=random", "loss.prior=0"])


def test_photos_stay_in_memory_up_to_the_limit():
    photos, size = Gradients(3), HEIGHT * WIDTH * 3
    kept = KeptPhotos(photos, limit=2 * size)
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(kept.load(i)[..., 2], i)
    assert photos.loaded == [0, 1, 2, 2]
    assert kept.fingerprint() == photos.fingerprint() and kept.names == photos.names


def test_squares_of_held_out_photos_do_not_depend_on_their_neighbours(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (300, 500, 3), np.uint8)).save(tmp_path / f"{name}.png")
    both = tmp_path / "both"
    assert write_crops(open_photos(str(tmp_path), "test"), both) == 2 * CROPS_PER_PHOTO
    (tmp_path / "a.png").unlink()
    alone = tmp_path.parent / f"{tmp_path.name}-alone"
    photos = [p for p in both.iterdir() if p.name.startswith("b_")]
    for path in list(both.iterdir()):
        if path not in photos:
            path.unlink()
    (tmp_path / "both").rename(alone)
    fresh = tmp_path.parent / f"{tmp_path.name}-fresh"
    write_crops(open_photos(str(tmp_path), "test"), fresh)
    assert sorted(p.name for p in fresh.iterdir()) == sorted(p.name for p in photos)
    for path in fresh.iterdir():
        with Image.open(path) as new, Image.open(alone / path.name) as old:
            assert new.size == (CROP_SIZE, CROP_SIZE) and new.tobytes() == old.tobytes()


def test_a_disk_that_fills_up_while_squares_are_saved_is_one_sentence(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"^writing .*photo0_0\.png failed: No space left on device; free some space"):
        write_crops(Gradients(1), tmp_path / "crops")
    assert list((tmp_path / "crops").iterdir()) == []
