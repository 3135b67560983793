"""A detector's boxes reach the picture through a file; wrong input is one sentence."""

from pathlib import Path

import pytest
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.views.detect import read_detections
from teacher_export import detect
from tests.tiny import photo

SMALL = ["--detector", "ssdlite320_mobilenet_v3_large", "--weights", "random", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(photo(48, 64)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def test_boxes_are_read_as_they_were_written(pictures: Path, tmp_path: Path) -> None:
    images = ["--images", f"ours={pictures}", "--images", f"theirs={pictures}"]
    detect.main([*images, *SMALL, "--threshold", "0.01", "--output", str(tmp_path / "boxes.json")])
    detections = read_detections(tmp_path / "boxes.json")
    assert (detections.detector, detections.weights, detections.threshold) == (SMALL[1], "random(seed=0)", 0.01)
    assert detections.folders == {"ours": pictures, "theirs": pictures}
    assert detections.found["ours"] == detections.found["theirs"] and set(detections.found["ours"]) == {"a.png", "b.png"}
    boxes = [box for found in detections.found["ours"].values() for box in found]
    assert boxes  # nothing is found where it is, but something is
    for box in boxes:
        left, top, right, bottom = box.corners
        assert 0 <= left <= right <= 64 and 0 <= top <= bottom <= 48 and box.score >= 0.01


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--threshold", "2"], "--threshold 2 must lie between 0 and 1"),
        (["--images", "ours=nowhere"], "two folders of --images have one name"),
        (["--detector", "resnet50"], "resnet50"),
    ],
)
def test_wrong_input_is_one_sentence(pictures: Path, tmp_path: Path, more: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        detect.main(["--images", f"ours={pictures}", *SMALL, "--output", str(tmp_path / "boxes.json"), *more])
    assert not (tmp_path / "boxes.json").exists()
