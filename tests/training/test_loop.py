"""The training loop keeps the devices at work: a step is started before anybody waits for the one
before it. And what it does before the first step, and when a step does not fit into the memory.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.config import load_config
from spn_jax.errors import InputError
from spn_jax.runtime.files import FolderLock
from spn_jax.training import loop
from spn_jax.training.state import TrainState
from tests.trainer import CONFIG_FILE, Inputs

Event = tuple[str, int]


class Pending:
    """A number that a device still computes: who wants to see it, waits."""

    def __init__(self, step: int, events: list[Event]):
        self._step, self._events = step, events

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._events.append(("waited for", self._step))
        return np.asarray(1.0, dtype)

    def block_until_ready(self) -> "Pending":
        self._events.append(("waited for", self._step))
        return self


def test_a_step_is_started_before_the_one_before_it_is_waited_for(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    wait = jax.block_until_ready

    def wait_and_tell(tree: Any) -> Any:
        if isinstance(tree, TrainState) or (isinstance(tree, tuple) and any(isinstance(part, TrainState) for part in tree)):
            events.append(("waited for the state of", sum(what == "started" for what, _ in events)))
        return wait(tree)

    def start_step(state: Any, frozen: Any, batch: Any) -> tuple[Any, dict[str, Pending]]:
        step = 1 + sum(what == "started" for what, _ in events)
        events.append(("started", step))
        return state, {"generator/loss": Pending(step, events)}

    monkeypatch.setattr(jax, "block_until_ready", wait_and_tell)
    monkeypatch.setattr(loop, "compile_train_step", lambda graph, mesh, sharding: start_step)
    for what in ("draw_if_due", "evaluate_if_due"):
        monkeypatch.setattr(loop.HeldOut, what, lambda *arguments: None)
    rare = [f"train.{what}_every=4" for what in ("eval", "image", "checkpoint")]
    arguments = inputs.arguments(tmp_path / "run")
    loop.train(load_config(CONFIG_FILE, [*arguments[4:], *rare]), tmp_path / "run")

    # the clock of steps/s begins where compilation ends
    first = [("started", 1), ("waited for", 1)]
    apart = [*first, *[event for step in (2, 3, 4) for event in (("started", step), ("waited for", step - 1))]]
    saved = ("waited for", 4)  # its line is on the disk before the checkpoint is
    assert events == [*apart, saved, ("started", 5), ("started", 6), ("waited for", 5), ("waited for", 6)]
    assert "step 6/6" in capsys.readouterr().out


class Reached(Exception):
    """The run came as far as a test looks."""


@pytest.mark.parametrize(("precision", "expected"), [("default", "DEFAULT"), ("highest", "HIGHEST")])
def test_a_step_is_traced_with_the_precision_of_the_settings(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, expected: str
) -> None:
    programs: list[str] = []

    def trace(*arguments: Any) -> None:
        programs.append(jax.jit(jnp.matmul).lower(np.ones((2, 2)), np.ones((2, 2))).as_text())
        raise Reached

    monkeypatch.setattr(loop, "compile_train_step", lambda graph, mesh, sharding: trace)
    arguments = inputs.arguments(tmp_path / "run", f"train.precision={precision}")
    with pytest.raises(Reached):
        loop.train(load_config(CONFIG_FILE, arguments[4:]), tmp_path / "run")
    assert f"precision = [{expected}, {expected}]" in programs[0]


def test_the_folder_is_locked_before_its_newest_checkpoint_is_looked_for(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(workdir: Path) -> None:
        with pytest.raises(InputError, match="taken already"), FolderLock(workdir, "taken already", "wait"):
            pass
        raise Reached

    monkeypatch.setattr(loop, "find_beginning", look)
    arguments = inputs.arguments(tmp_path / "run")
    with pytest.raises(Reached):
        loop.train(load_config(CONFIG_FILE, arguments[4:]), tmp_path / "run")


def test_a_step_that_does_not_fit_into_the_memory_ends_the_run_in_a_sentence(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(loop, "compile_train_step", lambda graph, mesh, sharding: fail)
    arguments = inputs.arguments(tmp_path / "run")
    with pytest.raises(InputError, match="^the training step did not fit into the memory of the devices; what helps"):
        loop.train(load_config(CONFIG_FILE, arguments[4:]), tmp_path / "run")
