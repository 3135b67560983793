"""A model as an .onnx file: ONNX Runtime computes from it what JAX computes, at any size, and the
file says what it is.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from spn_jax import export
from spn_jax.checkpoints.store import LoadedModel, load_model
from spn_jax.config import Config, ModelConfig
from spn_jax.errors import InputError
from spn_jax.filling.onnx_network import OWN_METADATA
from spn_jax.models.smooth_fill import GREY
from spn_jax.models.spn import SPN
from spn_jax.onnx_files.graph import OPSET
from spn_jax.onnx_files.write import network_file
from tests.onnx_files.models import KINDS, PAPER, by_jax, by_onnx, inputs, loaded, random_model
from tests.tiny import CHANNELS, tiny

AGREEMENT = 1e-4  # of the largest value
HALF = 2**-10  # the precision of float16 near 1
SIZES, MORE_SIZES = [(32, 32), (64, 96), (160, 192)], [(96, 32), (128, 64)]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {kind: network_file(loaded(kind), "float32") for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((kind, size) for kind in KINDS for size in (SIZES if kind in (*PAPER, "smooth fill") else SIZES[1:2])),
        *(pytest.param(kind, size, marks=pytest.mark.long) for kind in (*PAPER, "smooth fill") for size in MORE_SIZES),
    ],
)
def test_onnx_runtime_computes_what_jax_does(kind: str, size: tuple[int, int], files: dict[str, bytes]) -> None:
    model = loaded(kind).model
    given = inputs(model, *size, batch=1 + size[0] % 64 // 32)
    wanted, found = by_jax(model, given), by_onnx(files[kind], given)
    assert np.abs(found["prediction"] - wanted).max() <= AGREEMENT * np.abs(wanted).max()
    np.testing.assert_array_equal(found["completion"], np.where(given["mask"] > 0, found["prediction"], given["image"]))


@pytest.mark.parametrize(("kind", "hole"), [("spn", 0), ("spn", 1), ("smooth fill", 0)])
def test_photos_without_hole_and_without_surroundings(kind: str, hole: int, files: dict[str, bytes]) -> None:
    given = inputs(loaded(kind).model, 32, 32)
    given["mask"][:] = hole
    wanted, found = by_jax(loaded(kind).model, given), by_onnx(files[kind], given)
    assert np.abs(found["prediction"] - wanted).max() <= AGREEMENT * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["spn", "smooth fill"])
def test_what_lies_in_the_hole_is_not_looked_at(kind: str, files: dict[str, bytes]) -> None:
    given = inputs(loaded(kind).model, 32, 32)
    erased = given | {"image": np.where(given["mask"] > 0, np.nan, given["image"])}
    np.testing.assert_array_equal(*(by_onnx(files[kind], one)["completion"] for one in (given, erased)))


def test_a_smooth_fill_of_nothing_is_grey() -> None:
    config = tiny("model.hole_fill=smooth")
    new = LoadedModel(config, SPN(config.model, CHANNELS, rng=np.random.default_rng(0)), 0, {})
    new.model.generator.output.kernel[...] *= 0  # the prediction is the fill itself
    given = inputs(new.model, 32, 32)
    given["mask"][:] = 1
    np.testing.assert_array_equal(by_onnx(network_file(new, "float32"), given)["prediction"], GREY)


def test_a_smooth_fill_at_sizes_that_do_not_halve(files: dict[str, bytes]) -> None:
    """20 pixels are halved to 10, 5, 3, 2 and 1."""
    model = loaded("smooth fill").model
    given = inputs(model, 20, 36)
    wanted, found = by_jax(model, given), by_onnx(files["smooth fill"], given)
    assert np.abs(found["prediction"] - wanted).max() <= AGREEMENT


@pytest.mark.parametrize("kind", PAPER)
def test_float16_agrees_to_its_precision_and_takes_half_the_space(kind: str, files: dict[str, bytes]) -> None:
    model = loaded(kind).model
    file, given = network_file(loaded(kind), "float16"), inputs(model, 64, 96)
    wanted, found = by_jax(model, given), by_onnx(file, given)
    assert np.abs(found["prediction"] - wanted).max() <= HALF * np.abs(wanted).max()
    weights = [sum(len(array.raw_data) for array in onnx.load_from_string(of).graph.initializer) for of in (file, files[kind])]
    assert 0.45 < weights[0] / weights[1] < 0.6


@pytest.mark.parametrize("kind", PAPER)
def test_the_file_says_what_it_is(kind: str, files: dict[str, bytes]) -> None:
    model = onnx.load_from_string(files[kind])
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[OWN_METADATA])
    assert about["model"] == kind and about["step"] == 7 and about["trained_size"] == 32
    assert about["stride"] == (32 if kind == "spn-probabilistic" else 4) and about["source"] == {"teacher": {"name": "a teacher"}}
    assert "Apache-2.0" in about["licence"] and about["contract"] == "network"
    names = [value.name for value in model.graph.input]
    assert names == ["image", "mask"] + ["noise"] * (kind == "spn-probabilistic")
    assert set(about["ranges"]) >= {*names, *(value.name for value in model.graph.output)}


def test_every_parameter_but_the_heads_is_in_the_file_under_its_name(files: dict[str, bytes]) -> None:
    names = {array.name for array in onnx.load_from_string(files["spn"]).graph.initializer}
    assert {"prior_learner.stem.kernel", "generator.encoder.0.region_norm.both_betas", "generator.output.bias"} <= names
    assert not [name for name in names if "distillation_heads" in name]


@pytest.mark.long
def test_a_full_size_model_agrees() -> None:
    config = Config(model=ModelConfig())
    full = LoadedModel(config, random_model(config.model), 0, {})
    given = inputs(full.model, 64, 96)
    wanted, found = by_jax(full.model, given), by_onnx(network_file(full, "float32"), given)
    assert np.abs(found["prediction"] - wanted).max() <= AGREEMENT * np.abs(wanted).max()


def test_the_command_writes_the_file(checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, output = checkpoints["spn"], tmp_path / "spn.onnx"
    export.main(["--checkpoint", str(checkpoint), "--format", "onnx", "--output", str(output)])
    assert f"written: {output}" in capsys.readouterr().out
    model = load_model(checkpoint).model
    given = inputs(model, 48, 36)
    wanted, found = by_jax(model, given), by_onnx(output.read_bytes(), given)
    assert np.abs(found["prediction"] - wanted).max() <= AGREEMENT * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "onnx", "--output", "spn.zip"], "--output spn.zip must be the name of a file that ends in .onnx"),
        (["--format", "onnx", "--size", "32", "32"], "--size is for --format stablehlo"),
        (["--precision", "float16", "--output", "spn.zip"], "--precision float16 is for .onnx files"),
    ],
)
def test_wrong_input_is_one_sentence(
    more: list[str], message: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main(["--checkpoint", str(checkpoints["spn"]), "--output", "spn.onnx", *more])
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_extra_is_named(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[onnx\]'"):
        export.main(["--checkpoint", str(checkpoints["spn"]), "--format", "onnx", "--output", str(tmp_path / "spn.onnx")])
