"""Makes batches for training and evaluation that depend on the seed and the step alone.

Any step can therefore be the first. Grain reads ahead with threads. Every random choice is a
function of (seed, step, row), the order of the photos one of (seed, epoch): the number of threads
or processes and the step at which a run started have no influence.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from spn_jax.config import Config
from spn_jax.data.images import PhotoSource, checksum, prepare_photo, random_square, teacher_photo
from spn_jax.data.masks import MaskSource
from spn_jax.errors import InputError, counted, find_input_error

Batch = dict[str, Any]
# photo's number, photo (h, w, 3), mask (h, w, 1) -> completed (h, w, 3)
Completer = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
_ORDER, _CHOICES = 0, 1  # separate the two kinds of random numbers


class FeatureCache(Protocol):
    """What the pipeline needs of a teacher's cache."""

    def features(self, photo: int, flipped: bool, /, checksum: int, name: str) -> Mapping[int, Any]:
        """Returns the teacher's maps, (h, w, c) by level, for photo number `photo`, as it is or
        mirrored.

        Raises InputError if they were computed from another file than the one with this checksum.
        """


def steps_per_epoch(config: Config, photos: PhotoSource) -> int:
    """Returns the number of full batches in one pass over the photos. Raises InputError if they do
    not fill one.
    """
    steps = len(photos) // config.train.batch_size
    if not steps:
        raise InputError(
            f"train.batch_size={config.train.batch_size} is more than the {counted(len(photos), 'photo')} of data.train_photos; "
            "choose a smaller batch or add photos"
        )
    return steps


def training_batches(
    config: Config,
    photos: PhotoSource,
    masks: MaskSource,
    cache: FeatureCache | None,
    *,
    start_step: int,
    steps: int,
    process_index: int = 0,
    process_count: int = 1,
    with_2x: bool = False,
) -> Iterator[Batch]:
    """Yields host batches of steps start_step, ..., steps - 1; b = train.batch_size / process_count
    is this process's part.

    A batch has "image" uint8 (b, P, P, 3) and "mask" uint8 (b, P, P, 1) of zeros and ones. With a
    cache it has "targets" {level: (b, h, w, c)} of model.prior_levels in the cache's type (from an
    8-bit one {"codes", "low", "step"} a level). With `with_2x` it has "image_2x" uint8 (b, 2P, 2P,
    3), the teacher's view. An epoch visits every photo at most once (the last, partial batch is
    left out), and each epoch has another order.

    Raises:
        InputError: immediately if the batch does not divide over the processes or is larger than
            the set of photos; later if a file cannot be read.
    """
    local = _rows_of_process(config.train.batch_size, process_count, "train.batch_size")
    rows = _TrainingRows(config, photos, masks, cache, steps_per_epoch(config, photos), with_2x)

    def row(n: int) -> Batch:
        step, place = divmod(n, local)
        return rows.load(step, process_index * local + place)

    return _read_ahead(config, row, local, start_step, steps)


def evaluation_batches(
    config: Config,
    photos: PhotoSource,
    masks: MaskSource,
    pairs: Sequence[int] | np.ndarray,
    batch_size: int,
    *,
    start: int = 0,
    limit: int | None = None,
    completers: Mapping[str, Completer] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields host batches over all photos, or the first `limit`, in order and never mirrored. A
    photo's mask has number pairs[photo].

    A batch has "image" uint8 (b, P, P, 3), "mask" uint8 (b, P, P, 1), "index" int32 (b,), the
    photo's number, and "valid" bool (b,): the last batch is filled up with invalid copies of the
    last photo. b = batch_size / process_count. With completers, "completed" has by name the photos
    that each of them completed, uint8 (b, P, P, 3). Reader threads call them.

    Args:
        start: the first photo; earlier ones are left out.

    Raises:
        InputError: immediately if `pairs` does not fit the photos and masks, or batch_size the
            processes; later if a file cannot be read.
    """
    _check_pairs(pairs, photos, masks)
    local = _rows_of_process(batch_size, process_count, "eval.batch_size")
    count = len(photos) if limit is None else min(limit, len(photos))

    def row(n: int) -> Batch:
        batch, place = divmod(n, local)
        position = start + batch * batch_size + process_index * local + place
        index = min(position, count - 1)
        image, mask = _at_p(config, photos.load(index)), masks.load(int(pairs[index]))
        loaded: Batch = {"image": image, "mask": mask, "index": np.int32(index), "valid": np.bool_(position < count)}
        if completers:
            loaded["completed"] = {name: complete(index, image, mask) for name, complete in completers.items()}
        return loaded

    return _read_ahead(config, row, local, 0, -(-max(count - start, 0) // batch_size))


def _rows_of_process(batch_size: int, process_count: int, setting: str) -> int:
    if batch_size % process_count:
        raise InputError(f"{setting}={batch_size} does not divide over {process_count} processes; make it a multiple of {process_count}")
    return batch_size // process_count


def _check_pairs(pairs: Sequence[int] | np.ndarray, photos: PhotoSource, masks: MaskSource) -> None:
    if len(pairs) != len(photos):
        raise InputError(f"the list of pairs is for {len(pairs)} photos, but there are {len(photos)}; draw the pairs again")
    if len(pairs) and not 0 <= min(pairs) <= max(pairs) < len(masks):
        raise InputError(f"the list of pairs asks for masks {min(pairs)} to {max(pairs)}, but there are {len(masks)}; draw the pairs again")


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainingRows:
    config: Config
    photos: PhotoSource
    masks: MaskSource
    cache: FeatureCache | None
    steps_per_epoch: int
    with_2x: bool

    def load(self, step: int, row: int) -> Batch:
        """Loads row `row` of the global batch of `step`."""
        data = self.config.data
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = epoch_order(data.seed, epoch, len(self.photos), data.shuffle_window)
        i = int(order[step_in_epoch * self.config.train.batch_size + row])
        random = np.random.default_rng([data.seed, _CHOICES, step, row])
        mask = self.masks.load(int(random.integers(len(self.masks))))
        flip_photo, flip_mask = _flips(random, data.flip)
        if self.cache is not None:
            row_of_photo = self._photo_and_features(self.cache, i, flip_photo)
        else:
            photo = self.photos.load(i)
            row_of_photo = self._views(random_square(random, photo, data.image_size) if data.crop == "random" else photo, flip_photo)
        return row_of_photo | {"mask": _mirror(mask, flip_mask)}

    def _views(self, photo: np.ndarray, flipped: bool) -> Batch:
        row: Batch = {"image": _mirror(_at_p(self.config, photo), flipped)}
        if self.with_2x:
            row["image_2x"] = _mirror(teacher_photo(photo, self.config), flipped)
        return row

    def _photo_and_features(self, cache: FeatureCache, i: int, flipped: bool) -> Batch:
        file = self.photos.read(i)
        # decoded first, because the error for a broken photo says more than the one for a changed
        # photo
        photo = self.photos.decode(i, file)
        # The map itself is never mirrored: the teacher sees a mirrored photo differently.
        features = cache.features(i, flipped, checksum=checksum(file), name=self.photos.names[i])
        targets = {level: features[level] for level in self.config.model.prior_levels}
        return self._views(photo, flipped) | {"targets": targets}


RUNS = 16  # number of runs of neighbouring photos in a shuffle window


@functools.lru_cache(maxsize=2)  # read-ahead may straddle two epochs
def epoch_order(seed: int, epoch: int, photos: int, window: int | None) -> np.ndarray:
    """Returns the photos in the order of an epoch, a permutation of all.

    With a window, runs of neighbouring photos are drawn in random order, and as many as fill the
    window are shuffled together. Neighbours lie in the same files, so a disk reads long stretches,
    and its cache holds a window instead of the whole set.
    """
    random = np.random.default_rng([seed, _ORDER, epoch])
    if window is None or window >= photos:
        return random.permutation(photos)
    run = max(1, window // RUNS)
    # The first run begins anywhere; otherwise the same photos would be neighbours in every epoch.
    starts = np.arange(-int(random.integers(run)), photos, run)
    runs = [np.arange(max(start, 0), min(start + run, photos)) for start in random.permutation(starts)]
    order = np.concatenate(runs)
    return np.concatenate([random.permutation(order[start : start + window]) for start in range(0, photos, window)])


def _flips(random: np.random.Generator, flip: str) -> tuple[bool, bool]:
    """Draws whether to mirror the photo, and whether the mask."""
    photo, mask = (bool(coin) for coin in random.integers(2, size=2))
    return {"none": (False, False), "together": (photo, photo), "independent": (photo, mask)}[flip]


def _mirror(image: np.ndarray, flipped: bool) -> np.ndarray:
    return image[:, ::-1] if flipped else image


def _at_p(config: Config, photo: np.ndarray) -> np.ndarray:
    return prepare_photo(photo, config.data.image_size, config.data.crop, config.data.resize_filter)


def _read_ahead(config: Config, row: Callable[[int], Batch], rows: int, start: int, stop: int) -> Iterator[Batch]:
    """Yields batches start, ..., stop - 1 of `rows` rows each, which threads read ahead."""
    # imported here because it takes a second, which steps_per_epoch and the types should not cost
    import grain

    prefetch = config.data.prefetch
    # There are no more threads than batches read ahead: each works on one batch, and Grain warns
    # about idle ones.
    options = grain.ReadOptions(num_threads=min(config.data.threads, prefetch), prefetch_buffer_size=prefetch)
    batches = grain.MapDataset.range(stop * rows).map(row).batch(rows, batch_fn=_stack)
    return _surface(iter(batches[start:stop].to_iter_dataset(options)))


def _surface(batches: Any) -> Iterator[Batch]:
    """Passes batches on. Unwraps an InputError from its wrappers, and ends the reader threads with
    the iterator.
    """
    try:
        yield from batches
    except Exception as error:
        wrong_input = find_input_error(error)
        if wrong_input is None or wrong_input is error:
            raise
        raise wrong_input from wrong_input.__cause__
    finally:
        batches.close()


def _stack(rows: Sequence[Batch]) -> Batch:
    return {key: _stack([r[key] for r in rows]) if isinstance(rows[0][key], dict) else np.stack([r[key] for r in rows]) for key in rows[0]}
