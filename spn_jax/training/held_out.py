"""Pictures and evaluations of the held-out photos during training."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spn_jax.config import Config, TrainConfig
from spn_jax.data.pipeline import evaluation_batches
from spn_jax.evaluation.gallery import sample_grid
from spn_jax.evaluation.pairs import draw_pairs
from spn_jax.evaluation.scoring import evaluate_model, summarise
from spn_jax.models.spn import SPN
from spn_jax.runtime.log import MetricsLog
from spn_jax.runtime.sharding import gather
from spn_jax.training.inputs import Data
from spn_jax.training.processes import Stop
from spn_jax.training.reports import Say
from spn_jax.training.state import StepGraph, TrainState

PICTURES = 8  # photos in the grids that training draws
SCORES_SHOWN = ("eval/psnr", "eval/ssim", "eval/mae")


@dataclasses.dataclass(frozen=True)
class Due:
    """What there is to do before the next step, with the state that the steps so far have made."""

    evaluation: bool = False
    picture: bool = False
    checkpoint: bool = False


def due_at(step: int, steps: int, train: TrainConfig) -> Due:
    """Every so many steps, as the settings say, and all of it after the last of `steps`; every
    evaluation has its checkpoint.
    """

    def is_time(every: int) -> bool:
        return step == steps or step % every == 0

    evaluation = is_time(train.eval_every)
    return Due(evaluation=evaluation, picture=is_time(train.image_every), checkpoint=evaluation or is_time(train.checkpoint_every))


def due_at_start(step: int, steps: int, train: TrainConfig, *, is_evaluated: bool, is_initialised: bool) -> Due:
    """What there is to do before a process's first step: an evaluation that an earlier process was
    stopped before, and no more.

    A new run that starts from another's parameters is scored before it changes them.
    """
    if step == 0:
        return Due(evaluation=is_initialised)
    is_missing = due_at(step, steps, train).evaluation and not is_evaluated
    return Due(evaluation=is_missing, checkpoint=is_missing)


class EvaluationGivenUp(Exception):
    """A signal to stop came during an evaluation."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The photos that the run is evaluated on, and where the scores go."""

    config: Config
    mesh: Mesh
    data: Data
    log: MetricsLog | None  # None in all processes but the first
    say: Say
    stop: Stop

    def draw_if_due(self, step: int, due: Due, model: SPN) -> None:
        """Draws the picture of some completions that is due at `step`."""
        if due.picture:
            grid = sample_grid(model, self.batches(PICTURES), self.mesh, self.config)
            if self.log:
                self.log.write_image(step, "eval/samples", grid)

    def evaluate_if_due(self, step: int, due: Due, model: SPN) -> dict[str, float] | None:
        """The scores of the evaluation that is due at `step`, which are logged.

        SIGTERM must not wait for an evaluation: it is given up, there are no scores, and the next
        start makes up for it.
        """
        if not due.evaluation:
            return None
        try:
            batches = self.until_stopped(self.batches(self.config.eval.photos))
            records = evaluate_model(model, batches, self.mesh, self.config, self.data.test_masks.tenths(self.pairs))
        except EvaluationGivenUp:
            return None
        scores = summarise(records)
        self.say(f"step {step}  evaluation  " + "  ".join(f"{name} {scores[name]:.4g}" for name in SCORES_SHOWN))
        if self.log:
            self.log.write(step, scores)
        return scores

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        """The number of each photo's mask."""
        return draw_pairs(len(self.data.test_photos), len(self.data.test_masks), self.config.eval.seed)

    def until_stopped(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches; EvaluationGivenUp once a signal to stop came."""
        for batch in batches:
            if self.stop.came_here():
                raise EvaluationGivenUp
            yield batch

    def batches(self, limit: int | None) -> Iterator[dict[str, Any]]:
        """The first `limit` photos, each with the mask that config.eval.seed gives it."""
        return evaluation_batches(
            self.config,
            self.data.test_photos,
            self.data.test_masks,
            self.pairs,
            self.config.eval.batch_size,
            limit=limit,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def evaluated_model(graph: StepGraph, state: TrainState, mesh: Mesh) -> SPN:
    """The model that evaluations and pictures use, whole on every device: the moving average where
    there is one.
    """
    return nnx.merge(graph.model, gather(state.model if state.ema is None else state.ema, mesh))
