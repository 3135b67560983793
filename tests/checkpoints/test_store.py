"""Checkpoints: what is saved comes back, which are kept, and what is said about folders that are
none or broken.
"""

import dataclasses
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import FOLDER, METADATA, Checkpoints, find_checkpoint, load_model, newest_checkpoint, read_info, restore
from spn_jax.config import Config, EvalConfig
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import make_mesh, replicate
from spn_jax.settings import to_dict
from tests.tiny import CHANNELS, new_state, tiny
from tests.trainer import saved_arrays

INFO = {"config": {}, "teacher": {"channels": {"1": 5, "3": 7}}, "note": "kept as it is"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A small stand-in for a TrainState: the fields that go into parts of their own, and
    the rest.
    """

    step: Any
    model: Any
    ema: Any
    optimizer: Any


def state(value: float, ema: bool = True, width: int = 3) -> State:
    kernel = {"layer": [{"kernel": jnp.full((2, width), value)}]}
    average = jax.tree.map(lambda x: x + 1, kernel) if ema else None
    return replicate(State(jnp.array(int(value), jnp.int32), kernel, average, {"mu": jnp.full(width, -value)}), make_mesh(1))


def save(workdir: Path, scores: dict[int, float | None], keep_last: int = 2, keep_best: int = 1, info: Any = None) -> Path:
    """Checkpoints of the steps in `scores`, each with its PSNR; returns their folder."""
    with Checkpoints(workdir, keep_last, keep_best) as checkpoints:
        for step, psnr in scores.items():
            checkpoints.save(step, state(step), info or INFO, None if psnr is None else {"eval/psnr": psnr, "eval/ssim": 0.5})
        checkpoints.wait()
    return workdir / FOLDER


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_saved_comes_back(tmp_path: Path, ema: bool) -> None:
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(3, state(3, ema), INFO, None)
    folder = tmp_path / FOLDER / "3"
    loaded = restore(folder, state(0, ema), make_mesh(1))
    assert named_arrays(loaded).keys() == named_arrays(state(3, ema)).keys()
    for name, array in named_arrays(state(3, ema)).items():
        np.testing.assert_array_equal(named_arrays(loaded)[name], array)
    assert loaded.step.dtype == jnp.int32
    assert read_info(folder)["note"] == "kept as it is"


def test_arrays_may_be_overwritten_while_they_are_saved(tmp_path: Path) -> None:
    large = dataclasses.replace(state(1), model={"kernel": jnp.ones((1024, 1024))})
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, large, INFO, None)
        jax.block_until_ready(overwrite(large))
    assert (saved_arrays(tmp_path / FOLDER / "1")["model/kernel"] == 1).all()


def test_last_and_best_are_kept(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: 20.0, 2: 25.0, 3: None, 4: 22.0, 5: None, 6: 21.0}, keep_last=2, keep_best=1)
    assert steps(folder) == [2, 5, 6]


def test_only_the_last_are_kept_where_no_best_is_asked_for(tmp_path: Path) -> None:
    assert steps(save(tmp_path, {1: 25.0, 2: 20.0, 3: 20.0}, keep_last=1, keep_best=0)) == [3]


def test_the_best_survives_a_restart(tmp_path: Path) -> None:
    save(tmp_path, {1: 25.0, 2: 20.0})
    assert steps(save(tmp_path, {3: 21.0, 4: 22.0, 5: None})) == [1, 4, 5]


def info_with(**evaluation: Any) -> dict[str, Any]:
    """What a checkpoint says that was saved with these settings of eval."""
    return {**INFO, "config": to_dict(dataclasses.replace(Config(), eval=EvalConfig(**evaluation)))}


@pytest.mark.parametrize("before", [{"photos": 1}, {"samples": 2}, {"quantise": "round"}, {"seed": 1}], ids=str)
def test_scores_of_another_protocol_are_not_compared(tmp_path: Path, before: dict[str, Any]) -> None:
    info = info_with(**before)
    info["config"]["model"]["variational"] = True  # which several samples ask for
    save(tmp_path, {1: 30.0}, info=info)
    config = Config()
    with Checkpoints(tmp_path, 1, 1, config) as checkpoints:
        for step, psnr in {2: 21.0, 3: 20.0}.items():
            checkpoints.save(step, state(step), info_with(), {"eval/psnr": psnr})
        checkpoints.wait()
        assert checkpoints.best == tmp_path / FOLDER / "2"
    assert steps(tmp_path / FOLDER) == [2, 3]


def test_scores_from_before_a_setting_of_evaluations_was_there_are_compared(tmp_path: Path) -> None:
    """Its default means what was done then."""
    info = info_with()
    del info["config"]["eval"]["samples"]
    save(tmp_path, {1: 30.0}, info=info)
    with Checkpoints(tmp_path, 1, 1, Config()) as checkpoints:
        checkpoints.save(2, state(2), info_with(), {"eval/psnr": 21.0})
        checkpoints.wait()
        assert checkpoints.best == tmp_path / FOLDER / "1"


def test_nothing_is_written_behind_a_later_step_and_scores_that_come_late_are_added(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: 20.0, 2: None})
    with Checkpoints(tmp_path, 2, 1) as checkpoints:
        with pytest.raises(InputError, match="holds a checkpoint of step 2, but this run is at step 1: another run has written there"):
            checkpoints.save(1, state(1), INFO, None)
        checkpoints.save(2, state(9), INFO, None)  # it is there: kept
        checkpoints.save(2, state(2), INFO, {"eval/psnr": 25.0})
        checkpoints.wait()
        assert checkpoints.best == folder / "2"
    assert (saved_arrays(folder / "2")["model/layer.0.kernel"] == 2).all()


def test_only_a_full_disk_is_answered_with_free_some_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path, 2, 1) as checkpoints:
        for error, advice in {
            OSError(28, "No space left on device"): "free some space and run the same command again",
            ValueError("OS error 122: Disk quota exceeded"): "free some space and run the same command again",
            ValueError("something of Orbax's own"): "the same command continues from the newest",
        }.items():

            def fail(*arguments: Any, error: Exception = error, **options: Any) -> None:
                raise error

            monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", fail)
            with pytest.raises(InputError, match=f"earlier checkpoints are intact: {advice}"):
                checkpoints.save(1, state(1), INFO, None)


def test_a_save_that_failed_in_the_background_is_reported_once_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, 2, 1) as checkpoints:
        checkpoints.save(1, state(1), INFO, None)
        checkpoints.wait()
        checkpoints._is_writing = True
        monkeypatch.setattr(checkpoints._checkpointer, "is_saving_in_progress", lambda: True)
        assert checkpoints.background_failure() is None
        monkeypatch.setattr(checkpoints._checkpointer, "is_saving_in_progress", lambda: False)
        monkeypatch.setattr(checkpoints._checkpointer, "wait", fail)
        assert "No space left on device" in str(checkpoints.background_failure())
        assert checkpoints.background_failure() is None
        checkpoints.save(2, state(2), INFO, None)
        checkpoints.wait()

        # the next save is what meets the failure: it writes its own state
        checkpoints._is_writing = True
        monkeypatch.setattr(checkpoints._checkpointer, "wait", fail)
        failed = checkpoints._checkpointer
        checkpoints.save(3, state(3), INFO, None)
        # and not only later
        assert checkpoints._checkpointer is not failed and (tmp_path / FOLDER / "3" / METADATA).is_file()
    assert steps(tmp_path / FOLDER) == [2, 3]


def test_an_old_checkpoint_half_deleted_by_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: 20.0, 2: 20.0}, keep_last=3)
    for files in range(1, 1 + sum(path.is_file() for path in (folder / "1").rglob("*")), 4):
        copy = tmp_path / f"{files} files deleted" / FOLDER
        shutil.copytree(folder, copy)
        for path in [path for path in sorted((copy / "1").rglob("*")) if path.is_file()][:files]:
            path.unlink()
        assert find_checkpoint(copy).name == "2"
        save(copy.parent, {3: 21.0, 4: 20.0, 5: 20.0}, keep_last=1)
        assert {3, 5} <= set(steps(copy)) and 2 not in steps(copy)


def test_folders_that_mean_a_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, {9: None, 10: None})
    for path in tmp_path, folder, folder / "10":
        assert find_checkpoint(path) == folder / "10"
        assert find_checkpoint(str(path)) == folder / "10"
    assert find_checkpoint(folder / "9") == folder / "9"
    assert newest_checkpoint(tmp_path / "none") is None


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: None})
    (folder / "2").mkdir()
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    assert find_checkpoint(tmp_path) == folder / "1"


@pytest.mark.parametrize("folder", ["nowhere", "empty", "file", "two\nlines"])
def test_folders_without_a_checkpoint(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"(is not a folder|holds no complete checkpoint); pass a run's work directory"):
        find_checkpoint(tmp_path / folder)


def test_a_checkpoint_of_another_program(tmp_path: Path) -> None:
    ocp.save_checkpointables(tmp_path / "5", {"model": {"kernel": jnp.ones(3)}})
    with pytest.raises(InputError, match="was not written by spn_jax: it holds no config"):
        load_model(tmp_path / "5")


# Orbax leaves coroutines behind where it fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("files", ["_CHECKPOINT_METADATA", "model/_METADATA", "model/manifest.ocdbt", "training/d/*"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, files: str) -> None:
    folder = save(tmp_path, {1: None}) / "1"
    spoilt = list(folder.glob(files))
    assert spoilt
    for path in spoilt:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    advice = "delete this folder and use an earlier one of the run, or convert the file again if it was converted"
    with pytest.raises(InputError, match=rf"^checkpoint \S+ is damaged \(.+\); {advice}$") as raised:
        read_info(folder)
        restore(folder, state(0), make_mesh(1))
    assert "\n" not in str(raised.value)
    gc.collect()


def spoil(folder: Path, **changes: Any) -> None:
    """Changes what a checkpoint says about itself; None takes an entry away."""
    path = folder / METADATA
    content = json.loads(path.read_text())
    content["custom_metadata"] = {n: v for n, v in (content["custom_metadata"] | changes).items() if v is not None}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": "oops"}, "is damaged (its config is 'oops' instead of sections of settings); delete"),
        ({"config": {"model": "oops"}}, "are damaged: model='oops' instead of a section of settings; take another checkpoint"),
        ({"teacher": None}, "is damaged (it does not say its teacher's channels); delete"),
        ({"teacher": "oops"}, "is damaged (it does not say its teacher's channels); delete"),
        ({"teacher": {"origin": "x"}}, "is damaged (it does not say its teacher's channels); delete"),
        ({"teacher": {"channels": [1, 2]}}, "is damaged (it does not say its teacher's channels); delete"),
        (
            {"teacher": {"channels": {"1": 5, "2": "x", "3": 0, "4": 1, "a": 1}}},
            "is damaged (its teacher's channels are 2: 'x', 3: 0, 4: 1, a: 1); delete",
        ),
        ({"teacher": {"channels": {"1": True}}}, "is damaged (its teacher's channels are 1: True); delete"),
    ],
)
def test_settings_that_were_changed_by_hand_are_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = save(tmp_path, {1: None}) / "1"
    spoil(folder, **changes)
    with pytest.raises(InputError) as raised:
        load_model(folder)
    assert said in str(raised.value) and str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"custom_metadata": 3}'])
def test_metadata_that_cannot_be_read_is_damage(tmp_path: Path, content: bytes) -> None:
    folder = save(tmp_path, {1: None}) / "1"
    (folder / METADATA).write_bytes(content)
    with pytest.raises(InputError, match=r"^checkpoint \S+ is damaged "):
        read_info(folder)


def test_all_differences_to_another_model_are_listed(tmp_path: Path) -> None:
    folder = save(tmp_path, {1: None}) / "1"
    with pytest.raises(InputError) as raised:
        restore(folder, state(0, width=4), make_mesh(1))
    assert f"checkpoint {folder} is of another model than the config describes: " in str(raised.value)
    for part in ("layer.0.kernel has shape (2, 3) instead of (2, 4)", "optimizer.mu has shape (3,) instead of (4,)"):
        assert part in str(raised.value)


def test_model_of_a_run_is_the_moving_average(reference: Path) -> None:
    loaded = load_model(reference)
    arrays = saved_arrays(reference / FOLDER / "6")
    for name, array in named_arrays(jax.tree.map(np.asarray, nnx.as_pure(nnx.state(loaded.model)))).items():
        np.testing.assert_array_equal(array, arrays[f"ema/{name}"])
    assert loaded.step == 6 and loaded.config.train.ema_decay == 0.5
    assert to_dict(loaded.config) == loaded.info["config"]
    assert loaded.info["model"] == "spn" and loaded.info["teacher"]["channels"] == {"1": 5, "2": 3, "3": 7}


@pytest.mark.parametrize(("given", "computed_in"), [(None, "bfloat16"), (np.float32, "float32"), ("float16", "float16")])
def test_a_model_computes_in_the_run_s_type_unless_told_otherwise(tmp_path: Path, given: Any, computed_in: str) -> None:
    config = tiny("train.compute_dtype=bfloat16")
    info = {"config": to_dict(config), "teacher": {"channels": {str(level): count for level, count in CHANNELS.items()}}}
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, new_state(config)[1], info, None)
        checkpoints.wait()
    loaded = load_model(tmp_path, given)
    assert loaded.model.generator.output.dtype == jnp.dtype(computed_in)
    assert {array.dtype for array in named_arrays(loaded.model).values()} == {jnp.dtype("float32")}
