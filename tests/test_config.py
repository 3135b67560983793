"""Overrides, the checks of settings, and the way of a config into a checkpoint and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from spn_jax.config import Config, ModelConfig, TrainConfig, apply_overrides, check_config, from_dict, load_config
from spn_jax.errors import InputError
from spn_jax.settings import ANOTHER_BEST, changed_settings, describe, to_dict


def value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=16", 16),
        ("optimizer.learning_rate=2e-4", 2e-4),
        ("schedule.length=3", 3.0),
        ("data.train_photos=a=b.flist", "a=b.flist"),
        ("data.train_photos=", ""),
        ("data.crop=center", "center"),
        ("data.invert_masks=true", True),
        ("train.rematerialise=1", True),
        ("data.invert_masks=False", False),
        ("train.ema_decay=0.99", 0.99),
        ("train.ema_decay=none", None),
        ("eval.photos=None", None),
        ("eval.photos=12", 12),
        ("model.prior_levels=2,3", (2, 3)),
        ("model.prior_levels=(3,)", (3,)),
        ("schedule.learning_rate_drops=[10, 20.5]", (10.0, 20.5)),
        ("schedule.learning_rate_drops=", ()),
    ],
)
def test_override(override: str, expected: Any) -> None:
    result = value(apply_overrides(Config(), [override]), override.partition("=")[0])
    assert result == expected
    assert type(result) is type(expected)


def test_later_overrides_win_and_other_settings_stay() -> None:
    config = apply_overrides(Config(), ["train.batch_size=4", "data.seed=7", "train.batch_size=2"])
    assert changed_settings(Config(), config) == ["data.seed: 0 -> 7", "train.batch_size: 8 -> 2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size", "override 'train.batch_size' has no '='; write section.key=value, for example train.batch_size=4"),
        ("train.batch_size=four", "train.batch_size='four' is not a whole number"),
        ("train.batch_size=4.5", "train.batch_size='4.5' is not a whole number"),
        ("train.batch_size=none", "train.batch_size='none' is not a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast' is not a number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate='nan' is not a number"),
        ("schedule.length=inf", "schedule.length='inf' is not a number"),
        ("data.invert_masks=maybe", "data.invert_masks='maybe' is not true or false"),
        ("data.flip=both", "data.flip='both' is not one of none, together, independent"),
        ("eval.photos=many", "eval.photos='many' is not a whole number or none"),
        ("model.prior_levels=1;2", "model.prior_levels='1;2' is not a list of values, each a whole number, separated by commas"),
    ],
)
def test_values_of_another_kind_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides(Config(), [override])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("train.bath_size", "train.batch_size"),
        ("batch_size", "eval.batch_size"),
        ("learning_rate", "optimizer.learning_rate"),
        ("data.train_photo", "data.train_photos"),
        ("model.prior_level", "model.prior_levels"),
        ("train.batch_size.x", "train.batch_size"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(misspelt: str, nearest: str) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides(Config(), [f"{misspelt}=1"])
    beginning, _, suggestions = str(error.value).partition("; did you mean ")
    assert beginning == f"config has no setting '{misspelt}'"
    assert suggestions.removesuffix("?").split(" or ")[0] == nearest


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(InputError) as error:
        apply_overrides(Config(), ["zzz=1"])
    assert str(error.value) == "config has no setting 'zzz'"


# --- checks ---

WRONG_TOGETHER = {
    "model.decoder=region_norm": "needs model.prior_levels=3",
    "model.decoder=region_norm model.prior_levels=3 model.variational=true": "and model.variational=false",
    "train.samples=2": "train.samples ask for several completions of a photo; set model.variational=true",
    "loss.kl=1 eval.samples=5": "loss.kl, eval.samples ask for several completions",
    "model.variational=true loss.diversity=1": "set train.samples=2 or more",
    "model.variational=true data.image_size=80": "must be divisible by 32",
}


@pytest.mark.parametrize("overrides", WRONG_TOGETHER)
def test_settings_that_do_not_fit_each_other(overrides: str) -> None:
    with pytest.raises(InputError, match=WRONG_TOGETHER[overrides]):
        apply_overrides(Config(), overrides.split())


@pytest.mark.parametrize(
    ("changes", "kind", "stride"),
    [({}, "spn", 4), ({"variational": True}, "spn-probabilistic", 32), ({"decoder": "region_norm", "prior_levels": (3,)}, "spl", 4)],
)
def test_kind_and_stride_of_a_model(changes: dict[str, Any], kind: str, stride: int) -> None:
    model = ModelConfig(**changes)
    assert (model.kind, model.stride) == (kind, stride)


POSITIVE = [
    *("model.width", "model.dense_blocks", "model.dense_layers", "model.growth", "model.prior_blocks", "model.middle_blocks"),
    *("model.spade_hidden", "model.discriminator_width", "data.threads", "data.prefetch", "teacher.batch_size"),
    *("teacher.records_per_shard", "schedule.length", "schedule.drop_factor", "schedule.prior_loss_until", "data.shuffle_window"),
    *("schedule.base_batch_size", "optimizer.learning_rate", "optimizer.epsilon", "train.batch_size", "train.micro_batches"),
    *("model.latent_channels", "train.samples", "eval.samples"),
    *("train.log_every", "train.image_every", "train.eval_every", "train.checkpoint_every", "train.keep_last"),
    *("eval.batch_size", "eval.photos"),
]
NOT_NEGATIVE = [
    *("data.seed", "teacher.seed", "train.seed", "eval.seed", "train.keep_best", "loss.reconstruction", "loss.prior"),
    *("loss.adversarial_weight", "loss.prior_mask_weight", "loss.reconstruction_mask_weight"),
    *("loss.feature_matching", "loss.perceptual", "loss.diversity", "loss.kl"),
]


@pytest.mark.parametrize("key", POSITIVE)
def test_settings_that_must_be_positive(key: str) -> None:
    for wrong in "0", "-1":
        with pytest.raises(InputError, match=rf"^{key}={wrong}(\.0)? must be greater than 0$"):
            apply_overrides(Config(), [f"{key}={wrong}"])


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_settings_that_must_not_be_negative(key: str) -> None:
    apply_overrides(Config(), [f"{key}=0"])
    with pytest.raises(InputError, match=rf"^{key}=-1(\.0)? must not be negative$"):
        apply_overrides(Config(), [f"{key}=-1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.beta1=1"], "optimizer.beta1=1.0 must be at least 0 and less than 1"),
        (["optimizer.beta2=-0.1"], "optimizer.beta2=-0.1 must be at least 0 and less than 1"),
        (["model.prior_levels=1,3"], "model.prior_levels=(1, 3) must be 3, or 2,3, or 1,2,3: scales are added from the coarsest"),
        (["data.image_size=250"], "data.image_size=250 must be divisible by 4 and at least 32"),
        (["data.image_size=28"], "data.image_size=28 must be divisible by 4 and at least 32"),
        (["train.micro_batches=3"], "train.batch_size=8 is not divisible by train.micro_batches=3"),
        (["train.ema_decay=1"], "train.ema_decay=1.0 must lie between 0 and 1, or be none"),
        (["train.ema_decay=0"], "train.ema_decay=0.0 must lie between 0 and 1, or be none"),
        (["schedule.learning_rate_drops=30,20"], "schedule.learning_rate_drops=(30.0, 20.0) must increase, from more than 0"),
        (["schedule.learning_rate_drops=20,20"], "schedule.learning_rate_drops=(20.0, 20.0) must increase, from more than 0"),
        (["schedule.learning_rate_drops=0"], "schedule.learning_rate_drops=(0.0,) must increase, from more than 0"),
    ],
)
def test_settings_that_do_not_work(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides(Config(), overrides)
    assert str(error.value) == message


def test_the_smallest_photo_passes_the_discriminator() -> None:
    """The lower bound of data.image_size is the size below which the last of its five convolutions
    has nothing to work on.
    """

    def patches(size: int) -> int:
        for stride in (2, 2, 2, 1, 1):
            size = (size + 2 - 4) // stride + 1
        return size

    assert patches(32) > 0 >= patches(20)
    check_config(apply_overrides(Config(), ["data.image_size=32"]))


def test_checks_come_after_all_overrides() -> None:
    """Two settings that only work together can be given in any order."""
    assert apply_overrides(Config(), ["train.micro_batches=3", "train.batch_size=6"]).train.micro_batches == 3


# --- config files ---


def write(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "experiment.py"
    path.write_text(body)
    return path


def test_load_config(tmp_path: Path) -> None:
    path = write(tmp_path, "from spn_jax.config import *\ndef get_config():\n    return Config(train=TrainConfig(batch_size=2))\n")
    config = load_config(str(path), ["data.seed=3"])
    assert (config.train.batch_size, config.data.seed) == (2, 3)


def test_values_of_a_file_get_the_settings_types(tmp_path: Path) -> None:
    schedule = "ScheduleConfig(length=3, learning_rate_drops=[1, 2], prior_loss_until=2)"
    data = "DataConfig(train_photos=pathlib.Path('photos'))"
    body = f"import pathlib\nfrom spn_jax.config import *\ndef get_config(): return Config(schedule={schedule}, data={data})\n"
    config = load_config(write(tmp_path, body))
    assert config.schedule.learning_rate_drops == (1.0, 2.0)
    assert (type(config.schedule.length), type(config.schedule.prior_loss_until)) == (float, float)
    assert config.data.train_photos == "photos"


def test_an_override_can_mend_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "from spn_jax.config import *\ndef get_config(): return Config(train=TrainConfig(batch_size=0))\n")
    assert load_config(path, ["train.batch_size=4"]).train.batch_size == 4
    with pytest.raises(InputError, match="train.batch_size=0 must be greater than 0"):
        load_config(path)


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_no_config_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"is not a file; pass one of configs/\*\.py with --config$"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("body", ["x = 1\n", "get_config = 1\n", "def get_config():\n    return {}\n", ""])
def test_config_file_without_a_config(tmp_path: Path, body: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value) == f"config {path} must define get_config() that returns a spn_jax.config.Config"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x = 1\ndef get_config(:\n", "line 2: SyntaxError: invalid syntax"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "from spn_jax.config import *\n\ndef get_config():\n    return Config(data=DataConfig(size=3))\n",
            "line 4: TypeError: DataConfig.__init__() got an unexpected keyword argument 'size'",
        ),
        ("def get_config():\n    raise ValueError('first line\\nsecond line')\n", "line 2: ValueError: first line"),
        ("def get_config():\n    assert False\n", "line 2: AssertionError: "),
    ],
)
def test_a_config_file_with_a_fault_is_one_sentence(tmp_path: Path, body: str, reason: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value) == f"config {path} cannot be read: {reason}; correct the file"


def test_an_input_error_inside_a_config_file_passes(tmp_path: Path) -> None:
    path = write(tmp_path, "from spn_jax.errors import InputError\ndef get_config():\n    raise InputError('set DATA first')\n")
    with pytest.raises(InputError, match="^set DATA first$"):
        load_config(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("train=TrainConfig(batch_size='many')", "train.batch_size='many' is not a whole number"),
        ("train=TrainConfig(batch_size=[4])", "train.batch_size=[4] is not a whole number"),
        ("train=TrainConfig(batch_size=True)", "train.batch_size=True is not a whole number"),
        ("train=TrainConfig(batch_size=2.5)", "train.batch_size=2.5 is not a whole number"),
        ("data=DataConfig(train_photos=['a', 'b'])", "data.train_photos=['a', 'b'] is not text"),
        ("data=DataConfig(invert_masks='yes')", "data.invert_masks='yes' is not true or false"),
        ("model=ModelConfig(prior_levels=3)", "model.prior_levels=3 is not a list of values, each a whole number, separated by commas"),
        ("data=DataConfig(crop='middle')", "data.crop='middle' is not one of none, center, random"),
    ],
)
def test_wrong_types_in_a_config_file(tmp_path: Path, sections: str, message: str) -> None:
    path = write(tmp_path, f"from spn_jax.config import *\ndef get_config(): return Config({sections})\n")
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value) == f"in config {path}, {message}"


# --- into a checkpoint and back ---

UNUSUAL = ["model.prior_levels=2,3", "train.ema_decay=0.9", "schedule.learning_rate_drops=", "eval.photos=5", "data.train_photos=a b"]


@pytest.mark.parametrize("overrides", [[], UNUSUAL])
def test_round_trip_through_json(overrides: list[str]) -> None:
    config = apply_overrides(Config(), overrides)
    assert from_dict(json.loads(json.dumps(to_dict(config))), origin="checkpoint") == config


def test_settings_of_another_version_are_all_listed() -> None:
    values = to_dict(Config())
    values["train"]["warmup"] = values["loss"]["style"] = 1
    with pytest.raises(InputError) as error:
        from_dict(values, origin="runs/old/100")
    assert str(error.value) == (
        "the settings in runs/old/100 are of another version of spn_jax: unknown here ['loss.style', 'train.warmup'], missing there none"
    )


def test_settings_newer_than_a_checkpoint_take_their_defaults() -> None:
    values = to_dict(apply_overrides(Config(), ["data.crop=center", "train.batch_size=4"]))
    del values["data"]["crop"], values["eval"]
    assert from_dict(values, origin="runs/old/100") == apply_overrides(Config(), ["train.batch_size=4"])


def test_stored_settings_are_checked() -> None:
    values = to_dict(Config())
    values["train"]["batch_size"] = "many"
    with pytest.raises(InputError, match="^in runs/old/100, train.batch_size='many' is not a whole number$"):
        from_dict(values, origin="runs/old/100")
    values["train"]["batch_size"] = 0
    with pytest.raises(InputError, match="train.batch_size=0 must be greater than 0"):
        from_dict(values, origin="runs/old/100")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"model": "oops"}, "model='oops' instead of a section of settings"),
        ({"model": None, "train": [1], "other": 3}, "model='None', train='[1]', other='3' instead of a section of settings"),
        ({"data": "first\nsecond"}, r"data='first\nsecond' instead of a section of settings"),
    ],
)
def test_a_section_that_is_none_is_refused(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(to_dict(Config()) | broken, origin="runs/old/100")
    assert str(error.value) == f"the settings in runs/old/100 are damaged: {said}; take another checkpoint"


def test_settings_that_are_none_at_all_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^the settings in runs/old/100 are damaged: they are 'oops' instead of sections of settings; take"
    ):
        from_dict("oops", origin="runs/old/100")  # type: ignore[arg-type]


def test_a_stored_number_beyond_all_bounds_is_refused() -> None:
    values = to_dict(Config())
    values["schedule"]["length"] = 10**400
    with pytest.raises(InputError, match=r"^in runs/old/100, schedule.length=10+ is not a number$"):
        from_dict(values, origin="runs/old/100")


SAFE = [  # these change neither the parameters nor the data of a run that is continued
    *(
        "data.keep_decoded=1",
        "data.threads=1",
        "data.prefetch=1",
        "teacher.batch_size=1",
        "schedule.length=1",
        "train.log_every=1",
        "train.image_every=1",
    ),
    *("train.eval_every=1", "train.checkpoint_every=1", "train.keep_last=1", "train.keep_best=0", "eval.batch_size=1"),
    *("eval.photos=1", "eval.quantise=round", "eval.seed=1", "eval.samples=2", "train.shard_parameters=true"),
    # they change rounding alone, and help a run that is out of memory
    *("train.micro_batches=2", "train.rematerialise=true"),
    # another check compares the weights and features that they lead to
    *("loss.vgg=a", "teacher.dtype=float32", "teacher.records_per_shard=1", "teacher.seed=1"),
    *("teacher.levels=3", "teacher.compression=none", "teacher.compute_dtype=bfloat16", "teacher.weights=a"),
]


def test_what_another_evaluation_says_is_another_best() -> None:
    after = apply_overrides(Config(model=ModelConfig(variational=True)), SAFE)
    changed = changed_settings(Config(), after, ANOTHER_BEST)
    assert changed == ["eval.photos: None -> 1", "eval.samples: 1 -> 2", "eval.quantise: truncate -> round", "eval.seed: 0 -> 1"]


def test_safe_settings_may_change_on_resume() -> None:
    before = Config(model=ModelConfig(variational=True))
    assert changed_settings(before, apply_overrides(before, SAFE)) == []


def test_every_other_setting_may_not() -> None:
    safe = {override.partition("=")[0] for override in SAFE}
    keys = [f"{section}.{name}" for section, values in to_dict(Config()).items() for name in values]
    assert safe < set(keys)
    # Some settings ask for a probabilistic model, and SPL's decoder for a single prior.
    probabilistic, single = (
        Config(model=ModelConfig(variational=True), train=TrainConfig(samples=2)),
        Config(model=ModelConfig(prior_levels=(3,))),
    )
    for key in sorted(set(keys) - safe):
        section, name = key.split(".")
        before = {"model.decoder": single, "model.variational": Config()}.get(key, probabilistic)
        old, after = to_dict(before)[section][name], to_dict(before)
        after[section][name] = OTHER[key] if key in OTHER else 2 * old or 1
        changes = changed_settings(before, from_dict(after, origin="test"))
        assert len(changes) == 1 and changes[0].startswith(f"{key}: {old} -> "), key


OTHER: dict[str, Any] = {  # values for the settings that cannot be doubled
    "model.conditioning": "concat",
    "model.prior_levels": [3],
    "model.spade_hidden_up_to_prior": True,
    "model.hole_fill": "smooth",
    "model.variational": True,
    "model.decoder": "region_norm",
    "model.prior_encoder_slope": 0.1,
    "model.discriminator": "instance_norm",
    "data.train_photos": "a",
    "data.test_photos": "a",
    "data.train_masks": "a",
    "data.test_masks": "a",
    "data.invert_masks": True,
    "data.mask_fit": "squeeze",
    "data.crop": "center",
    "data.resize_filter": "box",
    "data.flip": "none",
    "data.shuffle_window": 64,
    "teacher.name": "hrnet",
    "teacher.mode": "online",
    "teacher.cache": "a",
    "teacher.layers": ["a", "b", "c"],
    "teacher.resize": "area",
    "teacher.photo": "upsampled",
    "loss.adversarial": "saturating",
    "loss.perceptual_levels": "paper",
    "loss.diversity_form": "paper",
    "loss.kl_direction": "released",
    "optimizer.beta1": 0.5,
    "optimizer.beta2": 0.5,
    "schedule.unit": "steps",
    "schedule.learning_rate_drops": [1.0],
    "schedule.prior_loss_until": 1.0,
    "schedule.base_batch_size": 8,
    "train.compute_dtype": "bfloat16",
    "train.precision": "highest",
    "train.ema_decay": 0.5,
}


def test_describe_has_a_line_for_every_setting() -> None:
    lines = describe(apply_overrides(Config(), ["train.batch_size=4"]))
    assert "train.batch_size = 4" in lines
    assert len(lines) == len(set(lines)) == sum(len(values) for values in to_dict(Config()).values())
