"""Networks in .onnx files, ours and others', in our windows."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from spn_jax import predict
from spn_jax.errors import InputError
from spn_jax.evaluation.methods import host_methods, named_methods
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.onnx_network import OnnxNetwork
from spn_jax.filling.windows import Window, at_least
from spn_jax.onnx_files.photo import photo_file
from spn_jax.onnx_files.write import network_file
from tests.onnx_files import networks
from tests.onnx_files.models import loaded
from tests.tiny import corner, photo


def described(path: Path) -> Path:
    networks.centred(path)
    path.with_suffix(".json").write_text(json.dumps(networks.CENTRED))
    return path


def four_channels(path: Path) -> Path:
    networks.joined(path)
    text = {"image": {"name": "input"}, "mask": {"name": "input"}, "output": {"name": "output"}}
    path.with_suffix(".json").write_text(json.dumps(text))
    return path


OTHERS: dict[str, Callable[[Path], Path]] = {
    "lama": networks.lama,
    "migan": networks.migan,
    "described": described,
    "four channels": four_channels,
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: make(folder / f"{name}.onnx") for name, make in OTHERS.items()}


def colours_around(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the networks fill a hole with, where they are shown the photo as it is and no mirror
    image of it.
    """
    return image[mask[..., 0] == 0].mean(0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_peoples_networks_fill_the_hole_and_nothing_else(name: str, others: dict[str, Path]) -> None:
    image, mask = photo(512, 512) // 4 + np.array([30, 90, 180], np.uint8), corner(512, 512)
    filled = Inpainter.load(others[name])(image, mask, strategy="original")[0]
    np.testing.assert_array_equal(np.where(mask, 0, filled), np.where(mask, 0, image))
    np.testing.assert_allclose(filled[mask[..., 0] > 0], colours_around(image, mask)[None].repeat(mask.sum(), 0), atol=1)


@pytest.mark.parametrize("strategy", ["auto", "crop", "resize"])
@pytest.mark.parametrize("name", OTHERS)
def test_photos_of_any_size_and_what_the_hole_holds(name: str, strategy: Any, others: dict[str, Path]) -> None:
    image, mask = photo(530, 601), corner(530, 601)
    mask[: 530 // 2 + 200] = 0
    inpainter = Inpainter.load(others[name])
    filled = inpainter(image, mask, strategy=strategy)[0]
    np.testing.assert_array_equal(np.where(mask, 0, filled), np.where(mask, 0, image))
    np.testing.assert_array_equal(filled, inpainter(np.where(mask, 255 - image, image), mask, strategy=strategy)[0])


def test_photos_of_16_bits(others: dict[str, Path]) -> None:
    image, mask = photo(64, 64).astype(np.uint16) * 257 + 5, corner(64, 64)
    filled = Inpainter.load(others["migan"])(image, mask)[0]
    assert filled.dtype == np.uint16
    np.testing.assert_array_equal(np.where(mask, 0, filled), np.where(mask, 0, image))


@pytest.mark.parametrize("kind", ["spn", "spn-probabilistic"])
@pytest.mark.parametrize("strategy", ["original", "crop"])
def test_our_own_file_fills_as_the_checkpoint_does(kind: str, strategy: Any, tmp_path: Path) -> None:
    file = tmp_path / "ours.onnx"
    file.write_bytes(network_file(loaded(kind), "float32"))
    samples = 2 if kind == "spn-probabilistic" else 1
    image, mask = photo(61, 97), corner(61, 97)
    mask[:45] = 0
    wanted = Inpainter(loaded(kind).model, loaded(kind).config)(image, mask, samples=samples, seed=3, strategy=strategy)
    found = Inpainter.load(file)(image, mask, samples=samples, seed=3, strategy=strategy)
    np.testing.assert_array_equal(np.where(mask, 0, found), np.where(mask, 0, wanted))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_our_own_file_needs_no_description_and_heeds_none(tmp_path: Path) -> None:
    """Such as that of a web page, which may lie beside it."""
    file = tmp_path / "model.onnx"
    file.write_bytes(network_file(loaded("spn"), "float32"))
    wanted = Inpainter.load(file)(photo(), corner())
    file.with_suffix(".json").write_text(json.dumps({"model": "SPN", "samples": 1}))
    np.testing.assert_array_equal(Inpainter.load(file)(photo(), corner()), wanted)


def test_our_own_photo_file_fills_too(tmp_path: Path) -> None:
    """As the strategy "original" does: the file gives known pixels as they are, so that "resize"
    cannot compare its prediction with them along the border.
    """
    (tmp_path / "photo.onnx").write_bytes(photo_file(loaded("spn"), "float32"))
    wanted = Inpainter(loaded("spn").model, loaded("spn").config)(photo(), corner(), strategy="original")
    found = Inpainter.load(tmp_path / "photo.onnx")(photo(), corner(), strategy="original")
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_small_hole_is_shown_with_as_much_around_it_as_the_network_takes(
    others: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def seen(self: OnnxNetwork, *size: int) -> tuple[int, int]:
        shapes.append(size)
        return 512, 512

    monkeypatch.setattr(OnnxNetwork, "_padded", seen)
    mask = np.zeros((700, 900, 1), np.uint8)
    mask[3:9, 600:620] = 1
    Inpainter.load(others["lama"])(photo(700, 900), mask)
    assert shapes == [(512, 512)]


def test_windows_grow_around_what_they_fill() -> None:
    part = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    window = Window(top=1, left=20, height=3, width=4, limit=8, weights=part, corner=(1, 1))
    grown = at_least(window, 8, (30, 26))
    assert (grown.height, grown.width) == (8, 8) and grown.top == 0 and grown.left == 18
    assert grown.box_in_photo == window.box_in_photo and grown.weights is part
    assert at_least(window, 3, (30, 26)) is window


def test_the_command_fills_with_a_file(others: dict[str, Path], tmp_path: Path) -> None:
    image, mask = photo(40, 50), corner(40, 50)
    Image.fromarray(image).save(tmp_path / "photo.png")
    Image.fromarray(255 * mask[..., 0]).save(tmp_path / "hole.png")
    paths = ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "hole.png"), "--output", str(tmp_path / "filled.png")]
    assert predict.main(["--model", str(others["migan"]), *paths]) == 0
    with Image.open(tmp_path / "filled.png") as filled:
        np.testing.assert_array_equal(np.asarray(filled), Inpainter.load(others["migan"])(image, mask)[0])
    with pytest.raises(InputError, match="--model spn must be a file that ends in .onnx"):
        predict.main(["--model", "spn", *paths])
    with pytest.raises(InputError, match="--samples 2"):
        predict.main(["--model", str(others["migan"]), "--samples", "2", *paths])


def test_an_evaluation_compares_with_a_file(others: dict[str, Path]) -> None:
    given = [f"onnx:{others['migan']}", f"lama=onnx:{others['lama']}", "mean"]
    assert list(named_methods(given)) == ["migan", "lama", "mean"]
    photos: Any = None  # which folders of results alone look at
    image, mask = photo(32, 32), corner(32, 32)
    methods = {method.name: method for method in host_methods({}, False, given, photos, 32)}
    for name in ("migan", "mean"):
        filled = methods[name].complete(0, image, mask)
        np.testing.assert_allclose(filled[mask[..., 0] > 0], np.rint(colours_around(image, mask))[None].repeat(mask.sum(), 0), atol=1)
    assert len(methods["lama"].identity()["sha256"]) == 64
    with pytest.raises(InputError, match="two methods are called migan"):
        named_methods([given[0], given[0]])


def test_an_evaluation_scores_the_prediction_itself(others: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the correction by which a photo that people fill meets its known pixels."""
    image, mask = np.full((32, 32, 3), 90, np.uint8), corner(32, 32)
    bright = np.full(image.shape, np.float32(120))
    monkeypatch.setattr(OnnxNetwork, "predictions", lambda *arguments: iter([bright]))
    (method,) = host_methods({}, False, [f"onnx:{others['lama']}"], None, 32)  # type: ignore[arg-type]
    np.testing.assert_array_equal(method.complete(0, image, mask), np.where(mask, 120, image))


# --- files that are none, broken, or not understood ---


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def cut(path: Path) -> None:
    path.write_bytes(network_file(loaded("spn"), "float32")[:-1000])


def without_its_weights(path: Path) -> None:
    onnx.save(
        onnx.load_from_string(network_file(loaded("spn"), "float32")), path, save_as_external_data=True, location="w", size_threshold=0
    )
    (path.parent / "w").unlink()


def of_another_kind(path: Path) -> None:
    model = onnx.load(networks.lama(path, 64))
    saved(path, model)


def of_a_later_opset(path: Path) -> None:
    model = onnx.load(networks.lama(path))
    model.opset_import[0].version = 99
    saved(path, model)


def of_a_later_version(path: Path) -> None:
    model = onnx.load_from_string(network_file(loaded("spn"), "float32"))
    about = json.loads(model.metadata_props[0].value)
    del about["stride"]
    onnx.helper.set_model_props(model, {"spn_jax": json.dumps(about)})
    saved(path, model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not there, or is no file; pass an .onnx file"),
        (lambda path: path.write_text("no network"), "cannot be read: .*it is no ONNX file, is damaged, or needs a newer onnxruntime"),
        (lambda path: path.write_bytes(b""), "cannot be read: "),
        (cut, "cannot be read: "),
        (without_its_weights, "its weights lie in a second file, which is missing or damaged"),
        (of_a_later_opset, "cannot be read: ONNX Runtime only .*, or needs a newer onnxruntime"),
        (of_another_kind, r"inputs are image tensor\(float\) \(1, 3, 64, 64\), mask .*describe them in .*network.json"),
        (of_a_later_version, "says that spn_jax wrote it, but not what this version reads"),
    ],
)
def test_a_file_that_is_no_network_is_one_sentence(
    make: Callable[[Path], Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "network.onnx")
    with pytest.raises(InputError, match=message) as raised:
        Inpainter.load(tmp_path / "network.onnx")
    assert "\n" not in str(raised.value) and str(tmp_path / "network.onnx") in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_without_onnx_runtime_the_extra_is_named(others: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[onnx\]'"):
        Inpainter.load(others["lama"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "it lacks image"),
        ({"size": 3}, "it has size, which mean nothing here"),
        ({"image": {"name": "picture"}}, r"the network has no 'picture'; it has photo tensor\(float\) \(\?, \?, \?, 3\)"),
        ({"image": {"name": ["photo"]}}, r"the network has no \['photo'\]; it has photo"),
        ({"mask": {"name": "photo"}}, "further inputs, valid"),
        ({"image": {"name": "photo", "range": [0]}}, "the range of 'image'"),
        ({"image": {"name": "photo", "layout": "bhcc"}}, "the layout of 'image' is 'bhcc'"),
        ({"image": {"name": "photo", "layout": "hwc"}}, "has 4 axes, and the layout hwc has 3"),
        ({"mask": {"name": "valid", "hole": 1, "known": 1}}, "'hole' and 'known' are the same"),
        ({"mask": {"name": "valid", "hole": "black"}}, "'hole' is 'black', which is no number"),
        ({"multiple": 0}, "'multiple' is 0; it is a whole number of at least 1"),
        ({"erased": 256}, "'erased' is 256"),
        ({"output": []}, "'output' is .* instead of an object"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = networks.centred(tmp_path / "network.onnx")
    text = {key: value for key, value in {**copy.deepcopy(networks.CENTRED), **change}.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=message) as raised:
        Inpainter.load(path)
    assert str(raised.value).startswith(f"{path.with_suffix('.json')} does not describe the network beside it: ")


def test_a_description_that_is_no_json(tmp_path: Path) -> None:
    path = networks.centred(tmp_path / "network.onnx")
    path.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match="which describes the network beside it, cannot be read"):
        Inpainter.load(path)


def test_a_lama_that_returns_another_range_is_one_sentence_and_not_a_black_hole(tmp_path: Path) -> None:
    path = networks.lama(tmp_path / "network.onnx", white=1)
    with pytest.raises(InputError, match="returns values from 0 to 1 where the published file of its kind has 0 to 255; describe it in"):
        Inpainter.load(path)(photo(), corner())
    text = {"image": {"name": "image"}, "mask": {"name": "mask"}, "output": {"name": "output"}}
    path.with_suffix(".json").write_text(json.dumps(text))
    filled = Inpainter.load(path)(photo(), corner())[0]
    assert filled[corner()[..., 0] > 0].mean() > 100


def test_a_black_photo_is_filled(others: dict[str, Path]) -> None:
    assert not Inpainter.load(others["lama"])(0 * photo(), corner()).any()


def test_what_a_network_does_wrong_at_work_is_one_sentence(tmp_path: Path, others: dict[str, Path]) -> None:
    path = described(tmp_path / "network.onnx")
    text = {**networks.CENTRED, "output": {"name": "filled", "layout": "bchw"}}
    path.with_suffix(".json").write_text(json.dumps(text))
    with pytest.raises(InputError, match="has 4 axes|returned one of"):
        Inpainter.load(path)(photo(), corner())
    with pytest.raises(InputError, match='takes pictures of 512 x 512 pixels and no larger ones; choose the strategy "crop" or "resize"'):
        Inpainter.load(others["lama"])(photo(600, 20), corner(600, 20), strategy="original")
    with pytest.raises(InputError, match="gives completions and no priors; load a checkpoint"):
        Inpainter.load(others["lama"]).priors(photo(), corner())
