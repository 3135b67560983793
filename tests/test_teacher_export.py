"""The teacher's features equal the published network's; the export survives interruption and refuses wrong input in words."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spn_jax.config import Config, apply_overrides
from spn_jax.data.images import open_photos, teacher_photo
from spn_jax.data.teacher import DTYPES, MANIFEST, TEMPORARY, Manifest, TeacherCache
from spn_jax.errors import InputError
from teacher_export import export as export_module
from teacher_export import frameworks
from teacher_export.__main__ import main
from teacher_export.export import Progress, export
from teacher_export.frameworks import timm, torch
from teacher_export.teachers import TEACHERS, Teacher, load_teacher
from tests import parity_fill

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LEVEL_OF = {"teacher_0": 1, "teacher_1": 2, "teacher_2": 3}


def asl_trunk() -> dict[str, torch.Tensor]:
    """The trunk in the names and shapes of the ASL file, with the values that the golden features were computed from."""
    layout = json.loads((GOLDEN / "teacher_state_dict.json").read_text())
    return {name: torch.from_numpy(parity_fill.weight(name, shape)) for name, shape in layout}


def asl_file(path: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None) -> str:
    """A file laid out like the ASL release: the tensors under "model", with the later layers and the head."""
    tensors = asl_trunk()
    for name in ("body.layer3.0.conv1.0.weight", "body.layer4.0.conv1.0.weight", "head.fc.weight"):
        tensors[name] = torch.zeros(2, 2)
    change(tensors)
    torch.save({"model": tensors}, path)
    return str(path)


@pytest.fixture(scope="module")
def random_teacher() -> Teacher:
    return load_teacher("tresnet_l", "random", 0, "cpu")


@pytest.fixture(scope="module")
def asl_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher("tresnet_l", asl_file(tmp_path_factory.mktemp("weights") / "asl.pth"), 0, "cpu")


def golden_input() -> torch.Tensor:
    return torch.from_numpy(parity_fill.image("train_det_a/2x", 2, 128, 128)[:1].transpose(0, 2, 3, 1))


def largest_difference(features: dict[int, torch.Tensor]) -> float:
    """Over all levels, relative to the largest value of each."""
    with np.load(GOLDEN / "teacher.npz") as golden:
        differences = []
        for name, level in LEVEL_OF.items():
            expected = golden[name].transpose(0, 2, 3, 1)
            assert features[level][..., ::8].shape == expected.shape
            differences.append(np.abs(features[level][..., ::8].numpy() - expected).max() / np.abs(expected).max())
    return float(max(differences))


def test_features_equal_the_golden_ones_in_float32(asl_teacher: Teacher) -> None:
    assert largest_difference(asl_teacher(golden_input())) < 1e-4


def test_features_equal_the_golden_ones_in_float64(tmp_path: Path) -> None:
    teacher = load_teacher("tresnet_l", asl_file(tmp_path / "asl.pth"), 0, "cpu")
    teacher.model.double()
    assert largest_difference(teacher(golden_input().double())) < 1e-6


def test_levels_and_scales(asl_teacher: Teacher) -> None:
    shapes = {level: tuple(f.shape) for level, f in asl_teacher(torch.zeros(2, 64, 64, 3)).items()}
    assert shapes == {1: (2, 16, 16, 76), 2: (2, 16, 16, 76), 3: (2, 8, 8, 152)}


def test_all_layouts_of_a_file_give_the_same_weights(tmp_path: Path, asl_teacher: Teacher, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(asl_trunk(), tmp_path / "bare.pth")
    model = timm.create_model("tresnet_l")
    model.load_state_dict(frameworks.rename_tresnet(asl_trunk(), model), strict=False)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    capsys.readouterr()
    for name, left_out in {"bare.pth": "left out: nothing", "timm.pth": "left out: body.layer3"}.items():
        teacher = load_teacher("tresnet_l", str(tmp_path / name), 0, "cpu")
        assert teacher.weights_sha256 == asl_teacher.weights_sha256
        assert teacher.weights_origin == f"file {name}"
        assert left_out in capsys.readouterr().out


def test_what_is_left_out_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_teacher("tresnet_l", asl_file(tmp_path / "asl.pth"), 0, "cpu")
    assert "left out: body.layer3 (1 tensors), body.layer4 (1 tensors), head (1 tensors)" in capsys.readouterr().out


def test_hash_sees_every_value(tmp_path: Path, asl_teacher: Teacher) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["body.layer2.4.se.fc2.bias"][7] += 1e-3

    assert load_teacher("tresnet_l", asl_file(tmp_path / "changed.pth", change), 0, "cpu").weights_sha256 != asl_teacher.weights_sha256


def test_random_weights_are_the_seed_s(random_teacher: Teacher) -> None:
    state = torch.random.get_rng_state()
    again = load_teacher("tresnet_l", "random", 0, "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    other = load_teacher("tresnet_l", "random", 1, "cpu")
    assert again.weights_sha256 == random_teacher.weights_sha256 != other.weights_sha256
    assert (again.weights_origin, other.weights_origin) == ("random(seed=0)", "random(seed=1)")


def test_everything_that_does_not_fit_in_a_file_is_listed_at_once(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["body.conv1.0.weight"]
        del tensors["body.layer2.0.downsample.1.0.weight"]
        tensors["body.layer1.0.conv1.1.bias"] = torch.zeros(75)
        tensors["body.layer1.9.conv1.0.weight"] = torch.zeros(1)
        tensors["header.weight"] = torch.zeros(1)

    with pytest.raises(InputError) as raised:
        load_teacher("tresnet_l", asl_file(tmp_path / "asl.pth", change), 0, "cpu")
    for text in (
        "missing body.conv1.conv.weight",
        "missing body.layer2.0.downsample.1.conv.weight",
        "body.layer1.0.conv1.bn.bias has shape (75,) instead of (76,)",
        "unknown body.layer1.9.conv1.conv.weight",
        "unknown header.weight",
    ):
        assert text in str(raised.value)
    assert "layer3" not in str(raised.value)


class Program:
    """What a file must not be able to bring along."""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Program(), "not a torch file of tensors alone"),
        ([torch.zeros(1)], "another layout"),
        ({}, "another layout"),
        ({"model": {"a": 1}}, "another layout"),
        (b"no torch file", "not a torch file of tensors alone"),
        (b"", "not a torch file of tensors alone"),
    ],
    ids=["program", "list", "nothing in it", "no tensors", "text", "empty file"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: object, text: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=text) as raised:
        load_teacher("tresnet_l", str(path), 0, "cpu")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "weights", "device", "text"),
    [
        ("hrnet", "random", "cpu", "teacher.name=hrnet is not known; choose one of tresnet_l"),
        ("tresnet_l", "nowhere.pth", "cpu", "--weights nowhere.pth is not a file"),
        ("tresnet_l", "timm:resnet50.a1_in1k", "cpu", "is not a tresnet_l"),
        ("tresnet_l", "random", "cuda:99", "--device cuda:99 cannot be used"),
        ("tresnet_l", "random", "toaster", "--device toaster cannot be used"),
    ],
)
def test_what_is_not_there_is_refused(name: str, weights: str, device: str, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        load_teacher(name, weights, 0, device)


def test_downloaded_weights_are_named_imagenet(monkeypatch: pytest.MonkeyPatch, random_teacher: Teacher) -> None:
    create = timm.create_model

    def download(name: str, pretrained: bool) -> Any:
        assert (name, pretrained) == ("tresnet_l.miil_in1k", True)
        return create(name, pretrained=False)  # the same network and description, without the transfer

    monkeypatch.setattr(timm, "create_model", download)
    teacher = load_teacher("tresnet_l", "timm:tresnet_l.miil_in1k", 0, "cpu")
    assert teacher.weights_origin == "timm:tresnet_l.miil_in1k (ImageNet-1k, not OpenImages)"
    assert teacher.weights_sha256 != random_teacher.weights_sha256


def test_other_failures_of_torchvision_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(frameworks.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        frameworks._import_torchvision()


# --- the export ---


def write_photos(folder: Path, count: int) -> str:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40 + index % 3, 50, 3), np.uint8)).save(folder / f"{index:03d}.png")
    return str(folder)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Five photos at P = 32, two a shard."""
    photos = write_photos(tmp_path / "photos", 5)
    settings = ["data.image_size=32", "data.threads=2", "teacher.records_per_shard=4", "teacher.batch_size=2"]
    return apply_overrides(Config(), [*settings, f"data.train_photos={photos}", f"teacher.cache={tmp_path / 'cache'}"])


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def direct_features(teacher: Teacher, config: Config, photo: int, flipped: bool) -> dict[int, torch.Tensor]:
    image = teacher_photo(open_photos(config.data.train_photos, "photos").load(photo), config)
    image = image[:, ::-1] if flipped else image
    return {k: v[0] for k, v in teacher(torch.from_numpy(image[None].astype(np.float32) / np.float32(255))).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_holds_the_features_of_every_photo_in_both_orientations(config: Config, random_teacher: Teacher, dtype: str) -> None:
    config = apply_overrides(config, [f"teacher.dtype={dtype}"])
    export(config, random_teacher)
    cache = TeacherCache.open(config.teacher.cache)
    cache.check(config, open_photos(config.data.train_photos, "data.train_photos"))
    tolerance = {"float32": 1e-5, "bfloat16": 2.0**-8}[dtype]
    for photo in range(5):
        for flipped in (False, True):
            for level, expected in direct_features(random_teacher, config, photo, flipped).items():
                stored = cache.features(photo, flipped)[level]
                assert stored.dtype == DTYPES[dtype]
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
    assert [shard.records for shard in manifest.shards] == [4, 4, 2]  # the orientations of a photo stay together
    output = capsys.readouterr().out
    assert output.index("bytes needed") < output.index("5/5 photos")
    assert re.search(r"about [\d,]+ bytes needed \(972,800 before compression\), [\d,]+ bytes free", output)
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
    assert not any(Path(config.teacher.cache).glob(TEMPORARY + "*"))
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
    assert not any(Path(config.teacher.cache).glob(TEMPORARY + "*"))


def test_features_that_are_not_finite_are_refused(config: Config, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["body.layer2.0.conv1.0.0.weight"][0] = torch.nan

    teacher = load_teacher("tresnet_l", asl_file(tmp_path / "broken.pth", change), 0, "cpu")
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


def many_shards(config: Config, tmp_path: Path, photos: int) -> Config:
    folder = write_photos(tmp_path / "many", photos)
    return apply_overrides(config, [f"data.train_photos={folder}", "teacher.records_per_shard=2"])


def test_killed_and_restarted_an_export_ends_with_the_same_bytes(config: Config, random_teacher: Teacher, tmp_path: Path) -> None:
    config = many_shards(config, tmp_path, 64)
    cache, straight = Path(config.teacher.cache), tmp_path / "straight"
    export(apply_overrides(config, [f"teacher.cache={straight}"]), random_teacher)
    pause = random.uniform(0, 0.1)
    process = start(arguments(config, tmp_path))
    kill_after_a_new_shard(process, cache, pause)
    assert process.returncode == -signal.SIGKILL, f"not killed {pause} s after its first shard"
    assert not (cache / MANIFEST).exists()
    finished = len(list(cache.glob("features-*")))
    assert 0 < finished < 64
    output = finish(start(arguments(config, tmp_path)))
    assert f"{128 - 2 * finished} of 128 records to write" in output
    assert contents(cache) == contents(straight)


@pytest.mark.long
def test_killed_ten_times_an_export_ends_with_the_same_bytes(config: Config, random_teacher: Teacher, tmp_path: Path) -> None:
    config = many_shards(config, tmp_path, 300)
    cache, straight = Path(config.teacher.cache), tmp_path / "straight"
    export(apply_overrides(config, [f"teacher.cache={straight}"]), random_teacher)
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
    assert "InputError: teacher_export needs torch and timm; install them with `pip install 'spn_jax[teacher]'`" in process.stderr


def test_another_teacher_is_one_entry_of_the_registry(config: Config, random_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    def edges(weights: str, seed: int, device: torch.device) -> Teacher:
        """Brightness at P/4 alone."""
        return dataclasses.replace(
            random_teacher,
            name="edges",
            layers={3: "brightness"},
            forward=lambda photos: [torch.nn.functional.avg_pool2d(photos.mean(1, keepdim=True), 8)],
        )

    monkeypatch.setitem(TEACHERS, "edges", edges)
    config = apply_overrides(config, ["teacher.name=edges", "model.prior_levels=3"])
    manifest: Manifest = export(config, load_teacher("edges", "random", 0, "cpu"))
    assert [(v.level, v.channels, v.height) for v in manifest.levels] == [(3, 1, 8)]
    TeacherCache.open(config.teacher.cache).check(config, open_photos(config.data.train_photos, "photos"))


def test_too_little_memory_on_the_device_names_the_batch_size(asl_teacher: Teacher) -> None:
    def full(photos: torch.Tensor) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    teacher = dataclasses.replace(asl_teacher, forward=full)
    with pytest.raises(InputError, match="cpu has too little memory for teacher.batch_size=2; choose a smaller one"):
        export_module.run_teacher(teacher, np.zeros((2, 64, 64, 3), np.uint8), "float32")
