"""A photo and a mask of any size in, the completed photo out, all inside one .onnx file."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from spn_jax import export
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.onnx_network import OWN_METADATA
from spn_jax.filling.padding import bucket_steps
from spn_jax.onnx_files.graph import Graph, described
from spn_jax.onnx_files.photo import mirrored_places, padded_length, photo_file
from tests.onnx_files.models import PAPER, loaded
from tests.tiny import corner, photo

SIZES = [(21, 29), (5, 40), (33, 70)]


def completed(file: bytes, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image, "mask": 255 * mask[..., 0]})
    return found


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {kind: photo_file(loaded(kind), "float32") for kind in PAPER}


@pytest.mark.parametrize("size", SIZES)
def test_it_completes_as_the_inpainter_does(size: tuple[int, int], files: dict[str, bytes]) -> None:
    image, mask = photo(*size), corner(*size)
    wanted = Inpainter(loaded("spn").model, loaded("spn").config)(image, mask, strategy="original")[0]
    found = completed(files["spn"], image, mask)
    assert found.dtype == np.uint8 and (found != image).any()
    np.testing.assert_array_equal(np.where(mask, 0, found), np.where(mask, 0, image))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_predictions_are_rounded_as_the_inpainter_rounds_them() -> None:
    wanted = Inpainter(loaded("spn").model, loaded("spn").config)(photo(), corner(), strategy="original")[0]
    differing = np.mean(completed(photo_file(loaded("spn"), "float32"), photo(), corner()) != wanted)
    assert differing < 0.01  # a value may lie at the border of two levels


@pytest.mark.parametrize("kind", PAPER)
def test_known_pixels_are_identical_and_what_the_hole_holds_is_not_looked_at(kind: str, files: dict[str, bytes]) -> None:
    image, mask = photo(40, 27), corner(40, 27)
    found = completed(files[kind], image, mask)
    np.testing.assert_array_equal(np.where(mask, 0, found), np.where(mask, 0, image))
    if kind != "spn-probabilistic":
        np.testing.assert_array_equal(found, completed(files[kind], np.where(mask, 255 - image, image), mask))


def test_a_photo_without_hole_comes_back(files: dict[str, bytes]) -> None:
    np.testing.assert_array_equal(completed(files["spn"], photo(), 0 * corner()), photo())


def test_the_probabilistic_file_gives_another_completion_every_time(files: dict[str, bytes]) -> None:
    session = onnxruntime.InferenceSession(files["spn-probabilistic"], providers=["CPUExecutionProvider"])
    given = {"image": photo(), "mask": 255 * corner()[..., 0]}
    first, second = (session.run(None, given)[0] for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("length", [1, 3, 8, 17, 32, 33, 64, 65, 130])
def test_lengths_and_places_of_the_padding(length: int) -> None:
    graph, config = Graph("float32"), loaded("spn").config
    padded = padded_length(graph, "length", 32, bucket_steps(config))
    outputs = [graph.called(padded, "padded"), graph.called(mirrored_places(graph, "length", padded), "places")]
    shapes = [described(name, "int64", (side,)) for name, side in zip(outputs, (1, "p"), strict=True)]
    model = graph.model([described("length", "int64", (1,))], shapes, "padding")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found, places = session.run(outputs, {"length": np.array([length])})
    step = 16 if length <= 64 else 32
    assert found == -(-length // step) * step
    np.testing.assert_array_equal(places, np.pad(np.arange(length), (0, int(found[0]) - length), mode="symmetric"))


def test_the_command_writes_the_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "photo.onnx"
    export.main(["--checkpoint", str(checkpoints["spn"]), "--format", "onnx-photo", "--precision", "float16", "--output", str(output)])
    model = onnx.load_from_string(output.read_bytes())
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[OWN_METADATA])
    assert about["contract"] == "photo" and about["precision"] == "float16"
    assert set(about["ranges"]) == {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = Inpainter.load(checkpoints["spn"])(photo(), corner(), strategy="original")[0]
    assert np.abs(completed(output.read_bytes(), photo(), corner()).astype(int) - wanted).max() <= 2
