import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from spn_jax import evaluate
from spn_jax.checkpoints import store as checkpoint
from spn_jax.checkpoints import weights
from spn_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from spn_jax.data.masks import open_test_masks
from spn_jax.errors import InputError
from spn_jax.evaluation import methods, paper, report, run, session
from spn_jax.evaluation import resume as partial
from spn_jax.evaluation.baselines import find_baseline
from spn_jax.evaluation.pairs import open_pair_list
from tests.fakes import SAMPLER, SIZE, FakeDistance, FakeFeatures, FakeModel, pictures


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
    folder = tmp_path / "checkpoints" / "7"
    folder.mkdir(parents=True)
    (folder / checkpoint.METADATA).write_text("{}")
    monkeypatch.setattr(methods, "load_model", lambda path: loaded)
    monkeypatch.setattr(methods, "find_checkpoint", lambda path: folder)
    return tmp_path


def test_run_writes_tables_and_pictures(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_folder / "out"
    command = f"run --checkpoint {run_folder} --method mean --method opencv-telea --output {out} --save-composites --grid 3"
    evaluate.main(command.split())

    printed = capsys.readouterr().out
    table = (out / "results.md").read_text()
    assert table in printed and "random(seed=0)" in printed and "step 7" in printed
    assert rows_of(table, "images") == {"": ["4", "0", "0", "1", "5"]}
    assert list(rows_of(table, "psnr")) == ["spn", "mean", "opencv-telea"]
    assert rows_of(table, "fid") == {"": ["no weights", "-", "-", "no weights", "no weights"]}
    assert "need `python -m teacher_export.weights inception " in table and "--inception inception.npz" in table

    results = json.loads((out / "results.json").read_text())
    about = results["about"]
    assert about["methods"]["spn"]["step"] == 7 and about["quantise"] == "truncate"
    assert f"sha256 {about['pair_list']['sha256'][:16]} (seed 0, from the whole set)" in table
    for i, (photo, mask) in enumerate(about["pairs"]):
        truth = np.asarray(Image.open(run_folder / "photos" / photo))
        hole = np.asarray(Image.open(run_folder / "masks" / mask))[..., None] // 255
        expected = {"spn": np.where(hole > 0, 127, truth)}
        expected |= {name: find_baseline(name)(truth, hole) for name in ("mean", "opencv-telea")}
        for name, completed in expected.items():
            np.testing.assert_array_equal(np.asarray(Image.open(out / "composites" / name / photo)), completed)
            assert results["images"][name]["psnr"][i] == pytest.approx(peak_signal_noise_ratio(truth, completed), abs=1e-4)
            assert results["images"][name]["hole"][i] == pytest.approx(hole.mean())

    assert len((out / "results.tsv").read_text().splitlines()) == 1 + 3 * 5
    assert {path.name for path in out.iterdir()} == {
        "results.md", "results.tsv", "results.tex", "results.json", "composites", "grid.png", "loss_curves.png",
    }  # fmt: skip
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 4 + 6 * (128 + 4)  # input, prior, three methods, truth


def rows_of(table: str, score: str) -> dict[str, list[str]]:
    """{method: cells} of a score's lines."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {line[1]: line[2:] for line in lines if line[0] == score}


def test_masks_laid_out_as_the_papers_are_sorted_by_number(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = open_test_masks(methods.load_model("").config)
    masks.ordered = True
    monkeypatch.setattr(session, "open_test_masks", lambda config: masks)
    evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out")])
    results = json.loads((run_folder / "out" / "results.json").read_text())
    images, pairs = results["images"]["spn"], np.array([int(Path(mask).stem) for _, mask in results["about"]["pairs"]])
    assert images["bin"] == ["0-20%"] * 5  # masks 0 to 4 of 12,000
    assert images["hole"] == [masks.load(i).mean() for i in pairs]


def test_a_mask_whose_hole_is_lost_in_resizing_has_a_row_of_its_own(run_folder: Path) -> None:
    thin = np.zeros((256, 256), np.uint8)
    thin[0] = 255
    Image.fromarray(thin).save(run_folder / "masks" / "0.png")
    evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out")])
    rows = {row["hole"]: row for row in json.loads((run_folder / "out" / "results.json").read_text())["rows"]["spn"]}
    assert (rows["0%"]["images"], rows["0%"]["identical"], rows["0%"]["mae"]) == (1, 1, 0)
    assert rows["All"]["images"] == 5 and math.isfinite(rows["All"]["psnr"])


def test_run_with_several_samples(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = methods.load_model("")
    config = dataclasses.replace(loaded.config, model=ModelConfig(variational=True), eval=EvalConfig(batch_size=2, samples=5))
    monkeypatch.setattr(methods, "load_model", lambda path: dataclasses.replace(loaded, config=config, model=SAMPLER))
    out = run_folder / "out"
    evaluate.main(f"run --checkpoint {run_folder} --samples 3 --method mean --output {out} --save-composites --grid 2".split())

    printed, table = capsys.readouterr().out, (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())
    distance = np.mean(results["images"]["spn"]["diversity"])
    sentence = f"mean pairwise distance between samples inside the hole: {distance:.4f} (of 1; over 5 pictures, 3 samples each)"
    assert "; 3 completions of each, the best by PSNR is scored" in printed
    assert sentence in printed and sentence in table and rows_of(table, "diversity")["mean"] == ["-"] * 5
    assert results["layout"] == "probabilistic" and rows_of(table, "psnr_mean")["spn"][-1] < rows_of(table, "psnr")["spn"][-1]
    assert results["about"]["samples"] == 3 and "diversity" not in results["images"]["mean"]
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 4 + 7 * (128 + 4)  # input, prior, three samples, mean, truth
    for i, (photo, _) in enumerate(results["about"]["pairs"]):
        truth, best = (np.asarray(Image.open(folder / photo)) for folder in (run_folder / "photos", out / "composites" / "spn"))
        assert results["images"]["spn"]["psnr"][i] == pytest.approx(peak_signal_noise_ratio(truth, best), abs=1e-4)


def test_several_samples_of_a_deterministic_model_are_refused(run_folder: Path) -> None:
    with pytest.raises(InputError, match="--samples 5: the checkpoint's model is deterministic"):
        evaluate.main(["run", "--checkpoint", str(run_folder), "--samples", "5"])


def test_run_without_output_writes_nothing(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run_folder.rglob("*"))
    evaluate.main(["run", "--checkpoint", str(run_folder), "--batch-size", "5"])
    assert rows_of(capsys.readouterr().out, "psnr")
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
        ("--method telea", "no method 'telea'"),
        ("--method mean --method mean", "two methods are called mean"),
        ("--results mean=x --method mean", "two methods are called mean"),
        ("--results x", "must be NAME=DIR"),
        ("--results a/b=x", "the name 'a/b' must be letters"),
        ("--checkpoint a/nowhere", "two checkpoints are called nowhere"),
        ("--image-size 10", "data.image_size=10 must be at least 11, the window of SSIM"),
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


@pytest.mark.parametrize("folder", ["photos", "masks"])
def test_results_are_not_written_among_the_data_where_they_would_be_read(run_folder: Path, folder: str) -> None:
    before = sorted((run_folder / folder).iterdir())
    for output in run_folder / folder, run_folder / "elsewhere" / ".." / folder / "out":
        with pytest.raises(
            InputError, match=rf"--output \S+ lies in data.test_{folder}=\S+, where its pictures would be read as well; choose"
        ):
            evaluate.main(f"run --checkpoint {run_folder} --method mean --output {output}".split())
    assert sorted((run_folder / folder).rglob("*.*")) == before


@pytest.mark.parametrize("size", [36, 50])
def test_pictures_of_any_size_where_no_model_asks_for_another(run_folder: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    common = f"--photos {run_folder}/photos --masks {run_folder}/masks --method mean"
    evaluate.main(f"run {common} --image-size {size}".split())
    assert f"photos of {run_folder}/photos at {size} pixels" in capsys.readouterr().out


def test_what_a_model_or_a_score_asks_of_the_size_is_said(run_folder: Path) -> None:
    with pytest.raises(InputError, match="data.image_size=50 must be divisible by 4 and at least 16 for spn"):
        evaluate.main(f"run --checkpoint {run_folder} --image-size 50".split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--paper celebahq", "the paper has no deterministic figures for celebahq"),
        ("--samples 5", "--samples 5 is of probabilistic models, and none is evaluated"),
    ],
)
def test_what_cannot_be_reported_is_found_before_the_work(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.setattr(run, "score_all", lambda *inputs: pytest.fail("pictures were scored"))
    with pytest.raises(InputError, match=message):
        evaluate.main(f"run --photos {run_folder}/photos --masks {run_folder}/masks --image-size 32 --method mean {arguments}".split())


@pytest.mark.parametrize("name", ["composites/spn/1.png", "results.json", "grid.png", "loss_curves.png"])
def test_a_disk_that_fills_up_on_the_way_is_one_sentence(run_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if target == run_folder / "out" / name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=f"out/{name} cannot be written .No space left on device"):
        evaluate.main(["run", "--checkpoint", str(run_folder), "--output", str(run_folder / "out"), "--save-composites", "--grid", "2"])


def test_a_config_whose_crops_need_a_teacher_in_the_step_evaluates_all_the_same(run_folder: Path, tmp_path: Path) -> None:
    """Teacher and crops are the training's, and an evaluation has neither."""
    config = tmp_path / "config.py"
    config.write_text(
        "from spn_jax.config import Config, DataConfig, TeacherConfig\n"
        "def get_config():\n"
        "    return Config(data=DataConfig(crop='random', image_size=64), teacher=TeacherConfig(mode='online'))\n"
    )
    shared = methods.shared_config({}, config, ["eval.seed=3"])
    assert shared.data.crop == "random" and shared.eval.seed == 3


def test_config_without_test_photos(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dataclasses.replace(methods.load_model(""), config=Config())
    monkeypatch.setattr(methods, "load_model", lambda path: loaded)
    with pytest.raises(InputError, match="there is no data.test_photos in the config; say which photos to complete with --photos"):
        evaluate.main(["run", "--checkpoint", str(run_folder)])


def test_all_kinds_of_methods_together_and_without_a_checkpoint(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = f"--photos {run_folder}/photos --masks {run_folder}/masks --image-size {SIZE} --batch-size 2"
    out = run_folder / "out"
    evaluate.main(f"run {shared} --results same={run_folder}/photos --method opencv-ns --output {out}".split())
    table, printed = (out / "results.md").read_text(), capsys.readouterr().out
    assert rows_of(table, "ssim")["same"][-1].startswith("1.0000") and rows_of(table, "mae")["same"][-1].startswith("0.0000")
    assert rows_of(table, "psnr")["same"][-1] == "inf" and "same: 5 of 5 results equal the photo" in table
    assert "results of same got the photo's own pixels outside the hole" in table and "checkpoint" not in printed
    # drawn without being asked for, as there is something to compare
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 4 + 4 * (128 + 4)

    evaluate.main(f"run {shared} --checkpoint new={run_folder} --checkpoint old={run_folder} --method mean".split())
    assert list(rows_of(capsys.readouterr().out, "psnr")) == ["new", "old", "mean"]


def test_raw_results_count_where_the_photo_was_known(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder / "grey"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((SIZE, SIZE, 3), 127, np.uint8)).save(folder / f"{i}.png")
    for flags, same in ("", True), ("--raw-results", False):
        evaluate.main(f"run --checkpoint {run_folder} --results grey={folder} {flags}".split())
        table = capsys.readouterr().out
        assert (rows_of(table, "psnr")["grey"] == rows_of(table, "psnr")["spn"]) == same
        assert ("scored as they are (--raw-results)" in table) != same


def test_a_pair_list_decides_photos_order_and_masks(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed, out = run_folder / "pairs.tsv", run_folder / "out"
    evaluate.main(f"pairs --photos {run_folder}/photos --masks {run_folder}/masks --seed 4 --output {listed}".split())
    Image.fromarray(pictures(1)[0][0]).save(run_folder / "photos" / "more.png")
    evaluate.main(f"run --checkpoint {run_folder} --pairs {listed} --output {out}".split())
    about = json.loads((out / "results.json").read_text())["about"]
    assert [line.split("\t") for line in listed.read_text().splitlines()[6:]] == about["pairs"]
    assert about["pair_list"]["sha256"] in listed.read_text()
    assert "1 of 6 photos is not in the pair list and was left out" in (out / "results.md").read_text()

    (run_folder / "photos" / "2.png").unlink()
    with pytest.raises(InputError, match="1 of the 5 photos of the pair list is not among the 5 at hand: 2.png"):
        evaluate.main(f"run --checkpoint {run_folder} --pairs {listed}".split())


def test_pairs_per_bin_measure_the_masks(run_folder: Path) -> None:
    listed = run_folder / "pairs.tsv.gz"
    evaluate.main(f"pairs --photos {run_folder}/photos --masks {run_folder}/masks --per-bin --output {listed}".split())
    pair_list = open_pair_list(str(listed), [], [])
    # bins 0-10, 10-20 and 90-100 %
    assert pair_list.drawn == "seed 0, per bin" and pair_list.masks.count("4.png") in (1, 2)
    names = run_folder / "names.flist"
    names.write_text("\n".join(f"nowhere/{i}.jpg" for i in range(7)))
    evaluate.main(f"pairs --photos {names} --masks strokes --per-bin --output {listed}".split())
    tenths = [int(name.split("-")[2][:5]) // 2000 for name in open_pair_list(str(listed), [], []).masks]
    assert sorted(set(tenths)) == list(range(6))
    with pytest.raises(InputError, match="must end in .tsv"):
        evaluate.main(f"pairs --photos {names} --masks strokes --output {run_folder}/pairs.txt".split())


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> str:
    """Options that name weights, and fakes in place of the networks."""
    one = jnp.array(1.0)
    monkeypatch.setattr(weights, "load_inception", lambda path: (FakeFeatures(one), "fake features"))
    monkeypatch.setattr(weights, "load_lpips", lambda path, net: (FakeDistance(one), f"fake {net}"))
    return "--inception i.npz --lpips-alex a.npz --lpips-vgg v.npz"


def test_scores_of_networks(run_folder: Path, networks: str) -> None:
    out = run_folder / "out"
    evaluate.main(f"run --checkpoint {run_folder} --results same={run_folder}/photos {networks} --output {out}".split())
    table, results = (out / "results.md").read_text(), json.loads((out / "results.json").read_text())
    assert "no weights" not in table and "Warning: FID over fewer than 2,048 images" in table
    rows = {name: rows[-1] for name, rows in results["rows"].items()}
    assert rows["same"]["fid"] == pytest.approx(0, abs=1e-6) and rows["spn"]["fid"] > 1e-4
    assert rows["spn"]["fid_clean"] == pytest.approx(9 * rows["spn"]["fid"], rel=1e-3)
    assert "fid_clean has clean-fid's (Pillow's bicubic" in table
    assert rows["same"]["lpips_vgg"] == 0 and rows["spn"]["lpips_alex"] == pytest.approx(rows["spn"]["mae_rgb"], rel=1e-5)
    few = "under 1,000 images"
    assert rows_of(table, "p_ids") == {"": [few, "-", "-", few, few]}
    assert results["about"]["weights"] == {"inception": "fake features", "lpips_alex": "fake alex", "lpips_vgg": "fake vgg"}


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Partial results are written for so many batches and no more."""
    add = partial.Partial.add
    calls: list[Any] = []

    def limited(self: partial.Partial, rows: Any) -> None:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(rows)
        add(self, rows)

    monkeypatch.setattr(partial.Partial, "add", limited)
    monkeypatch.setattr(partial, "COMMIT_SECONDS", 0.0)


def test_an_interrupted_evaluation_continues(
    run_folder: Path, networks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"run --checkpoint {run_folder} --method mean {networks} --save-composites --output {run_folder}"
    evaluate.main(f"{command}/whole".split())
    with monkeypatch.context() as patch:
        interrupt(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(f"{command}/out".split())
    assert {path.name for path in (run_folder / "out").iterdir()} == {partial.FOLDER, "composites"}
    capsys.readouterr()
    evaluate.main(f"{command}/out --batch-size 3".split())
    assert "continuing the unfinished evaluation" in (printed := capsys.readouterr().out) and "2 of 5 photos already scored" in printed
    whole, continued = (run_folder / name for name in ("whole", "out"))
    assert {path.relative_to(whole) for path in whole.rglob("*")} == {path.relative_to(continued) for path in continued.rglob("*")}
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, continued))
    for method in ("spn", "mean"):
        for score, values in first["images"][method].items():
            assert second["images"][method][score] == (values if isinstance(values[0], str) else pytest.approx(values, rel=1e-5)), score
        assert second["rows"][method][-1]["fid"] == pytest.approx(first["rows"][method][-1]["fid"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("--seed 1", "pairs, settings"),
        ("--method opencv-ns", "methods"),
        ("--save-composites", "--save-composites"),
        ("--lpips-alex a.npz", "weights of Inception or LPIPS"),
    ],
)
def test_a_changed_evaluation_starts_anew(
    run_folder: Path, networks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, what: str
) -> None:
    command = f"run --checkpoint {run_folder} --output {run_folder}/out"
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(command.split())
    evaluate.main(f"{command} {change}".split())
    printed = capsys.readouterr().out
    assert (
        f"the unfinished evaluation in {run_folder}/out differs in {what}; starting over" in printed and "evaluated 5/5 photos" in printed
    )


def test_features_of_other_weights_are_not_continued(
    run_folder: Path, networks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FID would be of two networks otherwise."""
    command = f"run --checkpoint {run_folder} --inception i.npz --output {run_folder}/out".split()
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(command)
    monkeypatch.setattr(weights, "load_inception", lambda path: (FakeFeatures(jnp.array(2.0)), "other features"))
    evaluate.main(command)
    assert "differs in weights of Inception or LPIPS; starting over" in capsys.readouterr().out


def test_a_prediction_that_is_not_finite_ends_it(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dataclasses.replace(methods.load_model(""), model=FakeModel(jnp.full((1, 3), jnp.nan)))
    monkeypatch.setattr(methods, "load_model", lambda path: loaded)
    with pytest.raises(InputError, match="spn predicted NaN or infinity for 2 of 2 photos, first for photo 0"):
        evaluate.main(["run", "--checkpoint", str(run_folder)])


def test_checkpoints_that_disagree(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = methods.load_model("")
    other = dataclasses.replace(loaded.config, data=dataclasses.replace(loaded.config.data, crop="center"))
    monkeypatch.setattr(
        methods, "load_model", lambda path: dataclasses.replace(loaded, config=other) if path == f"{run_folder}/photos" else loaded
    )
    command = f"run --checkpoint a={run_folder} --checkpoint b={run_folder}/photos"
    with pytest.raises(InputError, match="the checkpoints disagree about data.crop: none, and center in b"):
        evaluate.main(command.split())
    evaluate.main(f"{command} data.crop=center".split())
    with pytest.raises(InputError, match="model.width=8: an evaluation takes settings of data and eval alone"):
        evaluate.main(f"{command} model.width=8".split())


def test_the_papers_figures_stand_apart_from_other_images(run_folder: Path) -> None:
    out = run_folder / "out"
    evaluate.main(f"run --checkpoint {run_folder} --paper paris_streetview --bins tenths --output {out}".split())
    table = (out / "results.md").read_text()
    assert "not comparable" in table and rows_of(table, "psnr")["SPN"][-1] == "29.69"
    assert len(rows_of(table, "images")[""]) == 8  # six tenths, above 60 %, All
    assert "29.69" in (out / "results.tex").read_text()


def test_masks_are_checked_before_the_models_run_and_asked_about(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = f"run --photos {run_folder}/photos --image-size {SIZE} --method mean --output {run_folder}/out --masks"
    evaluate.main(f"{shared} {run_folder}/masks".split())
    assert "unusually large" not in (run_folder / "out" / "results.md").read_text()
    for path in (run_folder / "masks").iterdir():  # all but one are holes of some columns
        Image.eval(Image.open(path), lambda value: 255 - value).save(path)
    evaluate.main(f"{shared} {run_folder}/masks".split())
    assert (
        "is 75% of the photo on average, which is unusually large: are the holes black" in (run_folder / "out" / "results.md").read_text()
    )
    (run_folder / "masks" / "3.png").write_bytes(b"no picture")
    monkeypatch.setattr(run, "score_all", lambda *arguments: pytest.fail("the method ran"))
    with pytest.raises(InputError, match=r"data\.test_masks: mask .*3\.png cannot be read as an image"):
        evaluate.main(f"{shared} {run_folder}/masks".split())


def quoted(data_set: str, *models: tuple[bool, int], pairs: str | None = None, photos: int, crop: str = "none") -> paper.Quotation | None:
    """What stands beside the scores of models (probabilistic, samples), on the paper's number of
    photos and masks and at its size.
    """
    options: Any = SimpleNamespace(pairs=pairs, paper=data_set, raw_results=False)
    evaluation: Any = SimpleNamespace(
        models=[
            SimpleNamespace(
                loaded=SimpleNamespace(config=Config(model=ModelConfig(variational=probabilistic))), settings=EvalConfig(samples=samples)
            )
            for probabilistic, samples in models
        ],
        photos=range(photos),
        masks=range(12_000),
        config=Config(data=DataConfig(crop=crop)),  # type: ignore[arg-type]
        origins={},
    )
    return report.quote(options, evaluation)


def test_the_papers_figures_stand_beside_its_own_images_alone() -> None:
    celeba = quoted("celeba", (False, 1), pairs="celeba", photos=12_000, crop="center")
    assert celeba is not None and celeba.comparable
    for given in (None, "pairs.tsv", "places2"):
        others = quoted("celeba", (False, 1), pairs=given, photos=12_000, crop="center")
        assert (
            others is not None and len(others.differences) == 1 and others.differences[0].startswith("the images are not known to be the")
        )
    faces = quoted("celebahq", (True, 5), pairs="celebahq", photos=2_800)
    # the paper does not tell which images these are
    assert faces is not None and not faces.comparable


def test_one_completion_of_a_probabilistic_model_is_not_set_beside_table_1() -> None:
    one = quoted("paris_streetview", (True, 1), photos=100)
    assert one is not None and {figure.table for figure in one.figures} == {2}
    assert "the best of 1 completion, the paper of 5" in one.differences
    both = quoted("paris_streetview", (False, 1), (True, 5), photos=100)
    assert both is not None and {figure.table for figure in both.figures} == {2}
    deterministic = quoted("paris_streetview", (False, 1), photos=100)
    assert deterministic is not None and {figure.table for figure in deterministic.figures} == {1}


def test_profile(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spn_jax.evaluation import cost as profile

    seen: dict[str, Any] = {}
    monkeypatch.setattr("spn_jax.checkpoints.store.load_model", lambda path: path)
    monkeypatch.setattr(profile, "measure", lambda loaded, **options: seen.update(options, loaded=loaded))
    monkeypatch.setattr(profile, "report", lambda measured: "the report")
    monkeypatch.setattr(profile, "as_json", lambda measured: "{}")
    evaluate.main(f"profile --checkpoint run --repeats 3 --output {run_folder}/profile.json".split())
    assert seen == {"loaded": "run", "batch_size": 1, "samples": 1, "precision": "highest", "repeats": 3}
    assert "the report" in capsys.readouterr().out and (run_folder / "profile.json").read_text() == "{}"


@pytest.mark.parametrize("flags", ["", "--raw-results"])
def test_the_truth_as_a_result_has_perfect_scores(run_folder: Path, networks: str, flags: str) -> None:
    out = run_folder / "out"
    evaluate.main(
        f"run --photos {run_folder}/photos --masks {run_folder}/masks --image-size {SIZE} --batch-size 2 "
        f"--results truth={run_folder}/photos {networks} {flags} --output {out}".split()
    )

    def no_constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    results = json.loads((out / "results.json").read_text(), parse_constant=no_constant)
    row, images = results["rows"]["truth"][-1], results["images"]["truth"]
    # no mean of infinite values
    assert row["images"] == row["identical"] == 5 and row["psnr"] is None
    assert row["ssim"] == pytest.approx(1, abs=1e-6) and images["ssim"] == pytest.approx([1] * 5, abs=1e-6)
    assert row["mae"] == row["lpips_alex"] == row["lpips_vgg"] == 0 and row["fid"] == pytest.approx(0, abs=1e-6)
    table = (out / "results.md").read_text()
    assert rows_of(table, "psnr")["truth"][-1] == "inf" and "nan" not in table


@pytest.mark.parametrize(("folder", "kind"), [("photos", "photo"), ("masks", "mask")])
def test_changed_files_start_an_evaluation_anew(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str, kind: str
) -> None:
    command = f"run --method mean --checkpoint {run_folder} --output {run_folder}/out".split()
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(command)
    # the same name and size, made at another time
    os.utime(run_folder / folder / "1.png", ns=(0, 10**18))
    evaluate.main(command)
    assert f"differs in {kind} files; starting over" in capsys.readouterr().out


def test_another_version_starts_an_evaluation_anew(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"run --method mean --checkpoint {run_folder} --output {run_folder}/out".split()
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(command)
    monkeypatch.setattr(session, "__version__", "another")
    evaluate.main(command)
    assert "differs in version of spn_jax; starting over" in capsys.readouterr().out


def test_nothing_of_others_is_touched_and_pictures_of_earlier_runs_go(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_folder / "out"
    (out / "partial").mkdir(parents=True)
    for name in ("partial/thesis.txt", "grid.png", "notes.png"):
        (out / name).write_text("mine")
    evaluate.main(f"run --checkpoint {run_folder} --output {out}".split())
    assert capsys.readouterr().out.endswith(
        f"written to {out}: loss_curves.png, results.json, results.md, results.tex, results.tsv\n"
    )  # not the files of others
    assert (out / "grid.png").read_text() == "mine"  # there were no results beside it

    evaluate.main(f"run --checkpoint a={run_folder} --checkpoint b={run_folder} --output {out}".split())
    assert {path.name for path in out.glob("*.png")} == {"grid.png", "loss_curves-a.png", "loss_curves-b.png", "notes.png"}
    (run_folder / "metrics.jsonl").unlink()
    evaluate.main(f"run --checkpoint {run_folder} --grid 0 --output {out}".split())
    assert {path.name for path in out.glob("*.png")} == {"notes.png"}
    assert (out / "partial" / "thesis.txt").read_text() == (out / "notes.png").read_text() == "mine"


def test_composites_of_other_photos_are_refused(run_folder: Path) -> None:
    command = f"run --checkpoint {run_folder} --save-composites --output {run_folder}/out".split()
    evaluate.main(command)
    evaluate.main(command)
    (run_folder / "photos" / "4.png").unlink()
    before = {path: path.read_bytes() for path in (run_folder / "out").rglob("*.*")}
    with pytest.raises(
        InputError, match="out/composites/spn contains 1 image that does not belong to this evaluation: 4.png; remove the folder or choose"
    ):
        evaluate.main(command)
    assert {path: path.read_bytes() for path in (run_folder / "out").rglob("*.*")} == before


def test_results_are_not_written_over(run_folder: Path) -> None:
    out = run_folder / "out"
    command = f"run --photos {run_folder}/photos --masks {run_folder}/masks --image-size {SIZE} --save-composites --output {out}"
    evaluate.main(f"{command} --method mean".split())
    with pytest.raises(InputError, match="--save-composites would write over --results a=.*/composites/mean; choose another --output"):
        evaluate.main(f"{command} --method mean --results a={out}/composites/mean".split())


def test_a_broken_result_is_known_before_the_model_runs(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder / "other"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(pictures(1)[0][0]).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:-200])
    monkeypatch.setattr(run, "score_all", lambda *arguments: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=r"unreadable \(make these again\) \(1\): 4.png"):
        evaluate.main(f"run --checkpoint {run_folder} --results other={folder} --output {run_folder}/out".split())
