"""The teacher in the step is timm's and the released one, from the weights file on; training with
it is training from a cache.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.checkpoints.weights import load_tresnet
from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.errors import InputError
from spn_jax.models.tresnet import TResNetTrunk, blur_pool
from spn_jax.training import loop
from spn_jax.training.gradients import targets
from spn_jax.training.inputs import open_data, open_distillation_targets, open_frozen, read_batches
from spn_jax.training.loop import train
from teacher_export.export import export
from teacher_export.frameworks import torch
from teacher_export.teachers import load_teacher
from teacher_export.weights import main
from tests import parity_fill
from tests.devices import on_the_cpu
from tests.golden_model import GOLDEN, call, nhwc, relative_error
from tests.torch_teachers import asl_file, tresnet, write_photos
from tests.trainer import idle_step

ROOT = Path(__file__).resolve().parents[2]


def weights_file(folder: Path, *options: str) -> str:
    main(["tresnet_l", *options, str(folder / "tresnet_l.npz")])
    return str(folder / "tresnet_l.npz")


@pytest.fixture(scope="module")
def asl_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("asl")
    return weights_file(folder, "--weights", asl_file(folder / "asl.pth"))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("random"), "--weights", "random", "--seed", "0")


def test_features_equal_the_golden_ones_on_the_way_from_the_released_file(asl_weights: str) -> None:
    model, origin = load_tresnet(asl_weights, (1, 2, 3), jnp.float32)
    assert re.fullmatch(r"file asl\.pth, sha256 [0-9a-f]{12}", origin)
    features = call(model, nhwc(parity_fill.image("train_det_a/2x", 2, 128, 128)))
    with np.load(GOLDEN / "teacher.npz") as golden:
        for level, maps in features.items():
            assert relative_error(maps[:1, ..., ::8], golden[f"teacher_{level - 1}"].transpose(0, 2, 3, 1)) < 1e-5


def test_features_equal_timm_s_and_so_does_the_hash(tmp_path: Path) -> None:
    teacher = tresnet("random", seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in teacher.extractor.model.state_dict().items():
        # as they are after initialisation, they would hide the residual branches
        if name.endswith(("running_var", "bn.weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith(("running_mean", ".bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    torch.save(teacher.extractor.model.state_dict(), tmp_path / "timm.pth")
    path = weights_file(tmp_path, "--weights", str(tmp_path / "timm.pth"))
    model, origin = load_tresnet(path, (1, 2, 3), jnp.float32)
    assert origin.endswith(tresnet(str(tmp_path / "timm.pth")).weights_sha256[:12])
    photos = torch.rand(1, 64, 48, 3, generator=generator)
    features = call(model, photos.numpy())
    for level, expected in teacher(photos).items():
        assert relative_error(features[level], expected.numpy()) < 1e-5


def test_only_what_the_levels_need_is_built(random_weights: str) -> None:
    model, _ = load_tresnet(random_weights, (1, 2), jnp.float32)
    shapes = jax.eval_shape(model, jnp.zeros((1, 64, 64, 3)))
    assert {level: features.shape for level, features in shapes.items()} == {1: (1, 16, 16, 76), 2: (1, 16, 16, 76)}
    assert model.channels == {1: 76, 2: 76} and len(model.stages) == 1
    assert jax.eval_shape(load_tresnet(random_weights, (3,), jnp.float32)[0], jnp.zeros((1, 64, 64, 3)))[3].shape == (1, 8, 8, 152)


def test_blur_is_the_binomial_filter_on_a_reflected_border() -> None:
    x = np.random.default_rng(0).standard_normal((1, 6, 8, 3)).astype(np.float32)
    kernel = torch.tensor([1.0, 2.0, 1.0])
    padded = torch.nn.functional.pad(torch.from_numpy(x).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, (torch.outer(kernel, kernel) / 16).expand(3, 1, 3, 3), stride=2, groups=3)
    np.testing.assert_allclose(blur_pool(x), expected.permute(0, 2, 3, 1), atol=1e-6)


# --- training with it ---


def settings(folder: Path, *overrides: str) -> Config:
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, 4)
    fixed = [f"data.train_photos={photos}", f"data.test_photos={photos}", "schedule.length=1", "schedule.learning_rate_drops="]
    return load_config(ROOT / "configs" / "tiny.py", [*fixed, "eval.photos=4", "train.precision=highest", *overrides])


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


def test_online_and_cached_training_agree(tmp_path: Path, random_weights: str) -> None:
    online = first_targets(settings(tmp_path, "teacher.mode=online", f"teacher.weights={random_weights}"))
    # eight bits: half a step of the 255 from a channel's least to its largest value
    for dtype, tolerance in {"float32": 1e-5, "uint8": 1 / 255}.items():
        config = settings(tmp_path, f"teacher.cache={tmp_path / dtype}", f"teacher.dtype={dtype}")
        export(config, load_teacher(config.teacher, "random", "cpu", config.data.image_size))
        cached = first_targets(config)
        assert cached.keys() == online.keys()
        assert max(relative_error(cached[level], online[level]) for level in online) < tolerance, dtype


def test_a_run_with_other_weights_is_not_continued(
    tmp_path: Path, random_weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "compile_train_step", idle_step)
    config = settings(tmp_path, "teacher.mode=online", f"teacher.weights={random_weights}")
    train(config, tmp_path / "run")
    assert "teacher: tresnet_l, weights random(seed=0), sha256 " in capsys.readouterr().out
    Path(random_weights).rename(tmp_path / "renamed.npz")
    renamed = apply_overrides(config, [f"teacher.weights={tmp_path / 'renamed.npz'}"])
    try:
        assert int(train(renamed, tmp_path / "run").step) == 1
        other = apply_overrides(config, [f"teacher.weights={weights_file(tmp_path, '--weights', 'random', '--seed', '9')}"])
        with pytest.raises(InputError, match=r"teacher: .*random\(seed=0\).* -> .*random\(seed=9\)"):
            train(other, tmp_path / "run")
    finally:
        (tmp_path / "renamed.npz").rename(random_weights)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["teacher.name=sobel"], "teacher.mode=online runs tresnet_l or efficientnet_lite0; set teacher.mode=cached and export sobel"),
        ([], r"teacher.weights is not set, .*run `python -m teacher_export.weights tresnet_l --weights Open_ImagesV6_TRresNet_L_448.pth"),
        (["teacher.weights=nowhere.npz"], "weights nowhere.npz is not a file; make one with `python -m teacher_export.weights tresnet_l"),
    ],
)
def test_an_online_teacher_that_cannot_be_had_is_refused(tmp_path: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_frozen(settings(tmp_path, "teacher.mode=online", *overrides))


def test_without_a_prior_loss_no_teacher_is_loaded(tmp_path: Path) -> None:
    config = settings(tmp_path, "teacher.mode=online", "loss.prior=0")
    frozen, origins = open_frozen(config)
    assert frozen.teacher is None and origins.teacher is None
    assert open_distillation_targets(config, open_data(config, "configs/tiny.py"), frozen, None).channels == {}


@pytest.mark.gpu
def test_a_gpu_computes_the_teacher_in_float32_at_its_default_precision() -> None:
    """TF32 would be wrong by a thousandth."""
    model, x = TResNetTrunk((1, 2, 3), rng=np.random.default_rng(0), dtype=jnp.float32), parity_fill.image("photo", 1, 128, 128)
    ours, theirs = call(model, nhwc(x)), on_the_cpu(model, nhwc(x))
    assert {level: relative_error(np.asarray(ours[level]), theirs[level]) < 5e-5 for level in theirs} == dict.fromkeys((1, 2, 3), True)
