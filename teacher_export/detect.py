"""Finds objects in pictures with a detector, and writes their boxes.

python -m teacher_export.detect --images NAME=DIR [--images NAME=DIR ...] --output boxes.json

The pictures are photos, or results of methods, as `spn_jax.evaluate run --save-composites` writes
them to OUTPUT/composites/NAME. `python -m spn_jax.visualize detect --boxes boxes.json` draws the
boxes. Detectors are torchvision's. Weights are `pretrained` (downloaded), a file of the whole
detector, or `random` (for trials: such a detector finds nothing that is there).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spn_jax.data.images import decode_photo, find_images
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.files import check_writable, write_atomically
from spn_jax.views.detect import FORMAT

if TYPE_CHECKING:
    from teacher_export.frameworks import torch

DETECTOR = "fasterrcnn_resnet50_fpn_v2"


def main(arguments: Sequence[str]) -> None:
    """Writes the boxes of all pictures in the folders. Raises InputError for wrong input."""
    options = parse(arguments)

    from spn_jax.evaluation.methods import named  # not before the options are read: it imports JAX, which takes seconds

    folders = dict(named(text, "--images") for text in options.images)
    if len(folders) < len(options.images):
        raise InputError("two folders of --images have one name; give each a name of its own (NAME=DIR)")
    if not 0 <= options.threshold <= 1:
        raise InputError(f"--threshold {options.threshold:g} must lie between 0 and 1")
    pictures = {name: pictures_in(name, Path(folder)) for name, folder in folders.items()}
    check_writable(options.output.parent)
    model, labels, device = load_detector(options.detector, options.weights, options.seed, options.threshold, options.device)
    methods = {}
    for name, files in pictures.items():
        folder = Path(folders[name])
        found = {file.relative_to(folder).as_posix(): detect(model, labels, file, device) for file in files}
        methods[name] = {"folder": folders[name], "images": found}
        print(f"{name}: {sum(map(len, found.values()))} things in {len(files)} pictures", flush=True)
    origin = f"random(seed={options.seed})" if options.weights == "random" else Path(options.weights).name
    about = {"format": FORMAT, "detector": options.detector, "weights": origin, "threshold": options.threshold}
    write_atomically(options.output, json.dumps(about | {"methods": methods}, indent=1) + "\n")
    print(f"written: {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m teacher_export.detect", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--images", action="append", required=True, metavar="NAME=DIR", help="a folder of pictures; repeatable")
    add("--detector", default=DETECTOR, help=f"of torchvision.models.detection, with boxes and labels (default {DETECTOR})")
    add("--weights", default="pretrained", help="pretrained (default), FILE of the detector, or random")
    add("--seed", type=int, default=0, help="of `--weights random`")
    add("--threshold", type=float, default=0.5, help="least score of a box that is kept (default 0.5)")
    add("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    add("--output", type=Path, required=True, metavar="FILE.json")
    return parser.parse_args(arguments)


def pictures_in(name: str, folder: Path) -> list[Path]:
    """Returns the pictures in a folder and below. Raises InputError if there are none."""
    found = find_images(folder) if folder.is_dir() else []
    if not found:
        raise InputError(f"--images {name}={folder} is no folder of pictures; pass for instance OUTPUT/composites/{name} of an evaluation")
    return found


def load_detector(name: str, weights: str, seed: int, threshold: float, device: str | None) -> tuple[Any, list[str], str]:
    """Returns a detector ready for use, its labels by number, and its device.

    Raises:
        InputError: there is no such detector, or weights cannot be obtained or do not fit.
    """
    from teacher_export.frameworks import torch, torchvision
    from teacher_export.teachers import read_tensors
    from teacher_export.teachers.files import fill

    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known or "keypoint" in name:
        raise InputError(f"--detector {name}: torchvision has {', '.join(n for n in known if 'keypoint' not in n)}")
    replace_missing_operators()
    published = torchvision.models.get_model_weights(name).DEFAULT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = torchvision.models.get_model(name, weights="DEFAULT" if weights == "pretrained" else None, weights_backbone=None)
        except OSError as error:
            raise InputError(f"the weights of {name} could not be downloaded ({error}); pass --weights FILE") from error
    if weights not in ("pretrained", "random"):
        fill(model, read_tensors(weights), (), f"--weights {weights} does not fit {name}")
    # One-stage detectors have the attribute themselves. Boxes below the threshold cannot suppress
    # any above it.
    getattr(model, "roi_heads", model).score_thresh = threshold
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(place).eval(), list(published.meta["categories"]), place


def detect(model: Any, labels: Sequence[str], file: Path, device: str) -> list[dict[str, Any]]:
    """Returns a picture's detections, {"box": left, top, right, bottom in pixels, "label",
    "score"}, the most certain first.
    """
    from teacher_export.frameworks import torch

    picture = np.ascontiguousarray(decode_photo(file, f"picture {file}").transpose(2, 0, 1))
    with torch.inference_mode():
        (found,) = model([(torch.from_numpy(picture).float() / 255).to(device)])
    entries = []
    for box, label, score in zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True):
        entries.append({"box": [round(value, 2) for value in box], "label": labels[label], "score": round(score, 4)})
    return sorted(entries, key=lambda entry: -entry["score"])


def replace_missing_operators() -> None:
    """Replaces torchvision's compiled non-maximum suppression by plain torch if it did not load
    (see `frameworks`).
    """
    from teacher_export.frameworks import torchvision

    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = suppress


def suppress(boxes: "torch.Tensor", scores: "torch.Tensor", iou_threshold: float) -> "torch.Tensor":
    """Returns the numbers of the kept boxes (n, 4), by falling score (n,): of boxes that overlap
    more than the threshold, the most certain is kept.
    """
    from teacher_export.frameworks import torch, torchvision

    order = scores.argsort(descending=True, stable=True)
    overlap = (torchvision.ops.box_iou(boxes[order], boxes[order]) > iou_threshold).cpu().numpy()
    kept = np.ones(len(order), bool)
    for i in range(len(order)):
        if kept[i]:
            kept[i + 1 :] &= ~overlap[i, i + 1 :]
    return order[torch.from_numpy(kept).to(order.device)]


if __name__ == "__main__":
    run_command(main)
