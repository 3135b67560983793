"""Draws pictures and evaluates on the held-out photos during training."""

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
    """States what is due before the next step, with the state after the steps so far."""

    evaluation: bool = False
    picture: bool = False
    checkpoint: bool = False


def due_at(step: int, steps: int, train: TrainConfig) -> Due:
    """Returns what is due at `step`: each item at its interval in the settings, and all after the
    last of `steps`. Every evaluation has a checkpoint.
    """

    def is_time(every: int) -> bool:
        return step == steps or step % every == 0

    evaluation = is_time(train.eval_every)
    return Due(evaluation=evaluation, picture=is_time(train.image_every), checkpoint=evaluation or is_time(train.checkpoint_every))


def due_at_start(step: int, steps: int, train: TrainConfig, *, is_evaluated: bool, is_initialised: bool) -> Due:
    """Returns what is due before a process's first step: only an evaluation that is missing because
    an earlier process was stopped before it.

    A new run that starts from another's parameters is evaluated before it changes them.
    """
    if step == 0:
        return Due(evaluation=is_initialised)
    is_missing = due_at(step, steps, train).evaluation and not is_evaluated
    return Due(evaluation=is_missing, checkpoint=is_missing)


class EvaluationGivenUp(Exception):
    """Raised when a signal to stop comes during an evaluation."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Evaluates a run on the held-out photos and writes the scores to its log."""

    config: Config
    mesh: Mesh
    data: Data
    log: MetricsLog | None  # None in all processes but the first
    say: Say
    stop: Stop

    def draw_if_due(self, step: int, due: Due, model: SPN) -> None:
        """Draws the picture of some completions if it is due at `step`."""
        if due.picture:
            grid = sample_grid(model, self.batches(PICTURES), self.mesh, self.config)
            if self.log:
                self.log.write_image(step, "eval/samples", grid)

    def evaluate_if_due(self, step: int, due: Due, model: SPN) -> dict[str, float] | None:
        """Evaluates if it is due at `step`; logs and returns the scores.

        A signal to stop ends the evaluation without scores, and the next start repeats it. With
        several processes, which cannot agree in the middle, the evaluation is finished first.
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
        """Returns the number of each photo's mask."""
        return draw_pairs(len(self.data.test_photos), len(self.data.test_masks), self.config.eval.seed)

    def until_stopped(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the batches. Raises EvaluationGivenUp once a signal to stop came."""
        for batch in batches:
            if self.stop.came_here():
                raise EvaluationGivenUp
            yield batch

    def batches(self, limit: int | None) -> Iterator[dict[str, Any]]:
        """Yields batches of the first `limit` photos, each with the mask that config.eval.seed
        gives it.
        """
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
    """Returns the model for evaluations and pictures, replicated on every device: with the EMA's
    parameters where there is one.
    """
    return nnx.merge(graph.model, gather(state.model if state.ema is None else state.ema, mesh))
