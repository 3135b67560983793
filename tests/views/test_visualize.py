"""Each kind of picture shows what its caption says, and wrong input is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax import visualize
from spn_jax.drawing import colours, figures, sheet
from spn_jax.errors import InputError
from spn_jax.views import compare, curves, detect, diversity, failures, masks, priors, tsne
from spn_jax.views.inside import look_inside
from spn_jax.views.subjects import Subject, chosen, only_model, open_subjects
from tests.tiny import photo

COUNT = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.fromarray(photo(32, 32, seed=i)).save(folder / f"{i}.png")
    return folder


def command(view: str, photos: Path, output: Path, *more: str) -> list[str]:
    return [view, "--photos", str(photos), "--masks", "strokes", "--output", str(output), *more]


def drawn(arguments: list[str]) -> np.ndarray:
    """The page that a command writes."""
    visualize.main(arguments)
    return np.asarray(Image.open(arguments[arguments.index("--output") + 1]))


def colours_of(page: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(page.reshape(-1, 3), axis=0).tolist()}


# --- colours ---


def test_one_number_is_one_cluster_in_every_map_and_the_largest_comes_first() -> None:
    flat = np.zeros((3, 4, 4, 2))
    flat[0, :1], flat[1:, :2] = 1, 1
    labels = colours.joint_clusters(flat, clusters=2)
    np.testing.assert_array_equal(labels, (flat[..., 0] == 1).astype(int))


def test_a_cluster_has_its_namesake_s_place_on_the_next_scale() -> None:
    coarse = np.arange(16).reshape(1, 4, 4) % 3
    fine = ((coarse + 1) % 3).repeat(2, 1).repeat(2, 2)
    matched = colours.matched_clusters({2: fine, 3: coarse})
    np.testing.assert_array_equal(matched[2], coarse.repeat(2, 1).repeat(2, 2))


def test_components_have_one_basis_and_tell_their_share() -> None:
    ramp = np.linspace(0, 1, 64).reshape(1, 8, 8, 1) * np.array([3.0, -2, 1, 0])
    found = colours.Components(ramp)
    assert found.explained == pytest.approx(1)
    grey = found.picture(ramp[0]).astype(int).sum(-1).ravel()
    assert (np.diff(grey) >= 0).all() or (np.diff(grey) <= 0).all()


# --- pages ---


def test_captions_stay_on_the_page() -> None:
    text = "Grey: the photos. In brackets: results whose nearest photo, in features, is their own. " * 5
    page = sheet.sheet([sheet.Row([sheet.Cell(np.zeros((200, 300, 3), np.uint8))])], [], text)
    assert (page[:, -4:] == 255).all()


def test_priors(checkpoints: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    page = drawn(command("priors", photos, tmp_path / "out.png", "--checkpoint", str(checkpoints["spn"]), "--count", "2"))
    assert len(colours_of(page) & {tuple(colour) for colour in figures.PALETTE.tolist()}) == 8


def test_edges_in_the_hole_have_a_colour_of_their_own() -> None:
    image, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 1), np.uint8)
    image[:, 16:], mask[:16] = 255, 1
    edges = priors.edge_map(image, mask)
    assert colours_of(edges[:15]) == {(255, 255, 255), tuple(priors.HIDDEN.tolist())}
    assert colours_of(edges[17:]) == {(255, 255, 255), tuple(priors.KNOWN.tolist())}


def test_samples_and_their_deviation(checkpoints: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    """The deviation is 0 wherever the photo is known, and not in all holes."""
    model = ["--checkpoint", str(checkpoints["spn-probabilistic"]), "--samples", "3"]
    for view in ("samples", "diversity"):
        drawn(command(view, photos, tmp_path / f"{view}.png", "--count", "2", *model))
    options = visualize.parse(command("diversity", photos, tmp_path / "out.png", *model))
    evaluation = open_subjects(options)
    _, holes, inside = look_inside(evaluation, only_model(evaluation), chosen(options, COUNT))
    spread = diversity.deviations(inside.completed)
    assert (spread[holes[..., 0] == 0] == 0).all() and spread.max() > 0


def test_features(checkpoints: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    page = drawn(command("features", photos, tmp_path / "out.png", "--checkpoint", str(checkpoints["spn"]), "--count", "1"))
    assert page.shape[1] > 4 * sheet.SMALLEST_CELL


def test_details_are_where_the_methods_differ_most(checkpoints: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    image = photo(32, 32)
    wrong = image.copy()
    wrong[20:28, 4:12] = 255 - wrong[20:28, 4:12]
    subject = Subject(0, "a.png", image, np.ones((32, 32, 1), np.uint8), {"ours": wrong}, {})
    window = compare.busiest_window(subject)
    left, top, side = window
    assert left <= 4 and top <= 20 and left + side >= 12 and top + side >= 28
    methods = ["--checkpoint", f"ours={checkpoints['spn']}", "--method", "mean", "--count", "1"]
    drawn(command("compare", photos, tmp_path / "out.png", *methods))


def test_failures_are_the_worst(photos: Path, tmp_path: Path) -> None:
    options = visualize.parse(command("failures", photos, tmp_path / "out.png", "--method", "mean", "--image-size", "32"))
    values = failures.scores(open_subjects(options), "mean", "psnr")
    assert len(values) == COUNT
    assert failures.worst(values, 2, lower_is_worse=True) == np.argsort(values)[:2].tolist()
    assert failures.worst(values, 1, lower_is_worse=False) == [int(np.argmax(values))]
    drawn(command("failures", photos, tmp_path / "out.png", "--method", "mean", "--image-size", "32", "--count", "2"))


def test_results_that_equal_their_photos_are_nearest_to_them() -> None:
    truth = np.random.default_rng(0).random((20, 3))
    assert tsne.own_photo_nearest(truth, truth) == 1
    assert tsne.own_photo_nearest(np.roll(truth, 1, axis=0), truth) == 0
    apart = np.repeat(np.eye(4), 5, axis=0) * 9 + 0.01 * truth[:, :1]
    assert len(set(tsne.photo_clusters(apart)[::5])) == 4
    together = tsne.project({"photos": truth, "ours": truth}, perplexity=5, seed=0)
    assert {name: places.shape for name, places in together.items()} == {"photos": (20, 2), "ours": (20, 2)}


def test_curves_of_several_runs(tmp_path: Path) -> None:
    for name, rate in ("a", 1), ("b", 2):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "generator/loss": rate / step, "eval/psnr": step * rate} for step in (1, 2, 3)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "config.txt").write_text(f"optimizer.learning_rate = {rate}\ntrain.seed = 0\n")
    folders = {name: tmp_path / name for name in "ab"}
    assert curves.difference(folders) == "They differ in optimizer.learning_rate: 1 (a), 2 (b)."
    runs = ["--checkpoint", f"a={tmp_path / 'a'}", "--checkpoint", f"b={tmp_path / 'b'}"]
    page = drawn(["curves", *runs, "--output", str(tmp_path / "out.png")])
    assert {tuple(colour) for colour in curves.COLOURS[:2].tolist()} <= colours_of(page)


def test_boxes_of_a_detector(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "a.png")
    found = {"folder": str(tmp_path), "images": {"a.png": [{"box": [8, 8, 40, 40], "label": "cat", "score": 0.9}]}}
    about = {"format": detect.FORMAT, "detector": "any", "weights": "file", "threshold": 0.5}
    (tmp_path / "boxes.json").write_text(json.dumps(about | {"methods": {"ours": found}}))
    page = drawn(["detect", "--boxes", str(tmp_path / "boxes.json"), "--output", str(tmp_path / "out.png")])
    assert tuple(detect.COLOURS[0].tolist()) in colours_of(page)


def test_masks_by_ratio_and_contact(tmp_path: Path) -> None:
    inside, border = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    inside[8:16, 8:16], border[:16] = 255, 255
    for name, mask in ("inside", inside), ("border", border):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    from spn_jax.data.masks import open_masks

    found = masks.measure(open_masks(str(tmp_path), 32, False, 0, "x"), 2)
    assert (found.ratios.tolist(), found.touching.tolist(), found.tenths.tolist()) == ([0.5, 1 / 16], [True, False], [4, 0])
    drawn(["masks", "--masks", str(tmp_path), "--image-size", "32", "--output", str(tmp_path / "out" / "page.png")])


@pytest.mark.parametrize(
    ("view", "more", "text"),
    [
        ("priors", ["--count", "0"], "--count 0 must be at least 1"),
        ("priors", ["--only", "0,9"], "--only asks for photo 9, and there are 0 to 4"),
        ("samples", [], "the checkpoint's model is deterministic"),
        ("tsne", [], "pass either --teacher FILE.npz or --inception FILE.npz"),
        ("failures", ["--by", "theirs"], "--by theirs: the methods are"),
        ("compare", ["--output", "page.jpg"], "--output page.jpg must end in .png"),
    ],
)
def test_wrong_input_is_one_sentence(
    checkpoints: dict[str, Path], photos: Path, tmp_path: Path, view: str, more: list[str], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        visualize.main(command(view, photos, tmp_path / "out.png", "--checkpoint", str(checkpoints["spn"]), *more))
    assert not list(tmp_path.iterdir())
