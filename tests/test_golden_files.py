"""Files that earlier versions wrote are read for ever: checkpoints, caches of features, pair lists
(golden/README.md).
"""

import json
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from spn_jax import Inpainter
from spn_jax.checkpoint import load_model
from spn_jax.data.teacher import TeacherCache
from spn_jax.evaluation.pairs import open_pair_list
from tests import trainer
from tests.golden_model import GOLDEN


@pytest.fixture(scope="module", params=["version_0_1_0"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one version. Not to be changed."""
    # the paths that the run was started with count as settings
    folder = tmp_path_factory.mktemp("root") / "tests" / "golden"
    with tarfile.open(GOLDEN / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / request.param


def test_a_run_continues_from_the_checkpoint_as_it_did(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(stored / "run", run)
    root, folder = stored.parents[2], f"tests/golden/{stored.name}"
    paths = [f"data.train_photos={folder}/photos/train", f"data.test_photos={folder}/photos/test", f"teacher.cache={folder}/cache"]
    arguments = ["--config", f"{folder}/config.py", "--workdir", str(run), *paths, "schedule.length=3"]
    monkeypatch.chdir(root)
    output, _ = trainer.run_here(arguments)
    assert "continues at step 2" in output
    expected = json.loads((stored / "third_step.json").read_text())
    third = next(line for line in trainer.metrics(run) if line["step"] == 3)
    assert {name: third.get(name) for name in expected} == pytest.approx(expected, rel=1e-3)


def test_the_model_of_the_checkpoint_predicts_what_it_did(stored: Path) -> None:
    expected = np.load(stored / "prediction.npz")
    loaded = load_model(str(stored / "run"))
    image, mask = expected["image"], expected["mask"]
    complete = jax.jit(lambda model, image, mask: model(image, mask))
    output = complete(loaded.model, image[None].astype(np.float32) / 255, mask[None].astype(np.float32))
    assert loaded.step == 2
    np.testing.assert_allclose(output.image[0, 0], expected["prediction"], atol=1e-4)
    np.testing.assert_allclose(output.prior[3][0, 0], expected["coarsest_prior"], atol=1e-4)

    # at version 0.1.0 the usual strategy
    filled = Inpainter.load(stored / "run")(image, mask[..., 0], strategy="original")[0].astype(int)
    # a value that lies at a step may fall to either side
    assert np.abs(filled - expected["filled"]).max() <= 1
    np.testing.assert_array_equal(filled[mask[..., 0] == 0], image[mask[..., 0] == 0])


def test_the_cache_of_features_holds_what_was_written(stored: Path) -> None:
    cache, expected = TeacherCache.open(str(stored / "cache")), np.load(stored / "features.npz")
    read = {
        f"{photo}/{int(mirrored)}/{level}": np.asarray(features, np.float32)[::4, ::4]
        for photo in range(3)
        for mirrored in (False, True)
        for level, features in cache.features(photo, mirrored).items()
    }
    assert read.keys() == set(expected)
    for name, features in read.items():
        np.testing.assert_array_equal(features, expected[name])


def test_the_pair_list_opens(stored: Path) -> None:
    pairs = open_pair_list(str(stored / "pairs.tsv"), ["00.png", "01.png"], ["strokes"])
    assert pairs.photos == ("00.png", "01.png")
    assert pairs.masks == ("strokes-4294967296-04069", "strokes-4294967296-03851")
    assert pairs.sha256 == "5032e42b1e4c5f3f6837ae6f153bc296cf4c99f4dd89bed8f98b1d5966d5c430"
