"""A model as one archive: it computes what the model does, in a process that knows JAX and not this
package.
"""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from spn_jax import export
from spn_jax.checkpoints.store import LoadedModel, load_model
from spn_jax.errors import InputError
from spn_jax.filling.completion import PRECISION
from tests.tiny import KINDS, corner, photo

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_exported.py"
SIZES = [(32, 32), (32, 64)]


@pytest.fixture(scope="module")
def loaded(checkpoints: dict[str, Path]) -> dict[str, LoadedModel]:
    return {kind: load_model(path) for kind, path in checkpoints.items()}


@pytest.fixture(scope="module")
def archives(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    for kind, checkpoint in checkpoints.items():
        sizes = [text for height, width in SIZES for text in ("--size", str(height), str(width))]
        export.main(["--checkpoint", str(checkpoint), "--output", str(folder / f"{kind}.zip"), *sizes])
    return {kind: folder / f"{kind}.zip" for kind in checkpoints}


def opened(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], list[jax_export.Exported]]:
    with zipfile.ZipFile(path) as file:
        manifest = json.loads(file.read("manifest.json"))
        weights = dict(np.load(io.BytesIO(file.read(manifest["weights"]))))
        return manifest, weights, [jax_export.deserialize(bytearray(file.read(entry["file"]))) for entry in manifest["programs"]]


def inputs(entry: dict[str, Any], batch: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    image = random.random((batch, *entry["size"], 3), np.float32)
    mask = (random.random((batch, *entry["size"], 1)) < 0.3).astype(np.float32)
    rest = [random.standard_normal((batch, *item["shape"][1:]), np.float32) for item in entry["inputs"][2:]]
    return [image, mask, *rest]


@pytest.mark.parametrize("kind", KINDS)
def test_the_programs_compute_what_the_model_does_for_any_batch(
    kind: str, archives: dict[str, Path], loaded: dict[str, LoadedModel]
) -> None:
    manifest, weights, programs = opened(archives[kind])
    with PRECISION():
        model = jax.jit(lambda model, *inputs: model(*inputs).image[:, 0])
        for entry, program, batch in zip(manifest["programs"], programs, (1, 3), strict=True):
            image, mask, *noise = given = inputs(entry, batch)
            wanted = np.asarray(model(loaded[kind].model, image, mask, *(n[:, None] for n in noise)))
            completed = np.asarray(program.call(weights, *given))
            np.testing.assert_array_equal(np.where(mask, 0, completed), np.where(mask, 0, image))
            np.testing.assert_allclose(np.where(mask, completed, 0), np.where(mask, wanted, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_says_what_goes_in(kind: str, archives: dict[str, Path]) -> None:
    manifest, weights, programs = opened(archives[kind])
    assert manifest["model"] == kind and manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["versions"]["jax"] == jax.__version__
    for entry, program, size in zip(manifest["programs"], programs, SIZES, strict=True):
        assert tuple(entry["size"]) == size
        assert program.platforms == ("cpu", "cuda", "tpu")
        names = [item["name"] for item in entry["inputs"]]
        assert names == ["image", "mask"] + ["noise"] * (kind == "spn-probabilistic")
        shapes = [str(aval.shape) for aval in program.in_avals[len(weights) :]]
        assert shapes == [str(tuple(item["shape"])).replace("'b'", "b") for item in entry["inputs"]]
        largest = max(np.prod(array.shape) for array in weights.values())
        assert len(program.mlir_module_serialized) < 4 * sum(array.size for array in weights.values()) + 10**6 and largest > 0


def test_weights_are_arguments_and_no_constants(archives: dict[str, Path]) -> None:
    manifest, weights, programs = opened(archives["spn"])
    given = inputs(manifest["programs"][0], 1)
    before, after = (np.asarray(programs[0].call({n: scale * w for n, w in weights.items()}, *given)) for scale in (1, 0))
    assert (before != after).any()
    np.testing.assert_allclose(np.where(given[1], after, 0.5), 0.5)  # (tanh(0) + 1) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_runs_in_a_process_without_this_package(
    kind: str, archives: dict[str, Path], loaded: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 27
    Image.fromarray(photo(32, 32)).save(tmp_path / "photo.png")
    Image.fromarray(255 * corner(32, 32)[..., 0]).save(tmp_path / "hole.png")
    hide = "import sys; sys.modules['spn_jax'] = sys.modules['flax'] = None; sys.argv.pop(0); exec(open(sys.argv[0]).read())"
    command = [sys.executable, "-c", hide, str(SCRIPT), str(archives[kind]), "photo.png", "hole.png", "out.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with Image.open(tmp_path / "out.png") as image:
        completed = np.asarray(image).astype(int)
    known = corner(32, 32)[..., 0] == 0
    np.testing.assert_array_equal(completed[known], photo(32, 32)[known])
    if kind == "spn":
        with PRECISION():
            wanted = jax.jit(lambda m, *i: m(*i).image[0, 0])(
                loaded[kind].model, photo(32, 32)[None] / np.float32(255), corner(32, 32)[None] * np.float32(1)
            )
        assert np.abs(completed - np.floor(255 * np.asarray(wanted)))[~known].max() <= 1


def test_the_example_gives_the_photo_back_at_its_own_size_with_its_known_pixels(archives: dict[str, Path], tmp_path: Path) -> None:
    given, mask = photo(45, 61), corner(45, 61)
    for name, shown in ("photo", given), ("other", np.where(mask, 0, given)):
        Image.fromarray(shown).save(tmp_path / f"{name}.png")
        Image.fromarray(255 * mask[..., 0]).save(tmp_path / "hole.png")
        command = [sys.executable, str(SCRIPT), str(archives["spn"]), f"{name}.png", "hole.png", f"{name}_out.png"]
        subprocess.run(command, cwd=tmp_path, check=True)
    with Image.open(tmp_path / "photo_out.png") as first, Image.open(tmp_path / "other_out.png") as second:
        completed, other = np.asarray(first), np.asarray(second)
    np.testing.assert_array_equal(completed[mask[..., 0] == 0], given[mask[..., 0] == 0])
    np.testing.assert_array_equal(completed, other)  # what is under the mask has no influence
    assert (completed != given).any()


def test_the_page_on_export_shows_the_example_as_it_is() -> None:
    assert SCRIPT.read_text().split('"""\n', 1)[1].strip() in (ROOT / "docs" / "export.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "30", "32"], "--size 30 32: both must be multiples of 4 and at least 16"),
        (["--size", "8", "32"], "--size 8 32: both must be"),
        (["--size", "32", "32", "--size", "32", "32"], "--size 32 32 was given twice"),
        (["--output", "spn.onnx"], "--output spn.onnx must be the name of a file that ends in .zip"),
        (["--checkpoint", "nowhere"], "checkpoint nowhere is not a folder"),
    ],
)
def test_wrong_input_is_one_sentence(
    more: list[str], message: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main(["--checkpoint", str(checkpoints["spn"]), "--output", "spn.zip", *more])
    assert not list(tmp_path.iterdir())
