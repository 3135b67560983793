"""A trained model as a teacher: its features depend neither on the machine nor on what it was
trained in, and it shares GPUs.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from spn_jax.checkpoints.store import Checkpoints, load_model
from spn_jax.settings import to_dict
from teacher_export.frameworks import torch
from teacher_export.teachers import priors
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that computed in bfloat16."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.tiny("train.compute_dtype=bfloat16")
    info = {"config": to_dict(config), "teacher": {"channels": {str(level): c for level, c in tiny.CHANNELS.items()}}}
    with Checkpoints(folder, 1, 0) as saved:
        saved.save(1, tiny.new_state(config)[1], info, None)
        saved.wait()
    return folder


def test_features_are_computed_in_float32(checkpoint: Path) -> None:
    photos = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    features = priors.load(str(checkpoint), None, 0, torch.device("cpu"), 32).forward(torch.from_numpy(photos))
    whole = np.ascontiguousarray(photos.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)).transpose(0, 2, 3, 1))
    exact = priors.pyramid(load_model(checkpoint, np.float32).model, whole)
    rounded = priors.pyramid(load_model(checkpoint).model, whole)
    for level, feature in zip(sorted(exact), features, strict=True):
        found = feature.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found, exact[level], rtol=1e-5, atol=1e-6)
        assert np.abs(found - np.asarray(rounded[level], np.float32)).max() > 1e-4


def test_every_convolution_has_the_highest_precision(checkpoint: Path) -> None:
    """Where the platform has TF32 or passes in bfloat16 they would be taken otherwise."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    lowered = priors.pyramid.trace(load_model(checkpoint, np.float32).model, image).lower(lowering_platforms=("cuda",)).as_text()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("HIGHEST" in line for line in convolutions)


@pytest.mark.parametrize(("device", "shown"), [("cuda:3", "3 None"), pytest.param("cpu", "all cpu", marks=pytest.mark.long)])
def test_jax_computes_where_torch_does_and_leaves_it_memory(device: str, shown: str) -> None:
    program = f"""
import os, jax
from teacher_export.frameworks import torch
from teacher_export.teachers.priors import share_device
jax.config.update("jax_platforms", None)
share_device(torch.device("{device}"))
values = jax.config.values
print(values["jax_cuda_visible_devices"], values["jax_platforms"], os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"])
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == f"{shown} false\n", process.stderr
