import io

import numpy as np
import pytest
from PIL import Image

from spn_jax.drawing import figures
from spn_jax.errors import InputError


def test_cluster_map_colours_regions_largest_first() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.01, (12, 10, 5)).astype(np.float32)
    features[:3] += 5
    features[:1, :4] -= 9
    picture = figures.cluster_map(features, clusters=3)
    assert picture.shape == (12, 10, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[3:], np.broadcast_to(figures.PALETTE[0], (9, 10, 3)))
    np.testing.assert_array_equal(picture[1:3], np.broadcast_to(figures.PALETTE[1], (2, 10, 3)))
    np.testing.assert_array_equal(picture[0, :4], np.broadcast_to(figures.PALETTE[2], (4, 3)))


def test_cluster_map_repeats_itself() -> None:
    features = np.random.default_rng(1).normal(size=(16, 16, 8))
    np.testing.assert_array_equal(figures.cluster_map(features), figures.cluster_map(features))
    assert len(np.unique(figures.cluster_map(features).reshape(-1, 3), axis=0)) == 8


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_cluster_map_of_few_distinct_features(distinct: int) -> None:
    features = np.repeat((np.arange(20) % distinct)[:, None, None], 4, axis=1).astype(np.float32)
    picture = figures.cluster_map(features)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == distinct


def test_grid_holds_every_picture_unchanged() -> None:
    rng = np.random.default_rng(2)
    photos = [rng.integers(0, 200, (16, 16, 3), dtype=np.uint8) for _ in range(3)]
    small = [photo[:4, :4] for photo in photos]
    grid = figures.image_grid({"truth": photos, "prior": small})
    indent = grid.shape[1] - 3 * 20
    for i, photo in enumerate(photos):
        left = indent + 20 * i
        np.testing.assert_array_equal(grid[4:20, left : left + 16], photo)
        np.testing.assert_array_equal(grid[24:40, left : left + 16], small[i].repeat(4, 0).repeat(4, 1))
    labels = grid[:, : indent - 4]
    assert labels[:20].min() < 100 and labels[20:].min() < 100
    assert grid[:4].min() == 255


def test_masked_input_is_white_in_the_hole() -> None:
    image, mask = np.full((4, 4, 3), 9, np.uint8), np.zeros((4, 4, 1), np.uint8)
    mask[1, 2] = 1
    shown = figures.masked_input(image, mask)
    assert shown.dtype == np.uint8
    assert shown[1, 2].tolist() == [255] * 3 and shown.sum() == 15 * 27 + 3 * 255


def test_metrics_without_the_line_a_killed_run_left_unfinished(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a": NaN}\n{"step": 3, "a"')
    lines = figures.read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, for the curves, cannot be read \(Expecting"):
        figures.read_metrics(path)


def test_curves_have_a_panel_a_metric() -> None:
    lines: list[dict] = [{"step": s, "generator/total": 1 / s, "eval/psnr": None, "time/steps_per_second": 3.0} for s in range(1, 9)]
    one = figures.curves(lines)
    two = figures.curves([*lines, {"step": 9, "eval/psnr": 20.0, "eval/20-40/psnr": 18.0, "generator/total": float("nan")}])
    assert one.dtype == np.uint8 and one.min() < 100
    assert two.shape[1] == 2 * one.shape[1] and two.shape[0] == one.shape[0]


def test_curves_of_nothing() -> None:
    with pytest.raises(ValueError, match="no metrics"):
        figures.curves([{"step": 1}])


def test_png_is_lossless() -> None:
    picture = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(figures.png(picture)))), picture)
