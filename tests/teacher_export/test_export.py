"""The export fills a cache that holds what the teacher says, survives interruption, and refuses
wrong input in words.
"""

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spn_jax.config import Config, apply_overrides
from spn_jax.data.images import open_photos, teacher_photo
from spn_jax.data.manifest import DTYPES, MANIFEST, dequantise
from spn_jax.data.masks import open_train_masks
from spn_jax.data.pipeline import training_batches
from spn_jax.data.shards import UNFINISHED
from spn_jax.data.teacher import TeacherCache
from spn_jax.errors import InputError
from spn_jax.runtime.progress import Progress
from teacher_export import export as export_module
from teacher_export.__main__ import main
from teacher_export.export import export
from teacher_export.frameworks import torch
from teacher_export.processes import Share, find_share
from teacher_export.teachers import Teacher
from tests.torch_teachers import asl_file, export_settings, tresnet, write_photos

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def random_teacher() -> Teacher:
    return tresnet("random")


@pytest.fixture(scope="module")
def asl_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return tresnet(asl_file(tmp_path_factory.mktemp("weights") / "asl.pth"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Five photos at P = 32, two a shard."""
    return export_settings(tmp_path)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def direct_features(teacher: Teacher, config: Config, photo: int, flipped: bool) -> dict[int, torch.Tensor]:
    image = teacher_photo(open_photos(config.data.train_photos, "photos").load(photo), config)
    image = image[:, ::-1] if flipped else image
    return {k: v[0] for k, v in teacher(torch.from_numpy(image[None].astype(np.float32) / np.float32(255))).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_cache_holds_the_features_of_every_photo_in_both_orientations(config: Config, random_teacher: Teacher, dtype: str) -> None:
    config = apply_overrides(config, [f"teacher.dtype={dtype}"])
    export(config, random_teacher)
    cache = TeacherCache.open(config.teacher.cache)
    cache.check(config, open_photos(config.data.train_photos, "data.train_photos"))
    tolerance = {"float32": 1e-5, "bfloat16": 2.0**-8, "uint8": 1 / 255}[dtype]
    for photo in range(5):
        for flipped in (False, True):
            for level, expected in direct_features(random_teacher, config, photo, flipped).items():
                stored = dequantise(cache.features(photo, flipped)[level])
                assert stored.dtype == (np.float32 if dtype == "uint8" else DTYPES[dtype])
                np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=tolerance, atol=tolerance * expected.max().item())


def test_features_of_a_mirrored_photo_are_not_mirrored_features(random_teacher: Teacher, config: Config) -> None:
    plain, mirrored = (direct_features(random_teacher, config, 0, flipped)[3] for flipped in (False, True))
    assert (plain.flip(1) - mirrored).abs().max() > 0.01 * plain.abs().max()


def test_manifest_and_what_is_printed(config: Config, random_teacher: Teacher, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = export(config, random_teacher)
    assert manifest == TeacherCache.open(config.teacher.cache).manifest
    assert (manifest.teacher, manifest.weights_origin) == ("tresnet_l", "random(seed=0)")
    assert manifest.photos_sha256 == open_photos(config.data.train_photos, "photos").fingerprint()
    assert [(v.level, v.name, v.channels, v.height, v.width) for v in manifest.levels] == [
        (1, "stem", 76, 16, 16),
        (2, "layer1", 76, 16, 16),
        (3, "layer2", 152, 8, 8),
    ]
    # the orientations of a photo stay together
    assert [shard.records for shard in manifest.shards] == [4, 4, 2]
    output = capsys.readouterr().out
    assert output.index("bytes needed") < output.index("5/5 photos")
    assert "levels: 1 (stem) 16x16x76, 2 (layer1) 16x16x76, 3 (layer2) 8x8x152\n" in output
    assert re.search(r"about [\d,]+ bytes needed \(972,880 before compression\), [\d,]+ bytes free", output)
    assert re.search(r"5/5 photos, [\d.]+ photos/s, 0:00:00 left", output)


def test_without_flipping_one_orientation_is_stored(config: Config, random_teacher: Teacher) -> None:
    config = apply_overrides(config, ["data.flip=none"])
    manifest = export(config, random_teacher)
    assert (manifest.orientations, [shard.records for shard in manifest.shards]) == (1, [4, 1])
    TeacherCache.open(config.teacher.cache).check(config, open_photos(config.data.train_photos, "photos"))


def test_a_second_run_says_that_the_cache_is_complete(config: Config, random_teacher: Teacher, capsys: pytest.CaptureFixture[str]) -> None:
    export(config, random_teacher)
    before = contents(config.teacher.cache)
    capsys.readouterr()
    export(config, random_teacher)
    assert "is complete: 5 photos, nothing to do" in capsys.readouterr().out
    assert contents(config.teacher.cache) == before


def test_a_second_run_with_other_settings_is_refused(config: Config, random_teacher: Teacher, asl_teacher: Teacher) -> None:
    export(config, random_teacher)
    with pytest.raises(InputError, match="weights_sha256: random.*preparation: .*box|preparation: .*box.*weights_sha256"):
        export(apply_overrides(config, ["data.resize_filter=box"]), asl_teacher)
    write_photos(Path(config.data.train_photos) / "more", 1)
    with pytest.raises(InputError, match="photos_sha256.*photo_count: 5 -> 6"):
        export(config, random_teacher)


def test_an_undecodable_photo_stops_the_export_and_the_rest_is_continued(config: Config, random_teacher: Teacher, tmp_path: Path) -> None:
    export(apply_overrides(config, [f"teacher.cache={tmp_path / 'straight'}"]), random_teacher)
    photo = Path(config.data.train_photos) / "003.png"
    good = photo.read_bytes()
    photo.write_bytes(b"x" * len(good))
    with pytest.raises(InputError, match="003.png"):
        export(config, random_teacher)
    assert not any(Path(config.teacher.cache).glob(UNFINISHED + "*"))
    with pytest.raises(InputError, match="unfinished"):
        TeacherCache.open(config.teacher.cache)
    photo.write_bytes(good)
    export(config, random_teacher)
    assert contents(config.teacher.cache) == contents(tmp_path / "straight")


def test_too_small_a_disk_is_noticed_before_the_start(
    config: Config, random_teacher: Teacher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(config.data.train_photos)._replace(free=1000)
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="and its disk has 1,000 free"):
        export(config, random_teacher)
    assert "bytes needed" in capsys.readouterr().out
    assert not any(Path(config.teacher.cache).glob("features-*"))
    assert not any(Path(config.teacher.cache).glob(UNFINISHED + "*"))


def test_features_that_are_not_finite_are_refused(config: Config, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["body.layer2.0.conv1.0.0.weight"][0] = torch.nan

    teacher = tresnet(asl_file(tmp_path / "broken.pth", change))
    with pytest.raises(InputError, match="not finite"):
        export(config, teacher)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("teacher.cache=", "teacher.cache is not set"),
        ("data.image_size=30", "divisible by 4"),
        ("data.train_photos=nowhere", "data.train_photos"),
    ],
)
def test_settings_that_cannot_work_are_refused(config: Config, random_teacher: Teacher, override: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        export(apply_overrides(config, [override]), random_teacher)


def test_progress_prints_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 4.0, 11.0, 12.0, 20.0])
    progress = Progress(done=100, total=1300, clock=lambda: next(times))
    for photos in (200, 240, 100, 660):
        progress.add(photos)
    assert capsys.readouterr().out.splitlines() == [
        "540/1,300 photos, 40.0 photos/s, 0:00:19 left",
        "1,300/1,300 photos, 60.0 photos/s, 0:00:00 left",
    ]


def test_time_and_its_shares_are_printed(config: Config, random_teacher: Teacher, capsys: pytest.CaptureFixture[str]) -> None:
    export(config, random_teacher)
    assert re.search(r"time: decode \d+ %, teacher \d+ %, write \d+ %; [\d.]+ photos/s", capsys.readouterr().out)


def test_bfloat16_passes_change_features_little_and_the_manifest_says_so(config: Config, random_teacher: Teacher) -> None:
    manifest = export(apply_overrides(config, ["teacher.compute_dtype=bfloat16", "teacher.dtype=float32"]), random_teacher)
    assert manifest.compute_dtype == "bfloat16"
    stored, expected = TeacherCache.open(config.teacher.cache).features(2, False), direct_features(random_teacher, config, 2, False)
    for level, exact in expected.items():
        error = np.abs(dequantise(stored[level]) - exact.numpy()).max() / exact.abs().max().item()
        assert 0 < error < 0.02


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_write_what_one_writes(config: Config, random_teacher: Teacher, tmp_path: Path, processes: int) -> None:
    straight = apply_overrides(config, [f"teacher.cache={tmp_path / 'straight'}"])
    export(straight, random_teacher)
    manifests = [export(config, random_teacher, Share(process, processes)) for process in range(processes)]
    # Three shards: the process that finds the last one written completes the cache, and one that
    # comes later finds it complete.
    assert [bool(manifest.shards) for manifest in manifests] == {2: [False, True], 4: [False, False, True, True]}[processes]
    assert contents(config.teacher.cache) == contents(straight.teacher.cache)


def test_shards_damaged_before_the_end_are_written_again(
    config: Config, random_teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(apply_overrides(config, [f"teacher.cache={tmp_path / 'straight'}"]), random_teacher)
    cache = Path(config.teacher.cache)
    export(config, random_teacher, Share(0, 2))
    shard = cache / "features-00000-of-00003.array_record"
    spoil(shard)
    export(config, random_teacher, Share(1, 2))
    assert f"shard {shard} is damaged" in capsys.readouterr().out
    assert contents(cache) == contents(tmp_path / "straight")


def spoil(path: Path) -> None:
    """Changes one bit of a record."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_restores_a_complete_cache(
    config: Config, random_teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(config, random_teacher)
    before = contents(config.teacher.cache)
    spoil(Path(config.teacher.cache) / "features-00001-of-00003.array_record")
    with pytest.raises(InputError, match="features-00001-of-00003.array_record is damaged"):
        cache = TeacherCache.open(config.teacher.cache)
        for photo in range(5):
            cache.features(photo, False), cache.features(photo, True)
    capsys.readouterr()
    export(config, random_teacher, verify=True)
    assert "10/10 records" in capsys.readouterr().out
    assert contents(config.teacher.cache) == before


def test_a_disk_that_loses_what_it_is_given_is_named(config: Config, random_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.CacheWriter, "damage", lambda writer, threads, done: {1: "its checksum is wrong"})
    with pytest.raises(InputError, match="loses what is written to it; choose another one"):
        export(config, random_teacher)
    assert not (Path(config.teacher.cache) / MANIFEST).exists()


def test_a_photo_replaced_after_the_export_stops_the_training(config: Config, random_teacher: Teacher) -> None:
    config = apply_overrides(config, ["train.batch_size=5"])
    export(config, random_teacher)
    path = Path(config.data.train_photos) / "003.png"
    same_size = bytearray(path.read_bytes())
    same_size[-1] ^= 1  # after the picture's end: it decodes to the same pixels
    path.write_bytes(same_size)
    photos, cache = open_photos(config.data.train_photos, "data.train_photos"), TeacherCache.open(config.teacher.cache)
    cache.check(config, photos)
    with pytest.raises(InputError, match=r"photo 003\.png has changed since its features in .* were exported"):
        next(training_batches(config, photos, open_train_masks(config), cache, start_step=0, steps=1))


ARRAY = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None), {}, (0, 1, None)),
        ((2, 4), {"RANK": "0", "WORLD_SIZE": "2"}, (2, 4, None)),
        ((None, None), {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ((None, None), {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"}, (3, 4, 3)),
        ((None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1, None)),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "6"}, (4, 6, None)),
        ((None, None), ARRAY | {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "8"}, (7, 8, None)),
        ((None, None), ARRAY | {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, (11, 12, 1)),
        ((None, 3), {"JOB_COMPLETION_INDEX": "2"}, (2, 3, None)),
        ((None, None), {"JOB_COMPLETION_INDEX": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
    ],
    ids=[
        "alone",
        "flags first",
        "torchrun",
        "SLURM",
        "SLURM alone",
        "SLURM array",
        "array with a step",
        "array of several tasks",
        "Kubernetes",
        "torchrun in Kubernetes",
    ],
)
def test_share_is_told_by_flags_or_engine(
    flags: tuple[int | None, int | None], environment: dict[str, str], expected: tuple[int, int, int | None]
) -> None:
    share = find_share(flags[0], flags[1], environment)
    assert (share.process, share.processes, share.local) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        ((1, None), {}, "--process 1 needs --processes"),
        ((None, 2), {}, "--processes 2 needs --process, the number of this one, from 0 to 1"),
        ((2, 2), {}, "process 2 of 2 .*makes no sense"),
        ((None, None), {"RANK": "a", "WORLD_SIZE": "2"}, "RANK='a', which is no whole number"),
        (
            (None, None),
            ARRAY | {"SLURM_ARRAY_TASK_ID": "9"},
            "number 9 of this job in its SLURM array of 3 does not tell its place; submit",
        ),
        ((None, None), {"JOB_COMPLETION_INDEX": "2"}, "add --processes COMPLETIONS"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(flags: tuple[int | None, int | None], environment: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_share(flags[0], flags[1], environment)


# --- as a program ---


def arguments(config: Config, folder: Path, weights: str = "random") -> list[str]:
    """Command line with the same settings as `config`."""
    file = folder / "experiment.py"
    file.write_text(f"from spn_jax.config import *\n\ndef get_config():\n    return {config!r}\n")
    return ["--config", str(file), "--weights", weights, "--device", "cpu"]


# One core, so that an export takes long enough everywhere to be killed in its middle.
PROGRAM = """
import os, runpy
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
runpy.run_module("teacher_export", run_name="__main__")
"""


def start(command_line: list[str], **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, *command_line]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def kill_after_a_new_shard(process: "subprocess.Popen[str]", cache: Path, pause: float) -> None:
    """SIGKILL `pause` seconds after the process finished its first shard."""
    before = len(list(cache.glob("features-*")))
    while len(list(cache.glob("features-*"))) <= before and process.poll() is None:
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.communicate()


def straight_export(config: Config, teacher: Teacher, tmp_path: Path) -> Path:
    """The cache of the same export by one process that nothing interrupts."""
    straight = tmp_path / "straight"
    export(apply_overrides(config, [f"teacher.cache={straight}"]), teacher)
    return straight


def many_shards(config: Config, tmp_path: Path, photos: int) -> Config:
    folder = write_photos(tmp_path / "many", photos)
    return apply_overrides(config, [f"data.train_photos={folder}", "teacher.records_per_shard=2"])


def test_killed_and_restarted_an_export_ends_with_the_same_bytes(
    config: Config, random_teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = many_shards(config, tmp_path, 64)
    cache, straight = Path(config.teacher.cache), straight_export(config, random_teacher, tmp_path)
    pause = random.uniform(0, 0.1)
    process = start(arguments(config, tmp_path))
    kill_after_a_new_shard(process, cache, pause)
    assert process.returncode == -signal.SIGKILL, f"not killed {pause} s after its first shard"
    assert not (cache / MANIFEST).exists()
    finished = len(list(cache.glob("features-*")))
    assert 0 < finished < 64
    capsys.readouterr()
    export(config, random_teacher)
    assert f"{128 - 2 * finished} of 128 records to write" in capsys.readouterr().out
    assert contents(cache) == contents(straight)


@pytest.mark.long
def test_killed_ten_times_an_export_ends_with_the_same_bytes(config: Config, random_teacher: Teacher, tmp_path: Path) -> None:
    config = many_shards(config, tmp_path, 300)
    cache, straight = Path(config.teacher.cache), straight_export(config, random_teacher, tmp_path)
    for _ in range(10):
        process = start(arguments(config, tmp_path))
        if random.random() < 0.3:  # anywhere, the start included
            time.sleep(random.uniform(0, 6))
            process.kill()
            process.communicate()
        else:
            kill_after_a_new_shard(process, cache, random.uniform(0, 0.15))
        assert process.returncode == -signal.SIGKILL
    finish(start(arguments(config, tmp_path)))
    assert contents(cache) == contents(straight)


def test_processes_of_torchrun_each_write_their_shards(
    config: Config, random_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = many_shards(config, tmp_path, 24)
    straight = straight_export(config, random_teacher, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "0", "1":
        monkeypatch.setenv("RANK", rank)
        main(arguments(config, tmp_path))
        assert (Path(config.teacher.cache) / MANIFEST).exists() == (rank == "1")
    assert "24 shards" in capsys.readouterr().out
    assert contents(config.teacher.cache) == contents(straight)


@pytest.mark.long
def test_processes_side_by_side_under_torchrun_s_environment(
    config: Config, random_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = many_shards(config, tmp_path, 24)
    straight = straight_export(config, random_teacher, tmp_path)
    line = arguments(config, tmp_path)
    # The second has the first one's number: both own the same shards and must not write the same
    # one.
    for process in [start(line, RANK="0", WORLD_SIZE="2") for _ in range(2)]:
        finish(process)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    main(line)
    assert "24 shards" in capsys.readouterr().out
    assert contents(config.teacher.cache) == contents(straight)


def test_weights_that_cannot_be_downloaded_end_in_one_sentence(config: Config, tmp_path: Path) -> None:
    process = start(arguments(config, tmp_path, "timm:tresnet_l.miil_in1k"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: --weights timm:tresnet_l.miil_in1k could not be loaded")
    assert "Traceback" not in errors
    assert not Path(config.teacher.cache).exists()


def test_command_line_takes_settings_between_its_options(config: Config, tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    file, weights = arguments(config, tmp_path)[:2], ["--weights", "random", "--device", "cpu"]
    main([*file, f"teacher.cache={cache}", *weights, "data.flip=none", "teacher.seed=3"])
    manifest = TeacherCache.open(str(cache)).manifest
    assert (manifest.orientations, manifest.weights_origin) == (1, "random(seed=3)")


def test_without_torch_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; import teacher_export.teachers"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "InputError: teacher_export needs torch and timm; install them with `pip install -e '.[teacher]'`" in process.stderr


def test_too_little_memory_on_the_device_names_the_batch_size(asl_teacher: Teacher) -> None:
    def full(photos: torch.Tensor) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    teacher = dataclasses.replace(asl_teacher, extractor=dataclasses.replace(asl_teacher.extractor, forward=full))
    with pytest.raises(InputError, match="cpu has too little memory for teacher.batch_size=2; choose a smaller one"):
        export_module.run_teacher(teacher, np.zeros((2, 64, 64, 3), np.uint8), "float32", "float32")
