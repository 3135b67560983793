"""The training loop keeps the devices at work: a step is started before anybody waits for the one
before it. And what it does before the first step, and when a step does not fit into the memory.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spn_jax.config import load_config
from spn_jax.errors import InputError
from spn_jax.runtime.files import FolderLock
from spn_jax.training import loop
from spn_jax.training.state import TrainState
from tests import trainer
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


# Says, in the place of the first step, how many bytes the first device holds and how many of them
# are of the step's arguments and of the parameters, whole and as they are split.
HELD = """
import gc
import jax
from spn_jax import train
from spn_jax.errors import run_command
from spn_jax.training import loop

def held(arrays):
    shards = [shard for array in arrays for shard in array.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])

def step(*arguments):
    gc.collect()
    model = jax.tree.leaves(arguments[0].model)
    print("held", held(jax.live_arrays()), held(jax.tree.leaves(arguments)), sum(x.nbytes for x in model), held(model), flush=True)
    raise SystemExit(0)

loop.compile_train_step = lambda *arguments: step
run_command(train.main)
"""


def test_where_parameters_are_split_nothing_keeps_them_whole(inputs: Inputs, tmp_path: Path) -> None:
    split = inputs.arguments(tmp_path / "run", "train.shard_parameters=true")
    output, _ = trainer.run(split, devices=2, program=("-c", HELD))
    live, of_step, whole, part = map(int, output.splitlines()[-1].removeprefix("held ").split())
    assert part < 0.7 * whole
    assert live - of_step < 0.1 * whole
