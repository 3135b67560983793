"""Compares a model with OpenCV in whole photos, by the PSNR inside holes of three kinds.

    python scripts/compare_on_photos.py --photos data/open_scenes/test --output runs/photos

The kinds are scratches (lines 2 to 5 pixels wide across the photo), objects (three blobs of 60 to
200 pixels) and border (two such blobs whose middle lies on the photo's edge). The holes follow from
the seed and the photo's number. The model fills as `python -m spn_jax.predict` does, at any size.
The output has results.md, with the share of photos on which the model is ahead, and a picture of
each photo and kind, cut out around a hole: photo with hole, the model, Telea, Navier-Stokes, truth.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from spn_jax.data.images import open_photos
from spn_jax.errors import InputError, run_command
from spn_jax.evaluation.baselines import find_baseline
from spn_jax.pretrained.catalogue import CHECKPOINT_HELP, DEFAULT
from spn_jax.runtime.files import write_atomically

if TYPE_CHECKING:
    from spn_jax import Inpainter

OPENCV = ("opencv-telea", "opencv-ns")
CUT = 256  # side of the pictures in pixels


def scratches(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws six bent lines from edge to edge: uint8 (h, w), 1 = hole."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(6):
        along, across = (height, width) if random.random() < 0.7 else (width, height)
        places = np.linspace(0, along - 1, 5)
        drift = random.uniform(0, across) + np.cumsum(random.normal(0, across / 25, 5))
        line = np.stack([drift, places] if along == height else [places, drift], -1)
        cv2.polylines(mask, [np.rint(line).astype(np.int32)], False, 1, int(random.integers(2, 6)))
    return mask


def blob(random: np.random.Generator, mask: np.ndarray, centre: tuple[float, float]) -> None:
    """Adds a closed curve of 60 to 200 pixels around a point (x, y)."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    wobble = 1 + sum(random.uniform(-0.2, 0.2) / k * np.sin(k * angles + random.uniform(0, 6.3)) for k in (2, 3, 4))
    sides = random.uniform(30, 100, 2)
    curve = np.stack([centre[0] + sides[0] * wobble * np.cos(angles), centre[1] + sides[1] * wobble * np.sin(angles)], -1)
    cv2.fillPoly(mask, [np.rint(curve).astype(np.int32)], 1)


def objects(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws three blobs inside the photo: uint8 (h, w), 1 = hole."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(3):
        blob(random, mask, (random.uniform(130, width - 130), random.uniform(130, height - 130)))
    return mask


def border(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws two blobs that the photo's edge cuts: uint8 (h, w), 1 = hole."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(2):
        x, y = random.uniform(0, width), random.uniform(0, height)
        centres = ((0, y), (width - 1, y), (x, 0), (x, height - 1))
        blob(random, mask, centres[random.integers(4)])
    return mask


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {"scratches": scratches, "objects": objects, "border": border}


def hole_psnr(filled: np.ndarray, photo: np.ndarray, mask: np.ndarray) -> float:
    """Returns the PSNR in dB over the pixels of the hole alone."""
    difference = filled[mask > 0].astype(float) - photo[mask > 0]
    return float(10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-10)))


def cut_out(pictures: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Cuts out the surroundings of the hole's largest part in each picture, side by side."""
    count, _, boxes, centres = cv2.connectedComponentsWithStats(mask)
    part = 1 + int(np.argmax(boxes[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    height, width = mask.shape
    rows, columns = min(CUT, height), min(CUT, width)
    left = int(np.clip(centres[part][0] - columns / 2, 0, width - columns))
    top = int(np.clip(centres[part][1] - rows / 2, 0, height - rows))
    gap = np.full((rows, 4, 3), 255, np.uint8)
    strips = [strip for picture in pictures for strip in (picture[top : top + rows, left : left + columns], gap)]
    return np.concatenate(strips[:-1], axis=1)


def compare(inpainter: "Inpainter", photos: Path, kinds: Sequence[str], output: Path, seed: int, limit: int | None) -> str:
    """Fills the holes, writes the pictures and returns the report. Raises InputError if there are
    no photos, or one is smaller than 300 pixels.
    """
    source = open_photos(str(photos), "--photos")
    names = source.names[:limit]
    scores: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for (number, name), kind in itertools.product(enumerate(names), kinds):
        photo = source.load(number)
        if min(photo.shape[:2]) < 300:
            raise InputError(f"{source.describe(number)} has {photo.shape[1]} x {photo.shape[0]} pixels, and needs 300 on each side")
        mask = KINDS[kind](np.random.default_rng((seed, number, list(KINDS).index(kind))), *photo.shape[:2])
        filled = {"model": inpainter(photo, 255 * mask)[0]}
        filled |= {method: find_baseline(method)(photo, mask[..., None]) for method in OPENCV}
        scores[kind].append({method: hole_psnr(picture, photo, mask) for method, picture in filled.items()})
        holed = np.where(mask[..., None] > 0, np.uint8(255), photo)
        picture = cut_out([holed, *filled.values(), photo], mask)
        target = output / "pictures" / f"{kind}_{Path(name).stem.replace('@', '_')}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target, quality=92)
        print(f"{number + 1}/{len(names)} {name}, {kind}: {report_of(scores[kind][-1])}", flush=True)
    return report(scores)


def report_of(row: dict[str, float]) -> str:
    return ", ".join(f"{method} {value:.2f} dB" for method, value in row.items())


def report(scores: dict[str, list[dict[str, float]]]) -> str:
    """Returns means by kind, and on how many photos the model is ahead, as a Markdown table."""
    lines = [
        "| holes | photos | model | Telea | Navier-Stokes | ahead of Telea | ahead of Navier-Stokes |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rows in scores.items():
        means = [np.mean([row[method] for row in rows]) for method in ("model", *OPENCV)]
        ahead = [np.mean([row["model"] > row[method] for row in rows]) for method in OPENCV]
        cells = [kind, str(len(rows)), *(f"{mean:.2f} dB" for mean in means), *(f"{share:.0%}" for share in ahead)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nMean PSNR inside the hole, over photos.\n"


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder, list or ArrayRecord files with photos of any size")
    parser.add_argument("--checkpoint", default=DEFAULT, help=CHECKPOINT_HELP)
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="of holes; repeatable (default: all)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N photos alone")
    parser.add_argument("--seed", type=int, default=0, help="of the holes (default 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.md and pictures/")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit} must be at least 1")

    from spn_jax.filling.inpainter import Inpainter  # not before the options are read: JAX takes seconds
    from spn_jax.runtime.device import keep_compiled_programs

    keep_compiled_programs()
    inpainter = Inpainter.load(options.checkpoint)
    text = compare(inpainter, options.photos, options.kind or tuple(KINDS), options.output, options.seed, options.limit)
    write_atomically(options.output / "results.md", text)
    print(text)


if __name__ == "__main__":
    run_command(main)
