"""Reports on a run: its first lines, metrics of steps, description files and non-finite values."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from flax import nnx
from jax.sharding import Mesh

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.config import Config, TrainConfig
from spn_jax.errors import InputError
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.log import MetricsLog, StepClock
from spn_jax.runtime.memory import is_out_of_memory
from spn_jax.settings import describe
from spn_jax.training.inputs import Data, DistillationTargets
from spn_jax.training.state import Metrics, TrainState

Say = Callable[[str], None]


def summary(
    config: Config, state: TrainState, mesh: Mesh, data: Data, distillation: DistillationTargets, steps: int, vgg_origin: str | None
) -> Iterator[str]:
    """Yields the first lines of a run: parameters by part, devices, sizes of the data."""
    for network, tree in ("", state.model), ("discriminator.", state.discriminator):
        counts: dict[str, int] = {}
        for name, array in named_arrays(tree).items():
            part = network + ".".join(name.split(".")[:2])
            counts[part] = counts.get(part, 0) + math.prod(array.shape)
        yield from (f"{part:42}{count:>14,} parameters" for part, count in counts.items())
        yield f"{'total ' + (network.rstrip('.') or 'prior learner and generator'):42}{sum(counts.values()):>14,} parameters"
    kind = jax.devices()[0].device_kind
    yield f"devices: {mesh.size} x {kind}, mesh data={mesh.size}, {jax.process_count()} process(es)"
    yield f"photos: {len(data.photos):,} for training, {len(data.test_photos):,} held out"
    yield f"masks: {len(data.masks):,} for training, {len(data.test_masks):,} held out"
    yield distillation.summary
    if vgg_origin:
        yield f"VGG19: weights {vgg_origin}"
    train = config.train
    completions = f", {train.samples} completions each," if train.samples > 1 else ""
    yield f"steps: {steps:,} of {train.batch_size} photos{completions} in {train.micro_batches} part(s), computed in {train.compute_dtype}"


def write_descriptions(workdir: Path, config: Config, parameters: nnx.State) -> None:
    """Writes the resolved settings and the table of parameters (arrays or their shapes) as text
    files.
    """
    table = parameter_overview.get_parameter_overview(named_arrays(parameters), include_stats=False)
    write_atomically(workdir / "parameters.txt", table + "\n")
    write_atomically(workdir / "config.txt", "\n".join(describe(config)) + "\n")


class StepReports:
    """Checks and logs the metrics of each step once the next one has been started."""

    def __init__(self, log_every: int, log: MetricsLog | None, clock: StepClock, say: Say):
        self._log_every, self._log, self._clock, self._say = log_every, log, clock, say
        self._pending: tuple[int, Metrics] | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that has just been started and reports the previous step's.
        Raises InputError as `flush` does.
        """
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reports the metrics that were added last, and waits for their step.

        Raises:
            InputError: a loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        stop_unless_finite(step, [name for name, value in values.items() if not math.isfinite(value)])
        if step % self._log_every == 0:
            if self._log:
                rate = self._clock.recent_rate(step)
                self._log.write(step, values | ({"time/steps_per_second": rate} if rate else {}))
            self._say(self._clock.line(step, values))


def stop_unless_finite(step: int, broken: Sequence[str]) -> None:
    """Raises InputError if any names of broken values are given."""
    if broken:
        raise InputError(
            f"at step {step} these values are not finite: {', '.join(broken)}; the last checkpoint is from before. "
            "Lower optimizer.learning_rate, or use train.compute_dtype=float32, and start the command again"
        )


def check_finite(step: int, state: TrainState) -> None:
    """Raises InputError for a state with values that are not finite, which must not be saved. A
    finite loss can have a gradient that is not finite.
    """
    finite = all_finite(
        {
            "parameters of the prior learner and generator": state.model,
            "parameters of the discriminator": state.discriminator,
            "Adam's moments of the prior learner and generator": state.model_optimizer,
            "Adam's moments of the discriminator": state.discriminator_optimizer,
        }
    )
    stop_unless_finite(step, [name for name, value in finite.items() if not value])


@contextlib.contextmanager
def out_of_memory_in_words(train: TrainConfig) -> Iterator[None]:
    """Turns an out-of-memory error of a step into an InputError that names the settings that
    help.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "the training step did not fit into the memory of the devices; what helps, with the present values: "
            f"more train.micro_batches ({train.micro_batches}), train.rematerialise=true ({str(train.rematerialise).lower()}), which a "
            f"run that is continued may change, too; in a new run train.compute_dtype=bfloat16 ({train.compute_dtype}) or a smaller "
            f"train.batch_size ({train.batch_size})"
        ) from error


@jax.jit
def all_finite(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns for each tree whether all of its numbers are finite."""
    return {name: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all() for name, tree in trees.items()}
