"""Loads `spn:CHECKPOINT`, a trained model's priors of the whole photo (the paper's Table 5)."""

import functools
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import load_model
from spn_jax.errors import InputError
from spn_jax.models.spn import SPN
from teacher_export.frameworks import torch
from teacher_export.teachers.interface import Extractor, refuse

HEADS = "distillation_heads."  # prefix of parameters that serve training alone


def load(folder: str, weights: str | None, seed: int, device: torch.device, image_size: int) -> Extractor:
    """Loads a model, which sees the photo at P (2 x 2 means of the teacher's view) without a hole.
    A probabilistic one uses its mean latent.

    It computes in float32 at the highest precision, whatever its training used, because features
    must not depend on the machine.

    Raises:
        InputError: there is no checkpoint, or P does not fit the model's stride.
    """
    refuse(weights, f"spn:{folder}", "the checkpoint has its own")
    share_device(device)
    loaded = load_model(folder, jnp.float32)
    model: SPN = loaded.model
    if image_size % model.stride:
        raise InputError(f"data.image_size={image_size} must be divisible by {model.stride}, the stride of the model in {folder}")
    levels = sorted(loaded.config.model.prior_levels)

    def forward(photos: torch.Tensor) -> list[torch.Tensor]:
        whole = torch.nn.functional.avg_pool2d(photos, 2).permute(0, 2, 3, 1).float().cpu().numpy()
        priors = pyramid(model, whole)
        return [torch.from_numpy(np.array(priors[level])).permute(0, 3, 1, 2).to(photos.device) for level in levels]

    return Extractor(
        forward=forward,
        names=tuple(f"prior_{level}" for level in levels),
        weights_origin=f"priors of {loaded.config.model.kind} {folder}",
        weights_sha256=parameters_sha256(model),
        model=model,
        parallel=True,
    )


def share_device(device: torch.device) -> None:
    """Makes JAX compute on torch's device, before it looks for devices, and leave torch its memory.

    By default every process would take three quarters of the memory of all the machine's GPUs and
    compute on the first.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        jax.config.update("jax_cuda_visible_devices", str(number))
    elif not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")


@functools.partial(jax.jit)
def pyramid(model: SPN, image: jax.Array) -> dict[int, Any]:
    """Returns {level: (b, h, w, c)} of whole photos (b, P, P, 3)."""
    mask = jnp.zeros((*image.shape[:3], 1), image.dtype)
    noise = jnp.zeros((len(image), 1, *model.noise_shape(*image.shape[1:3]))) if model.variational else None
    # features must not depend on the machine
    with jax.default_matmul_precision("highest"):
        return {level: prior[:, 0] for level, prior in model(image, mask, noise).prior.items()}


def parameters_sha256(model: SPN) -> str:
    """Returns the SHA-256 of the prior learner's parameters without the heads: names, shapes and
    values.
    """
    digest = hashlib.sha256()
    for name, array in sorted(named_arrays(nnx.as_pure(nnx.state(model.prior_learner))).items()):
        if not name.startswith(HEADS):
            digest.update(f"{name} {array.shape}\n".encode() + np.asarray(array, "<f4").tobytes())
    return digest.hexdigest()
