"""The feature cache's files: what is written is read, what is damaged or does not fit is refused in
words.
"""

import dataclasses
import json
import pickle
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import spn_jax.data.teacher as teacher_module
from spn_jax.config import Config, apply_overrides
from spn_jax.data.cache_writer import WRITER_OPTIONS, CacheWriter
from spn_jax.data.manifest import DTYPES, MANIFEST, PLAN, Level, Manifest, dequantise, quantise
from spn_jax.data.shards import UNFINISHED, BeingWritten, new_shard
from spn_jax.data.teacher import TeacherCache, preparation
from spn_jax.errors import InputError

LEVELS = (
    Level(level=1, name="stem", channels=5, height=16, width=16),
    Level(level=2, name="layer1", channels=3, height=16, width=16),
    Level(level=3, name="layer2", channels=7, height=8, width=8),
)
PHOTOS = 7


class PhotoList:
    """What the cache asks of the photos."""

    def __init__(self, count: int = PHOTOS, digest: str = "photos") -> None:
        self.count, self.digest = count, digest

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return self.digest


CONFIG = apply_overrides(Config(), ["data.image_size=32"])


def make_plan(**changes: object) -> Manifest:
    plan = Manifest(
        teacher="tresnet_l",
        weights_origin="random(seed=0)",
        weights_sha256="weights",
        photos_sha256="photos",
        photo_count=PHOTOS,
        orientations=2,
        image_size=32,
        preparation=preparation(CONFIG),
        dtype="bfloat16",
        compression="zstd",
        compute_dtype="float32",
        photos_per_shard=2,
        levels=LEVELS,
    )
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def record(plan: Manifest, photo: int, flipped: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng([photo, flipped])
    return {v.level: rng.standard_normal((v.height, v.width, v.channels)).astype(plan.given_dtype) for v in plan.levels}


def checksum_of(photo: int) -> int:
    return 1000 + photo


def write_shard(writer: CacheWriter, index: int) -> None:
    with writer.shard(index) as write:
        for photo in writer.plan.shard_photos(index):
            for flipped in range(writer.plan.orientations):
                write(record(writer.plan, photo, flipped), checksum_of(photo))


def make_cache(folder: Path, plan: Manifest | None = None) -> TeacherCache:
    with CacheWriter(str(folder), plan or make_plan()) as writer:
        for index in writer.unfinished:
            write_shard(writer, index)
        writer.finish()
    return TeacherCache.open(str(folder))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("orientations", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, orientations: int) -> None:
    plan = make_plan(dtype=dtype, orientations=orientations)
    cache = make_cache(tmp_path, plan)
    assert cache.levels == (1, 2, 3)
    assert cache.channels == {1: 5, 2: 3, 3: 7}
    for photo in range(PHOTOS):
        for flipped in range(orientations):
            features, expected = cache.features(photo, bool(flipped)), record(plan, photo, flipped)
            assert list(features) == [1, 2, 3]
            for level, array in features.items():
                assert isinstance(array, np.ndarray) and array.dtype == DTYPES[dtype]
                np.testing.assert_array_equal(array, expected[level])


def test_eight_bits_keep_every_channel_within_half_a_step(tmp_path: Path) -> None:
    plan = make_plan(dtype="uint8")
    cache = make_cache(tmp_path, plan)
    for photo in range(PHOTOS):
        for level, stored in cache.features(photo, True).items():
            expected = record(plan, photo, 1)[level]
            assert isinstance(stored, dict) and stored["codes"].dtype == np.uint8
            half = (expected.max((0, 1)) - expected.min((0, 1))) / 255 / 2
            assert (np.abs(dequantise(stored) - expected) <= half * 1.001).all()
            assert set(stored["codes"].min((0, 1))) == {0} and set(stored["codes"].max((0, 1))) == {255}


def test_a_channel_that_is_constant_comes_back_exactly() -> None:
    features = np.full((4, 4, 2), 0.3, np.float32)
    low, step, codes = quantise(features)
    np.testing.assert_array_equal(dequantise({"codes": codes, "low": low, "step": step}), features)


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_compression_changes_the_files_alone(tmp_path: Path, compression: str) -> None:
    plan = make_plan(levels=tuple(dataclasses.replace(level, channels=64) for level in LEVELS), compression=compression)
    with CacheWriter(str(tmp_path), plan) as writer:
        for index in writer.unfinished:
            with writer.shard(index) as write:
                for photo in plan.shard_photos(index):
                    for _ in range(2):
                        write({v.level: np.full((v.height, v.width, 64), photo, DTYPES["bfloat16"]) for v in plan.levels}, 0)
        sizes = [shard.bytes for shard in writer.finish().shards]
    assert (sizes[0] > 4 * plan.record_bytes) == (compression == "none")
    assert (np.asarray(TeacherCache.open(str(tmp_path)).features(5, True)[3]) == 5).all()


def test_features_of_another_photo_or_place_are_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.features(3, True, checksum=checksum_of(3), name="a.jpg")
    with pytest.raises(InputError, match=r"photo a\.jpg has changed since its features in .*00001-of-00004.* delete that file and run"):
        cache.features(3, True, checksum=checksum_of(4), name="a.jpg")
    first, second = (tmp_path / cache.manifest.shard_file(index) for index in (0, 1))
    first.write_bytes(second.read_bytes())
    moved = TeacherCache(str(tmp_path), cache.manifest)
    with pytest.raises(InputError, match=f"{first.name} is damaged .record 4 is where 0 should be"):
        moved.features(0, False)


# --- many processes ---


def test_processes_own_whole_shards_and_another_number_of_them_goes_on(tmp_path: Path) -> None:
    make_cache(tmp_path / "alone")
    folder = str(tmp_path / "shared")
    with CacheWriter(folder, make_plan(), 0, 2) as first, CacheWriter(folder, make_plan(), 1, 2) as second:
        assert (first.unfinished, second.unfinished) == ([0, 2], [1, 3])
        write_shard(first, 0)
        write_shard(second, 3)
        with pytest.raises(ValueError, match="00001-of-00004.*00002-of-00004.*are not written yet"):
            first.finish()
    owned = []
    for process in range(3):
        with CacheWriter(folder, make_plan(), process, 3) as writer:
            owned.append(writer.unfinished)
            for index in writer.unfinished:
                write_shard(writer, index)
            if not writer.missing():
                writer.finish()
    assert owned == [[], [1], [2]]
    assert contents(Path(folder)) == contents(tmp_path / "alone")


def test_finishing_a_shared_export_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan(), 0, 2) as first, CacheWriter(str(tmp_path), make_plan(), 1, 2) as second:
        for writer in (first, second):
            for index in writer.unfinished:
                write_shard(writer, index)
        left = tmp_path / f"{UNFINISHED}features-00009-of-00009.array_record"
        left.write_bytes(b"of a killed process")
        with first.verification() as mine, new_shard(tmp_path, "features-sample", WRITER_OPTIONS["none"]) as put:
            assert mine
            first.finish()
            put(b"a record of the other process")
            with second.verification() as other:
                assert not other
        assert (tmp_path / "features-sample").is_file() and not left.exists()
        assert not list(tmp_path.glob(f"{UNFINISHED}*"))
        with second.verification() as other:
            assert other


def test_one_exporter_alone_and_several_refuse_each_other(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan(), 0, 2), pytest.raises(InputError, match="another export is writing"):
        CacheWriter(str(tmp_path), make_plan())
    with CacheWriter(str(tmp_path), make_plan()), pytest.raises(InputError, match="another export is writing"):
        CacheWriter(str(tmp_path), make_plan(), 0, 2)


def test_one_of_several_with_other_settings_is_refused(tmp_path: Path) -> None:
    with (
        CacheWriter(str(tmp_path), make_plan(), 0, 2),
        pytest.raises(InputError, match="holds features made with other settings: image_size: 32 -> 64"),
    ):
        CacheWriter(str(tmp_path), make_plan(image_size=64), 1, 2)


def test_a_shard_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan(), 0, 2) as first, CacheWriter(str(tmp_path), make_plan(), 0, 2) as same:
        with first.shard(0) as write:
            with pytest.raises(BeingWritten), same.shard(0):
                pass
            for flipped in (0, 1, 0, 1):
                write(record(first.plan, 0, flipped), 0)
        assert first.missing() == [1, 2, 3]
        with pytest.raises(BeingWritten), same.shard(0):  # it is there by now
            pass


def test_verification_reads_every_record_and_is_one_s_business(tmp_path: Path) -> None:
    make_cache(tmp_path)
    path = tmp_path / make_plan().shard_file(2)
    data = bytearray(path.read_bytes())
    data[4000] ^= 1  # in the first of its records; the file's end is padding
    path.write_bytes(data)
    read: list[int] = []
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        damaged = writer.damage(2, read.append)
        assert list(damaged) == [2] and sum(read) == 10
        with writer.verification() as mine, writer.verification() as other:
            assert (mine, other) == (True, False)
        writer.remove(2)
        assert writer.missing() == [2] and not (tmp_path / MANIFEST).exists()


def test_record_is_little_endian_levels_one_after_the_other() -> None:
    levels = (Level(level=2, name="a", channels=2, height=1, width=1), Level(level=3, name="b", channels=1, height=1, width=1))
    plan = make_plan(dtype="float32", levels=levels)
    features = {3: np.full((1, 1, 1), 3, np.float32), 2: np.array([[[1, 2]]], np.float32)}
    head = bytes.fromhex("05000000 efbeadde")
    assert plan.encode(5, 0xDEADBEEF, features) == head + np.array([1, 2, 3], "<f4").tobytes()
    narrow = {k: v.astype(DTYPES["bfloat16"]) for k, v in features.items()}
    assert make_plan(levels=levels).encode(5, 0xDEADBEEF, narrow) == head + bytes.fromhex("803f00404040")


def test_threads_read_side_by_side_with_fewer_open_files_than_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "OPEN_READERS", 2)
    cache = make_cache(tmp_path)

    def is_right(read: int) -> bool:
        photo, flipped = read % PHOTOS, read % 2
        return np.array_equal(dequantise(cache.features(photo, bool(flipped))[3]), record(cache.manifest, photo, flipped)[3])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(200)))
    assert len(cache._readers) <= 2


def test_a_pickled_cache_reads_on(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    before = cache.features(3, True)
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy.features(3, True)[1], before[1])


def test_identity_tells_caches_apart_but_not_their_places(tmp_path: Path) -> None:
    one, same = make_cache(tmp_path / "one"), make_cache(tmp_path / "same")
    other = make_cache(tmp_path / "other", make_plan(weights_sha256="other weights"))
    assert one.identity() == same.identity() != other.identity()
    assert contents(tmp_path / "one") == contents(tmp_path / "same")


def test_photo_out_of_range_and_mirrored_photo_that_is_not_there(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, make_plan(orientations=1))
    with pytest.raises(IndexError):
        cache.features(PHOTOS, False)
    with pytest.raises(InputError, match="has no mirrored photos"):
        cache.features(0, True)


def test_a_cache_fits_its_own_settings(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.check(CONFIG, PhotoList())
    cache.check(apply_overrides(CONFIG, ["data.flip=none", "model.prior_levels=3"]), PhotoList())


@pytest.mark.parametrize(
    ("changes", "overrides", "photos", "text"),
    [
        ({}, [], PhotoList(digest="others"), "other names or file sizes"),
        ({}, [], PhotoList(count=9), "number of photos is 7 in the cache, 9 here"),
        ({}, ["data.image_size=64"], PhotoList(), "data.image_size is 32 in the cache, 64 here"),
        ({}, ["data.crop=center"], PhotoList(), "data.crop is none in the cache, center here"),
        ({}, ["data.resize_filter=box"], PhotoList(), "data.resize_filter is bicubic in the cache, box here"),
        ({}, ["teacher.photo=upsampled"], PhotoList(), "teacher.photo is original in the cache, upsampled here"),
        ({}, ["teacher.name=hrnet"], PhotoList(), "teacher.name is tresnet_l in the cache, hrnet here"),
        ({"orientations": 1}, [], PhotoList(), "data.flip=together needs mirrored photos"),
        ({}, ["teacher.layers=stem,other,layer2"], PhotoList(), "teacher.layers: level 2 is layer1 in the cache, other here"),
        (
            {"levels": (*LEVELS[:2], dataclasses.replace(LEVELS[2], resized="area 9x9 to 8x8"))},
            [],
            PhotoList(),
            "teacher.resize: level 3 is area 9x9 to 8x8 in the cache, nearest here",
        ),
        ({"levels": LEVELS[1:]}, [], PhotoList(), r"levels \[1\] of model.prior_levels are not in the cache"),
    ],
    ids=["photo names", "photo count", "size", "crop", "filter", "teacher's photo", "teacher", "orientation", "layer", "resizing", "level"],
)
def test_a_cache_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], overrides: list[str], photos: PhotoList, text: str
) -> None:
    cache = make_cache(tmp_path, make_plan(**changes))
    with pytest.raises(InputError, match=text) as raised:
        cache.check(apply_overrides(CONFIG, overrides), photos)
    # nothing else is complained about
    assert str(raised.value).count(" is ") + str(raised.value).count(" are ") <= 2


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with pytest.raises(InputError, match="data.image_size is 32.*data.crop is none.*teacher.name|teacher.name.*data.image_size.*data.crop"):
        cache.check(apply_overrides(CONFIG, ["data.image_size=64", "data.crop=center", "teacher.name=hrnet"]), PhotoList())


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_no_cache_names_the_command_that_makes_it(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=f"no teacher features.*python -m teacher_export --config configs/celeba.py.*teacher.cache=.*{folder}"
    ):
        TeacherCache.open(str(tmp_path / folder), "configs/celeba.py")


def test_no_cache_set() -> None:
    with pytest.raises(InputError, match="teacher.cache is not set.*python -m teacher_export"):
        TeacherCache.open("")


def test_an_unfinished_cache_is_not_opened(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        write_shard(writer, 0)
    with pytest.raises(InputError, match="unfinished export.*continue it with"):
        TeacherCache.open(str(tmp_path))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("damage", "text"), [(truncate, "bytes instead of"), (Path.unlink, "is missing")], ids=["truncated", "missing"])
def test_a_damaged_shard_is_refused_and_the_next_export_restores_it(tmp_path: Path, damage: Callable[[Path], None], text: str) -> None:
    make_cache(tmp_path)
    before = contents(tmp_path)
    damage(tmp_path / make_plan().shard_file(1))
    with pytest.raises(InputError, match=f"{make_plan().shard_file(1)}.*{text}"):
        TeacherCache.open(str(tmp_path))
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        assert writer.unfinished == [1]
        assert not (tmp_path / MANIFEST).exists()
        write_shard(writer, 1)
        writer.finish()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "spoil", [lambda data: b"\0" * len(data), lambda data: data[:4000] + b"spoilt" + data[4006:]], ids=["all", "a few bytes"]
)
def test_a_shard_of_the_right_size_with_other_bytes_is_refused_when_read(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    make_cache(tmp_path)
    path = tmp_path / make_plan().shard_file(0)
    path.write_bytes(spoil(path.read_bytes()))
    cache = TeacherCache.open(str(tmp_path))
    with pytest.raises(InputError, match=f"{path.name} is damaged"):
        for photo in (0, 1):
            for flipped in (False, True):
                cache.features(photo, flipped)


def changed(**entries: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **entries})


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "[1, 2]", "is damaged"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "dtype"}), "entry 'dtype' is missing"),
        (changed(photo_count="seven"), "entry 'photo_count' is not a whole number"),
        (changed(colour="red"), "entry 'colour' is unknown"),
        (changed(dtype="int8"), "make no sense"),
        (changed(compression="lzma"), "make no sense"),
        (changed(photo_count=5), "do not hold every photo once"),
        (changed(levels=[]), "levels do not ascend"),
        (changed(preparation="none"), "preparation"),
        (changed(version=99), "version 99"),
        (changed(shards=[]), "lists no shards"),
    ],
)
def test_a_corrupted_manifest_is_refused(tmp_path: Path, spoil: Callable[[str], str], text: str) -> None:
    make_cache(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=text) as raised:
        TeacherCache.open(str(tmp_path))
    assert MANIFEST in str(raised.value)


def test_without_its_corrupted_manifest_a_cache_is_completed_again(tmp_path: Path) -> None:
    make_cache(tmp_path)
    before = contents(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        assert writer.unfinished == []
        writer.finish()
    assert contents(tmp_path) == before


def test_an_interrupted_export_ends_with_the_same_bytes(tmp_path: Path) -> None:
    make_cache(tmp_path / "straight")
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt), CacheWriter(str(folder), make_plan()) as writer:
        write_shard(writer, 0)
        with writer.shard(1) as write:
            write(record(writer.plan, 2, 0), 0)
            raise KeyboardInterrupt
    assert sorted(contents(folder)) == [make_plan().shard_file(0), PLAN]
    (folder / f"{UNFINISHED}{make_plan().shard_file(1)}").write_bytes(b"of a killed process")
    (folder / f"{UNFINISHED}{'0a' * 6}").write_bytes(b"of a killed process")
    (folder / f"{UNFINISHED}portrait.jpg").write_bytes(b"a user's own")
    (folder / f"{UNFINISHED}edits").mkdir()
    with CacheWriter(str(folder), make_plan()) as writer:
        assert [path.name for path in sorted(folder.glob(f"{UNFINISHED}*"))] == [f"{UNFINISHED}edits", f"{UNFINISHED}portrait.jpg"]
        (folder / f"{UNFINISHED}edits").rmdir()
        (folder / f"{UNFINISHED}portrait.jpg").unlink()
        assert (writer.complete, writer.unfinished) == (False, [1, 2, 3])
    make_cache(folder)
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_finished_cache_says_so(tmp_path: Path) -> None:
    make_cache(tmp_path)
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        assert (writer.complete, writer.unfinished) == (True, [])


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_with_every_difference(tmp_path: Path, finished: bool) -> None:
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        write_shard(writer, 0)
    if finished:
        make_cache(tmp_path)
    before = contents(tmp_path)
    other = make_plan(image_size=64, dtype="float32", weights_sha256="others", levels=LEVELS[1:])
    with pytest.raises(InputError) as raised:
        CacheWriter(str(tmp_path), other)
    for text in (
        "image_size: 32 -> 64",
        "dtype: bfloat16 -> float32",
        "weights_sha256: random(seed=0) weights -> random(seed=0) others",
        "levels: ",
    ):
        assert text in str(raised.value)
    assert "photo_count" not in str(raised.value)
    assert contents(tmp_path) == before


def test_settings_may_change_before_the_first_shard(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()):
        pass
    assert make_cache(tmp_path, make_plan(photos_per_shard=3)).manifest.shard_count == 3


def test_renamed_weights_continue(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        write_shard(writer, 0)
    assert make_cache(tmp_path, make_plan(weights_origin="file renamed.pth")).manifest.weights_origin == "random(seed=0)"


def test_shards_without_a_plan_are_refused(tmp_path: Path) -> None:
    make_cache(tmp_path)
    for name in (PLAN, MANIFEST):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no plan.json"):
        CacheWriter(str(tmp_path), make_plan())


def test_two_exports_into_one_folder_are_refused(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()), pytest.raises(InputError, match="another export is writing"):
        CacheWriter(str(tmp_path), make_plan())
    with CacheWriter(str(tmp_path), make_plan()):  # the folder is free again
        pass


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be created"):
        CacheWriter(str(tmp_path / "file"), make_plan())


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes of a file fails, the way a full disk fails: in the middle of
    a shard.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_finished_shards_stay(tmp_path: Path) -> None:
    make_cache(tmp_path / "straight")
    folder = tmp_path / "full"
    with CacheWriter(str(folder), make_plan()) as writer:
        write_shard(writer, 0)
        before = contents(folder)
        with (
            pytest.raises(InputError, match=f"{make_plan().shard_file(1)} failed.*free some space and run the same command again"),
            files_limited_to(1000),
        ):
            write_shard(writer, 1)
        assert contents(folder) == before
    make_cache(folder)
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_full_disk_at_the_manifest_leaves_none(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        for index in writer.unfinished:
            write_shard(writer, index)
        with pytest.raises(InputError, match="manifest.json failed"), files_limited_to(100):
            writer.finish()
        assert not (tmp_path / MANIFEST).exists()
    make_cache(tmp_path)


@pytest.mark.parametrize(
    "change", [{3: np.zeros((8, 8, 6), DTYPES["bfloat16"])}, {3: np.zeros((8, 8, 7), np.float32)}], ids=["shape", "dtype"]
)
def test_a_record_of_another_form_is_not_written(change: dict[int, np.ndarray]) -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="do not fit"):
        plan.encode(0, 0, {**record(plan, 0, 0), **change})


def test_a_shard_short_of_records_gets_no_name(tmp_path: Path) -> None:
    with CacheWriter(str(tmp_path), make_plan()) as writer:
        with pytest.raises(ValueError, match="1 records written"), writer.shard(0) as write:
            write(record(writer.plan, 0, 0), 0)
        assert sorted(contents(tmp_path)) == [".lock", PLAN]
        with pytest.raises(ValueError, match="not written yet"):
            writer.finish()
