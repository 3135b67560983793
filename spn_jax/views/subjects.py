"""Opens photos, masks and methods for the views as `spn_jax.evaluate run` does."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from spn_jax.checkpoints.store import LoadedModel
from spn_jax.config import SCORING_KEYS, Config
from spn_jax.data.images import PhotoFiles, prepare_photo
from spn_jax.data.masks import MaskFiles, mask_fit
from spn_jax.errors import InputError
from spn_jax.evaluation import gallery
from spn_jax.evaluation.baselines import BASELINES
from spn_jax.evaluation.methods import (
    ModelMethod,
    check_names,
    host_methods,
    load_checkpoints,
    model_methods,
    named,
    named_checkpoints,
    named_methods,
    shared_config,
)
from spn_jax.evaluation.pairs import PairList, names_sha256
from spn_jax.evaluation.scoring import Arrays, Detail, Networks, not_finite
from spn_jax.evaluation.session import Evaluation, Request, batches_of, fetched, open_evaluation, overrides_of, scored
from spn_jax.settings import help_text

DIGITS = {"psnr": 2}  # decimal places of scores under pictures
UNITS = {"psnr": " dB"}


def add_arguments(parser: argparse.ArgumentParser, count: int, others: bool = False) -> None:
    """Declares the options for photos, masks and methods.

    Args:
        count: default number of photos.
        others: whether results of other programs, and methods that need no training, may be
            compared with checkpoints.
    """
    add = parser.add_argument
    add("--checkpoint", action="append", default=[], metavar="[NAME=]DIR", help="a run's work directory (its newest checkpoint) or one")
    if others:
        add("--results", action="append", default=[], metavar="NAME=DIR", help="a folder of completed photos, by any program; repeatable")
        add("--method", action="append", default=[], metavar="NAME", help=f"one without training, repeatable: {', '.join(BASELINES)}")
    add("--image", action="append", default=[], type=Path, metavar="FILE", help="a photo of your own; repeatable, each with its --mask")
    add("--mask", action="append", default=[], type=Path, metavar="FILE", help="its mask, white is the hole")
    add("--photos", help="without --image, the photos to choose from: data.test_photos of the first checkpoint")
    add("--masks", help="and their masks: data.test_masks")
    add("--pairs", metavar="FILE", help="which mask each photo gets, as in an evaluation; drawn by the seed if not given")
    add("--config", type=Path, help="where data.* and eval.* come from; the first checkpoint's config if not given")
    add("--count", type=int, default=count, metavar="N", help=f"photos shown, evenly chosen from all (default {count})")
    add("--only", metavar="I,J,...", help="show the photos of these numbers, from 0")
    add("--image-size", type=int, metavar="P", help="photos are brought to P x P pixels: data.image_size")
    add("--seed", type=int, help="of drawn pairs and of samples: eval.seed")
    add("--batch-size", type=int, help="photos a call: eval.batch_size")
    add("overrides", nargs="*", metavar="section.key=value", help="other settings of data and eval, see below")
    parser.epilog = help_text(Config, *SCORING_KEYS)
    parser.set_defaults(samples=None, inception=None, lpips_alex=None, lpips_vgg=None, raw_results=False)
    if not others:
        parser.set_defaults(results=[], method=[])


def open_subjects(options: argparse.Namespace) -> Evaluation:
    """Opens the photos, masks and methods that the command line names. Raises InputError if
    something does not fit.
    """
    names = [named(text, "--results")[0] for text in options.results]
    check_names(named_checkpoints(options.checkpoint), names, list(named_methods(options.method)))
    if not options.image and not options.mask:
        return open_evaluation(Request.of(options))
    if len(options.image) != len(options.mask):
        raise InputError(
            f"there are {len(options.image)} --image and {len(options.mask)} --mask; give each photo a mask, in the same order"
        )
    if options.photos or options.masks or options.pairs or options.results:
        raise InputError("--image and --mask name photos; leave --photos, --masks, --pairs and --results out")
    return _own_photos(options)


def _own_photos(options: argparse.Namespace) -> Evaluation:
    """Opens photos that were given one by one, as `open_evaluation` does for others."""
    loaded = load_checkpoints(named_checkpoints(options.checkpoint))
    config = shared_config({name: of for name, (_, of) in loaded.items()}, options.config, overrides_of(Request.of(options)))
    size, invert = config.data.image_size, config.data.invert_masks
    photos = PhotoFiles([path.as_posix() for path in options.image], options.image, "--image")
    masks = MaskFiles([path.as_posix() for path in options.mask], options.mask, size, invert, "--mask", mask_fit(config.data))
    pairs = PairList(tuple(photos.names), tuple(masks.names), len(masks), names_sha256(masks.names), "given one by one")
    hosts = host_methods({}, False, options.method, photos, size)
    return Evaluation(config, photos, masks, np.arange(len(photos)), pairs, model_methods(loaded, config), hosts, Networks(), {}, notes=())


def only_model(evaluation: Evaluation) -> ModelMethod:
    """Returns the single checkpoint. Raises InputError if there are several."""
    if len(evaluation.models) != 1:
        raise InputError(f"{len(evaluation.models)} checkpoints were given, and this picture shows one; pass one --checkpoint")
    return evaluation.models[0]


def chosen(options: argparse.Namespace, photos: int) -> list[int]:
    """Returns the numbers of the photos to show. Raises InputError if there are no such photos."""
    if options.count < 1:
        raise InputError(f"--count {options.count} must be at least 1")
    if options.only is None:
        return gallery.spread(photos, photos if options.image else options.count)
    try:
        numbers = [int(text) for text in options.only.split(",")]
    except ValueError:
        raise InputError(f"--only {options.only} must be numbers of photos separated by commas, as 0,5,17") from None
    if wrong := [str(number) for number in numbers if not 0 <= number < photos]:
        raise InputError(f"--only asks for photo {', '.join(wrong)}, and there are 0 to {photos - 1}")
    return numbers


@dataclasses.dataclass(frozen=True)
class Subject:
    """A photo to show, and each method's completion of it."""

    number: int  # its number among all photos
    name: str
    image: np.ndarray  # uint8 (P, P, 3)
    mask: np.ndarray  # uint8 (P, P, 1), 1 = hole
    completed: dict[str, np.ndarray]  # {method: uint8 (P, P, 3)}, the best of several samples
    scores: dict[str, dict[str, float]]  # {method: {score: value}}

    def note(self, method: str, score: str = "psnr") -> str:
        """Returns the note under a method's picture."""
        return f"{self.scores[method][score]:.{DIGITS.get(score, 3)}f}{UNITS.get(score, '')}"


def load_pictures(evaluation: Evaluation, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Loads photos uint8 (n, P, P, 3) and their masks uint8 (n, P, P, 1)."""
    data = evaluation.config.data
    images = [prepare_photo(evaluation.photos.load(i), data.image_size, data.crop, data.resize_filter) for i in numbers]
    return np.stack(images), np.stack([evaluation.masks.load(int(evaluation.mask_of[i])) for i in numbers])


def subjects(evaluation: Evaluation, mesh: Mesh, numbers: Sequence[int]) -> list[Subject]:
    """Returns the photos of these numbers, completed and scored by every method as in an
    evaluation.
    """
    shown = []
    for index, parts in completed_batches(evaluation, mesh, numbers, Detail.GRID):
        first = next(iter(parts.values()))
        for row, number in enumerate(index.tolist()):
            scores = {
                name: {score: float(v[row]) for score, v in part.items() if v.ndim == 1 and v.dtype.kind == "f"}
                for name, part in parts.items()
            }
            pictures = {name: part["completed"][row] for name, part in parts.items()}
            name = evaluation.photos.names[number]
            shown.append(Subject(number, name, first["image"][row], first["mask"][row], pictures, scores))
    return shown


def completed_batches(
    evaluation: Evaluation, mesh: Mesh, numbers: Sequence[int], detail: Detail
) -> Iterator[tuple[np.ndarray, dict[str, Arrays]]]:
    """Yields batches: the numbers (b,) of some photos and {method: {entry of `scoring.score_batch`:
    rows}}.

    Raises:
        InputError: a prediction is not finite.
    """
    for batch, parts in fetched(scored(evaluation, batches_of(evaluation, mesh, numbers), mesh, detail)):
        valid = batch["valid"]
        for name, part in parts.items():
            if "finite" in part and not (finite := part["finite"][valid]).all():
                raise not_finite(batch["index"][valid][~finite], int(valid.sum()), name)
        yield batch["index"][valid], {name: {key: rows[valid] for key, rows in part.items()} for name, part in parts.items()}


KINDS = {"spn": "SPN", "spn-probabilistic": "probabilistic SPN", "spl": "SPL"}


def about_model(name: str, loaded: LoadedModel) -> str:
    """Returns a sentence about a checkpoint, from the config that it holds."""
    config, model = loaded.config, loaded.config.model
    scales = ", ".join("P" if level == 1 else f"P/{2 ** (level - 1)}" for level in sorted(model.prior_levels, reverse=True))
    teacher = f"{config.teacher.name}, weights {(loaded.info.get('teacher') or {}).get('origin') or 'none'}"
    taught = f"taught by {teacher}" if config.loss.prior else "without distillation"
    return f"{name}: {KINDS[model.kind]} of width {model.width} after step {loaded.step}, priors at {scales}, {taught}."


def about_pictures(evaluation: Evaluation) -> str:
    """Returns a sentence about photos and masks."""
    data = evaluation.config.data
    size = f"{data.image_size} x {data.image_size} pixels"
    if evaluation.pairs.drawn == "given one by one":
        return f"Photos and masks given one by one, at {size}."
    return f"Photos of {data.test_photos} at {size}, masks of {data.test_masks} (pair list: {evaluation.pairs.drawn})."


def about_all(evaluation: Evaluation) -> str:
    """Returns the lines of a caption that say where everything comes from."""
    return "\n".join([*(about_model(m.name, m.loaded) for m in evaluation.models), about_pictures(evaluation)])


def scale_name(level: int) -> str:
    """Returns the size of a level of the pyramid, in terms of P."""
    return "P x P" if level == 1 else f"P/{2 ** (level - 1)} x P/{2 ** (level - 1)}"
