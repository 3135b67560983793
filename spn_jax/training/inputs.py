"""Opens what a training run reads: photos, masks, the teacher or its features, and VGG19."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spn_jax.checkpoints.online_teachers import OnlineTeacher, load_online_teacher
from spn_jax.checkpoints.weights import load_vgg19
from spn_jax.config import Config
from spn_jax.data.images import KeptPhotos, PhotoSource, open_photos
from spn_jax.data.mask_check import check_masks
from spn_jax.data.masks import MaskSource, open_test_masks, open_train_masks
from spn_jax.data.pipeline import training_batches
from spn_jax.data.teacher import TeacherCache
from spn_jax.errors import counted
from spn_jax.training.state import Frozen


@dataclasses.dataclass(frozen=True)
class Data:
    """Holds photos and masks of training and of evaluation, and the teacher's features of the
    training photos (None without cached features).
    """

    photos: PhotoSource
    masks: MaskSource
    cache: TeacherCache | None
    test_photos: PhotoSource
    test_masks: MaskSource


def open_data(config: Config, config_file: str) -> Data:
    """Opens all data of a run. Raises InputError if something is missing or does not fit."""
    photos = open_photos(config.data.train_photos, "data.train_photos")
    return Data(
        photos=KeptPhotos(photos, config.data.keep_decoded * 10**6),
        masks=open_train_masks(config),
        cache=open_cache(config, photos, config_file),
        test_photos=open_photos(config.data.test_photos, "data.test_photos"),
        test_masks=open_test_masks(config),
    )


def checked_masks(config: Config, data: Data) -> Iterator[str]:
    """Reads every mask of training and of evaluation once and yields lines about them. Raises
    InputError if some are broken.
    """
    of = {"data.train_masks": data.masks, "data.test_masks": data.test_masks}
    if data.masks.state() == data.test_masks.state():
        del of["data.test_masks"]
    for setting, masks in of.items():
        check = check_masks(masks, config.data.threads)
        if check is not None:
            yield f"{setting}: {counted(check.masks, 'mask')} checked, {check.mean_share:.0%} of the photo is hole on average"
            if question := check.question(config.data):
                yield f"{setting}: {question}"


def open_cache(config: Config, photos: PhotoSource, config_file: str) -> TeacherCache | None:
    """Opens the teacher's cached features and checks them against config and photos. Returns None
    without a prior loss, or where the teacher runs in the step.
    """
    if config.loss.prior == 0 or is_online(config):
        return None
    cache = TeacherCache.open(config.teacher.cache, config_file)
    cache.check(config, photos)
    return cache


@dataclasses.dataclass(frozen=True)
class DistillationTargets:
    """Describes what the prior learner distils; its fields are empty in a run without a prior
    loss.
    """

    channels: Mapping[int, int]  # of the teacher's maps by level
    origin: str | None  # of the teacher's weights, for readers
    identity: str | None  # two runs have the same features where it is equal
    summary: str


def open_distillation_targets(config: Config, data: Data, frozen: Frozen, origin: str | None) -> DistillationTargets:
    """Describes the source of the prior loss's targets: the cache, or the teacher in `frozen`,
    whose weights are from `origin`.
    """
    if data.cache is not None:
        manifest = data.cache.manifest
        line = f"teacher: {manifest.teacher}, weights {manifest.weights_origin}, features in {manifest.dtype}"
        return DistillationTargets(data.cache.channels, manifest.weights_origin, data.cache.identity(), line)
    if frozen.teacher is None:
        return DistillationTargets({}, None, None, "teacher: none (loss.prior=0), trained without distillation")
    assert isinstance(frozen.teacher, OnlineTeacher)
    line = f"teacher: {config.teacher.name}, weights {origin}, run in the step"
    return DistillationTargets(frozen.teacher.channels, origin, f"online {weights_identity(origin)}", line)


class Origins(NamedTuple):
    """Names the origins of the frozen networks' weights, for readers; None for a network that is
    not used.
    """

    teacher: str | None = None
    vgg: str | None = None


def open_frozen(config: Config) -> tuple[Frozen, Origins]:
    """Loads the networks that the losses need. Raises InputError if one is not available.

    All compute in float32, whatever the trained networks compute in, so that a setting for speed
    does not change the targets. In bfloat16 most pixels of two samples would be equal for VGG19.
    """
    frozen, origins = Frozen(), Origins()
    if is_online(config):
        teacher, origin = load_online_teacher(config)
        frozen, origins = frozen._replace(teacher=teacher), origins._replace(teacher=origin)
    if config.loss.perceptual or config.loss.diversity:
        vgg, origin = load_vgg19(config.loss.vgg, config.train.seed, jnp.float32)
        frozen, origins = frozen._replace(vgg=vgg), origins._replace(vgg=origin)
    return frozen, origins


def is_online(config: Config) -> bool:
    """Returns whether the teacher runs in the step."""
    return config.loss.prior > 0 and config.teacher.mode == "online"


def read_batches(config: Config, data: Data, start: int, steps: int) -> Any:
    """Returns this process's part of the batches of steps start, ..., steps - 1."""
    return training_batches(
        config,
        data.photos,
        data.masks,
        data.cache,
        start_step=start,
        steps=steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        with_2x=is_online(config),
    )


def weights_identity(origin: str | None) -> str | None:
    """Returns the part of `load_vgg19`'s text that does not depend on a file's name: the weights'
    hash, or the seed of random ones.
    """
    return origin.rpartition("sha256 ")[2] if origin else None
