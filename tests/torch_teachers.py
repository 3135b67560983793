"""What tests of teachers share: TResNet-L in several guises, photos, and the settings of a small
export.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from spn_jax.config import Config, apply_overrides
from teacher_export.frameworks import torch
from teacher_export.teachers import Teacher, load_teacher
from tests import parity_fill

GOLDEN = Path(__file__).resolve().parent / "golden"
SIZE = 32


def teacher(*settings: str, weights: str | None = None, size: int = SIZE) -> Teacher:
    """The teacher that these overrides of `teacher.` describe."""
    return load_teacher(apply_overrides(Config(), [f"teacher.{setting}" for setting in settings]).teacher, weights, "cpu", size)


def tresnet(weights: str, seed: int = 0) -> Teacher:
    return teacher(f"seed={seed}", weights=weights)


def asl_trunk() -> dict[str, torch.Tensor]:
    """The trunk in the names and shapes of the ASL file, with the values that the golden features
    were computed from.
    """
    layout = json.loads((GOLDEN / "teacher_state_dict.json").read_text())
    return {name: torch.from_numpy(parity_fill.weight(name, shape)) for name, shape in layout}


def asl_file(path: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None) -> str:
    """A file laid out like the ASL release: the tensors under "model", with the later layers and
    the head.
    """
    tensors = asl_trunk()
    for name in ("body.layer3.0.conv1.0.weight", "body.layer4.0.conv1.0.weight", "head.fc.weight"):
        tensors[name] = torch.zeros(2, 2)
    change(tensors)
    torch.save({"model": tensors}, path)
    return str(path)


def write_photos(folder: Path, count: int) -> str:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40 + index % 3, 50, 3), np.uint8)).save(folder / f"{index:03d}.png")
    return str(folder)


def export_settings(folder: Path, *settings: str, photos: int = 5) -> Config:
    """`photos` photos at P = 32, two a shard."""
    source = write_photos(folder / "photos", photos)
    fixed = ["data.image_size=32", "data.threads=2", "teacher.records_per_shard=4", "teacher.batch_size=2"]
    return apply_overrides(Config(), [*fixed, f"data.train_photos={source}", f"teacher.cache={folder / 'cache'}", *settings])
