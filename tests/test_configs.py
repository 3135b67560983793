"""Every experiment of configs/ loads, says on its first page what it is, and has the paper's
settings.
"""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from spn_jax.config import Config, ModelConfig, check_config, load_config
from spn_jax.settings import to_dict

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
FULL_SIZE = ("celeba", "places2", "paris_streetview", "celebahq_probabilistic", "paris_streetview_probabilistic", "spl")
names = pytest.mark.parametrize("name", [path.stem for path in FILES])
full_size = pytest.mark.parametrize("name", FULL_SIZE)


def load(name: str) -> Config:
    return load_config(ROOT / "configs" / f"{name}.py")


def docstring(name: str) -> str:
    text = (ROOT / "configs" / f"{name}.py").read_text()
    found = re.match(r'"""(.+?)"""', text, re.DOTALL)
    assert found, f"configs/{name}.py does not begin with a docstring"
    return found[1]


def test_the_experiments_are_there() -> None:
    assert {*FULL_SIZE, "demo", "demo_probabilistic", "tiny"} <= {path.stem for path in FILES}


@names
def test_config_loads_and_passes_its_checks(name: str) -> None:
    check_config(load(name))


@names
def test_docstring_is_the_page_of_the_experiment(name: str) -> None:
    title, blank, *page = docstring(name).split("\n")
    assert len(title) > 20 and title.endswith((".", ":", ").")) and blank == ""
    text = "\n".join(page)
    online = load(name).teacher.mode == "online"
    dump = {
        "tresnet_l": "tresnet_l --weights FILE data/tresnet_l.npz",
        "efficientnet_lite0": "efficientnet_lite0 data/efficientnet_lite0.npz",
    }
    assert (f"    python -m teacher_export.weights {dump[load(name).teacher.name]}" in text) == online
    for program in ("spn_jax.train",) if online else ("teacher_export", "spn_jax.train"):
        assert f"    python -m {program} --config configs/{name}.py" in text
    # tiny exists for the tests: its results are worth nothing, and it says so.
    for heading in ("Hardware:", "Cost:") if name == "tiny" else ("Hardware:", "Cost:", "Expected"):
        assert re.search(rf"(^|\. ){heading}", text, re.MULTILINE), f"configs/{name}.py says nothing about {heading}"


def test_the_demo_goes_on_from_the_shipped_model() -> None:
    """Each config can be copied alone, so the two say the same sizes and losses themselves."""
    demo, shipped = load("demo"), load("open_scenes")
    assert (demo.model, demo.loss) == (shipped.model, shipped.loss)


def test_experiments_share_a_cache_only_where_it_would_hold_the_same() -> None:
    configs = {path.stem: config for path in FILES if (config := load(path.stem)).teacher.mode == "cached"}
    shared = [(a, b) for a, b in itertools.combinations(configs, 2) if configs[a].teacher.cache == configs[b].teacher.cache]
    assert ("demo", "demo_probabilistic") in shared
    for a, b in shared:
        assert (configs[a].data, configs[a].teacher) == (configs[b].data, configs[b].teacher)


PAPER = {
    "data.image_size": 256,
    "data.resize_filter": "bicubic",
    "data.flip": "together",
    "data.train_masks": "data/irregular_masks.zip",
    "data.test_masks": "data/irregular_masks.zip",
    "teacher.name": "tresnet_l",
    "teacher.photo": "original",
    "loss.reconstruction": 10,
    "loss.prior": 1,
    "loss.adversarial_weight": 1,
    "loss.prior_mask_weight": 3,
    "loss.reconstruction_mask_weight": 2,
    "optimizer.learning_rate": 1e-4,
    "optimizer.beta1": 0,
    "optimizer.beta2": 0.9,
    "optimizer.epsilon": 1e-8,
    "schedule.unit": "epochs",
    "schedule.drop_factor": 0.1,
    "schedule.base_batch_size": None,
    "train.batch_size": 8,
    "train.micro_batches": 1,
    "train.compute_dtype": "float32",
    "train.ema_decay": None,
    "eval.quantise": "truncate",
}
DETERMINISTIC = {
    "model.variational": False,
    "loss.adversarial": "non_saturating",
    **{f"loss.{name}": 0 for name in ("feature_matching", "perceptual", "diversity", "kl")},
    "train.samples": 1,
    "eval.samples": 1,
}
PROBABILISTIC = {
    "model.variational": True,
    "model.latent_channels": 128,
    "model.spade_hidden_up_to_prior": True,
    "model.discriminator": "instance_norm",
    "loss.adversarial": "hinge",
    "loss.feature_matching": 10,
    "loss.perceptual": 10,
    "loss.perceptual_levels": "released",
    "loss.diversity": 1,
    "loss.diversity_form": "released",
    "loss.kl": 0.05,
    "loss.kl_direction": "paper",
    "train.samples": 2,
    "eval.samples": 5,
}
OF_ITS_OWN = {
    "celeba": {
        "data.crop": "center",
        "schedule.length": 40,
        "schedule.learning_rate_drops": [30],
        "schedule.prior_loss_until": None,
    },
    "places2": {
        "data.crop": "none",
        "schedule.length": 40,
        "schedule.learning_rate_drops": [30],
        "schedule.prior_loss_until": None,
    },
    "paris_streetview": {
        "data.crop": "none",
        "schedule.length": 75,
        "schedule.learning_rate_drops": [50],
        "schedule.prior_loss_until": 60,
    },
    "celebahq_probabilistic": {
        "data.crop": "none",
        "schedule.length": 70,
        "schedule.learning_rate_drops": [50],
        "schedule.prior_loss_until": 60,
    },
    "paris_streetview_probabilistic": {
        "data.crop": "none",
        "schedule.length": 75,
        "schedule.learning_rate_drops": [50],
        "schedule.prior_loss_until": 60,
    },
    "spl": {
        "data.crop": "none",
        "model.decoder": "region_norm",
        "model.prior_levels": [3],
        "model.prior_encoder_slope": 0.1,
        "schedule.length": 70,
        "schedule.learning_rate_drops": [50],
        "schedule.prior_loss_until": 60,
    },
}


@full_size
def test_full_size_experiments_have_the_papers_settings(name: str) -> None:
    config = load(name)
    settings = {f"{section}.{key}": value for section, values in to_dict(config).items() for key, value in values.items()}
    expected = PAPER | (PROBABILISTIC if name.endswith("_probabilistic") else DETERMINISTIC) | OF_ITS_OWN[name]
    assert {key: settings[key] for key in expected} == expected


def test_sizes_of_the_full_size_models_are_the_defaults() -> None:
    """What the configs of variants set are choices; every number of channels and blocks is the
    paper's.
    """
    sizes = [field.name for field in dataclasses.fields(ModelConfig) if field.type is int]
    for name in FULL_SIZE:
        assert all(getattr(load(name).model, size) == getattr(ModelConfig(), size) for size in sizes)
    assert all(load(name).model == ModelConfig() for name in ("celeba", "places2", "paris_streetview"))


def test_full_size_model_is_the_papers() -> None:
    assert to_dict(Config())["model"] == {
        "width": 64,
        "dense_blocks": 16,
        "dense_layers": 6,
        "growth": 32,
        "prior_blocks": 4,
        "prior_levels": [1, 2, 3],
        "middle_blocks": 8,
        "spade_hidden": 128,
        "spade_hidden_up_to_prior": False,
        "hole_fill": "white",
        "conditioning": "spade",
        "variational": False,
        "latent_channels": 128,
        "decoder": "spade",
        "prior_encoder_slope": 0,
        "discriminator": "spectral_norm",
        "discriminator_width": 64,
    }


@full_size
def test_steps_of_an_epoch_are_those_of_the_stated_photos(name: str) -> None:
    """The page's cost follows from its data and its batch."""
    text = docstring(name)
    number = re.search(r"train \(([\d,.]+)( million)? photos\)", text)
    cost = re.search(r"Cost: (\d+) epochs of ([\d,]+) steps", text)
    assert number and cost
    photos = int(float(number[1].replace(",", "")) * (1_000_000 if number[2] else 1))
    config = load(name)
    assert int(cost[2].replace(",", "")) == photos // config.train.batch_size
    assert int(cost[1]) == config.schedule.length
