"""Typed settings of an experiment: what they are called, what they mean, how a command line overrides them.

A config file is Python and defines `get_config() -> Config`. Overrides have the form `section.key=value`.
Every setting has one comment line; the defaults are the paper's or, where the two differ, mostly the
released program's (docs/paper_and_program.md has the table). Settings made with `safe(...)` may change when a run is
resumed; any other change stops it.
"""

import dataclasses
import difflib
import itertools
import json
import math
import os
import runpy
import traceback
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from spn_jax.errors import InputError


def safe(default: Any) -> Any:
    """A field that does not change what a training run computes, so a resumed run may change it."""
    return dataclasses.field(default=default, metadata={"safe": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the networks. The paper's ablations and the small models are values of these fields."""

    width: int = 64  # channels of the first convolution of both branches; deeper layers have 2 and 4 times as many
    dense_blocks: int = 16  # residual dense blocks in the prior learner's trunk
    dense_layers: int = 6  # convolutions in one residual dense block
    growth: int = 32  # channels each of these convolutions adds
    prior_blocks: int = 4  # residual blocks before the coarsest prior
    prior_levels: tuple[int, ...] = (1, 2, 3)  # prior scales l at P / 2^(l-1); coarsest is 3: (3,), (2, 3) or (1, 2, 3)
    middle_blocks: int = 8  # SPADE residual blocks at P/4
    spade_hidden: int = 128  # channels between a prior and its gamma and beta
    spade_hidden_up_to_prior: bool = False  # no more of them than the prior has channels (released probabilistic program)
    conditioning: Literal["spade", "concat"] = "spade"  # how priors steer the generator; concat: the paper's ablation (Fig. 7)
    hole_fill: Literal["white", "smooth"] = "white"  # what the networks see there; smooth: colours from around, which the generator adds to
    variational: bool = False  # probabilistic SPN: a latent sampled between trunk and coarsest prior (Eq. 5)
    latent_channels: int = 128  # of its mean and standard deviation, at P/32
    decoder: Literal["spade", "region_norm"] = "spade"  # region_norm: RN-L of SPL, which needs prior_levels=3
    prior_encoder_slope: float = 0.0  # of LeakyReLU in the prior learner's encoder; 0 is ReLU, 0.1 in SPL
    discriminator: Literal["spectral_norm", "instance_norm"] = "spectral_norm"  # instance_norm: the probabilistic SPN's
    discriminator_width: int = 64  # channels of the discriminator's first convolution

    @property
    def stride(self) -> int:
        """What height and width must be divisible by: the features are halved twice, for the latent another three times."""
        return 32 if self.variational else 4

    @property
    def kind(self) -> str:
        """The name of the model: spn, spn-probabilistic or spl."""
        if self.decoder == "region_norm":
            return "spl"
        return "spn-probabilistic" if self.variational else "spn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Photos and masks. White mask = 1 = hole."""

    train_photos: str = ""  # folder, .flist or ArrayRecord file(s) with the training photos
    test_photos: str = ""  # the same for the held-out photos
    train_masks: str = "strokes"  # folder, .flist or .zip; or drawn in all hole ratios: "strokes", "objects", or "drawn", which is both
    test_masks: str = "strokes"  # the same for evaluation
    invert_masks: bool = False  # mask files have black holes
    mask_fit: Literal["as_photos", "squeeze", "center", "refuse"] = "as_photos"  # how a mask that is not square becomes so; as crop says
    image_size: int = 256  # P, the training resolution, divisible by the network's stride
    crop: Literal["none", "center", "random"] = "none"  # a square first: the centred one (CelebA), or in training of random side and place
    resize_filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bicubic"  # Pillow's, with antialiasing
    flip: Literal["none", "together", "independent"] = "together"  # photo and mask alike (released) or each by itself (paper)
    seed: int = 0  # order of the photos, choice of masks, mirroring
    shuffle_window: int | None = None  # photos in random order at a time, in runs of neighbours, for disks that seek slowly; None: all
    keep_decoded: int = safe(0)  # million bytes of decoded training photos that stay in memory, for sets of few large photos
    threads: int = safe(4)  # reader threads; the data does not depend on their number
    prefetch: int = safe(4)  # batches read ahead


ONLINE_TEACHERS = ("tresnet_l", "efficientnet_lite0")  # which are written in JAX too: spn_jax/checkpoints/online_teachers.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen network whose features the prior learner distils."""

    name: str = (
        "tresnet_l"  # tresnet_l, efficientnet_lite0, timm:NAME, torchvision:NAME, FILE (a program or a .py), sobel, canny, spn:CHECKPOINT
    )
    mode: Literal["cached", "online"] = "cached"  # features read from the cache, or computed in the training step (ONLINE_TEACHERS)
    weights: str = safe("")  # of mode online: an .npz of teacher_export.weights, or "random" (seeded by teacher.seed)
    cache: str = ""  # folder of exported features, written by teacher_export, read by the trainer
    photo: Literal["original", "upsampled"] = "original"  # teacher sees the photo resized to 2P (released) or the P photo enlarged (paper)
    layers: tuple[str, ...] = ()  # names of its maps, one for each of `levels`; none: found by their sizes
    levels: tuple[int, ...] = safe((1, 2, 3))  # of the prior that are exported; a run needs those of model.prior_levels
    resize: Literal["nearest", "bilinear", "area"] = "nearest"  # how a map is brought to the size of its level
    dtype: Literal["float32", "bfloat16", "uint8"] = safe("bfloat16")  # of the features on disk; this and the rest are the export's
    compression: Literal["zstd", "none"] = safe("zstd")  # of the files
    compute_dtype: Literal["float32", "bfloat16"] = safe("float32")  # bfloat16: the export's forward passes under autocast
    records_per_shard: int = safe(256)  # photos' records in one file of the cache
    batch_size: int = safe(8)  # photos a forward pass in the export
    seed: int = safe(0)  # of random weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and forms of the losses; docs/paper_and_program.md compares the paper with the released program."""

    reconstruction: float = 10.0  # lambda 1 (Eq. 12)
    prior: float = 1.0  # of the distillation loss, which Eq. 12 adds unweighted; 0 trains without distillation and needs no teacher
    adversarial_weight: float = 1.0  # lambda 2 (Eq. 12)
    prior_mask_weight: float = 3.0  # alpha of Eq. 4: extra weight of the distillation loss inside the hole
    reconstruction_mask_weight: float = 2.0  # delta of Eq. 10: 4 in the paper, 2 in the released program
    adversarial: Literal["non_saturating", "saturating", "hinge"] = "non_saturating"  # released BCE, the paper's Eq. 11, or hinge
    feature_matching: float = 0.0  # lambda 3 of the discriminator's features (Eq. 13); 10 in the probabilistic SPN
    perceptual: float = 0.0  # lambda 3 of VGG19's features (Eq. 13); 10 in the probabilistic SPN
    perceptual_levels: Literal["released", "paper"] = "released"  # sum weighted by 1/32 ... 1 (released), or plain mean (paper)
    diversity: float = 0.0  # lambda 4 (Eq. 14), needs train.samples of 2 or more; 1 in the probabilistic SPN
    diversity_form: Literal["released", "paper"] = "released"  # 1 / sum over VGG19's levels (released), or mean of 1 / level (paper)
    kl: float = 0.0  # lambda 5 (Eq. 6); 0.05 in the probabilistic SPN
    kl_direction: Literal["paper", "released"] = "paper"  # KL(posterior, prior), or KL(prior, posterior), which blows up at small sigma
    vgg: str = safe("")  # VGG19's weights: an .npz of teacher_export.weights, or "random" (seeded by train.seed; for trials only)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, for generator and discriminator alike."""

    learning_rate: float = 1e-4  # for one global batch (see schedule.base_batch_size)
    beta1: float = 0.0  # decay of the first moment
    beta2: float = 0.9  # decay of the second moment
    epsilon: float = 1e-8  # added to the root of the second moment


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and what changes on the way. Times are in `unit`."""

    unit: Literal["epochs", "steps"] = "epochs"  # of the four times below; an epoch is photos // batch_size steps
    length: float = safe(40.0)  # of the whole run
    learning_rate_drops: tuple[float, ...] = (30.0,)  # times at which the learning rate is multiplied by drop_factor
    drop_factor: float = 0.1  # see above
    prior_loss_until: float | None = None  # time from which the prior loss is switched off; None: never
    base_batch_size: int | None = None  # scale the learning rate by batch_size / base_batch_size; None: do not


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run."""

    batch_size: int = 8  # photos a step over all devices and processes
    samples: int = 1  # completions of each photo a step; 2 in the probabilistic SPN
    micro_batches: int = safe(1)  # gradient accumulation: parts a batch is computed in
    shard_parameters: bool = safe(False)  # each device keeps a part of every kernel and of its optimiser state, not all of them
    rematerialise: bool = safe(False)  # recompute the repeated blocks in the backward pass to save memory; the CPU backend undoes it
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of convolutions; parameters, norms and losses stay float32
    precision: Literal["default", "highest"] = "default"  # of matrix products; default is TF32 on NVIDIA, bfloat16 passes on TPU
    ema_decay: float | None = None  # moving average of the generator, used for evaluation; None: off, as in the paper
    seed: int = 0  # of the initial parameters
    log_every: int = safe(50)  # steps between lines of metrics
    image_every: int = safe(1000)  # steps between image grids in TensorBoard
    eval_every: int = safe(2000)  # steps between evaluations on test_photos
    checkpoint_every: int = safe(2000)  # steps between checkpoints; every evaluation writes one too
    keep_last: int = safe(2)  # newest checkpoints kept
    keep_best: int = safe(1)  # best checkpoints by PSNR kept beside them


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the held-out photos."""

    batch_size: int = safe(8)  # photos a jitted call over all devices
    photos: int | None = safe(None)  # evaluate the first n photos during training; None: all
    samples: int = safe(1)  # completions of each photo, of which the best by PSNR is scored; 5 in the probabilistic SPN
    quantise: Literal["truncate", "round"] = safe("truncate")  # how 8-bit composites are made; truncate as released
    seed: int = safe(0)  # which mask each photo gets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads `get_config()` of the Python file `path`, applies `section.key=value` overrides and checks the result.

    Raises:
        InputError: no such file, an error in it, no `get_config`, an unknown key, a value of the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {path} is not a file; pass one of configs/*.py with --config")
    config = _run_config(path)
    if not isinstance(config, Config):
        raise InputError(f"config {path} must define get_config() that returns a spn_jax.config.Config")
    # Values get their settings' own types: 40 for a length is 40.0, a list of drops becomes a tuple.
    return apply_overrides(_from_values(dataclasses.asdict(config), f"config {path}"), overrides)


def _run_config(path: Path) -> Any:
    """What get_config() of the file returns, None if there is none; an error in the file as one sentence with its line."""
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        return get_config() if callable(get_config) else None
    except InputError:
        raise
    except Exception as error:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(inside), None)
        where = f"line {line}: " if line else ""
        reason = error.msg if isinstance(error, SyntaxError) else (str(error).splitlines() or [""])[0]
        raise InputError(f"config {path} cannot be read: {where}{type(error).__name__}: {reason}; correct the file") from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Returns `config` with each `section.key=value` applied, and checks it."""
    config = replace_settings(config, overrides)
    check_config(config)
    return config


def replace_settings(config: Config, overrides: Iterable[str]) -> Config:
    """`config` with each `section.key=value` applied, not checked as a whole."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override {override!r} has no '='; write section.key=value, for example train.batch_size=4")
        config = _replace(config, key, text)
    return config


def _replace(config: Config, key: str, text: str) -> Config:
    settings = {name: kind for name, kind, _ in _fields()}
    if key not in settings:
        close = difflib.get_close_matches(key, settings, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"config has no setting {key!r}{hint}")
    section, name = key.split(".")
    value = _parse(key, text, settings[key])
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def _fields() -> list[tuple[str, Any, bool]]:
    """(dotted key, type, safe to change on resume) of every setting."""
    return [
        (f"{section.name}.{field.name}", typing.get_type_hints(section.type)[field.name], field.metadata.get("safe", False))
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(typing.cast(Any, section.type))
    ]


def _parse(key: str, text: str, kind: Any) -> Any:
    try:
        return _convert(text, kind)
    except ValueError:
        raise InputError(f"{key}={text!r} is not {_describe(kind)}") from None


def _convert(value: Any, kind: Any) -> Any:
    """`value`, from a command line (text) or from JSON, as `kind`; ValueError if it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        parts = [p.strip() for p in value.strip("()[]").split(",") if p.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError
        return tuple(_convert(part, arguments[0]) for part in parts)
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if kind is str:
        if isinstance(value, str | os.PathLike):
            return str(value)
        raise ValueError
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not math.isfinite(float(value)):
        raise ValueError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return kind(value)


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return _describe(next(a for a in arguments if a is not type(None))) + " or none"
    if origin is tuple:
        return f"a list of values, each {_describe(arguments[0])}, separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


# Of the settings that may be none, the value where there is one.
_POSITIVE = (
    *(f"model.{field.name}" for field in dataclasses.fields(ModelConfig) if field.type is int),
    "data.threads",
    "data.prefetch",
    "teacher.batch_size",
    "teacher.records_per_shard",
    "schedule.length",
    "schedule.drop_factor",
    "schedule.prior_loss_until",
    "data.shuffle_window",
    "schedule.base_batch_size",
    "optimizer.learning_rate",
    "optimizer.epsilon",
    "train.batch_size",
    "train.samples",
    "train.micro_batches",
    "train.log_every",
    "train.image_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_last",
    "eval.batch_size",
    "eval.photos",
    "eval.samples",
)
_NOT_NEGATIVE = (
    "data.keep_decoded",
    "data.seed",
    "teacher.seed",
    "train.seed",
    "eval.seed",
    "train.keep_best",
    "loss.reconstruction",
    "loss.prior",
    "loss.adversarial_weight",
    "loss.prior_mask_weight",
    "loss.reconstruction_mask_weight",
    "loss.feature_matching",
    "loss.perceptual",
    "loss.diversity",
    "loss.kl",
)
_BELOW_ONE = ("optimizer.beta1", "optimizer.beta2", "model.prior_encoder_slope")
SMALLEST = 32  # height and width of training photos: with fewer pixels the discriminator's last map is empty


def check_config(config: Config) -> None:
    """Raises InputError for the first setting that no run could work with."""
    values = {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key, _, _ in _fields()}
    for key in _POSITIVE:
        if values[key] is not None and values[key] <= 0:
            raise InputError(f"{key}={values[key]} must be greater than 0")
    for key in _NOT_NEGATIVE:
        if values[key] < 0:
            raise InputError(f"{key}={values[key]} must not be negative")
    for key in _BELOW_ONE:
        if not 0 <= values[key] < 1:
            raise InputError(f"{key}={values[key]} must be at least 0 and less than 1")
    _check_together(config)


def _check_together(config: Config) -> None:
    """The rules that are about more than the sign of one number."""
    levels, size, train, drops = config.model.prior_levels, config.data.image_size, config.train, config.schedule.learning_rate_drops
    if levels not in ((3,), (2, 3), (1, 2, 3)):
        raise InputError(f"model.prior_levels={levels} must be 3, or 2,3, or 1,2,3: scales are added from the coarsest")
    if not config.teacher.levels or sorted(set(config.teacher.levels) & {1, 2, 3}) != list(config.teacher.levels):
        raise InputError(f"teacher.levels={config.teacher.levels} must be some of 1,2,3, ascending")
    if config.teacher.layers and len(config.teacher.layers) != len(config.teacher.levels):
        raise InputError(f"teacher.layers={config.teacher.layers} must name one map for each of teacher.levels={config.teacher.levels}")
    stride = config.model.stride
    if size % stride or size < SMALLEST:
        raise InputError(f"data.image_size={size} must be divisible by {stride} and at least {SMALLEST}")
    if train.batch_size % train.micro_batches:
        raise InputError(f"train.batch_size={train.batch_size} is not divisible by train.micro_batches={train.micro_batches}")
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        raise InputError(f"train.ema_decay={train.ema_decay} must lie between 0 and 1, or be none")
    if any(later <= earlier for earlier, later in itertools.pairwise((0.0, *drops))):
        raise InputError(f"schedule.learning_rate_drops={drops} must increase, from more than 0")
    if config.data.crop == "random" and config.loss.prior and config.teacher.mode == "cached":
        raise InputError(
            "data.crop=random draws new crops at every step, which a cache of features cannot follow; "
            "set teacher.mode=online, loss.prior=0 or another data.crop"
        )
    _check_model_and_losses(config)


def _check_model_and_losses(config: Config) -> None:
    """What a kind of model and its losses ask of each other."""
    model, loss, samples = config.model, config.loss, config.train.samples
    if model.decoder == "region_norm" and (model.variational or model.prior_levels != (3,)):
        raise InputError("model.decoder=region_norm is SPL's and needs model.prior_levels=3 and model.variational=false")
    if not model.variational:
        needing = {
            "loss.kl": loss.kl,
            "loss.diversity": loss.diversity,
            "train.samples": samples - 1,
            "eval.samples": config.eval.samples - 1,
        }
        if asked := [name for name, value in needing.items() if value]:
            raise InputError(f"{', '.join(asked)} ask for several completions of a photo; set model.variational=true, or leave them out")
    if config.teacher.mode == "online" and config.teacher.name not in ONLINE_TEACHERS:
        raise InputError(
            f"teacher.mode=online runs {' or '.join(ONLINE_TEACHERS)}; set teacher.mode=cached and export {config.teacher.name}"
        )
    if loss.diversity and samples < 2:
        raise InputError(f"loss.diversity={loss.diversity} compares completions of a photo; set train.samples=2 or more")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionary of plain values, ready for JSON; `from_dict` reverses it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any], origin: str) -> Config:
    """Reverses `to_dict`, for settings that a checkpoint stored.

    A setting that is newer than the checkpoint takes its default, which therefore must mean what was done before there was
    the setting. Settings that this version does not know, values that are none of their setting's and sections that are
    none are an InputError naming `origin`.
    """
    if not isinstance(values, dict):
        raise InputError(
            f"the settings in {origin} are damaged: they are {str(values)[:40]!r} instead of sections of settings; take another checkpoint"
        )
    if broken := [f"{name}={str(given)[:40]!r}" for name, given in values.items() if not isinstance(given, dict)]:
        raise InputError(
            f"the settings in {origin} are damaged: {', '.join(broken)} instead of a section of settings; take another checkpoint"
        )
    defaults = to_dict(Config())
    config = _from_values(values | {name: section | values.get(name, {}) for name, section in defaults.items()}, origin)
    check_config(config)
    return config


def _from_values(values: dict[str, Any], origin: str) -> Config:
    """The config with these values, each in its setting's type. InputError, naming `origin`, for settings or types that do not fit."""
    kinds = {key: kind for key, kind, _ in _fields()}
    flat = {f"{section}.{name}": v for section, given in values.items() if isinstance(given, dict) for name, v in given.items()}
    unknown, missing = sorted(flat.keys() - kinds.keys()), sorted(kinds.keys() - flat.keys())
    if unknown or missing:
        raise InputError(
            f"the settings in {origin} are of another version of spn_jax: "
            f"unknown here {unknown or 'none'}, missing there {missing or 'none'}"
        )
    typed: dict[str, dict[str, Any]] = {section.name: {} for section in dataclasses.fields(Config)}
    for key, kind in kinds.items():
        section, name = key.split(".")
        try:
            typed[section][name] = _convert(flat[key], kind)
        except (ValueError, OverflowError):
            raise InputError(f"in {origin}, {key}={flat[key]!r} is not {_describe(kind)}") from None
    sections = {section.name: typing.cast(Any, section.type)(**typed[section.name]) for section in dataclasses.fields(Config)}
    return Config(**sections)


def changed_settings(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` of the settings that differ and that a resumed run must not change."""
    before, after = to_dict(old), to_dict(new)
    lines = []
    for key, _, is_safe in _fields():
        section, name = key.split(".")
        if not is_safe and before[section][name] != after[section][name]:
            lines.append(f"{key}: {before[section][name]} -> {after[section][name]}")
    return lines


def describe(config: Config) -> Sequence[str]:
    """One `key = value` line a setting."""
    values = to_dict(config)
    return [f"{key} = {values[key.split('.')[0]][key.split('.')[1]]}" for key, _, _ in _fields()]
