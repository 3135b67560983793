import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from spn_jax.config import EvalConfig
from spn_jax.errors import InputError
from spn_jax.evaluation import gallery, scoring
from spn_jax.models.spn import SPN
from spn_jax.runtime.sharding import make_mesh
from tests.fakes import CONFIG, SAMPLER, SIZE, FakeDistance, FakeFeatures, FakeModel, batched, pictures, sampling
from tests.tiny import tiny


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh()


def test_every_picture_is_scored_once_and_as_scikit_image_would(mesh) -> None:
    images, masks = pictures(6)
    model = FakeModel(jnp.array([[0.2, 0.5, 0.9]]))
    records = scoring.evaluate_model(model, batched(images, masks, 4), mesh, CONFIG)
    filled = np.where(masks > 0, np.array([51, 127, 229], np.uint8), images)
    np.testing.assert_array_equal(records["index"], np.arange(6))
    np.testing.assert_allclose(records["hole"], np.arange(1, 7) / SIZE)
    for i in range(6):
        assert records["psnr"][i] == pytest.approx(peak_signal_noise_ratio(images[i], filled[i]), abs=1e-4)
        expected = structural_similarity(images[i], filled[i], win_size=11, data_range=255, channel_axis=-1)
        assert records["ssim"][i] == pytest.approx(expected, abs=1e-5)
        grey = np.abs(filled[i].mean(-1) - images[i].mean(-1)).mean() / 255
        assert records["mae"][i] == pytest.approx(grey, abs=1e-6)


def test_scores_do_not_depend_on_the_batch_size(mesh) -> None:
    images, masks = pictures(5)
    model = FakeModel(jnp.array([[0.5, 0.5, 0.5]]))
    one = scoring.evaluate_model(model, batched(images, masks, 1), mesh, CONFIG)
    three = scoring.evaluate_model(model, batched(images, masks, 3), mesh, CONFIG)
    scores = {"psnr", "ssim", "ssim_gaussian", "mae", "mae_rgb", "hole_mae", "border_psnr", "border_mae"}
    assert one.keys() == three.keys() == {"index", "hole", "bin", "tenth", *scores}
    for name in one.keys() - {"bin", "tenth"}:
        np.testing.assert_allclose(one[name], three[name], rtol=1e-6)


def test_the_best_sample_by_psnr_is_scored(mesh) -> None:
    images, masks = pictures(2)
    images[0], images[1] = 10, 250
    model = FakeModel(jnp.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    parts = list(scoring.scored_batches(model, batched(images, masks, 2), mesh, CONFIG, scoring.Detail.GRID))
    assert parts[0]["completed"][0, 0, 0].tolist() == [0, 0, 0]
    assert parts[0]["completed"][1, 0, 0].tolist() == [255, 255, 255]
    assert parts[0]["prior"].shape == (2, SIZE // 4, SIZE // 4, 3)


def test_several_samples_are_scored_by_the_best_and_by_how_much_they_differ(mesh) -> None:
    images, masks = pictures(3)
    (part,) = scoring.scored_batches(SAMPLER, batched(images, masks, 3), mesh, sampling(5), scoring.Detail.GRID)
    records = scoring.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(5))
    assert part["samples"].shape == (3, 5, SIZE, SIZE, 3)
    for i in range(3):
        scores = [peak_signal_noise_ratio(images[i], sample) for sample in part["samples"][i]]
        assert records["psnr"][i] == pytest.approx(max(scores), abs=1e-4)
        np.testing.assert_array_equal(part["completed"][i], part["samples"][i][np.argmax(scores)])
        hole = masks[i, ..., 0] > 0
        pairs = [np.abs(a.astype(int) - b)[hole].mean() for a, b in itertools.combinations(part["samples"][i], 2)]
        assert records["diversity"][i] == pytest.approx(np.mean(pairs) / 255, rel=1e-5)


def test_known_pixels_are_the_photos_in_every_sample(mesh) -> None:
    images, masks = pictures(3)
    (part,) = scoring.scored_batches(SAMPLER, batched(images, masks, 3), mesh, sampling(4), scoring.Detail.GRID)
    for i in range(4):
        np.testing.assert_array_equal(np.where(masks > 0, 0, part["samples"][:, i]), np.where(masks > 0, 0, images))


def test_samples_depend_on_seed_and_photo_alone(mesh) -> None:
    images, masks = pictures(5)
    one, three = (scoring.evaluate_model(SAMPLER, batched(images, masks, size), mesh, sampling(2)) for size in (1, 3))
    for name in ("psnr", "diversity", "psnr_mean"):  # sums of integers: exact
        np.testing.assert_array_equal(one[name], three[name])
    for name in one.keys() - {"bin", "tenth"}:
        np.testing.assert_allclose(one[name], three[name], rtol=1e-6)
    again = scoring.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(2, seed=2**40 + 1))
    assert (again["diversity"] != one["diversity"]).all()
    assert len(set(one["diversity"])) == 5
    more = scoring.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(4))
    assert (more["psnr"] >= one["psnr"]).all()  # samples are added to those there are


def test_the_probabilistic_spn_is_evaluated_with_samples(mesh) -> None:
    overrides = ("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm", "eval.samples=2")
    config = tiny(*overrides)
    model = SPN(config.model, {}, rng=np.random.default_rng(0))
    sigma: Any = model.prior_learner.variational.sigma.bias  # type: ignore[union-attr]
    sigma.set_value(sigma.get_value() + 20)  # enough for the samples to differ in 8 bits
    images, masks = pictures(2)
    (part,) = scoring.scored_batches(model, batched(images, masks, 2), mesh, config, scoring.Detail.GRID)
    assert part["samples"].shape == (2, 2, SIZE, SIZE, 3) and part["finite"].all()
    assert (part["diversity"] > 0.002).all()


def test_networks_score_the_best_sample_and_all_of_them(mesh) -> None:
    images, masks = pictures(3)
    (part,) = scoring.scored_batches(SAMPLER, batched(images, masks, 3), mesh, sampling(3), scoring.Detail.GRID)
    networks = scoring.Networks(FakeFeatures(jnp.array(2.0)), FakeDistance(jnp.array(1.0)), FakeDistance(jnp.array(3.0)))
    batch = {"image": images, "mask": masks, "completions": part["samples"]}
    scores = jax.tree.map(np.asarray, scoring.score_batch(networks, batch, mesh=mesh, detail=scoring.Detail.PICTURES))
    distances = np.abs(part["samples"].astype(float) - images[:, None]).mean((2, 3, 4)) / 255
    best = np.argmax([[peak_signal_noise_ratio(images[i], sample) for sample in part["samples"][i]] for i in range(3)], axis=1)
    np.testing.assert_allclose(scores["lpips_alex"], distances[range(3), best], rtol=1e-5)
    np.testing.assert_allclose(scores["lpips_vgg_mean"], 3 * distances.mean(1), rtol=1e-5)
    pairs = [
        np.abs(part["samples"][:, i] / 255 - part["samples"][:, j] / 255).mean((1, 2, 3)) for i, j in itertools.combinations(range(3), 2)
    ]
    np.testing.assert_allclose(scores["diversity_lpips"], np.mean(pairs, axis=0), rtol=1e-5)
    quarters = scores["completed"].reshape(3, 2, SIZE // 2, 2, SIZE // 2, 3).mean((2, 4)).reshape(3, 12) / 255
    np.testing.assert_allclose(scores["inception"], 2 * quarters, rtol=1e-5)
    np.testing.assert_allclose(scores["inception_clean"], 6 * quarters, rtol=1e-5)
    for name in ("psnr", "ssim", "ssim_gaussian", "mae", "mae_rgb", "hole_mae", "border_psnr", "border_mae"):
        assert scores[f"{name}_mean"].shape == (3,) and (scores[f"{name}_mean"] != scores[name]).any()


def test_one_sample_has_no_diversity(mesh) -> None:
    records = scoring.evaluate_model(SAMPLER, batched(*pictures(2), 2), mesh, sampling(1))
    assert "diversity" not in records


def test_known_pixels_of_composites_are_the_photos(mesh) -> None:
    images, masks = pictures(3)
    for how in ("truncate", "round"):
        config = dataclasses.replace(CONFIG, eval=EvalConfig(quantise=how))
        model, batches = FakeModel(jnp.full((1, 3), 0.3)), batched(images, masks, 3)
        (part,) = scoring.scored_batches(model, batches, mesh, config, scoring.Detail.PICTURES)
        assert part["completed"].dtype == np.uint8
        np.testing.assert_array_equal(np.where(masks > 0, 0, part["completed"]), np.where(masks > 0, 0, images))


def test_a_prediction_that_is_not_finite_stops_the_evaluation(mesh) -> None:
    model = FakeModel(jnp.array([[0.5, jnp.nan, 0.5]]))
    with pytest.raises(InputError, match="the model predicted NaN or infinity for 3 of 3 photos, first for photo 0"):
        scoring.evaluate_model(model, batched(*pictures(3), 4), mesh, CONFIG)


def test_no_photos(mesh) -> None:
    with pytest.raises(InputError, match="no photo to evaluate"):
        scoring.evaluate_model(FakeModel(jnp.zeros((1, 3))), [], mesh, CONFIG)


def test_a_hole_of_exactly_twenty_percent_is_not_above_it(mesh) -> None:
    images, masks = np.zeros((1, 20, 20, 3), np.uint8), np.zeros((1, 20, 20, 1), np.uint8)
    masks[:, :4] = 1
    records = scoring.evaluate_model(FakeModel(jnp.full((1, 3), 0.5)), batched(images, masks, 1), mesh, CONFIG)
    assert records["hole"][0] == 0.2


def test_rows_are_padded_to_the_devices() -> None:
    batch = next(batched(*pictures(3), 3))
    padded = scoring.pad(batch, 4)
    assert padded["valid"].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(padded["image"][3], batch["image"][2])
    assert batch["valid"].tolist() == [True] * 3
    assert len(scoring.pad(batch, 3)["valid"]) == 3


FOUR_DEVICES = """
import json
from tests.fakes import SAMPLER, batched, pictures, sampling
from spn_jax.evaluation import scoring
from spn_jax.runtime.sharding import make_mesh, replicate
mesh = make_mesh()
assert mesh.size == 4
model = replicate(SAMPLER, mesh)
records = scoring.evaluate_model(model, batched(*pictures(6), 5), mesh, sampling(3))
print(json.dumps({name: values.tolist() for name, values in records.items()}))
"""


def test_four_devices_score_as_one_does(mesh) -> None:
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"}
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", FOUR_DEVICES], cwd=root, env=environment, check=True, capture_output=True, text=True)
    four = json.loads(process.stdout.splitlines()[-1])
    one = scoring.evaluate_model(SAMPLER, batched(*pictures(6), 5), mesh, sampling(3))
    assert four.keys() == one.keys()
    for name in ("bin", "tenth"):
        assert four.pop(name) == one.pop(name).tolist()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-6)


def test_summary_has_all_and_the_bins_that_hold_pictures() -> None:
    records = {"psnr": np.array([20.0, 30.0]), "ssim": np.array([0.5, 0.7]), "mae": np.array([0.1, 0.3]), "bin": np.array(["20-40%"] * 2)}
    summary = scoring.summarise(records)
    assert set(summary) == {f"eval/{row}{score}" for row in ("", "20-40/") for score in ("psnr", "ssim", "mae")}
    assert summary["eval/psnr"] == 25
    assert summary["eval/20-40/mae"] == pytest.approx(0.2)


def test_a_mean_over_no_picture_is_not_logged() -> None:
    records = {"psnr": np.array([np.inf]), "diversity": np.array([0.0]), "hole": np.array([0.0]), "bin": np.array(["0%"])}
    assert set(scoring.summarise(records)) == {"eval/psnr", "eval/0/psnr"}


@pytest.mark.parametrize("samples", [2, 7])
def test_sample_grid_shows_several_samples_in_place_of_the_result(mesh, samples: int) -> None:
    grid = gallery.sample_grid(SAMPLER, batched(*pictures(3), 4), mesh, sampling(samples))
    rows = 3 + min(samples, scoring.SAMPLES_SHOWN)  # input, prior, truth
    assert grid.shape[0] == 4 + rows * (SIZE + 4)


def test_sample_grid_shows_every_valid_picture(mesh) -> None:
    grid = gallery.sample_grid(FakeModel(jnp.full((1, 3), 0.5)), batched(*pictures(3), 4), mesh, CONFIG)
    assert grid.shape[0] == 4 + 4 * (SIZE + 4)
    assert 3 * (SIZE + 4) < grid.shape[1] < 5 * (SIZE + 4)
