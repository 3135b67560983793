import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from spn_jax import checkpoint, evaluate
from spn_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from spn_jax.errors import InputError
from spn_jax.models.spn import SPN
from spn_jax.sharding import make_mesh
from tests.tiny import tiny

SIZE = 32
CONFIG = Config(data=DataConfig(image_size=SIZE), eval=EvalConfig(batch_size=4))


class Output(NamedTuple):
    image: jax.Array
    prior: dict[int, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeModel:
    """Fills holes with each of its colours (s, 3), one sample a colour; sees nothing under the mask."""

    colours: jax.Array

    def __call__(self, image: jax.Array, mask: jax.Array, noise: None) -> Output:
        b, h, w, _ = image.shape
        samples = jnp.broadcast_to(self.colours[None, :, None, None], (b, len(self.colours), h, w, 3))
        visible = (image * (1 - mask))[:, None, ::4, ::4]
        return Output(samples, {3: jnp.broadcast_to(visible, (b, len(self.colours), *visible.shape[2:]))})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeSampler:
    """Fills holes with the colour that the noise of each completion says."""

    spread: jax.Array
    variational = True

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return height // 32, width // 32, 3

    def __call__(self, image: jax.Array, mask: jax.Array, noise: jax.Array) -> Output:
        (b, s), (h, w) = noise.shape[:2], image.shape[1:3]
        colours = jax.nn.sigmoid(self.spread * noise.mean((2, 3)))
        samples = jnp.broadcast_to(colours[:, :, None, None], (b, s, h, w, 3))
        return Output(samples, {3: samples[:, :, ::4, ::4]})


SAMPLER = FakeSampler(jnp.array(2.0))


def sampling(samples: int, **settings: Any) -> Config:
    return dataclasses.replace(CONFIG, eval=EvalConfig(samples=samples, **settings))


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh()


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos and masks; picture i has a hole of i + 1 columns."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    for i in range(count):
        masks[i, :, : i + 1] = 1
    return images, masks


def batched(images: np.ndarray, masks: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        valid = np.arange(start, start + size) < len(images)
        yield {"image": images[rows], "mask": masks[rows], "index": rows.astype(np.int32), "valid": valid}


def test_every_picture_is_scored_once_and_as_scikit_image_would(mesh) -> None:
    images, masks = pictures(6)
    model = FakeModel(jnp.array([[0.2, 0.5, 0.9]]))
    records = evaluate.evaluate_model(model, batched(images, masks, 4), mesh, CONFIG)
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
    one = evaluate.evaluate_model(model, batched(images, masks, 1), mesh, CONFIG)
    three = evaluate.evaluate_model(model, batched(images, masks, 3), mesh, CONFIG)
    assert one.keys() == three.keys() == {"index", "hole", "bin", "psnr", "ssim", "mae", "hole_mae"}
    for name in one.keys() - {"bin"}:
        np.testing.assert_allclose(one[name], three[name], rtol=1e-6)


def test_the_best_sample_by_psnr_is_scored(mesh) -> None:
    images, masks = pictures(2)
    images[0], images[1] = 10, 250
    model = FakeModel(jnp.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    parts = list(evaluate.scored_batches(model, batched(images, masks, 2), mesh, CONFIG, lambda batch: evaluate.Detail.GRID))
    assert parts[0]["completed"][0, 0, 0].tolist() == [0, 0, 0]
    assert parts[0]["completed"][1, 0, 0].tolist() == [255, 255, 255]
    assert parts[0]["prior"].shape == (2, SIZE // 4, SIZE // 4, 3)


def test_several_samples_are_scored_by_the_best_and_by_how_much_they_differ(mesh) -> None:
    images, masks = pictures(3)
    (part,) = evaluate.scored_batches(SAMPLER, batched(images, masks, 3), mesh, sampling(5), lambda batch: evaluate.Detail.GRID)
    records = evaluate.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(5))
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
    (part,) = evaluate.scored_batches(SAMPLER, batched(images, masks, 3), mesh, sampling(4), lambda batch: evaluate.Detail.GRID)
    for i in range(4):
        np.testing.assert_array_equal(np.where(masks > 0, 0, part["samples"][:, i]), np.where(masks > 0, 0, images))


def test_samples_depend_on_seed_and_photo_alone(mesh) -> None:
    images, masks = pictures(5)
    one, three = (evaluate.evaluate_model(SAMPLER, batched(images, masks, size), mesh, sampling(2)) for size in (1, 3))
    for name in one.keys() - {"bin"}:
        np.testing.assert_array_equal(one[name], three[name])
    again = evaluate.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(2, seed=2**40 + 1))
    assert (again["diversity"] != one["diversity"]).all()
    assert len(set(one["diversity"])) == 5
    more = evaluate.evaluate_model(SAMPLER, batched(images, masks, 3), mesh, sampling(4))
    assert (more["psnr"] >= one["psnr"]).all()  # samples are added to those there are


def test_the_probabilistic_spn_is_evaluated_with_samples(mesh) -> None:
    overrides = ("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm", "eval.samples=2")
    config = tiny(*overrides)
    model = SPN(config.model, {}, rng=np.random.default_rng(0))
    sigma: Any = model.prior_learner.variational.sigma.bias  # type: ignore[union-attr]
    sigma.set_value(sigma.get_value() + 20)  # enough for the samples to differ in 8 bits
    images, masks = pictures(2)
    (part,) = evaluate.scored_batches(model, batched(images, masks, 2), mesh, config, lambda batch: evaluate.Detail.GRID)
    assert part["samples"].shape == (2, 2, SIZE, SIZE, 3) and part["finite"].all()
    assert (part["diversity"] > 0.002).all()


def test_one_sample_has_no_diversity(mesh) -> None:
    records = evaluate.evaluate_model(SAMPLER, batched(*pictures(2), 2), mesh, sampling(1))
    assert "diversity" not in records


def test_known_pixels_of_composites_are_the_photos(mesh) -> None:
    images, masks = pictures(3)
    for how in ("truncate", "round"):
        config = dataclasses.replace(CONFIG, eval=EvalConfig(quantise=how))
        model, batches = FakeModel(jnp.full((1, 3), 0.3)), batched(images, masks, 3)
        (part,) = evaluate.scored_batches(model, batches, mesh, config, lambda batch: evaluate.Detail.PICTURES)
        assert part["completed"].dtype == np.uint8
        np.testing.assert_array_equal(np.where(masks > 0, 0, part["completed"]), np.where(masks > 0, 0, images))


def test_a_prediction_that_is_not_finite_stops_the_evaluation(mesh) -> None:
    model = FakeModel(jnp.array([[0.5, jnp.nan, 0.5]]))
    with pytest.raises(InputError, match="not finite for 3 of 3 photos, first for photo 0"):
        evaluate.evaluate_model(model, batched(*pictures(3), 4), mesh, CONFIG)


def test_no_photos(mesh) -> None:
    with pytest.raises(InputError, match="no photo to evaluate"):
        evaluate.evaluate_model(FakeModel(jnp.zeros((1, 3))), [], mesh, CONFIG)


def test_a_hole_of_exactly_twenty_percent_is_not_above_it(mesh) -> None:
    images, masks = np.zeros((1, 20, 20, 3), np.uint8), np.zeros((1, 20, 20, 1), np.uint8)
    masks[:, :4] = 1
    records = evaluate.evaluate_model(FakeModel(jnp.full((1, 3), 0.5)), batched(images, masks, 1), mesh, CONFIG)
    assert records["hole"][0] == 0.2


def test_rows_are_padded_to_the_devices() -> None:
    batch = next(batched(*pictures(3), 3))
    padded = evaluate._pad(batch, 4)
    assert padded["valid"].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(padded["image"][3], batch["image"][2])
    assert batch["valid"].tolist() == [True] * 3
    assert len(evaluate._pad(batch, 3)["valid"]) == 3


FOUR_DEVICES = """
import json
from tests.test_evaluate import SAMPLER, batched, pictures, sampling
from spn_jax import evaluate
from spn_jax.sharding import make_mesh, replicate
mesh = make_mesh()
assert mesh.size == 4
model = replicate(SAMPLER, mesh)
records = evaluate.evaluate_model(model, batched(*pictures(6), 5), mesh, sampling(3))
print(json.dumps({name: values.tolist() for name, values in records.items()}))
"""


def test_four_devices_score_as_one_does(mesh) -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    root = Path(__file__).parent.parent
    process = subprocess.run([sys.executable, "-c", FOUR_DEVICES], cwd=root, env=environment, check=True, capture_output=True, text=True)
    four = json.loads(process.stdout.splitlines()[-1])
    one = evaluate.evaluate_model(SAMPLER, batched(*pictures(6), 5), mesh, sampling(3))
    assert four.keys() == one.keys()
    assert four.pop("bin") == one.pop("bin").tolist()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-6)


def test_summary_has_all_and_the_bins_that_hold_pictures() -> None:
    records = {"psnr": np.array([20.0, 30.0]), "ssim": np.array([0.5, 0.7]), "mae": np.array([0.1, 0.3]), "bin": np.array(["20-40%"] * 2)}
    summary = evaluate.summarise(records)
    assert set(summary) == {f"eval/{row}{score}" for row in ("", "20-40/") for score in ("psnr", "ssim", "mae")}
    assert summary["eval/psnr"] == 25
    assert summary["eval/20-40/mae"] == pytest.approx(0.2)


def test_a_mean_over_no_picture_is_not_logged() -> None:
    records = {"psnr": np.array([np.inf]), "diversity": np.array([0.0]), "hole": np.array([0.0]), "bin": np.array(["0%"])}
    assert set(evaluate.summarise(records)) == {"eval/psnr", "eval/0/psnr"}


@pytest.mark.parametrize("samples", [2, 7])
def test_sample_grid_shows_several_samples_in_place_of_the_result(mesh, samples: int) -> None:
    grid = evaluate.sample_grid(SAMPLER, batched(*pictures(3), 4), mesh, sampling(samples))
    rows = 3 + min(samples, evaluate.SAMPLES_SHOWN)  # input, prior, truth
    assert grid.shape[0] == 4 + rows * (SIZE + 4)


def test_sample_grid_shows_every_valid_picture(mesh) -> None:
    grid = evaluate.sample_grid(FakeModel(jnp.full((1, 3), 0.5)), batched(*pictures(3), 4), mesh, CONFIG)
    assert grid.shape[0] == 4 + 4 * (SIZE + 4)
    assert 3 * (SIZE + 4) < grid.shape[1] < 5 * (SIZE + 4)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/b.jpg", "/c/../d.jpeg"], ["a/b.png", "c/d.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["../x.jpg"], ["x.png"]),
    ],
)
def test_composites_are_named_after_photos_and_stay_inside_the_folder(names: list[str], expected: list[str]) -> None:
    assert evaluate.composite_names(names) == expected


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with photos, masks, metrics, and the fake model as its checkpoint."""
    images, masks = pictures(5)
    masks[4] = 0
    masks[4, 1:, 1:] = 1  # above 60 %
    for name, arrays in {"photos": images, "masks": masks[..., 0] * 255}.items():
        (tmp_path / name).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "generator/loss": 2.0}\n{"step": 2, "generator/loss": 1.0}\n')
    data = DataConfig(image_size=SIZE, test_photos=str(tmp_path / "photos"), test_masks=str(tmp_path / "masks"))
    loaded: Any = checkpoint.LoadedModel(
        config=Config(data=data, eval=EvalConfig(batch_size=2)),
        model=FakeModel(jnp.full((1, 3), 0.5)),  # type: ignore[arg-type]
        step=7,
        info={"teacher": {"origin": "random(seed=0)"}},
    )
    monkeypatch.setattr(evaluate, "load_model", lambda path: loaded)
    monkeypatch.setattr(evaluate, "find_checkpoint", lambda path: tmp_path / "checkpoints" / "7")
    return tmp_path


def test_run_writes_tables_and_pictures(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_folder / "out"
    command = f"run --checkpoint {run_folder} --baseline mean --baseline opencv-telea --output {out} --save-composites --grid 3"
    evaluate.main(command.split())

    printed = capsys.readouterr().out
    table = (out / "results.md").read_text()
    assert table in printed and "random(seed=0)" in printed and "step 7" in printed
    assert "psnr spn | psnr mean | psnr opencv-telea" in table
    counts = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.splitlines()[2:]}
    assert counts == {"0-20%": "4", "20-40%": "0", "40-60%": "0", "60-100%": "1", "All": "5"}

    results = json.loads((out / "results.json").read_text())
    assert results["about"]["step"] == 7 and results["about"]["quantise"] == "truncate"
    assert len(results["images"]["spn"]["psnr"]) == 5
    telea = results["images"]["opencv-telea"]["psnr"]
    for i, (photo, mask) in enumerate(results["about"]["pairs"]):
        truth = np.asarray(Image.open(run_folder / "photos" / photo))
        hole = np.asarray(Image.open(run_folder / "masks" / mask)) // 255
        composite = np.asarray(Image.open(out / "composites" / photo))
        np.testing.assert_array_equal(composite, np.where(hole[..., None] > 0, 127, truth))
        assert results["images"]["spn"]["psnr"][i] == pytest.approx(peak_signal_noise_ratio(truth, composite), abs=1e-4)
        assert results["images"]["spn"]["hole"][i] == pytest.approx(hole.mean())
        expected = peak_signal_noise_ratio(truth, cv2.inpaint(truth, hole, 3, cv2.INPAINT_TELEA))
        assert telea[i] == pytest.approx(expected, abs=1e-4)

    assert len((out / "results.tsv").read_text().splitlines()) == 1 + 3 * 5
    assert {path.name for path in out.iterdir()} == {
        "results.md", "results.tsv", "results.json", "composites", "grid.png", "loss_curves.png",
    }  # fmt: skip
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 4 + 4 * (128 + 4)


def test_masks_laid_out_as_the_papers_are_sorted_by_number_in_training_and_here(
    run_folder: Path, mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = evaluate.open_test_masks(evaluate.load_model("").config)
    masks.ordered = True
    monkeypatch.setattr(evaluate, "open_test_masks", lambda config: masks)
    evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out")])
    results = json.loads((run_folder / "out" / "results.json").read_text())
    images, pairs = results["images"]["spn"], np.array([int(Path(mask).stem) for _, mask in results["about"]["pairs"]])
    assert images["bin"] == ["0-20%"] * 5  # masks 0 to 4 of 12,000
    assert images["hole"] == [masks.load(i).mean() for i in pairs]

    photos, holes = pictures(5)[0], np.stack([masks.load(i) for i in pairs])
    model = FakeModel(jnp.full((1, 3), 0.5))
    records = evaluate.evaluate_model(model, batched(photos, holes, 2), mesh, CONFIG, masks.tenths(pairs))
    assert set(evaluate.summarise(records)) == {f"eval/{row}{s}" for row in ("", "0-20/") for s in ("psnr", "ssim", "mae", "hole_mae")}


def test_a_mask_whose_hole_is_lost_in_resizing_has_a_row_of_its_own(run_folder: Path) -> None:
    thin = np.zeros((256, 256), np.uint8)
    thin[0] = 255
    Image.fromarray(thin).save(run_folder / "masks" / "0.png")
    evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out")])
    rows = {row["hole"]: row for row in json.loads((run_folder / "out" / "results.json").read_text())["rows"]["spn"]}
    assert (rows["0%"]["images"], rows["0%"]["identical"], rows["0%"]["mae"]) == (1, 1, 0)
    assert rows["All"]["images"] == 5 and math.isfinite(rows["All"]["psnr"])


SCORES, PICTURES, GRID = evaluate.Detail


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", [SCORES, SCORES, SCORES]),
        ("--baseline mean", [PICTURES, PICTURES, PICTURES]),
        ("--output OUT", [SCORES, SCORES, SCORES]),
        ("--output OUT --save-composites", [PICTURES, PICTURES, PICTURES]),
        ("--output OUT --grid 2", [GRID, SCORES, GRID]),  # photos 0 and 4 of 5, two a batch
        ("--output OUT --grid 1 --baseline mean", [GRID, PICTURES, PICTURES]),
    ],
)
def test_no_more_is_brought_to_the_host_than_is_used(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: list[evaluate.Detail]
) -> None:
    brought, original = [], evaluate.scored_batches

    def watched(*inputs: Any) -> Iterator[evaluate.Arrays]:
        for part in original(*inputs):
            brought.append(GRID if "prior" in part else PICTURES if "completed" in part else SCORES)
            yield part

    monkeypatch.setattr(evaluate, "scored_batches", watched)
    evaluate.main(["run", "--checkpoint", str(run_folder), *arguments.replace("OUT", str(run_folder / "out")).split()])
    assert brought == expected


def test_run_with_several_samples(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = evaluate.load_model("")
    config = dataclasses.replace(loaded.config, model=ModelConfig(variational=True), eval=EvalConfig(batch_size=2, samples=5))
    monkeypatch.setattr(evaluate, "load_model", lambda path: dataclasses.replace(loaded, config=config, model=SAMPLER))
    out = run_folder / "out"
    evaluate.main(f"run --checkpoint {run_folder} --samples 3 --baseline mean --output {out} --save-composites --grid 2".split())

    printed, table = capsys.readouterr().out, (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())
    distance = np.mean(results["images"]["spn"]["diversity"])
    sentence = f"mean pairwise distance between samples inside the hole: {distance:.4f} (of 1; over 5 pictures, 3 samples each)"
    assert "; 3 completions of each, the best by PSNR is scored" in printed
    assert sentence in printed and sentence in table and "diversity spn | diversity mean" in table
    assert results["about"]["samples"] == 3 and "diversity" not in results["images"]["mean"]
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 4 + 6 * (128 + 4)
    for i, (photo, _) in enumerate(results["about"]["pairs"]):
        truth, best = (np.asarray(Image.open(folder / photo)) for folder in (run_folder / "photos", out / "composites"))
        assert results["images"]["spn"]["psnr"][i] == pytest.approx(peak_signal_noise_ratio(truth, best), abs=1e-4)


def test_several_samples_of_a_deterministic_model_are_refused(run_folder: Path) -> None:
    with pytest.raises(InputError, match="--samples 5: the checkpoint's model is deterministic"):
        evaluate.main(["run", "--checkpoint", str(run_folder), "--samples", "5"])


def test_run_without_output_writes_nothing(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run_folder.rglob("*"))
    evaluate.main(["run", "--checkpoint", str(run_folder), "--batch-size", "5"])
    assert "| psnr spn |" in capsys.readouterr().out.replace("  ", " ")
    assert sorted(run_folder.rglob("*")) == before


def test_other_photos_masks_and_seed_can_be_named(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = run_folder / "two"
    photos.mkdir()
    for i in range(2):
        (run_folder / "photos" / f"{i}.png").rename(photos / f"{i}.png")
    out = run_folder / "out"
    evaluate.main(f"run --checkpoint {run_folder} --photos {photos} --masks strokes --seed 3 --output {out}".split())
    about = json.loads((out / "results.json").read_text())["about"]
    assert (about["masks"], about["seed"], len(about["pairs"])) == ("strokes", 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--photos /nowhere", "data.test_photos.*/nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(run_folder: Path, arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.main(["run", "--checkpoint", str(run_folder), *arguments.split()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--baseline telea", "no baseline 'telea'"),
        ("--grid 2", "say where with --output"),
        ("--grid -1 --output out", "--grid -1 must not be negative"),
        ("--batch-size 0", "eval.batch_size=0 must be greater than 0"),
        ("--samples 0", "eval.samples=0 must be greater than 0"),
        ("--seed -1", "eval.seed=-1 must not be negative"),
        ("--output taken", "folder taken cannot be written to"),
        ("--output taken/below", "folder taken/below cannot be written to"),
    ],
)
def test_wrong_options_are_found_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=message):  # and not: checkpoint nowhere is not a folder
        evaluate.main(["run", "--checkpoint", "nowhere", *arguments.split()])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("name", ["composites/1.png", "results.json", "grid.png", "loss_curves.png"])
def test_a_disk_that_fills_up_on_the_way_is_one_sentence(run_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if target == run_folder / "out" / name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=f"out/{name} cannot be written .No space left on device"):
        evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out"), "--save-composites", "--grid", "2"])


def test_config_without_test_photos(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dataclasses.replace(evaluate.load_model(""), config=Config())
    monkeypatch.setattr(evaluate, "load_model", lambda path: loaded)
    with pytest.raises(InputError, match="names no data.test_photos; say which photos to complete with --photos"):
        evaluate.main(["run", "--checkpoint", str(run_folder)])


def test_all_identical_is_logged_as_infinite() -> None:
    records = {"psnr": np.array([np.inf]), "ssim": np.array([1.0]), "mae": np.array([0.0]), "bin": np.array(["0%"])}
    assert evaluate.summarise(records)["eval/psnr"] == math.inf
