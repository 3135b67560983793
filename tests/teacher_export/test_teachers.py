"""Every kind of teacher gives its maps, of channels and sizes that are found; TResNet-L is the
published network.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spn_jax.config import TeacherConfig, load_config
from spn_jax.data.teacher import TeacherCache
from spn_jax.errors import InputError
from spn_jax.training import loop
from spn_jax.training.loop import train
from teacher_export import frameworks
from teacher_export.export import export
from teacher_export.frameworks import timm, torch, torchvision
from teacher_export.teachers import Teacher, load_teacher
from teacher_export.teachers.interface import nearest_maps
from tests import parity_fill
from tests.torch_teachers import GOLDEN, SIZE, asl_file, asl_trunk, export_settings, teacher, tresnet, write_photos
from tests.trainer import traced_step

ROOT = Path(__file__).resolve().parents[2]
LEVEL_OF = {"teacher_0": 1, "teacher_1": 2, "teacher_2": 3}


@pytest.fixture(scope="module")
def random_teacher() -> Teacher:
    return tresnet("random")


@pytest.fixture(scope="module")
def asl_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return tresnet(asl_file(tmp_path_factory.mktemp("weights") / "asl.pth"))


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
    teacher = tresnet(asl_file(tmp_path / "asl.pth"))
    teacher.extractor.model.double()
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
        teacher = tresnet(str(tmp_path / name))
        assert teacher.weights_sha256 == asl_teacher.weights_sha256
        assert teacher.weights_origin == f"file {name}"
        assert left_out in capsys.readouterr().out


def test_what_is_left_out_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tresnet(asl_file(tmp_path / "asl.pth"))
    assert "left out: body.layer3 (1 tensors), body.layer4 (1 tensors), head (1 tensors)" in capsys.readouterr().out


def test_hash_sees_every_value(tmp_path: Path, asl_teacher: Teacher) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["body.layer2.4.se.fc2.bias"][7] += 1e-3

    assert tresnet(asl_file(tmp_path / "changed.pth", change)).weights_sha256 != asl_teacher.weights_sha256


def test_random_weights_are_the_seed_s(random_teacher: Teacher) -> None:
    state = torch.random.get_rng_state()
    again = tresnet("random")
    assert torch.equal(torch.random.get_rng_state(), state)
    other = tresnet("random", seed=1)
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
        tresnet(asl_file(tmp_path / "asl.pth", change))
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
        tresnet(str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "weights", "device", "text"),
    [
        (
            "hrnet",
            "random",
            "cpu",
            "teacher.name=hrnet is not known; choose one of tresnet_l, efficientnet_lite0, sobel, canny, timm:MODEL",
        ),
        ("tresnet_l", "nowhere.pth", "cpu", "--weights nowhere.pth is not a file"),
        ("tresnet_l", "timm:resnet50.a1_in1k", "cpu", "is not a tresnet_l"),
        ("tresnet_l", "random", "cuda:99", "--device cuda:99 cannot be used"),
        ("tresnet_l", "random", "toaster", "--device toaster cannot be used"),
    ],
)
def test_what_is_not_there_is_refused(name: str, weights: str, device: str, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        load_teacher(TeacherConfig(name=name), weights, device, SIZE)


def test_downloaded_weights_are_named_imagenet(monkeypatch: pytest.MonkeyPatch, random_teacher: Teacher) -> None:
    create = timm.create_model

    def download(name: str, pretrained: bool) -> Any:
        assert (name, pretrained) == ("tresnet_l.miil_in1k", True)
        # the same network and description, without the transfer
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", download)
    teacher = tresnet("timm:tresnet_l.miil_in1k")
    assert teacher.weights_origin == "timm:tresnet_l.miil_in1k (ImageNet-1k, not OpenImages)"
    assert teacher.weights_sha256 != random_teacher.weights_sha256


def test_other_failures_of_torchvision_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(frameworks.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        frameworks._import_torchvision()


# --- which map serves which level ---


@pytest.mark.parametrize(
    ("sides", "chosen"),
    [
        ((32, 32, 16), {3: 2, 2: 1, 1: 0}),  # TResNet-L: the stem is enlarged
        ((64, 32, 16, 8, 4), {3: 2, 2: 1, 1: 0}),  # ResNet: one map a level
        # a detector's pyramid: its finest map serves two levels
        ((32, 16, 8, 4), {3: 1, 2: 0, 1: 0}),
        ((8, 8, 8, 8), {3: 3, 2: 2, 1: 1}),  # a transformer: the deepest map for the coarsest level
        ((16,), {3: 0, 2: 0, 1: 0}),
        ((60, 30, 15), {3: 2, 2: 1, 1: 0}),
    ],
)
def test_each_level_gets_the_map_of_the_nearest_size(sides: tuple[int, ...], chosen: dict[int, int]) -> None:
    assert nearest_maps(sides, {1: 64, 2: 32, 3: 16}) == chosen


def maps_of(*sides: int) -> str:
    """A teacher in a file of its own whose maps have these sides: channel c of map i is i + the
    photo's mean.
    """
    return f"""
import torch
from teacher_export.teachers.interface import Extractor

def load(weights, seed, device):
    def forward(photos):
        assert 0 <= photos.min() and photos.max() <= 1
        mean = photos.mean((1, 2, 3), keepdim=True)
        grid = lambda i, side: torch.arange(side * side, device=device).reshape(1, 1, side, side) / side**2
        return [(i + mean + grid(i, side)).expand(-1, 3 + i, -1, -1) for i, side in enumerate({sides})]
    return Extractor(forward=forward, weights_origin="mine", weights_sha256=str(weights), names=tuple("abcdefgh"[:{len(sides)}]))
"""


def own(folder: Path, *sides: int) -> str:
    (folder / "mine.py").write_text(maps_of(*sides))
    return f"name={folder / 'mine.py'}"


def shapes(found: Teacher, size: int = SIZE) -> dict[int, tuple[int, ...]]:
    return {level: tuple(f.shape[1:]) for level, f in found(torch.full((2, 2 * size, 2 * size, 3), 0.5)).items()}


def test_a_file_of_one_s_own_is_a_teacher(tmp_path: Path) -> None:
    found = teacher(own(tmp_path, 32, 16, 4), weights="anything")
    assert found.layers == {1: "a", 2: "b", 3: "c"} and found.weights_sha256 == "anything"
    assert shapes(found) == {1: (32, 32, 3), 2: (16, 16, 4), 3: (4, 4, 5)}
    assert found.resized == {1: "", 2: "", 3: ""}


@pytest.mark.parametrize(
    ("rule", "resized", "sides"),
    [
        ("nearest", {1: "nearest 30x30 to 32x32", 2: "", 3: "nearest 12x12 to 8x8"}, (32, 8, 8)),
        ("bilinear", {1: "bilinear 30x30 to 32x32", 2: "bilinear 8x8 to 16x16", 3: "bilinear 12x12 to 8x8"}, (32, 16, 8)),
        ("area", {1: "area 30x30 to 32x32", 2: "area 8x8 to 16x16", 3: "area 12x12 to 8x8"}, (32, 16, 8)),
    ],
)
def test_maps_of_other_sizes_are_resized_by_the_rule_that_the_manifest_names(
    tmp_path: Path, rule: str, resized: dict[int, str], sides: tuple[int, ...]
) -> None:
    found = teacher(own(tmp_path, 30, 8, 12), "layers=a,b,c", f"resize={rule}")
    assert found.resized == resized
    photos = torch.full((1, 64, 64, 3), 0.5)
    features = found(photos)
    assert tuple(f.shape[1] for f in features.values()) == sides
    whole = found.extractor.forward(photos.permute(0, 3, 1, 2))[0]
    means = {"bilinear": 0.02, "area": 0.02, "nearest": 0.05}
    assert abs(features[1].mean() - whole.mean()) < means[rule]
    if rule == "nearest":
        assert set(features[1].unique().tolist()) <= set(whole.unique().tolist())
    config = export_settings(
        tmp_path, own(tmp_path, 30, 8, 12).replace("name", "teacher.name"), f"teacher.resize={rule}", "teacher.layers=a,b,c"
    )
    manifest = export(config, load_teacher(config.teacher, None, "cpu", SIZE))
    assert {level.level: level.resized for level in manifest.levels} == resized
    assert manifest.teacher == str(tmp_path / "mine.py")


def test_levels_that_are_not_asked_for_are_left_out(tmp_path: Path) -> None:
    assert shapes(teacher("levels=3", weights="random")) == {3: (8, 8, 152)}
    assert shapes(teacher(own(tmp_path, 32, 16, 8), "levels=2,3", "layers=a,c")) == {2: (16, 16, 3), 3: (8, 8, 5)}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def load(weights, seed, device):\n    return 3\n", "must define load"),
        ("x = 1\n", "must define load"),
        ("def load(weights, seed, device):\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("import nowhere_to_be_found\n", "line 1: ModuleNotFoundError"),
        (maps_of(32, 16).replace("return [", "return 3 or ["), "must return a list of feature maps"),
        (maps_of(32, 16).replace("return [", "return [mean[0]] + ["), "must be \\(1, channels, h, h\\)"),
        (maps_of(32, 16).replace("return [", "return [photos[:, :, :8]] + ["), "must be \\(1, channels, h, h\\)"),
        (maps_of(32, 16).replace('"abcdefgh"[:2]', '"abc"'), "names 3 maps and returns 2"),
    ],
)
def test_an_error_in_a_file_of_one_s_own_is_named(tmp_path: Path, code: str, text: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(InputError, match=text) as raised:
        teacher(f"name={path}")
    assert str(path) in str(raised.value)


def test_unknown_layers_are_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher.layers: x not among .* a \(3 channels, 32 pixels\), b \(4 channels, 16 pixels\)"):
        teacher(own(tmp_path, 32, 16), "layers=a,x,b")


# --- timm, torchvision ---


def test_timm_backbone_with_seeded_weights() -> None:
    found = teacher("name=timm:resnet10t", "seed=3", weights="random")
    assert shapes(found) == {1: (32, 32, 64), 2: (16, 16, 64), 3: (8, 8, 128)}
    assert found.layers == {1: "act1", 2: "layer1", 3: "layer2"} and found.weights_origin == "random(seed=3)"
    photos = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    again = teacher("name=timm:resnet10t", "seed=3", weights="random")
    assert again.weights_sha256 == found.weights_sha256 != teacher("name=timm:resnet10t", weights="random").weights_sha256
    assert torch.equal(found(photos)[3], again(photos)[3])


def test_timm_file_has_to_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet10t")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    found = teacher("name=timm:resnet10t", weights=str(tmp_path / "weights.pth"))
    photos = torch.rand(1, 64, 64, 3)
    config = timm.get_pretrained_cfg("resnet10t")
    normed = (photos - torch.tensor(config.mean)) / torch.tensor(config.std)
    with torch.inference_mode():
        expected = whole.eval().forward_features(normed.permute(0, 3, 1, 2))
    torch.testing.assert_close(found.extractor.forward(photos.permute(0, 3, 1, 2))[-1], expected)
    broken = {name: tensor for name, tensor in whole.state_dict().items() if name != "layer1.0.conv1.weight"} | {
        "other.weight": torch.zeros(1)
    }
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(InputError, match="does not fit resnet10t .*missing layer1.0.conv1.weight; unknown other.weight"):
        teacher("name=timm:resnet10t", weights=str(tmp_path / "broken.pth"))


def test_threads_do_not_mix_up_the_photos_of_a_network_with_hooks() -> None:
    found = teacher("name=timm:xception41", weights="random")
    assert not found.extractor.parallel and teacher("name=timm:resnet10t", weights="random").extractor.parallel
    photos = torch.rand(12, 1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    expected = [found(photo) for photo in photos]
    with ThreadPoolExecutor(2) as pool:
        for ours, theirs in zip(pool.map(found, photos), expected, strict=True):
            assert all(torch.equal(ours[level], theirs[level]) for level in theirs)


@pytest.mark.parametrize("name", ["convnext_atto", pytest.param("vgg11", marks=pytest.mark.long)])
def test_timm_file_fits_a_wrapper_with_underscores_for_dots(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    found = teacher(f"name=timm:{name}", "resize=bilinear", weights=str(tmp_path / "weights.pth"))
    assert {level: features.shape[1] for level, features in found(torch.rand(1, 64, 64, 3)).items()} == {1: 32, 2: 16, 3: 8}
    stem = next(tensor for tensor in found.extractor.model.state_dict().values() if tensor.ndim == 4)
    assert torch.equal(stem, next(tensor for tensor in whole.state_dict().values() if tensor.ndim == 4))


def test_timm_maps_with_channels_last_are_turned() -> None:
    found = teacher("name=timm:swin_tiny_patch4_window7_224", "resize=bilinear", weights="random")
    assert shapes(found) == {1: (32, 32, 96), 2: (16, 16, 96), 3: (8, 8, 192)}


def test_timm_transformer_of_fixed_size_is_made_for_the_photos() -> None:
    found = teacher("name=timm:vit_tiny_patch16_224", "resize=bilinear", weights="random")
    assert shapes(found) == {1: (32, 32, 192), 2: (16, 16, 192), 3: (8, 8, 192)}
    assert len(set(found.layers.values())) == 3


def test_torchvision_detector_s_backbone() -> None:
    found = teacher("name=torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", weights="random", size=64)
    assert set(found.layers.values()) <= {"backbone.0", "backbone.1", "backbone.pool"}
    assert {shape[-1] for shape in shapes(found, 64).values()} == {256}


def test_torchvision_file_of_the_whole_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(5)
    detector = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    found = teacher(f"name=torchvision:{name}", weights=str(tmp_path / "detector.pth"))
    assert "tensors beside the backbone" in capsys.readouterr().out
    kernels = [dict(model.state_dict())["body.0.0.weight"] for model in (found.extractor.model, detector.backbone)]
    assert torch.equal(*kernels)


# --- programs ---


class Backbone(torch.nn.Module):
    """As a detector's backbone: finest map first."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList([torch.nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 4), (4, 6), (6, 8))])

    def forward(self, photos: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            photos = torch.relu(stage(photos))
            maps.append(photos)
        return maps


def exported(path: Path, model: torch.nn.Module, dynamic: bool = True) -> Path:
    example = torch.rand(2, 3, 64, 64)
    shape = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=shape), path)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt2", "pt"])
def test_a_program_is_a_teacher(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = Backbone().eval()
    path = tmp_path / f"backbone.{kind}"
    if kind == "pt2":
        exported(path, model)
    else:
        torch.jit.trace(model, torch.rand(2, 3, 64, 64), strict=False).save(str(path))
    found = teacher(f"name={path}")
    assert shapes(found) == {1: (32, 32, 4), 2: (16, 16, 6), 3: (8, 8, 8)}
    photos = torch.rand(2, 64, 64, 3)
    torch.testing.assert_close(found(photos)[3], model(photos.permute(0, 3, 1, 2))[2].permute(0, 2, 3, 1))
    with pytest.raises(InputError, match="takes no --weights .the program has its own"):
        teacher(f"name={path}", weights="random")


def test_a_program_for_another_batch_says_how_to_export_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fails on photos \(1, 3, 64, 64\).*export it with a dynamic batch"):
        teacher(f"name={exported(tmp_path / 'fixed.pt2', Backbone(), dynamic=False)}")


@pytest.mark.parametrize("suffix", ["pt2", "pt", "pth"])
def test_a_file_that_is_no_program_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=f"teacher.name={path} cannot be loaded as"):
        teacher(f"name={path}")


# --- edges and priors ---


@pytest.mark.parametrize("name", ["sobel", "canny"])
def test_edges_are_where_brightness_changes(name: str) -> None:
    photos = torch.zeros(1, 64, 64, 3)
    photos[:, :, 24:] = 1
    found = teacher(f"name={name}")
    for level, features in found(photos).items():
        side = SIZE // 2 ** (level - 1)
        assert features.shape == (1, side, side, 1)
        rows, edge = features[0, 2:-2, :, 0], 24 * side // 64
        assert rows[:, edge - 2 : edge + 2].max() > 0.3 and max(rows[:, edge + 2 :].max(), rows[:, : edge - 2].max()) < 1e-6
        assert features.max() <= 1


@pytest.mark.parametrize(
    ("settings", "weights", "text"),
    [
        (["name=sobel"], "random", "teacher.name=sobel takes no --weights"),
        (["name=timm:resnet10t"], None, "teacher.name=timm:resnet10t needs weights; add --weights pretrained, random or FILE"),
        (["name=tresnet_l"], None, "teacher.name=tresnet_l needs weights"),
        (["name=timm:resnet10"], "random", "timm has no model resnet10; did you mean resnet10t"),
        (["name=torchvision:fasterrcnn"], "random", "torchvision has no detector fasterrcnn; choose one such as fasterrcnn_"),
        (["name=timm:resnet10t"], "nowhere.pth", "--weights nowhere.pth is not a file"),
        (["name=nowhere.pt2"], None, "teacher.name=nowhere.pt2 is not a file"),
        (["name=spn:nowhere"], None, "nowhere"),
    ],
)
def test_what_is_missing_or_too_much_is_said(settings: list[str], weights: str | None, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        teacher(*settings, weights=weights)


# --- all of them teach ---


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a teacher's features of four photos and makes one step, traced but not computed;
    returns the run's folder.
    """
    folder = tmp_path_factory.mktemp("students")
    photos = write_photos(folder / "photos", 4)

    def teach(name: str, *settings: str, weights: str | None = None) -> Path:
        workdir = folder / re.sub(r"\W+", "_", name)
        fixed = [f"data.train_photos={photos}", f"data.test_photos={photos}", f"teacher.cache={workdir / 'cache'}", f"teacher.name={name}"]
        short = ["schedule.length=1", "schedule.learning_rate_drops=", "eval.photos=4", "data.flip=none", "train.image_every=9"]
        config = load_config(ROOT / "configs" / "tiny.py", [*fixed, *short, *settings])
        export(config, load_teacher(config.teacher, weights, "cpu", config.data.image_size))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "compile_train_step", traced_step)
            state = train(config, workdir / "run")
        assert int(state.step) == 1
        assert TeacherCache.open(config.teacher.cache).manifest.teacher == name
        return workdir / "run"

    return teach


@pytest.mark.long
def test_a_trained_model_s_prior_teaches_another(student: Callable[..., Path]) -> None:
    """Table 5: SPL distils the coarsest prior of an SPN."""
    first = student("sobel")
    found = teacher(f"name=spn:{first}")
    widths = {level: shape[-1] for level, shape in shapes(found).items()}
    assert widths == {1: 4, 2: 8, 3: 16} and found.layers == {1: "prior_1", 2: "prior_2", 3: "prior_3"}
    student(f"spn:{first}", "teacher.levels=3", "model.prior_levels=3", "model.decoder=region_norm")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_every_other_kind_teaches(student: Callable[..., Path], tmp_path: Path) -> None:
    torch.jit.trace(Backbone(), torch.rand(2, 3, 64, 64), strict=False).save(str(tmp_path / "script.pt"))
    (tmp_path / "mine.py").write_text(maps_of(32, 16, 8))
    for name in (exported(tmp_path / "program.pt2", Backbone()), tmp_path / "script.pt", tmp_path / "mine.py", "canny"):
        student(str(name))
    for name in ("tresnet_l", "timm:resnet10t", "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"):
        student(name, weights="random")
