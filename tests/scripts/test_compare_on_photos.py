"""The comparison on whole photos: holes as its help says, scores inside the hole, a table and
pictures.
"""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_on_photos.py"
program = runpy.run_path(str(SCRIPT))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    ramp = np.linspace(0, 255, 400)[None, :, None] * np.ones((320, 1, 3))
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 4, (320, 400, 3))
        Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def sizes(mask: np.ndarray) -> np.ndarray:
    """Width and height of the hole's connected parts."""
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask)
    return boxes[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]


@pytest.mark.parametrize("seed", range(8))
def test_holes_are_of_their_kind(seed: int) -> None:
    masks = {kind: make(np.random.default_rng(seed), 720, 1440) for kind, make in program["KINDS"].items()}
    assert all(set(np.unique(mask)) == {0, 1} for mask in masks.values())
    assert cv2.erode(masks["scratches"], np.ones((9, 9), np.uint8)).sum() < 0.05 * masks["scratches"].sum()
    edge = np.concatenate([masks["objects"][[0, -1]].ravel(), masks["objects"][:, [0, -1]].ravel()])
    assert not edge.any() and (sizes(masks["objects"]).max(1) >= 45).all()
    mask = masks["border"]
    edges = mask[0].any(), mask[-1].any(), mask[:, 0].any(), mask[:, -1].any()
    assert any(edges)


def test_psnr_is_of_the_hole_alone() -> None:
    photo, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    mask[0, 0] = 1
    filled = photo.copy()
    filled[0, 0], filled[3, 3] = 10, 255
    assert program["hole_psnr"](filled, photo, mask) == pytest.approx(20 * np.log10(25.5))


def test_a_table_and_pictures_from_a_checkpoint(photos: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    program["main"](["--photos", str(photos), "--checkpoint", str(checkpoints["spn"]), "--kind", "border", "--output", str(output)])
    row = (output / "results.md").read_text().splitlines()[2].split("|")
    assert row[1].strip() == "border" and row[2].strip() == "2"
    telea, navier_stokes = float(row[4].split()[0]), float(row[5].split()[0])
    # the model knows nothing
    assert telea > 20 and navier_stokes > 20 and row[6].strip() == row[7].strip() == "0%"
    with Image.open(output / "pictures" / "border_0.jpg") as picture:
        assert picture.size == (5 * 256 + 4 * 4, 256)


def test_wrong_input_is_one_sentence(photos: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(checkpoints["spn"]), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--limit 0 must be at least 1"):
        program["main"](["--photos", str(photos), "--limit", "0", *arguments])
    Image.new("RGB", (400, 200)).save(photos / "0.png")
    with pytest.raises(InputError, match="has 400 x 200 pixels, and needs 300 on each side"):
        program["main"](["--photos", str(photos), *arguments])
    assert not (tmp_path / "out").exists()
