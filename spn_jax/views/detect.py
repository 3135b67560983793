"""Shows what a detector found in the results of several methods (the paper's Fig. 4)."""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spn_jax.data.images import decode_photo
from spn_jax.drawing import figures
from spn_jax.drawing.sheet import Cell, Key, Row, sheet, swatch
from spn_jax.errors import InputError

FORMAT = 1
OTHER = np.array([120, 120, 120], np.uint8)  # colour of labels beyond the palette's
SIDE = 256  # smallest side in pixels of a picture on the page, so that labels can be read
COLOURS = figures.PALETTE[[4, 5, 2, 6, 0, 1, 3]]
MAKE = "python -m teacher_export.detect --images NAME=DIR --output boxes.json"


@dataclasses.dataclass(frozen=True)
class Box:
    """A detected object."""

    corners: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture
    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class Detections:
    """The content of a file that `teacher_export.detect` wrote."""

    detector: str
    weights: str
    threshold: float
    folders: dict[str, Path]  # {method: folder of its pictures}
    found: dict[str, dict[str, list[Box]]]  # {method: {picture: boxes}}


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add("--boxes", type=Path, required=True, metavar="FILE.json", help=f"of `{MAKE}`")
    add("--images", action="append", default=[], metavar="NAME=DIR", help="where a method's pictures lie now, if elsewhere than then")
    add(
        "--count",
        type=int,
        default=4,
        metavar="N",
        help="pictures of each method, evenly chosen from those with anything found (default 4)",
    )


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws a row for each picture, and a column for each method, with the boxes that
    `teacher_export.detect` wrote.
    """
    from spn_jax.evaluation.methods import named

    if options.count < 1:
        raise InputError(f"--count {options.count} must be at least 1")
    detections = read_detections(options.boxes)
    folders = detections.folders | {name: Path(folder) for name, folder in (named(text, "--images") for text in options.images)}
    if unknown := sorted(folders.keys() - detections.found.keys()):
        raise InputError(f"--images {unknown[0]}: {options.boxes} has the methods {', '.join(detections.found)}")
    shown = pictures_shown(detections, options.count)
    colours = colours_of(box.label for of_method in detections.found.values() for name in shown for box in of_method[name])
    rows = []
    for name in shown:
        cells = []
        for method, of_method in detections.found.items():
            file = folders[method] / name
            if not file.is_file():
                raise InputError(f"{file} is not there; say where the pictures of {method} lie with --images {method}=DIR")
            boxes = of_method[name]
            best = max((box.score for box in boxes), default=0.0)
            note = f"{len(boxes)} found, the surest {best:.2f}" if boxes else "nothing found"
            cells.append(Cell(draw_boxes(decode_photo(file, str(file)), boxes, colours), note))
        rows.append(Row(cells))
    text = (
        f"Found by torchvision's {detections.detector} (weights: {detections.weights}) with a score of at least {detections.threshold:g}. "
        "A label has the same colour in all pictures."
    )
    legend = [Key(swatch(colour), label) for label, colour in colours.items()]
    return sheet(rows, list(detections.found), text, legend)


def read_detections(path: Path) -> Detections:
    """Reads a file of `teacher_export.detect`. Raises InputError if it is another file or
    damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"--boxes {path} has format {content['format']}, this version reads {FORMAT}; make it again with `{MAKE}`")
        methods = content["methods"]
        return Detections(
            detector=str(content["detector"]),
            weights=str(content["weights"]),
            threshold=float(content["threshold"]),
            folders={name: Path(of_method["folder"]) for name, of_method in methods.items()},
            found={name: {picture: _boxes(found) for picture, found in m["images"].items()} for name, m in methods.items()},
        )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--boxes {path} cannot be read ({error.strerror or error}); make it with `{MAKE}`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--boxes {path} is no file of teacher_export.detect, or damaged; make it again with `{MAKE}`") from error


def _boxes(found: Sequence[Mapping[str, Any]]) -> list[Box]:
    boxes = []
    for entry in found:
        left, top, right, bottom = (float(value) for value in entry["box"])
        boxes.append(Box((left, top, right, bottom), str(entry["label"]), float(entry["score"])))
    return boxes


def pictures_shown(detections: Detections, count: int) -> list[str]:
    """Chooses pictures that every method has, evenly from those with any detection. Raises
    InputError if they have none in common.
    """
    from spn_jax.evaluation import gallery  # imports JAX

    first, *others = detections.found.values()
    common = [name for name in first if all(name in of_method for of_method in others)]
    if not common:
        raise InputError(
            f"the methods {', '.join(detections.found)} have no picture of the same name; detect in folders of the same photos"
        )
    useful = [name for name in common if any(of_method[name] for of_method in detections.found.values())] or common
    return [useful[i] for i in gallery.spread(len(useful), count)]


def colours_of(labels: Any) -> dict[str, np.ndarray]:
    """Returns a colour of the palette for each label, the most frequent first, and grey for those
    beyond it.
    """
    ordered = [label for label, _ in Counter(labels).most_common()]
    return {label: COLOURS[i] if i < len(COLOURS) else OTHER for i, label in enumerate(ordered)}


def draw_boxes(picture: np.ndarray, boxes: Sequence[Box], colours: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draws boxes, labels and scores on a picture (h, w, 3), enlarged by a whole factor; the most
    certain are on top.
    """
    factor = max(1, -(-SIDE // len(picture)))
    image = Image.fromarray(picture.repeat(factor, 0).repeat(factor, 1))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    for box in sorted(boxes, key=lambda box: box.score):
        left, top, right, bottom = (factor * value for value in box.corners)
        colour = tuple(int(value) for value in colours[box.label])
        canvas.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=3)
        text = f"{box.label} {box.score:.2f}"
        place = max(0.0, min(left, image.width - font.getlength(text) - 4)), max(0.0, top)
        canvas.rectangle((place[0], place[1], place[0] + font.getlength(text) + 4, place[1] + 15), fill=colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        canvas.text((place[0] + 2, place[1] + 1), text, fill="black" if light else "white", font=font)
    return np.asarray(image)
