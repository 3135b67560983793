"""The model that comes with the package: its file, its card, its scenes, and what it fills."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.data.images import find_images
from spn_jax.evaluation.baselines import mean_fill
from spn_jax.filling.inpainter import Inpainter
from spn_jax.pretrained.catalogue import CARD, DEFAULT, pretrained_file
from tests.golden_shipped import FOLDER, SCENES, photo_and_hole, weights_sha256


def squared_error(filled: np.ndarray, photo: np.ndarray, hole: np.ndarray) -> float:
    return float(np.square(filled[hole].astype(float) - photo[hole]).mean())


@pytest.fixture(scope="module")
def filled() -> np.ndarray:
    return Inpainter.load()(*photo_and_hole())[0]


def test_it_fills_a_small_photo_as_it_did_when_it_was_packed(filled: np.ndarray) -> None:
    """Within one level: the order of sums differs between processors."""
    assert (FOLDER / "weights.sha256").read_text().strip() == weights_sha256(), "run python -m tests.golden_shipped"
    stored = np.asarray(Image.open(FOLDER / "filled.png"))
    assert np.abs(filled.astype(int) - stored).max() <= 1


def test_known_pixels_stay_and_holes_are_better_than_their_mean_colour() -> None:
    """Three scratches, because what the trees hide is not known."""
    photo, _ = photo_and_hole()
    hole = np.zeros(photo.shape[:2], bool)
    for column in (20, 60, 100):
        hole[:, column : column + 4] = True
    filled = Inpainter.load()(photo, hole)[0]
    np.testing.assert_array_equal(filled[~hole], photo[~hole])
    mean = mean_fill(photo, hole[..., None].astype(np.uint8))
    assert squared_error(filled, photo, hole) < 0.25 * squared_error(mean, photo, hole)


def test_the_command_takes_it_where_no_checkpoint_is_given_and_says_so(
    filled: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "filled.png"
    predict.main(["--image", str(FOLDER / "photo.png"), "--mask", str(FOLDER / "hole.png"), "--output", str(output)])
    assert f"model: {DEFAULT}, which comes with spn_jax" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(Image.open(output)), filled)


def test_the_card_names_the_file_by_size_and_digest() -> None:
    card, file = (pretrained_file(DEFAULT).parent / CARD).read_text(), pretrained_file(DEFAULT)
    assert weights_sha256() in card and f"{file.stat().st_size:,} bytes" in card


def test_every_scene_has_a_hole_and_a_free_licence() -> None:
    photos, masks = (find_images(SCENES / folder) for folder in ("photos", "masks"))
    assert [path.stem for path in photos] == [path.stem for path in masks] and len(photos) == 8
    for photo, mask in zip(photos, masks, strict=True):
        with Image.open(photo) as picture, Image.open(mask) as hole:
            assert picture.size == hole.size == (720, 360) and 0 < np.asarray(hole).mean() < 0.2
    with open(SCENES / "licences.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(row["split"] == "test" and row["licence"] == "public-domain" for row in rows)
    named = sorted(Path(row["name"]).name.partition("@")[0] for row in rows)
    assert named == [path.stem for path in photos]
