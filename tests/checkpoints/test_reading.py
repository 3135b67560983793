"""Damaged checkpoints: other parameters never pass for those that were saved, and the terminal
shows one sentence.
"""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spn_jax.checkpoints import reading
from spn_jax.checkpoints.reading import CHECKSUMS, changed_arrays, checksums
from spn_jax.checkpoints.store import METADATA, load_discriminator, load_model, read_info, restore, save_converted
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import make_mesh
from tests.checkpoints.test_store import INFO, save, state

ROOT = Path(__file__).resolve().parents[2]
READ = "import sys\nfrom pathlib import Path\nfrom spn_jax.checkpoints.store import stored_metadata\n"
READ += "for _ in range(3): assert stored_metadata(Path(sys.argv[1])).metadata['model'] is None"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def rewrite(folder: Path, sums: object) -> None:
    """Gives a checkpoint other checksums; none for None."""
    content = json.loads((folder / METADATA).read_text())
    content["custom_metadata"] = {name: value for name, value in content["custom_metadata"].items() if name != CHECKSUMS}
    if sums is not None:
        content["custom_metadata"][CHECKSUMS] = sums
    (folder / METADATA).write_text(json.dumps(content))


def test_checksums_tell_every_type_shape_and_value() -> None:
    ones = np.ones((2, 3), np.float32)
    assert checksums({"model": {"a": ones}}) == {"model": {"a": checksums({"model": {"a": jnp.ones((2, 3))}})["model"]["a"]}}
    assert str(checksums({"p": {"a": np.int32(3), "b": ones.astype(ml_dtypes.bfloat16)}})["p"]["b"]).startswith("bfloat16 ")
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert checksums({"p": {"a": strided}}) == checksums({"p": {"a": strided.copy()}})
    stored = checksums({"model": {"a": ones, "b": ones}})
    other = ones.copy()
    other[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    assert changed_arrays({"model": {"a": ones, "b": other}}, stored) == ["b"]
    assert changed_arrays({"model": {"a": ones, "new": ones}}, stored) == ["new"]
    # read as another type
    assert not changed_arrays({"model": {"a": other.astype(np.float16)}}, stored)
    assert not changed_arrays({"model": {"a": other}}, {}) and not changed_arrays({"ema": {"a": other}}, stored)
    # a piece, of which nothing is known
    assert not changed_arrays({"model": {"a": other}}, {"model": {"a": None}})


def test_arrays_that_are_not_those_that_were_saved_are_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: None}) / "1"
    sums = json.loads((folder / METADATA).read_text())["custom_metadata"][CHECKSUMS]
    assert sums["model"].keys() == {"layer.0.kernel"} and sums["training"].keys() == {"step", "optimizer.mu"}
    assert read_info(folder) == INFO
    restore(folder, state(0), make_mesh(1))
    sums["training"]["optimizer.mu"] = sums["training"]["optimizer.mu"].split()[0] + " 00000000"
    rewrite(folder, sums)
    with pytest.raises(InputError, match=r"is damaged \(not as it was saved: optimizer\.mu\); delete this folder"):
        restore(folder, state(0), make_mesh(1))
    for none in (None, "oops", {"model": 3}):
        rewrite(folder, none)
        restore(folder, state(0), make_mesh(1))


def test_a_flipped_byte_among_the_parameters_is_damage(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (whole,) = (checkpoints["spn"] / "checkpoints").iterdir()
    shutil.copytree(whole, tmp_path / "1")
    (data,) = (tmp_path / "1" / "model" / "ocdbt.process_0" / "d").iterdir()
    load_model(tmp_path / "1")
    flip(data, data.stat().st_size // 2)
    with pytest.raises(InputError, match="is damaged"):
        load_model(tmp_path / "1")


def test_converted_parameters_have_checksums_too(tmp_path: Path) -> None:
    folder = save_converted(tmp_path / "run", {"kernel": np.ones(3, np.float32)}, {"convs.0.kernel": np.ones(2, np.float32)}, INFO)
    sums = json.loads((folder / METADATA).read_text())["custom_metadata"][CHECKSUMS]
    assert load_discriminator(folder) is not None
    sums["training"]["discriminator.convs.0.kernel"] = "float32 00000000"
    rewrite(folder, sums)
    with pytest.raises(InputError, match="not as it was saved: discriminator.convs.0.kernel"):
        load_discriminator(folder)


def test_a_damaged_checkpoint_leaves_nothing_on_the_terminal(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (whole,) = (checkpoints["spn"] / "checkpoints").iterdir()
    shutil.copytree(whole, tmp_path / "1")
    flip(tmp_path / "1" / "model" / "manifest.ocdbt", 112)
    ended = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "1")], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_only_orbax_s_late_reports_are_dropped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    logger = logging.getLogger("asyncio")
    monkeypatch.setattr(logger, "filters", [])
    reading._drop_late_reports.__wrapped__()
    others = [SimpleNamespace(exc_value=error) for error in (RuntimeError("something else"), ValueError("Event loop is closed"))]
    for unraisable in (SimpleNamespace(exc_value=RuntimeError("Event loop is closed")), *others):
        sys.unraisablehook(unraisable)
    assert seen == others
    logger.error("Task exception was never retrieved: %s", "DATA_LOSS [tensorstore_spec='{}']")
    logger.error("Task exception was never retrieved: %s", "of a user's own")
    assert [record.getMessage() for record in caplog.records] == ["Task exception was never retrieved: of a user's own"]


def test_loggers_get_their_levels_back() -> None:
    levels = {name: logging.getLogger(name).level for name in reading.LOGGERS}
    with reading.quiet():
        assert {logging.getLogger(name).level for name in reading.LOGGERS} == {logging.CRITICAL}
    assert {name: logging.getLogger(name).level for name in reading.LOGGERS} == levels
