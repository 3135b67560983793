"""Batches are a function of the seed and the step: not of threads, processes or the step a run
started at.
"""

import dataclasses
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from spn_jax.config import Config, DataConfig, TrainConfig
from spn_jax.data.images import PhotoSource, open_photos
from spn_jax.data.masks import open_masks
from spn_jax.data.pipeline import RUNS, epoch_order, evaluation_batches, steps_per_epoch, training_batches
from spn_jax.errors import InputError

P = 16
LEFT, RIGHT = 100, 200  # value of the blue channel in the left and the right half


def settings(batch_size=4, **data) -> Config:
    return Config(data=DataConfig(image_size=P, **{"threads": 2, "prefetch": 2} | data), train=TrainConfig(batch_size=batch_size))


class NumberedPhotos(PhotoSource):
    """Photo i says who it is (red = i), and which way round it is (blue)."""

    def __init__(self, count: int):
        self.names = [str(i) for i in range(count)]

    def read(self, i: int) -> bytes:
        return str(i).encode()

    def describe(self, i: int) -> str:
        return f"photo {i}"

    def decode(self, i: int, data: bytes) -> np.ndarray:
        assert data == self.read(i)
        photo = np.zeros((2 * P, 2 * P, 3), np.uint8)
        photo[..., 0] = i
        photo[:, :P, 2], photo[:, P:, 2] = LEFT, RIGHT
        return photo

    def fingerprint(self) -> str:
        raise NotImplementedError


class FakeCache:
    """Maps that tell which photo and orientation they were asked for, and whether anyone mirrored
    them (they rise to the right).
    """

    def features(self, i: int, flipped: bool, checksum: int, name: str) -> dict[int, np.ndarray]:
        assert (checksum, name) == (zlib.crc32(str(i).encode()), str(i))
        ramp = np.broadcast_to(np.arange(8), (8, 8))
        fine = np.stack([np.full((8, 8), i), np.full((8, 8), flipped), ramp], -1)
        return {1: fine.astype(ml_dtypes.bfloat16), 2: fine, 3: fine[::2, ::2].astype(np.float32)}


def masks(size=P):
    return open_masks("strokes", size, False, 0, "data.train_masks")


@pytest.mark.parametrize(("photos", "window"), [(1000, 64), (1000, 10), (37, 16), (5, 4), (64, 64)])
def test_a_shuffle_window_visits_every_photo_once_in_runs_of_neighbours(photos: int, window: int) -> None:
    orders = [epoch_order(0, epoch, photos, window) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(photos))
    assert (orders[0] != orders[1]).any() and (orders[0] == epoch_order(0, 0, photos, window)).all()
    if photos == 1000:
        run = max(1, window // RUNS)
        neighbours = [np.diff(np.sort(orders[0][start : start + window])) for start in range(0, photos, window)]
        # of random photos: window / photos
        assert np.mean(np.concatenate(neighbours) == 1) > (run - 1) / run * 0.9
        assert len(np.unique(orders[0][:window])) == window and orders[0][:window].max() - orders[0][:window].min() > photos / 2


def test_without_a_window_the_order_is_what_it_always_was() -> None:
    np.testing.assert_array_equal(epoch_order(3, 1, 9, None), np.random.default_rng([3, 0, 1]).permutation(9))


def test_a_batch_has_the_levels_of_the_model_alone() -> None:
    config = settings()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, prior_levels=(3,)))
    assert list(train(config, steps=1, cache=FakeCache())[0]["targets"]) == [3]


def train(config, start_step=0, steps=6, photos=11, cache=None, **options) -> list[dict]:
    source = NumberedPhotos(photos)
    return list(training_batches(config, source, masks(), cache, start_step=start_step, steps=steps, **options))


def photo_numbers(batches) -> list[int]:
    return [int(n) for batch in batches for n in batch["image"][:, 0, 0, 0]]


def photo_is_mirrored(batch) -> np.ndarray:
    return batch["image"][:, 0, 0, 2] == RIGHT


def assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_equal(left[key], right[key])


def test_batch_has_the_promised_types_and_shapes():
    batch = train(settings(), cache=FakeCache(), with_2x=True)[0]
    targets = batch.pop("targets")
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((4, P, P, 3), np.uint8),
        "mask": ((4, P, P, 1), np.uint8),
        "image_2x": ((4, 2 * P, 2 * P, 3), np.uint8),
    }
    assert {k: (v.shape, v.dtype) for k, v in targets.items()} == {
        1: ((4, 8, 8, 3), ml_dtypes.bfloat16),
        2: ((4, 8, 8, 3), np.int64),
        3: ((4, 4, 4, 3), np.float32),
    }


def test_only_what_is_asked_for_is_in_a_batch():
    assert set(train(settings())[0]) == {"image", "mask"}


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (4, 7), (8, 2), (1, 0)])
def test_batches_do_not_depend_on_threads_or_read_ahead(threads, prefetch):
    assert_equal(train(settings(threads=threads, prefetch=prefetch)), train(settings()))


@pytest.mark.parametrize("start", [1, 2, 5, 6])
def test_starting_later_gives_the_tail(start):
    assert_equal(train(settings(), start_step=start), train(settings())[start:])


def test_a_longer_run_begins_like_a_shorter_one():
    assert_equal(train(settings(), steps=6)[:3], train(settings(), steps=3))


def test_a_step_far_away_can_be_the_first():
    assert len(train(settings(), start_step=10**8, steps=10**8 + 2)) == 2


def test_rows_of_two_processes_make_the_batch_of_one():
    parts = [train(settings(), process_index=p, process_count=2, cache=FakeCache()) for p in range(2)]
    whole = train(settings(), cache=FakeCache())
    for key in ("image", "mask"):
        joined = [np.concatenate([a[key], b[key]]) for a, b in zip(*parts, strict=True)]
        np.testing.assert_array_equal(joined, [batch[key] for batch in whole])


def test_another_seed_gives_other_batches():
    assert photo_numbers(train(settings(seed=1))) != photo_numbers(train(settings(seed=2)))


def test_every_photo_at_most_once_an_epoch():
    numbers = photo_numbers(train(settings(), steps=2))  # 2 steps of 4 are an epoch of 11 photos
    assert len(set(numbers)) == 8


def test_epochs_have_different_orders():
    numbers = photo_numbers(train(settings(), steps=6))
    assert len({tuple(numbers[k : k + 8]) for k in (0, 8, 16)}) == 3


def test_every_photo_is_seen_in_the_long_run():
    assert set(photo_numbers(train(settings(), steps=40))) == set(range(11))


def test_masks_come_from_the_whole_set():
    shares = [m.mean() for batch in train(settings(), steps=30) for m in batch["mask"]]
    assert np.histogram(shares, 6, (0, 0.6))[0].min() >= 5  # 20 expected in each bin


def test_mask_is_not_tied_to_the_photo():
    batches = train(settings(), steps=40)
    by_photo: dict[int, set[bytes]] = {}
    for number, mask in zip(photo_numbers(batches), (m for b in batches for m in b["mask"]), strict=True):
        by_photo.setdefault(number, set()).add(mask.tobytes())
    assert min(len(seen) for seen in by_photo.values()) > 5


def mask_is_mirrored(config: Config, steps=20) -> np.ndarray:
    """Compares with the masks of the same run without mirroring."""
    plain = train(dataclasses.replace(config, data=dataclasses.replace(config.data, flip="none")), steps=steps)
    given = np.concatenate([b["mask"] for b in train(config, steps=steps)])
    expected = np.concatenate([b["mask"] for b in plain])
    same, mirrored = ((given == m).all((1, 2, 3)) for m in (expected, expected[:, :, ::-1]))
    assert (same | mirrored).all()
    return mirrored & ~same


def mirrored_photos(config: Config, steps=20) -> np.ndarray:
    return np.concatenate([photo_is_mirrored(b) for b in train(config, steps=steps)])


def test_flip_none_mirrors_nothing():
    assert not mirrored_photos(settings(flip="none")).any()


@pytest.mark.parametrize("flip", ["together", "independent"])
def test_half_of_the_photos_are_mirrored(flip):
    assert 0.3 < mirrored_photos(settings(flip=flip)).mean() < 0.7


def test_flip_together_mirrors_photo_and_mask_alike():
    np.testing.assert_array_equal(mask_is_mirrored(settings(flip="together")), mirrored_photos(settings(flip="together")))


def test_flip_independent_makes_all_four_combinations():
    config = settings(flip="independent")
    photo, mask = mirrored_photos(config), mask_is_mirrored(config)
    # 20 expected
    assert min(np.sum((photo == a) & (mask == b)) for a in (False, True) for b in (False, True)) >= 8


def test_targets_belong_to_the_photo_and_to_its_orientation():
    for batch in train(settings(flip="independent"), cache=FakeCache()):
        for target in batch["targets"].values():
            np.testing.assert_array_equal(target[:, 0, 0, 0], batch["image"][:, 0, 0, 0])
            np.testing.assert_array_equal(target[:, 0, 0, 1], photo_is_mirrored(batch))


def test_feature_maps_are_never_mirrored():
    batches = train(settings(), cache=FakeCache())
    assert any(photo_is_mirrored(batch).any() for batch in batches)
    for batch in batches:
        assert (np.diff(batch["targets"][3][..., 2], axis=2) > 0).all()


def test_photo_at_2p_has_the_same_orientation():
    for batch in train(settings(), with_2x=True):
        np.testing.assert_array_equal(batch["image_2x"][:, 0, 0, 2] == RIGHT, photo_is_mirrored(batch))


def test_epoch_is_the_number_of_full_batches():
    assert steps_per_epoch(settings(batch_size=4), NumberedPhotos(11)) == 2


def test_batch_larger_than_the_set_is_an_error():
    with pytest.raises(InputError, match=r"train\.batch_size=12 is more than the 11 photos"):
        training_batches(settings(batch_size=12), NumberedPhotos(11), masks(), None, start_step=0, steps=1)


def test_batch_that_does_not_divide_over_processes_is_an_error_at_once():
    with pytest.raises(InputError, match=r"train\.batch_size=4 does not divide over 3 processes"):
        training_batches(settings(), NumberedPhotos(11), masks(), None, start_step=0, steps=1, process_count=3)


def evaluate(count=11, batch_size=4, **options) -> list[dict]:
    pairs = np.arange(count) * 7
    return list(evaluation_batches(settings(), NumberedPhotos(count), masks(), pairs, batch_size, **options))


def test_evaluation_covers_every_photo_once_and_flags_the_padding():
    batches = evaluate()
    index, valid = (np.concatenate([b[key] for b in batches]) for key in ("index", "valid"))
    np.testing.assert_array_equal(index[valid], np.arange(11))
    assert (index.dtype, valid.dtype, len(index)) == (np.int32, np.bool_, 12)


def test_evaluation_photos_are_in_order_and_not_mirrored():
    batches = evaluate()
    assert photo_numbers(batches) == [*range(11), 10]
    assert not np.concatenate([photo_is_mirrored(b) for b in batches]).any()


def test_evaluation_takes_the_masks_of_the_pairs():
    source = masks()
    for batch in evaluate():
        np.testing.assert_array_equal(batch["mask"], [source.load(7 * i) for i in batch["index"]])


@pytest.mark.parametrize(("limit", "seen"), [(0, 0), (3, 3), (4, 4), (5, 5), (100, 11)])
def test_evaluation_of_the_first_few(limit, seen):
    assert sum(int(b["valid"].sum()) for b in evaluate(limit=limit)) == seen


def test_evaluation_can_start_at_any_photo():
    batches = evaluate(start=5)
    assert [b["index"][b["valid"]].tolist() for b in batches] == [[5, 6, 7, 8], [9, 10]]
    whole = {int(i): image for b in evaluate() for i, image in zip(b["index"], b["image"], strict=True)}
    for b in batches:
        for i, image in zip(b["index"], b["image"], strict=True):
            np.testing.assert_array_equal(image, whole[int(i)])
    assert evaluate(start=11) == []


def test_completers_see_photo_and_mask():
    def complete(i, image, mask):
        return np.where(mask > 0, np.uint8(i), image)

    for b in evaluate(completers={"number": complete}):
        expected = np.where(b["mask"] > 0, b["index"][:, None, None, None].astype(np.uint8), b["image"])
        np.testing.assert_array_equal(b["completed"]["number"], expected)


def test_evaluation_rows_of_two_processes_make_the_batch_of_one():
    parts = [evaluate(process_index=p, process_count=2) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_equal(joined, evaluate())


def test_pairs_for_another_number_of_photos_are_an_error():
    with pytest.raises(InputError, match="pairs is for 3 photos, but there are 11"):
        evaluation_batches(settings(), NumberedPhotos(11), masks(), [0, 1, 2], 4)


def test_pairs_with_masks_that_do_not_exist_are_an_error():
    with pytest.raises(InputError, match="asks for masks 0 to 12000, but there are 12000"):
        evaluation_batches(settings(), NumberedPhotos(2), masks(), [0, 12000], 2)


def save_photos(folder: Path, count: int, broken: int) -> None:
    for i in range(count):
        Image.fromarray(NumberedPhotos(count).load(i)).save(folder / f"{i:02d}.png")
    (folder / f"{broken:02d}.png").write_bytes(b"broken")


def test_unreadable_photo_stops_training_with_its_name(tmp_path):
    save_photos(tmp_path, 8, broken=5)
    photos = open_photos(str(tmp_path), "data.train_photos")
    with pytest.raises(InputError, match=r"05\.png cannot be read as an image"):
        list(training_batches(settings(), photos, masks(), None, start_step=0, steps=2))


def test_batches_before_the_unreadable_photo_arrive(tmp_path):
    save_photos(tmp_path, 8, broken=5)
    batches = evaluation_batches(settings(), open_photos(str(tmp_path), "data.test_photos"), masks(), range(8), 4)
    assert photo_numbers([next(batches)]) == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"05\.png"):
        next(batches)


def test_input_error_inside_another_error_comes_out():
    class WrappingPhotos(NumberedPhotos):
        def read(self, i):
            raise RuntimeError("reader") from InputError("the cause")

    with pytest.raises(InputError, match="the cause"):
        next(training_batches(settings(), WrappingPhotos(11), masks(), None, start_step=0, steps=1))


def test_error_of_the_program_is_not_disguised():
    class BuggyPhotos(NumberedPhotos):
        def read(self, i):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(training_batches(settings(), BuggyPhotos(11), masks(), None, start_step=0, steps=1))


def reader_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if "grain" in t.name}


def test_reader_threads_end_with_the_iterator():
    before = reader_threads()
    batches = training_batches(settings(), NumberedPhotos(11), masks(), None, start_step=0, steps=10**6)
    next(batches)
    started = reader_threads() - before
    assert started
    batches.close()  # type: ignore[attr-defined]
    for thread in started:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in started)


def test_program_that_stops_in_the_middle_of_reading_exits():
    root = Path(__file__).resolve().parents[2]
    program = (
        "from tests.data.test_pipeline import *\n"
        "batches = training_batches(settings(), NumberedPhotos(11), masks(), None, start_step=0, steps=10**6)\n"
        "next(batches)\n"
        "raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode in (1, 130, -2)
