"""Shows the generator's features (the paper's Fig. 12), and the teacher's beside the heads'."""

import argparse
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spn_jax.checkpoints.online_teachers import load_online_teacher
from spn_jax.config import ONLINE_TEACHERS, Config
from spn_jax.data.images import checksum, teacher_photo
from spn_jax.data.teacher import TeacherCache
from spn_jax.drawing import figures
from spn_jax.drawing.colours import Components
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.evaluation.methods import ModelMethod
from spn_jax.evaluation.session import Evaluation
from spn_jax.training.gradients import features_of
from spn_jax.views.inside import Inside, Maps, look_inside
from spn_jax.views.subjects import about_all, add_arguments, chosen, only_model, open_subjects, scale_name


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=3)
    add = parser.add_argument
    add("--teacher", metavar="FILE.npz", help="the teacher's weights, for its features of the photos; teacher.weights of an online run")
    add("--cached", action="store_true", help="show photos of data.train_photos, whose features are in the run's teacher.cache")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws a row for each photo: F_enc, coarsest prior, F_dec, and for each level the teacher's
    map and the head's prediction of it.
    """
    if options.cached and (options.photos or options.pairs or options.image or options.teacher):
        raise InputError("--cached shows the training photos of the run; leave --photos, --pairs, --image and --teacher out")
    if options.cached:
        options.photos = _training_photos(options)
    evaluation = open_subjects(options)
    method = only_model(evaluation)
    numbers = chosen(options, len(evaluation.photos))
    taught, origin = teachers_maps(options, evaluation, method, numbers)
    images, masks, inside = look_inside(evaluation, method, numbers)
    inner = {
        f"F_enc {scale_name(3)}": _pictures(inside.encoded),
        f"prior {scale_name(3)}": _pictures(inside.prior[3][:, 0]),
        f"F_dec {scale_name(3)}": _pictures(inside.refined),
    }
    columns: dict[str, list[Cell]] = {"input": [Cell(figures.masked_input(i, m)) for i, m in zip(images, masks, strict=True)]}
    columns |= {name: [Cell(picture) for picture in pictures] for name, pictures in inner.items()}
    columns["result"] = [Cell(picture) for picture in inside.completed[:, 0]]
    columns |= lessons(taught, inside)
    rows = [Row([cells[row] for cells in columns.values()]) for row in range(len(images))]
    text = (
        "F_enc is what the generator's encoder sees of the input, F_dec the same features after the blocks that the coarsest prior steers. "
        "Colours: principal components of each kind of feature over all photos of the page, the first as brightness, the second and third "
        "as hue; those of different columns cannot be compared, but a teacher's column and its head's are drawn alike.\n"
        + (
            f"Teacher's features: {origin}. Under a head's map: mean absolute error, in terms of the mean absolute feature.\n"
            if taught
            else ""
        )
        + ("" if taught or not inside.distilled else "The teacher's own features are drawn with --teacher FILE.npz or --cached.\n")
    )
    return sheet(rows, list(columns), text + about_all(evaluation))


def lessons(taught: Maps, inside: Inside) -> dict[str, list[Cell]]:
    """Returns columns of the heads' predictions and, if available, the teacher's maps, coarsest
    first.
    """
    columns: dict[str, list[Cell]] = {}
    for level in sorted(inside.distilled, reverse=True):
        predicted = inside.distilled[level]
        target = taught.get(level)
        basis = Components(predicted if target is None else target)
        if target is None:
            columns[f"head {level}"] = [Cell(basis.picture(of_photo)) for of_photo in predicted]
            continue
        columns[f"teacher {level}"] = [Cell(basis.picture(of_photo)) for of_photo in target]
        notes = [f"error {relative_error(p, t):.2f}" for p, t in zip(predicted, target, strict=True)]
        columns[f"head {level}"] = [Cell(basis.picture(p), note) for p, note in zip(predicted, notes, strict=True)]
    return columns


def relative_error(predicted: np.ndarray, target: np.ndarray) -> float:
    """Returns the mean absolute error of a map (h, w, c) divided by the mean absolute target (h',
    w', c), which is enlarged by nearest neighbour.
    """
    factor = predicted.shape[0] // target.shape[0]
    enlarged = target.repeat(factor, 0).repeat(factor, 1)
    return float(np.abs(predicted - enlarged).mean() / max(float(np.abs(enlarged).mean()), 1e-12))


def teachers_maps(options: argparse.Namespace, evaluation: Evaluation, method: ModelMethod, numbers: Sequence[int]) -> tuple[Maps, str]:
    """Returns the teacher's features of the photos and their origin; nothing if the command line
    names no source.

    Raises:
        InputError: weights or a cache cannot be read, or belong to another teacher than the
            model's.
    """
    config = method.loaded.config
    wanted = tuple(sorted(config.model.prior_levels))
    if options.cached:
        return _of_cache(config, evaluation, wanted, numbers)
    path = options.teacher or (config.teacher.weights if config.teacher.mode == "online" else "")
    if not path:
        return {}, ""
    if config.teacher.name not in ONLINE_TEACHERS:
        names = " or ".join(ONLINE_TEACHERS)
        raise InputError(f"--teacher takes weights of {names}, and this model's teacher is {config.teacher.name}; use --cached")
    teacher, origin = load_online_teacher(dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, weights=path)))
    photos = np.stack([teacher_photo(evaluation.photos.load(i), config) for i in numbers])
    maps = jax.jit(lambda model, x: model(x.astype(jnp.float32) / 255))(teacher, photos)
    return {level: np.asarray(of_level) for level, of_level in maps.items()}, f"computed by {origin}"


def _of_cache(config: Config, evaluation: Evaluation, levels: tuple[int, ...], numbers: Sequence[int]) -> tuple[Maps, str]:
    cache = TeacherCache.open(config.teacher.cache)
    cache.check(config, evaluation.photos)
    records = [
        cache.features(i, flipped=False, checksum=checksum(evaluation.photos.read(i)), name=evaluation.photos.names[i]) for i in numbers
    ]
    batch = {level: jax.tree.map(lambda *rows: np.stack(rows), *(record[level] for record in records)) for level in levels}
    return {level: np.asarray(features_of(of_level), np.float32) for level, of_level in batch.items()}, f"of {config.teacher.cache}"


def _training_photos(options: argparse.Namespace) -> str:
    """Returns data.train_photos of the only checkpoint."""
    from spn_jax.checkpoints.store import find_checkpoint, read_info
    from spn_jax.evaluation.methods import named_checkpoints

    folders = list(named_checkpoints(options.checkpoint).values())
    if len(folders) != 1:
        raise InputError(f"{len(folders)} checkpoints were given, and this picture shows one; pass one --checkpoint")
    return str(read_info(find_checkpoint(folders[0]))["config"]["data"]["train_photos"])


def _pictures(maps: np.ndarray) -> list[np.ndarray]:
    basis = Components(maps)
    return [basis.picture(of_photo) for of_photo in maps]
