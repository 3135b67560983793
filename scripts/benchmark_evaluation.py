"""Measures where an evaluation's time goes: decoding, model and metrics.

Each part is timed alone, so that the shares show which one limits the whole: in an evaluation,
reader threads decode while the devices compute. Without a checkpoint the model is a new one of
`configs/demo.py`, and photos and masks are drawn.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from spn_jax.checkpoints.store import load_model
from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.data.images import open_photos
from spn_jax.data.masks import draw_strokes, open_test_masks
from spn_jax.data.pipeline import evaluation_batches
from spn_jax.evaluation.pairs import draw_pairs
from spn_jax.evaluation.scoring import Detail, Networks, complete_batch, score_batch
from spn_jax.models.spn import SPN
from spn_jax.runtime.sharding import make_mesh, replicate, shard_batch

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = {1: 76, 2: 76, 3: 152}  # channels of TResNet-L's features
MASKS_DRAWN = 48


@dataclasses.dataclass
class Seconds:
    """Seconds of one part, over all photos."""

    wall: float = 0.0
    cpu: float = 0.0

    def of(self, work: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Adds the time that `work(*arguments, **settings)` takes, including pending computation of
        its arrays.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(work(*arguments, **settings))
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py evaluation`."""
    part.add_argument("--checkpoint", help="a run's work directory or one checkpoint; a fresh model of --config if not given")
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.py")
    part.add_argument("--photos", help="folder or list; drawn JPEG files of 256 x 256 pixels if not given")
    part.add_argument("--masks", help="folder, list or zip; drawn PNG files if not given")
    part.add_argument("--count", type=int, default=64, metavar="N", help="photos that are timed")
    part.add_argument("overrides", nargs="*", metavar="section.key=value")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="spn_jax-") as folder:
        return evaluation(options, Path(folder))


def evaluation(options: argparse.Namespace, folder: Path) -> str:
    """Returns the table of seconds a photo and shares, in Markdown."""
    config, model = load(options)
    photos = open_photos(options.photos or str(draw_photos(folder / "photos", options.count)), "--photos")
    masks_at = options.masks or str(draw_masks(folder / "masks", config.data.image_size))
    masks = open_test_masks(apply_overrides(config, [f"data.test_masks={masks_at}"]))
    mesh = make_mesh()
    batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size
    count = min(options.count, len(photos)) // batch_size * batch_size or min(options.count, len(photos))
    pairs = draw_pairs(len(photos), len(masks), 0)

    def batches() -> Iterator[dict[str, Any]]:
        return evaluation_batches(config, photos, masks, pairs, batch_size, limit=count)

    decoding, completing, scoring = (Seconds() for _ in range(3))
    loaded = decoding.of(lambda: list(batches()))
    model = replicate(model, mesh)
    for warm_up in (True, False):
        parts = (Seconds(), Seconds()) if warm_up else (completing, scoring)
        for batch in loaded[:1] if warm_up else loaded:
            on_devices = shard_batch({key: batch[key] for key in ("image", "mask", "index")}, mesh)
            output = parts[0].of(complete_batch, model, on_devices, settings=config.eval, detail=Detail.SCORES)
            scored = {key: on_devices[key] for key in ("image", "mask")} | {"completions": output["completions"]}
            parts[1].of(score_batch, Networks(), scored, mesh=mesh, detail=Detail.SCORES)
    title = f"{count} photos at {config.data.image_size} pixels, batches of {batch_size}, {jax.devices()[0].device_kind}"
    return report(title, {"decoding": decoding, "model": completing, "metrics": scoring}, count)


def load(options: argparse.Namespace) -> tuple[Config, Any]:
    """Loads settings and model."""
    if options.checkpoint is not None:
        loaded = load_model(options.checkpoint)
        return apply_overrides(loaded.config, options.overrides), loaded.model
    config = load_config(options.config, options.overrides)
    channels = {level: CHANNELS[level] for level in config.model.prior_levels}
    return config, SPN(config.model, channels, rng=np.random.default_rng(0))


def draw_photos(folder: Path, count: int) -> Path:
    """Draws JPEG files of 256 x 256 pixels, smooth with some grain, which decode like photos."""
    folder.mkdir()
    for i in range(count):
        random = np.random.default_rng(i)
        smooth = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (256, 256, 3))
        Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
    return folder


def draw_masks(folder: Path, size: int) -> Path:
    """Draws PNG files of strokes, of all hole ratios."""
    folder.mkdir()
    for i in range(MASKS_DRAWN):
        mask = draw_strokes(i * 12_000 // MASKS_DRAWN, size, 0)
        Image.fromarray(255 * mask[..., 0]).save(folder / f"{i:05d}.png")
    return folder


def report(title: str, parts: dict[str, Seconds], count: int) -> str:
    wall, cpu = (sum(getattr(part, kind) for part in parts.values()) for kind in ("wall", "cpu"))
    lines = [title, "", "| part | ms a photo | share | CPU ms a photo | share |", "|---|---|---|---|---|"]
    for name, part in parts.items():
        numbers = (1000 * part.wall / count, part.wall / wall, 1000 * part.cpu / count, part.cpu / cpu)
        lines.append("| {} | {:.2f} | {:.1%} | {:.2f} | {:.1%} |".format(name, *numbers))
    return "\n".join(lines)
