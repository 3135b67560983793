"""Computes a model's priors, generator features and head predictions, between input and result."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spn_jax.config import EvalConfig
from spn_jax.evaluation.methods import ModelMethod
from spn_jax.evaluation.session import Evaluation
from spn_jax.filling.completion import check_samples, composite, draw_noise, quantise
from spn_jax.models.spn import SPN
from spn_jax.views.subjects import chosen, load_pictures, only_model, open_subjects

Maps = dict[int, np.ndarray]  # {level: map}


class Inside(NamedTuple):
    """The maps of n photos and s completions of each, in float32."""

    completed: np.ndarray  # uint8 (n, s, P, P, 3), with the photo's own known pixels
    encoded: np.ndarray  # F_enc (n, P/4, P/4, c)
    refined: np.ndarray  # F_dec of the first completion, (n, P/4, P/4, c)
    prior: Maps  # {l: (n, s, h, w, c)}
    # the heads' predictions of the teacher's maps for the first completion, {l: (n, h, w, c)}
    distilled: Maps


@functools.partial(jax.jit, static_argnames="settings")
def _look_inside(model: SPN, image: jax.Array, mask: jax.Array, numbers: jax.Array, settings: EvalConfig) -> Inside:
    noise = draw_noise(model, settings.seed % 2**32, numbers, jnp.arange(settings.samples), *image.shape[1:3])
    with jax.default_matmul_precision("highest"):
        encoding = model.encode(image.astype(jnp.float32) / 255, mask.astype(jnp.float32))
        output = model.decode(encoding, noise)
        first = {level: prior[:, 0] for level, prior in output.prior.items()}
        refined = model.generator.refine(encoding.features, first)
    predictions = quantise(output.image, settings.quantise).astype(jnp.uint8)
    completed = composite(predictions, image[:, None], mask[:, None])
    distilled = {level: maps[:, 0] for level, maps in output.distilled.items()}
    maps = jax.tree.map(lambda x: x.astype(jnp.float32), (encoding.features, refined, output.prior, distilled))
    arrays: tuple[Any, ...] = (completed, *maps)
    return Inside(*arrays)


def several_completions(options: argparse.Namespace) -> tuple[Evaluation, ModelMethod, np.ndarray, np.ndarray, Inside]:
    """Opens what the options name: the evaluation, its one probabilistic model, and `look_inside`
    of the chosen photos.

    Raises:
        InputError: something does not fit, or the model has no samples.
    """
    evaluation = open_subjects(options)
    method = only_model(evaluation)
    check_samples(max(2, method.settings.samples), method.loaded.config)
    return evaluation, method, *look_inside(evaluation, method, chosen(options, len(evaluation.photos)))


def look_inside(evaluation: Evaluation, method: ModelMethod, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray, Inside]:
    """Returns photos (n, P, P, 3), masks (n, P, P, 1) and what the model computes for them, with an
    evaluation's noise.
    """
    images, masks = load_pictures(evaluation, numbers)
    size = method.settings.batch_size
    parts = []
    for start in range(0, len(numbers), size):
        rows = slice(start, start + size)
        part = _look_inside(method.loaded.model, images[rows], masks[rows], np.asarray(numbers[rows], np.int32), method.settings)
        parts.append(jax.tree.map(np.asarray, part))
    return images, masks, jax.tree.map(lambda *of_parts: np.concatenate(of_parts), *parts)
