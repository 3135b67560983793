"""The probabilistic model through the commands: train, continue, evaluate, predict, to PyTorch and
back, start from the result.
"""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import FOLDER, read_info
from spn_jax.config import from_dict, load_config
from spn_jax.errors import InputError
from spn_jax.evaluate import main as evaluate
from spn_jax.predict import main as predict
from spn_jax.runtime.sharding import make_mesh
from spn_jax.training.inputs import open_frozen
from spn_jax.training.resume import check_same_run, initialise_from
from spn_jax.training.state import build_networks, create_state, resolve_schedule
from teacher_export.convert import main as convert
from tests import trainer
from tests.trainer import ROOT, Inputs, assert_same_run, last_arrays, metrics

SETTINGS = (
    *("model.variational=true", "model.latent_channels=6", "model.spade_hidden_up_to_prior=true", "model.discriminator=instance_norm"),
    *("loss.adversarial=hinge", "loss.feature_matching=10", "loss.perceptual=10", "loss.diversity=1", "loss.kl=0.05", "loss.vgg=random"),
    *("train.samples=2", "train.eval_every=2", "eval.samples=3", "train.batch_size=2", "train.ema_decay=none"),
)
STEPS = 4


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of an uninterrupted run. Not to be changed."""
    workdir = tmp_path_factory.mktemp("probabilistic") / "run"
    output, _ = trainer.run_here(inputs.arguments(workdir, *SETTINGS, f"schedule.length={STEPS}"))
    assert "VGG19: weights random(seed=0)" in output
    assert "2 photos, 2 completions each," in output
    return workdir


def test_losses_stay_finite_and_evaluations_tell_how_samples_differ(run: Path) -> None:
    lines = metrics(run)
    steps = [line for line in lines if "generator/loss" in line]
    assert len(steps) == STEPS
    for line in steps:
        assert all(np.isfinite(value) for value in line.values())
        assert {f"generator/{name}" for name in ("feature_matching", "perceptual", "diversity", "kl")} <= line.keys()
    evaluations = [line for line in lines if "eval/psnr" in line]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert all(line["eval/diversity"] > 0 for line in evaluations)


def test_continued_equals_uninterrupted(inputs: Inputs, run: Path, tmp_path: Path) -> None:
    """The noise follows from seed and step, so nothing random is lost."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / FOLDER / str(STEPS))
    output, _ = trainer.run_here(inputs.arguments(workdir, *SETTINGS, f"schedule.length={STEPS}"))
    assert "continues at step 2" in output
    assert_same_run(workdir, run)


def test_without_vgg_weights_the_trainer_says_what_to_pass(inputs: Inputs, tmp_path: Path) -> None:
    _, errors = trainer.run_here(inputs.arguments(tmp_path / "run", *SETTINGS, "loss.vgg="), status=2)
    assert errors.startswith("error: loss.vgg is not set") and errors.count("\n") == 1
    assert "python -m teacher_export.weights vgg19 --weights vgg19-dcbb9e9d.pth" in errors
    assert not (tmp_path / "run").exists()


def test_continuing_with_another_vgg_is_refused(run: Path) -> None:
    stored = read_info(run / FOLDER / str(STEPS))
    config = from_dict(stored["config"], origin="here")
    check_same_run(stored, stored, config, run)
    with pytest.raises(InputError, match=r"weights of VGG19: random\(seed=0\) -> file vgg19"):
        check_same_run(stored, stored | {"vgg": "file vgg19.pth, sha256 0123"}, config, run)
    by_file, by_name = (stored | {"vgg": f"{origin}, sha256 0123"} for origin in ("file vgg19.pth", "timm:vgg19.tv_in1k"))
    check_same_run(by_file, by_name, config, run)  # the same weights


def test_vgg_computes_in_float32_whatever_the_networks_do(inputs: Inputs) -> None:
    """Rounded to bfloat16, most pixels of two samples are equal, and the diversity loss would
    measure that.
    """
    config = load_config(ROOT / trainer.CONFIG_FILE, [*SETTINGS, "train.compute_dtype=bfloat16"])
    frozen, _ = open_frozen(config)
    assert frozen.vgg is not None
    maps = jax.eval_shape(frozen.vgg, np.zeros((1, 32, 32, 3), np.float32))  # type: ignore[arg-type]
    assert {level.dtype for level in maps} == {jnp.dtype("float32")}


def test_evaluation_draws_samples_and_prints_their_distance(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(["run", "--checkpoint", str(run), "--samples", "2", "--grid", "2", "--output", str(tmp_path / "out")])
    output = capsys.readouterr().out
    distance = re.search(r"mean pairwise distance between samples inside the hole: (0\.\d+) ", output)
    assert distance and float(distance[1]) > 0
    assert (tmp_path / "out" / "grid.png").is_file()


@pytest.fixture(scope="module")
def converted(inputs: Inputs, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's model as a file of the released layout, and back as a checkpoint."""
    folder = tmp_path_factory.mktemp("converted")
    convert([str(run), str(folder / "released.pt"), "--to-torch"])
    settings = [*SETTINGS, f"data.test_photos={inputs.test}"]
    convert([str(folder / "released.pt"), str(folder / "back"), "--config", str(ROOT / trainer.CONFIG_FILE), *settings])
    return folder / "back"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_converted_checkpoint_predicts_what_the_run_does(run: Path, converted: Path, inputs: Inputs, tmp_path: Path) -> None:
    photo = sorted(inputs.test.iterdir())[0]
    original = pixels(photo)
    hole = np.zeros(original.shape[:2], np.uint8)
    hole[10:30, 5:25] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    pictures = {}
    for name, checkpoint in ("run", run), ("converted", converted):
        common = ["--image", str(photo), "--mask", str(tmp_path / "mask.png"), "--samples", "2", "--seed", "7"]
        predict(["--checkpoint", str(checkpoint), "--output", str(tmp_path / f"{name}.png"), *common])
        pictures[name] = [pixels(tmp_path / f"{name}_{i}.png") for i in (0, 1)]
    np.testing.assert_array_equal(pictures["converted"], pictures["run"])
    for picture in pictures["run"]:
        np.testing.assert_array_equal(picture[hole == 0], original[hole == 0])


def test_converted_checkpoint_evaluates_as_the_run_does(converted: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(["run", "--checkpoint", str(run)])
    of_run = capsys.readouterr().out
    evaluate(["run", "--checkpoint", str(converted)])
    of_converted = capsys.readouterr().out
    assert of_converted.split("All")[1] == of_run.split("All")[1]
    assert "checkpoint converted from released.pt; its teacher's weights: released checkpoint" in of_converted


def test_init_takes_generator_and_discriminator_of_a_converted_checkpoint(
    inputs: Inputs, run: Path, converted: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    config = load_config(ROOT / trainer.CONFIG_FILE, [*SETTINGS, "train.seed=9"])
    mesh = make_mesh(1)
    channels = {level.level: level.channels for level in trainer.LEVELS}
    _, state = create_state(config, resolve_schedule(config, 10), *build_networks(config, channels))
    started = initialise_from(state, str(converted), mesh, said.append)
    theirs = last_arrays(run)
    for field in ("model", "discriminator", "spectral"):
        prefix = "model/" if field == "model" else f"training/{field}."
        ours = named_arrays(getattr(started, field))
        assert ours
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[f"{prefix}{name}"], err_msg=name)
    assert said == [f"starts from the parameters of {converted / FOLDER / '0'}"]


def test_init_without_a_fitting_discriminator_says_so(converted: Path) -> None:
    said: list[str] = []
    config = load_config(ROOT / trainer.CONFIG_FILE, [*SETTINGS, "model.discriminator_width=8"])
    channels = {level.level: level.channels for level in trainer.LEVELS}
    _, state = create_state(config, resolve_schedule(config, 10), *build_networks(config, channels))
    started = initialise_from(state, str(converted), make_mesh(1), said.append)
    assert said[-1] == "the discriminator starts anew: the checkpoint has another kind"
    assert started.discriminator is state.discriminator


def test_a_converted_checkpoint_is_no_run_to_continue(inputs: Inputs, converted: Path) -> None:
    _, errors = trainer.run_here(inputs.arguments(converted, *SETTINGS), status=2)
    assert "holds a converted checkpoint, which has nothing to continue" in errors and "--init" in errors


@pytest.mark.long
@pytest.mark.parametrize("diversity", [1, 0])
def test_two_devices_draw_the_same_noise_as_one(inputs: Inputs, tmp_path: Path, diversity: int) -> None:
    """With the diversity loss, the inverse of a distance between nearly equal features, the norm of
    the gradients is that loss's own rounding: it is 10,000 times as large, and differs by 0.3 %.
    """
    lines = []
    for devices in 1, 2:
        workdir = tmp_path / str(devices)
        trainer.run(inputs.arguments(workdir, *SETTINGS, f"loss.diversity={diversity}", "schedule.length=1"), devices=devices)
        lines.append(next(line for line in metrics(workdir) if "generator/loss" in line))
    ours, theirs = lines
    assert ours["step"] == theirs["step"] == 1 and theirs["generator/gradient_norm"] > 0
    if diversity:
        del ours["generator/gradient_norm"], theirs["generator/gradient_norm"]
    assert ours == pytest.approx(theirs, rel=1e-3 if diversity else 1e-4)
