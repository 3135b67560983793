"""Models in one file, and those that come with the package."""

import json

import numpy as np
import pytest
from flax import nnx

from scripts import make_pretrained
from spn_jax.checkpoints.model_file import INFO, read_model_arrays, write_model_file
from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import find_checkpoint, load_discriminator, load_model
from spn_jax.errors import InputError
from spn_jax.pretrained import catalogue as pretrained
from tests.tiny import save_checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoints(tmp_path_factory.mktemp("run"))["spn"]


@pytest.fixture(scope="module")
def packed(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "weights.npz"
    make_pretrained.main([str(checkpoint), "--output", str(path)])
    return path


def parameters(loaded):
    return {name: np.asarray(array) for name, array in named_arrays(nnx.as_pure(nnx.state(loaded.model))).items()}


def test_a_model_file_is_the_checkpoint_in_float16(checkpoint, packed):
    whole, small = load_model(checkpoint), load_model(packed)
    assert small.step == whole.step and small.config.model == whole.config.model
    before, after = parameters(whole), parameters(small)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], array.astype(np.float16).astype(np.float32))


def test_a_model_file_tells_no_path_of_the_machine_that_trained_it(packed):
    with np.load(packed) as archive:
        info = json.loads(archive[INFO].tobytes())
    assert not [value for section in info["config"].values() for value in section.values() if isinstance(value, str) and "/" in value]


def test_a_run_can_start_from_a_model_file_which_has_no_discriminator(packed):
    assert find_checkpoint(packed) == packed
    assert load_discriminator(packed) is None


def test_damage_and_other_files_end_in_a_sentence(packed, tmp_path):
    whole = packed.read_bytes()
    cut, other, newer = tmp_path / "cut.npz", tmp_path / "other.npz", tmp_path / "newer.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    np.savez(other, x=np.zeros(3))
    with np.load(packed) as archive:
        entries = {name: archive[name] for name in archive.files}
    text = json.loads(entries[INFO].tobytes()) | {"format": 99}
    np.savez(newer, **{**entries, INFO: np.frombuffer(json.dumps(text).encode(), np.uint8)})
    for path, words in ((cut, "is damaged"), (other, "was not written by spn_jax"), (newer, "has format 99")):
        with pytest.raises(InputError, match=words):
            load_model(path)
    with pytest.raises(InputError, match="is not a folder; pass .* or a model file"):
        load_model(tmp_path / "missing.npz")


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_never_passes_for_a_model(packed, tmp_path, place):
    data = bytearray(packed.read_bytes())
    data[int(place * len(data))] ^= 0x40
    broken = tmp_path / "broken.npz"
    broken.write_bytes(data)
    try:
        arrays = read_model_arrays(broken)
    except InputError:
        return
    untouched = read_model_arrays(packed)
    assert all(np.array_equal(arrays[name], untouched[name]) for name in untouched)


def entry(data, name):
    """Where the header of an entry begins in an archive, and where it is described in the directory
    at its end.
    """
    described = data.index(f"{name}.npy".encode(), data.index(b"PK\1\2")) - 46
    return data.index(f"{name}.npy".encode()) - 30, described


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("packed data", b"\xff"),  # zlib.error
        ("way of compression", b"\x63"),  # NotImplementedError
        ("flag of encryption", b"\x01"),  # RuntimeError
        ("name in the directory", b"X"),
    ],
)
@pytest.mark.parametrize("name", [INFO, "generator.output.kernel"])
def test_whatever_a_reader_objects_to_is_one_sentence(packed, tmp_path, name, place, changed):
    data = bytearray(packed.read_bytes())
    header, described = entry(data, name)
    names_end = header + 30 + len(f"{name}.npy") + int.from_bytes(data[header + 28 : header + 30], "little")
    for at in {
        "packed data": [names_end],
        "way of compression": [described + 10],
        "flag of encryption": [header + 6, described + 8],
        "name in the directory": [described + 46],
    }[place]:
        data[at : at + 1] = changed
    broken = tmp_path / "broken.npz"
    broken.write_bytes(data)
    with pytest.raises(InputError, match="model file|checkpoint") as raised:
        load_model(broken)
    assert str(broken) in str(raised.value) and "\n" not in str(raised.value)


def test_values_beyond_float16_are_refused(tmp_path):
    with pytest.raises(InputError, match="not finite in float16"):
        write_model_file(tmp_path / "w.npz", {"a.kernel": np.array([1e6])}, {"step": 1})
    assert not list(tmp_path.iterdir())


def test_unknown_pretrained_models_are_named():
    with pytest.raises(InputError, match="no pretrained model called 'nothing' comes with this version"):
        find_checkpoint("pretrained:nothing")


def test_what_ships_fits_the_code_of_today_and_is_small() -> None:
    for name in pretrained.names():
        path = pretrained.pretrained_file(f"pretrained:{name}")
        assert path.stat().st_size <= make_pretrained.LARGEST and (path.parent / pretrained.CARD).is_file()
        arrays, stored = parameters(load_model(f"pretrained:{name}")), read_model_arrays(path)
        assert sum(array.size for array in arrays.values()) <= 4_000_000
        assert arrays.keys() == stored.keys() and all(np.array_equal(arrays[key], array) for key, array in stored.items())
        assert all(np.isfinite(array).all() for array in arrays.values())
