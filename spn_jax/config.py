"""Defines the settings of an experiment: their names, meanings, defaults and allowed values.

A config file is Python and defines `get_config() -> Config`. Overrides on a command line have the
form `section.key=value`; `--help` of a command lists the settings that it takes. The defaults are
the paper's or, where the two differ, mostly the released program's
(docs/paper_and_program.md has the table).

A run that is resumed with another value of a setting stops, except for three kinds of settings.
`SAME_NUMBERS` do not change what the run computes. `ANOTHER_BEST` change the scores of its
evaluations; the best checkpoint is then chosen among those with the same values of them.
`BY_CONTENT` name files of weights, or say how features are made; the run goes on if weights and
features are the same as before.
"""

import dataclasses
import itertools
import runpy
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from spn_jax.errors import InputError, first_line
from spn_jax.settings import (
    ANOTHER_BEST,
    BELOW_ONE,
    BY_CONTENT,
    NOT_NEGATIVE,
    POSITIVE,
    SAME_NUMBERS,
    Rule,
    check_rules,
    from_values,
    replace_settings,
    setting,
    to_dict,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sets the sizes of the networks. The paper's ablations and small models are values of it."""

    width: int = setting(
        64,
        "channels of both branches' first convolution; deeper layers have 2 and 4 times as many",
        POSITIVE,
    )
    dense_blocks: int = setting(16, "residual dense blocks in the prior learner's trunk", POSITIVE)
    dense_layers: int = setting(6, "convolutions in one residual dense block", POSITIVE)
    growth: int = setting(32, "channels each of these convolutions adds", POSITIVE)
    prior_blocks: int = setting(4, "residual blocks before the coarsest prior", POSITIVE)
    prior_levels: tuple[int, ...] = setting(
        (1, 2, 3),
        "prior scales l at P / 2^(l-1); the coarsest is 3: write 3, or 2,3, or 1,2,3",
        Rule(
            "be 3, or 2,3, or 1,2,3: scales are added from the coarsest",
            lambda levels: levels in ((3,), (2, 3), (1, 2, 3)),
        ),
    )
    middle_blocks: int = setting(8, "SPADE residual blocks at P/4", POSITIVE)
    spade_hidden: int = setting(128, "channels between a prior and its gamma and beta", POSITIVE)
    spade_hidden_up_to_prior: bool = setting(
        False,
        "no more of these than the prior has channels, as in the released probabilistic program",
    )
    conditioning: Literal["spade", "concat"] = setting(
        "spade",
        "how priors steer the generator; concat is the paper's ablation (Fig. 7)",
    )
    hole_fill: Literal["white", "smooth"] = setting(
        "white",
        "what the networks see in holes; smooth: colours from around, which the generator adds to",
    )
    variational: bool = setting(
        False,
        "probabilistic SPN: a latent sampled between trunk and coarsest prior (Eq. 5)",
    )
    latent_channels: int = setting(
        128,
        "channels of the latent's mean and standard deviation, at P/32",
        POSITIVE,
    )
    decoder: Literal["spade", "region_norm"] = setting(
        "spade",
        "region_norm is RN-L of SPL, which needs prior_levels=3",
    )
    prior_encoder_slope: float = setting(
        0.0,
        "slope of LeakyReLU in the prior learner's encoder; 0 is ReLU, 0.1 in SPL",
        BELOW_ONE,
    )
    discriminator: Literal["spectral_norm", "instance_norm"] = setting(
        "spectral_norm",
        "norm of the discriminator; instance_norm is the probabilistic SPN's",
    )
    discriminator_width: int = setting(
        64,
        "channels of the discriminator's first convolution",
        POSITIVE,
    )

    @property
    def stride(self) -> int:
        """Returns what height and width must be divisible by. The features are halved twice, and
        for the latent another three times.
        """
        return 32 if self.variational else 4

    @property
    def kind(self) -> str:
        """Returns the name of the model: spn, spn-probabilistic or spl."""
        if self.decoder == "region_norm":
            return "spl"
        return "spn-probabilistic" if self.variational else "spn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sets what photos and masks a run reads and how. A mask is white (1) in the hole."""

    train_photos: str = setting("", "folder, .flist or ArrayRecord file(s) of training photos")
    test_photos: str = setting("", "folder, .flist or ArrayRecord file(s) of held-out photos")
    train_masks: str = setting(
        "strokes",
        "folder, .flist or .zip; or drawn in all hole ratios: strokes, objects, or drawn (both)",
    )
    test_masks: str = setting("strokes", "folder, .flist, .zip or word, as train_masks, for the held-out photos")
    invert_masks: bool = setting(False, "mask files have black holes")
    mask_fit: Literal["as_photos", "squeeze", "center", "refuse"] = setting(
        "as_photos",
        "how a mask that is not square becomes so; as_photos does as data.crop says",
    )
    image_size: int = setting(
        256,
        "P, the training resolution in pixels, divisible by the network's stride",
    )
    crop: Literal["none", "center", "random"] = setting(
        "none",
        "a square first: the centred one (CelebA), or in training of random side and place",
    )
    resize_filter: Literal["box", "bilinear", "bicubic", "lanczos"] = setting(
        "bicubic",
        "Pillow's filter for resizing, with antialiasing",
    )
    flip: Literal["none", "together", "independent"] = setting(
        "together",
        "mirroring: photo and mask alike (released) or each by itself (paper)",
    )
    seed: int = setting(0, "seed of the order of photos, the choice of masks, mirroring", NOT_NEGATIVE)
    shuffle_window: int | None = setting(
        None,
        "photos that are shuffled together, in runs of neighbours, for slow disks; none: all",
        POSITIVE,
    )
    keep_decoded: int = setting(
        0,
        "million bytes of decoded training photos kept in memory, for sets of few large photos",
        NOT_NEGATIVE,
        SAME_NUMBERS,
    )
    threads: int = setting(
        4,
        "reader threads; the data does not depend on their number",
        POSITIVE,
        SAME_NUMBERS,
    )
    prefetch: int = setting(4, "batches read ahead", POSITIVE, SAME_NUMBERS)


# Teachers that are also implemented in JAX, see spn_jax/checkpoints/online_teachers.py
ONLINE_TEACHERS = ("tresnet_l", "efficientnet_lite0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Chooses the frozen network whose features the prior learner distils.

    Most settings say how features are computed and stored. They are of the kind BY_CONTENT: a run
    that is resumed stops if the features are others, which its checkpoints identify.
    """

    name: str = setting(
        "tresnet_l",
        f"{', '.join(ONLINE_TEACHERS)}, sobel, canny, timm:NAME, torchvision:NAME, "
        "spn:CHECKPOINT or FILE (a program or a .py), which docs/teachers.md tells apart",
    )
    mode: Literal["cached", "online"] = setting(
        "cached",
        f"read from the cache, or computed in the step (by {', '.join(ONLINE_TEACHERS)})",
    )
    weights: str = setting(
        "",
        'for mode=online: an .npz of teacher_export.weights, or "random" (by teacher.seed)',
        on_resume=BY_CONTENT,
    )
    cache: str = setting(
        "",
        "folder of exported features, written by teacher_export, read by the trainer",
    )
    photo: Literal["original", "upsampled"] = setting(
        "original",
        "the teacher sees the photo resized to 2P (released) or the P photo enlarged (paper)",
    )
    layers: tuple[str, ...] = setting(
        (),
        "names of the teacher's maps, one for each of teacher.levels; none: found by their sizes",
    )
    levels: tuple[int, ...] = setting(
        (1, 2, 3),
        "levels of the prior that are exported; a run needs those of model.prior_levels",
        Rule(
            "be some of 1,2,3, ascending",
            lambda levels: bool(levels) and sorted(set(levels) & {1, 2, 3}) == list(levels),
        ),
        BY_CONTENT,
    )
    resize: Literal["nearest", "bilinear", "area"] = setting(
        "nearest",
        "how a map is brought to the size of its level",
    )
    dtype: Literal["float32", "bfloat16", "uint8"] = setting(
        "bfloat16",
        "type of the features on disk",
        on_resume=BY_CONTENT,
    )
    compression: Literal["zstd", "none"] = setting(
        "zstd",
        "compression of the files with the features",
        on_resume=BY_CONTENT,
    )
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "bfloat16: the export's forward passes run under autocast",
        on_resume=BY_CONTENT,
    )
    records_per_shard: int = setting(
        256,
        "photos' records in one file of the cache",
        POSITIVE,
        BY_CONTENT,
    )
    batch_size: int = setting(8, "photos a forward pass in the export", POSITIVE, BY_CONTENT)
    seed: int = setting(0, "seed of random weights", NOT_NEGATIVE, BY_CONTENT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Sets weights and forms of losses. docs/paper_and_program.md compares paper and program."""

    reconstruction: float = setting(10.0, "lambda 1 (Eq. 12), weight of the image loss", NOT_NEGATIVE)
    prior: float = setting(
        1.0,
        "weight of the distillation loss, 1 in Eq. 12; 0 trains without it and needs no teacher",
        NOT_NEGATIVE,
    )
    adversarial_weight: float = setting(1.0, "lambda 2 (Eq. 12), weight of the adversarial loss", NOT_NEGATIVE)
    prior_mask_weight: float = setting(
        3.0,
        "alpha of Eq. 4: extra weight of the distillation loss inside the hole",
        NOT_NEGATIVE,
    )
    reconstruction_mask_weight: float = setting(
        2.0,
        "delta of Eq. 10: 4 in the paper, 2 in the released program",
        NOT_NEGATIVE,
    )
    adversarial: Literal["non_saturating", "saturating", "hinge"] = setting(
        "non_saturating",
        "released BCE, the paper's Eq. 11, or hinge",
    )
    feature_matching: float = setting(
        0.0,
        "lambda 3 of the discriminator's features (Eq. 13); 10 in the probabilistic SPN",
        NOT_NEGATIVE,
    )
    perceptual: float = setting(
        0.0,
        "lambda 3 of VGG19's features (Eq. 13); 10 in the probabilistic SPN",
        NOT_NEGATIVE,
    )
    perceptual_levels: Literal["released", "paper"] = setting(
        "released",
        "sum weighted by 1/32 ... 1 (released), or plain mean (paper)",
    )
    diversity: float = setting(
        0.0,
        "lambda 4 (Eq. 14), needs train.samples of 2 or more; 1 in the probabilistic SPN",
        NOT_NEGATIVE,
    )
    diversity_form: Literal["released", "paper"] = setting(
        "released",
        "1 / sum over VGG19's levels (released), or mean of 1 / level (paper)",
    )
    kl: float = setting(0.0, "lambda 5 (Eq. 6); 0.05 in the probabilistic SPN", NOT_NEGATIVE)
    kl_direction: Literal["paper", "released"] = setting(
        "paper",
        "KL(posterior, prior) (paper), or KL(prior, posterior), which blows up at small sigma",
    )
    vgg: str = setting(
        "",
        'VGG19 as an .npz of teacher_export.weights; "random" (by train.seed) is for trials only',
        on_resume=BY_CONTENT,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Sets Adam's constants, for generator and discriminator alike."""

    learning_rate: float = setting(
        1e-4,
        "learning rate for one global batch (see schedule.base_batch_size)",
        POSITIVE,
    )
    beta1: float = setting(0.0, "decay of the first moment", BELOW_ONE)
    beta2: float = setting(0.9, "decay of the second moment", BELOW_ONE)
    epsilon: float = setting(1e-8, "added to the root of the second moment", POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Sets the run's length, the learning-rate schedule and the prior loss's end, in `unit`."""

    unit: Literal["epochs", "steps"] = setting(
        "epochs",
        "unit of length, drops and prior_loss_until; an epoch is photos // batch_size steps",
    )
    length: float = setting(40.0, "how long the whole run is", POSITIVE, SAME_NUMBERS)
    learning_rate_drops: tuple[float, ...] = setting(
        (30.0,),
        "times at which the learning rate is multiplied by schedule.drop_factor",
        Rule("increase, from more than 0", lambda drops: is_increasing((0.0, *drops))),
    )
    drop_factor: float = setting(0.1, "what each drop multiplies the learning rate by", POSITIVE)
    prior_loss_until: float | None = setting(
        None,
        "time from which the prior loss is switched off; none: never",
        POSITIVE,
    )
    base_batch_size: int | None = setting(
        None,
        "the learning rate is scaled by train.batch_size / this; none: it is not",
        POSITIVE,
    )


def is_increasing(numbers: Iterable[float]) -> bool:
    """Returns whether each number is greater than the one before."""
    return all(earlier < later for earlier, later in itertools.pairwise(numbers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Sets how a run trains, logs, evaluates and saves."""

    batch_size: int = setting(8, "photos a step over all devices and processes", POSITIVE)
    samples: int = setting(
        1,
        "completions of each photo a step; 2 in the probabilistic SPN",
        POSITIVE,
    )
    micro_batches: int = setting(
        1,
        "gradient accumulation: parts a batch is computed in",
        POSITIVE,
        SAME_NUMBERS,
    )
    shard_parameters: bool = setting(
        False,
        "each device keeps a part of every kernel and of its optimiser state, not all of them",
        on_resume=SAME_NUMBERS,
    )
    rematerialise: bool = setting(
        False,
        "recompute the repeated blocks in the backward pass: less memory and more time on GPUs and TPUs; a CPU's compiler undoes it",
        on_resume=SAME_NUMBERS,
    )
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "type that convolutions compute in; parameters, norms, losses and sums over devices stay float32",
    )
    precision: Literal["default", "highest"] = setting(
        "default",
        "precision of matrix products; default is TF32 on NVIDIA, bfloat16 passes on TPU",
    )
    ema_decay: float | None = setting(
        None,
        "decay of a moving average of the generator for evaluations; none: off, as in the paper",
        Rule("lie between 0 and 1, or be none", lambda decay: 0 < decay < 1),
    )
    seed: int = setting(0, "seed of the initial parameters", NOT_NEGATIVE)
    log_every: int = setting(50, "steps between lines of metrics", POSITIVE, SAME_NUMBERS)
    image_every: int = setting(
        1000,
        "steps between image grids in TensorBoard",
        POSITIVE,
        SAME_NUMBERS,
    )
    eval_every: int = setting(
        2000,
        "steps between evaluations on data.test_photos",
        POSITIVE,
        SAME_NUMBERS,
    )
    checkpoint_every: int = setting(
        2000,
        "steps between checkpoints; every evaluation writes one too",
        POSITIVE,
        SAME_NUMBERS,
    )
    keep_last: int = setting(2, "newest checkpoints kept", POSITIVE, SAME_NUMBERS)
    keep_best: int = setting(
        1,
        "best checkpoints by PSNR kept beside them",
        NOT_NEGATIVE,
        SAME_NUMBERS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Sets how the held-out photos are evaluated."""

    batch_size: int = setting(8, "photos a call over all devices", POSITIVE, SAME_NUMBERS)
    photos: int | None = setting(
        None,
        "evaluate the first n photos during training; none: all",
        POSITIVE,
        ANOTHER_BEST,
    )
    samples: int = setting(
        1,
        "completions of each photo, the best by PSNR is scored; 5 in the probabilistic SPN",
        POSITIVE,
        ANOTHER_BEST,
    )
    quantise: Literal["truncate", "round"] = setting(
        "truncate",
        "how 8-bit composites are made; truncate as released",
        on_resume=ANOTHER_BEST,
    )
    seed: int = setting(0, "which mask each photo gets", NOT_NEGATIVE, ANOTHER_BEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Holds all settings of one experiment."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


# Patterns of the keys of the settings that a task reads. `--help` of the commands lists these.
MASK_KEYS = ("data.invert_masks", "data.mask_fit", "data.image_size", "data.crop", "data.seed", "data.threads")
SCORING_KEYS = (
    *("data.test_*", *MASK_KEYS, "data.resize_filter", "data.prefetch"),
    *("eval.batch_size", "eval.samples", "eval.quantise", "eval.seed"),
)
FEATURE_KEYS = tuple(f"teacher.{name}" for name in ("name", "cache", "photo", "layers", "levels", "resize", "seed"))
EXPORT_KEYS = (
    *("data.train_photos", "data.image_size", "data.crop", "data.resize_filter", "data.flip", "data.threads"),
    *(*FEATURE_KEYS, "teacher.*dtype", "teacher.compression", "teacher.records_per_shard", "teacher.batch_size"),
)
TRAINING_KEYS = (
    *("model.*", "data.*", *FEATURE_KEYS, "teacher.mode", "teacher.weights"),
    *("loss.*", "optimizer.*", "schedule.*", "train.*", "eval.*"),
)

# least height and width of training photos: below, the discriminator's last map is empty
SMALLEST_TRAINING_SIZE = 32


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads `get_config()` of the Python file `path`, applies `section.key=value` overrides and
    checks the result.

    Raises:
        InputError: there is no such file, it has an error or no `get_config`, a key is unknown, or
            a value has the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {path} is not a file; pass one of configs/*.py with --config")
    config = _run_config(path)
    if not isinstance(config, Config):
        raise InputError(f"config {path} must define get_config() that returns a spn_jax.config.Config")
    # Values are converted to their settings' types: a length of 40 becomes 40.0, a list of drops a
    # tuple.
    return apply_overrides(from_values(Config, dataclasses.asdict(config), f"config {path}"), overrides)


def _run_config(path: Path) -> Any:
    """Returns what the file's get_config() returns, or None if there is none. An error in the file
    becomes one sentence with its line.
    """
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        return get_config() if callable(get_config) else None
    except InputError:
        raise
    except Exception as error:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(inside), None)
        where = f"line {line}: " if line else ""
        reason = error.msg if isinstance(error, SyntaxError) else first_line(error) if str(error) else ""
        raise InputError(f"config {path} cannot be read: {where}{type(error).__name__}: {reason}; correct the file") from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Returns `config` with each `section.key=value` applied, and checks it."""
    config = replace_settings(config, overrides)
    check_config(config)
    return config


def check_config(config: Config) -> None:
    """Raises InputError for the first setting that no run could work with."""
    check_rules(config)
    _check_together(config)


def _check_together(config: Config) -> None:
    """Checks the rules that involve more than one setting."""
    size, stride, train, teacher = config.data.image_size, config.model.stride, config.train, config.teacher
    if teacher.layers and len(teacher.layers) != len(teacher.levels):
        raise InputError(f"teacher.layers={teacher.layers} must name one map for each of teacher.levels={teacher.levels}")
    if size % stride or size < SMALLEST_TRAINING_SIZE:
        raise InputError(f"data.image_size={size} must be divisible by {stride} and at least {SMALLEST_TRAINING_SIZE}")
    if train.batch_size % train.micro_batches:
        raise InputError(f"train.batch_size={train.batch_size} is not divisible by train.micro_batches={train.micro_batches}")
    if config.data.crop == "random" and config.loss.prior and config.teacher.mode == "cached":
        raise InputError(
            "data.crop=random draws new crops at every step, which a cache of features cannot follow; "
            "set teacher.mode=online, loss.prior=0 or another data.crop"
        )
    _check_model_and_losses(config)


def _check_model_and_losses(config: Config) -> None:
    """Checks that the kind of model and its losses fit each other."""
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


def from_dict(values: dict[str, Any], origin: str) -> Config:
    """Reverses `to_dict`, for settings that a checkpoint stored.

    A setting that is newer than the checkpoint takes its default, which therefore must mean what
    was done before the setting existed. Raises InputError, naming `origin`, for settings that this
    version does not know, for values of the wrong type and for sections that are no sections.
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
    config = from_values(Config, values | {name: section | values.get(name, {}) for name, section in defaults.items()}, origin)
    check_config(config)
    return config
