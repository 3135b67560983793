"""What a run that starts finds in its folder: the same run, another one, or parameters to begin
with. No process is started.
"""

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import Checkpoints, find_checkpoint
from spn_jax.config import load_config
from spn_jax.errors import InputError
from spn_jax.settings import to_dict
from spn_jax.training.resume import (
    HEADS,
    check_same_run,
    digest,
    final_learning_rate,
    find_beginning,
    head_names,
    initialise_from,
)
from spn_jax.training.state import TrainState, build_networks, create_state, resolve_schedule
from tests.checkpoints.test_store import spoil
from tests.tiny import CHANNELS, CONFIG_FILE, tiny

CONFIG = tiny()
INFO: dict[str, Any] = {
    "model": "spn",
    "config": to_dict(CONFIG),
    "teacher": {"channels": {str(level): count for level, count in CHANNELS.items()}, "origin": "random", "identity": "abc"},
    "vgg": "vgg19.npz, sha256 abc",
    "data": {"photos": "12 (a)", "masks": "3 (b)", "photo files": "c", "mask files": "d"},
}


@functools.cache
def new(*overrides: str, has_heads: bool = True) -> TrainState:
    """The state of a new run; nothing here changes it."""
    config = tiny(*overrides)
    return create_state(config, resolve_schedule(config, 10), *build_networks(config, CHANNELS if has_heads else {}))[1]


def save(folder: Path, step: int, state: Any, **changes: Any) -> Path:
    with Checkpoints(folder, 3, 0) as checkpoints:
        checkpoints.save(step, state, {**INFO, **changes}, None)
        checkpoints.wait()
    return folder / "checkpoints" / str(step)


def test_a_digest_tells_number_names_and_order() -> None:
    assert digest(["a", "b"]).startswith("2 (") and digest(["x"] * 1200).startswith("1,200 (")
    assert len(digest(["a"]).partition("(")[2]) == 13
    assert len({digest(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}) == 5


def test_the_beginning_is_the_newest_checkpoint_and_whether_its_scores_are_in_the_log(tmp_path: Path) -> None:
    assert find_beginning(tmp_path) == (None, False)
    state = new()
    for step in 2, 10:
        save(tmp_path, step, state)
    assert find_beginning(tmp_path) == (tmp_path / "checkpoints" / "10", False)
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"step": 2, "eval/psnr": 20.0}) + "\n")
    assert not find_beginning(tmp_path).is_evaluated
    log.write_text(log.read_text() + json.dumps({"step": 10, "eval/psnr": 20.0}) + "\n")
    assert find_beginning(tmp_path).is_evaluated


def test_processes_that_see_different_checkpoints_begin_where_the_first_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1's file system has not shown it the newest checkpoint yet, nor its scores."""
    here, there = tmp_path / "seen by 0", tmp_path / "seen by 1"
    state = new()
    for step in 2, 10:
        save(here, step, state)
    (here / "metrics.jsonl").write_text(json.dumps({"step": 10, "eval/psnr": 20.0}) + "\n")
    save(there, 2, state)
    sent: list[np.ndarray] = []

    def broadcast(view: np.ndarray) -> np.ndarray:
        sent.append(view)
        return sent[0]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    assert find_beginning(here) == (here / "checkpoints" / "10", True)
    assert find_beginning(there) == (there / "checkpoints" / "10", True)
    assert len(sent) == 2  # every process takes part


def test_the_same_run_goes_on_and_so_do_those_whose_checkpoints_say_less(tmp_path: Path) -> None:
    check_same_run(INFO, INFO, CONFIG, tmp_path)
    check_same_run({name: value for name, value in INFO.items() if name != "data"}, INFO, CONFIG, tmp_path)
    check_same_run({**INFO, "data": {"photos": "12 (a)", "masks": "3 (b)"}}, INFO, CONFIG, tmp_path)
    check_same_run({**INFO, "vgg": "elsewhere/vgg19.npz, sha256 abc"}, INFO, CONFIG, tmp_path)
    check_same_run({**INFO, "teacher": {**INFO["teacher"], "origin": "another name of it"}}, INFO, CONFIG, tmp_path)
    without = {**INFO, "vgg": None}
    check_same_run({name: value for name, value in without.items() if name != "vgg"}, without, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("config", "optimizer", "learning_rate"), 0.5, "optimizer.learning_rate: 0.5 -> "),
        (("teacher", "identity"), "other", "teacher: {"),
        (("teacher", "channels"), {"1": 9}, "teacher: {"),
        (("vgg",), None, "weights of VGG19: None -> vgg19.npz"),
        (("vgg",), "vgg19.npz, sha256 other", "weights of VGG19: vgg19.npz, sha256 other -> vgg19.npz"),
        (("data", "photos"), "11 (x)", "training photos: 11 (x) -> 12 (a)"),
        (("data", "mask files"), "x", "training mask files: x -> d"),
        (("converted_from",), "a.pt", "holds a converted checkpoint, which has nothing to continue; choose another --workdir"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, place: tuple[str, ...], value: Any, said: str) -> None:
    stored = copy.deepcopy(INFO)
    inner = stored
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(InputError) as raised:
        check_same_run(stored, INFO, CONFIG, tmp_path)
    assert said in str(raised.value) and str(raised.value).startswith(str(tmp_path)) and str(raised.value).count("->") <= 1


@pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (1, 1.0), (4, 1.0), (5, 0.1), (6, 0.1)])
def test_the_learning_rate_that_a_run_ended_with_is_that_of_its_last_step(tmp_path: Path, step: int, rate: float) -> None:
    """configs/tiny.py divides it by ten after step 4."""
    folder = save(tmp_path, step, new())
    assert final_learning_rate(folder) == pytest.approx(rate * CONFIG.optimizer.learning_rate)


def test_epochs_are_counted_by_the_photos_of_the_run_that_has_ended(tmp_path: Path) -> None:
    config = tiny("schedule.unit=epochs", "schedule.learning_rate_drops=1")
    # 1, 2 and 300 steps are an epoch
    for photos, dropped in (("2 (a)", True), ("8 (a)", True), ("1,200 (a)", False)):
        folder = save(tmp_path / photos[0:2], 5, new(), config=to_dict(config), data={"photos": photos})
        expected = CONFIG.optimizer.learning_rate * (0.1 if dropped else 1)
        assert final_learning_rate(folder) == pytest.approx(expected)


def test_the_shipped_model_tells_the_learning_rate_that_it_ended_with(told: list[str]) -> None:
    """0.0007, dropped twice by 0.3; the file has no number of photos and no step in its name. The
    demo goes on at this rate."""
    file = find_checkpoint("pretrained:open_scenes")
    assert final_learning_rate(file) == pytest.approx(0.0007 * 0.3**2)
    demo = load_config(CONFIG_FILE.with_name("demo.py"))
    assert demo.optimizer.learning_rate == pytest.approx(0.0007 * 0.3**2)


WITHOUT_PHOTOS = {"config": to_dict(tiny("schedule.unit=epochs")), "data": {}}


@pytest.mark.parametrize("changes", [{"converted_from": "a.pt"}, WITHOUT_PHOTOS, {"config": {"model": {"of another version": 1}}}])
def test_a_checkpoint_may_tell_no_learning_rate(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save(tmp_path, 3, new())
    assert final_learning_rate(folder) is not None
    spoil(folder, **changes)
    assert final_learning_rate(folder) is None


@pytest.fixture
def told() -> list[str]:
    return []


def start(path: Path, said: list[str], *overrides: str, rate: float = 1e-9, has_heads: bool = True) -> tuple[TrainState, TrainState]:
    """The state of a new run before and after it takes over what a checkpoint has."""
    state = new("train.seed=7", *overrides, has_heads=has_heads)
    return state, initialise_from(state, str(path), rate, said.append)


def same(ours: Any, theirs: Any) -> bool:
    ours, theirs = named_arrays(ours), named_arrays(theirs)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_starts_with_all_parameters_of_another(tmp_path: Path, told: list[str]) -> None:
    other = new()
    folder = save(tmp_path, 3, other)
    before, after = start(folder, told, "train.ema_decay=0.5")
    assert not same(before.model, other.model)
    assert same(after.model, other.model) and same(after.ema, other.model)
    assert same(after.discriminator, other.discriminator) and same(after.spectral, other.spectral)
    assert int(after.step) == 0 and told == [f"starts from the parameters of {folder}"]
    assert start(folder, [])[1].ema is None


@pytest.mark.parametrize(("factor", "is_told"), [(0.5, False), (1.0, False), (1.0005, False), (1.01, True), (3.0, True)])
def test_a_higher_learning_rate_is_told(tmp_path: Path, told: list[str], factor: float, is_told: bool) -> None:
    folder = save(tmp_path, 3, new())
    start(folder, told, rate=factor * CONFIG.optimizer.learning_rate)
    assert [text.startswith("warning: the learning rate") for text in told[1:]] == [True] * is_told


def test_heads_of_another_teacher_start_anew(tmp_path: Path, told: list[str]) -> None:
    other = new()
    folder = save(tmp_path, 3, other)
    assert head_names(folder) == sorted(name for name in named_arrays(other.model) if name.startswith(HEADS))
    before, after = start(folder, told, has_heads=False)
    assert not any(name.startswith(HEADS) for name in named_arrays(after.model))
    assert told[1].startswith(f"these of its distillation heads do not fit this run and are left out: {HEADS}0.bias, {HEADS}0.kernel")
    told.clear()
    other = new(has_heads=False)
    before, after = start(save(tmp_path / "without", 3, other), told)
    heads = {name: array for name, array in named_arrays(after.model).items() if name.startswith(HEADS)}
    assert heads and all(np.array_equal(array, named_arrays(before.model)[name]) for name, array in heads.items())
    assert told[1].startswith(f"these of this run's start anew: {HEADS}0.") and len(told) == 2


def test_a_discriminator_of_another_kind_starts_anew(tmp_path: Path, told: list[str]) -> None:
    other = new("model.discriminator=instance_norm")
    before, after = start(save(tmp_path, 3, other), told)
    assert same(after.discriminator, before.discriminator) and same(after.model, other.model)
    assert told[1:] == ["the discriminator starts anew: the checkpoint has another kind"]


def test_parameters_of_a_run_that_diverged_are_refused(tmp_path: Path, told: list[str]) -> None:
    other = dataclasses.replace(new(), model=jax.tree.map(lambda array: array * jnp.nan, new().model))
    with pytest.raises(InputError, match="holds parameters that are not finite, its training diverged; pass an earlier one with --init"):
        start(save(tmp_path, 3, other), told)
