"""Names and layouts of the released PyTorch checkpoints, and the way from them to ours and back.
Imports no torch.

One table (`model_modules`, `discriminator_modules`) names every module there and here, for all
kinds of model; what arrays a module has and their shapes are those of our networks. Convolution
kernels are (out, in, h, w) there and (h, w, in, out) here; all other arrays are the same. A file
fits if it holds exactly the entries of this layout; what differs is listed, all at once.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from spn_jax.checkpoints.parameters import compare_names, named_arrays
from spn_jax.config import ModelConfig
from spn_jax.errors import InputError

if TYPE_CHECKING:
    from flax import nnx

Arrays = Mapping[str, np.ndarray]
Shape = tuple[int, ...]

LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "hole_gamma": "foreground_gamma",
    "hole_beta": "foreground_beta",
    "known_gamma": "background_gamma",
    "known_beta": "background_beta",
}
SPECTRAL_LEAVES = {"kernel": "weight_orig", "u": "weight_u", "v": "weight_v"}
# level -> distillation head
HEADS = {3: "feature_mapping", 2: "feature_mapping_128", 1: "feature_mapping_256"}
TEACHER_CHANNELS = {1: 76, 2: 76, 3: 152}  # of TResNet-L, what the released heads predict
LEFT_OUT = (  # labels, teacher and VGG19 of the published training objects, and VGG19's slices bare
    "adversarial_loss.",
    "tresnet_xL_hold.",
    "vgg_loss.",
    *(f"slice{i}." for i in range(1, 6)),
)
NETWORKS = ("generator", "discriminator")  # as the published training objects name them
FULL_SIZE = {
    config.kind: config
    for config in (
        ModelConfig(),
        ModelConfig(variational=True, spade_hidden_up_to_prior=True, discriminator="instance_norm"),
        ModelConfig(decoder="region_norm", prior_levels=(3,), prior_encoder_slope=0.1),
    )
}  # the published models


def model_modules(config: ModelConfig, distilled: Iterable[int] | None = None) -> Iterator[tuple[str, str]]:
    """(our name, released name) of every module of prior learner and generator that holds
    parameters.

    Args:
        config: kind and sizes.
        distilled: levels that have a distillation head; default: all levels of the prior.
    """
    for i in range(3):
        yield f"generator.encoder.{i}.conv", f"encoder_conv{i + 1}"
        yield f"generator.encoder.{i}.region_norm", f"encoder_in{i + 1}"
        yield f"prior_learner.downsampling.{i}", f"encoder_conv{i + 2}_sm"
    for i in range(config.middle_blocks):
        ours, theirs = f"generator.middle.{i}", f"middle.{i}.conv_block"
        yield from spade_modules(f"{ours}.norm_in", f"{theirs}.0")
        yield f"{ours}.conv_in", f"{theirs}.3"
        yield from spade_modules(f"{ours}.norm_out", f"{theirs}.4")
        yield f"{ours}.conv_out", f"{theirs}.7"
    yield from region_norm_decoder(config) if config.decoder == "region_norm" else spade_decoder(config)

    yield "prior_learner.stem", "encoder_conv1_sm"
    yield "prior_learner.trunk_in", "encoder_sm_out"
    for i in range(config.dense_blocks):
        for j in range(config.dense_layers):
            yield f"prior_learner.dense_blocks.{i}.layers.{j}", f"rdbs.{i}.layers.{j}.conv"
        yield f"prior_learner.dense_blocks.{i}.fusion", f"rdbs.{i}.lff"
    yield "prior_learner.trunk_fusion", "gff.0"
    yield "prior_learner.trunk_out", "gff.1"
    if config.variational:
        for i, (encoder, decoder) in enumerate(((0, 0), (2, 3), (4, 6))):
            yield f"prior_learner.variational.encoder.{i}", f"encoder_z.{encoder}"
            yield f"prior_learner.variational.decoder.{i}", f"decoder_z.{decoder}"
        yield "prior_learner.variational.mu", "mu"
        yield "prior_learner.variational.sigma", "sigma"
    for i in range(config.prior_blocks):
        yield from residual_modules(f"prior_learner.prior_blocks.{i}", f"feature_recon.{i}", shortcut=config.variational and i == 0)
    for i, (conv, block) in enumerate(((0, 3), (4, 7))[: len(config.prior_levels) - 1]):
        yield f"prior_learner.upsampling.{i}.conv", f"feature_recon_decoder.{conv}"
        yield from residual_modules(f"prior_learner.upsampling.{i}.block", f"feature_recon_decoder.{block}", shortcut=True)
    levels = set(config.prior_levels if distilled is None else distilled) & set(config.prior_levels)
    for i, level in enumerate(sorted(levels, reverse=True)):
        yield f"prior_learner.distillation_heads.{i}", HEADS[level]


def spade_decoder(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """SPN's decoder; a level without prior has no SPADE."""
    for i, (level, theirs) in enumerate(((2, "decoder.1"), (1, "decoder.3"))):
        ours = f"generator.decoder.{i}"
        if level in config.prior_levels:
            yield from spade_modules(f"{ours}.norm_in", f"{theirs}.conv_block.0")
            yield from spade_modules(f"{ours}.norm_out", f"{theirs}.conv_block.3")
            yield from spade_modules(f"{ours}.norm_shortcut", f"{theirs}.SPADE_s")
        yield f"{ours}.conv_in", f"{theirs}.conv_block.2"
        yield f"{ours}.conv_out", f"{theirs}.conv_block.5"
        yield f"{ours}.conv_shortcut", f"{theirs}.conv_s"
    yield "generator.output", "decoder.6"


def region_norm_decoder(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """SPL's decoder."""
    for i, (conv, norm) in enumerate(((0, 2), (4, 6))):
        yield f"generator.decoder.{i}.conv", f"decoder.{conv}"
        for ours, theirs in ("importance", "conv1"), ("gamma", "gamma_conv"), ("beta", "beta_conv"):
            yield f"generator.decoder.{i}.region_norm.{ours}", f"decoder.{norm}.sa.{theirs}"
    yield "generator.output", "decoder.9"


def spade_modules(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """The three convolutions of a SPADE."""
    yield f"{ours}.shared", f"{theirs}.mlp_shared.0"
    yield f"{ours}.gamma", f"{theirs}.mlp_gamma"
    yield f"{ours}.beta", f"{theirs}.mlp_beta"


def residual_modules(ours: str, theirs: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    """The two convolutions of a residual block, and its shortcut's where it has one."""
    yield f"{ours}.conv_in", f"{theirs}.conv_block.1"
    yield f"{ours}.conv_out", f"{theirs}.conv_block.4"
    if shortcut:
        yield f"{ours}.shortcut", f"{theirs}.shortcut.1"


def discriminator_modules(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our name, released name) of every convolution; with spectral norm on all, the first stands
    there under two names.
    """
    for i in range(5):
        yield f"convs.{i}", f"conv{i + 1}.0"
    if config.discriminator == "spectral_norm":
        yield "convs.0", "features.0"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a released name stands for: our array and the shape it has there."""

    ours: str
    shape: Shape


Layout = dict[str, Entry]  # released name -> entry; two names may stand for one array of ours


def model_layout(config: ModelConfig, teacher_channels: Mapping[int, int] = TEACHER_CHANNELS) -> Layout:
    """The released layout of prior learner and generator with heads for these channels of the
    teacher {level: channels}.

    Raises:
        InputError: a model that the released programs do not have.
    """
    if config.conditioning != "spade":
        raise InputError(f"model.conditioning={config.conditioning} is an ablation that the released programs do not have; use spade")
    from flax import nnx  # not before the cheap checks: JAX takes seconds to import

    from spn_jax.models.spn import SPN

    model = nnx.eval_shape(lambda: SPN(config, teacher_channels, rng=np.random.default_rng(0)))
    return _layout(model, model_modules(config, teacher_channels))


def discriminator_layout(config: ModelConfig) -> Layout:
    """The released layout of the discriminator."""
    from flax import nnx

    from spn_jax.models.discriminator import Discriminator

    discriminator = nnx.eval_shape(lambda: Discriminator(config, rng=np.random.default_rng(0), dtype=np.float32))
    return _layout(discriminator, discriminator_modules(config))


def _layout(module: "nnx.Module", modules: Iterable[tuple[str, str]]) -> Layout:
    from flax import nnx

    leaves: dict[str, dict[str, Shape]] = {}
    for name, leaf in named_arrays(nnx.as_pure(nnx.state(module))).items():
        owner, _, kind = name.rpartition(".")
        leaves.setdefault(owner, {})[kind] = tuple(leaf.shape)
    layout = {}
    for ours, theirs in modules:
        names = SPECTRAL_LEAVES if "u" in leaves[ours] else LEAVES
        for kind, shape in leaves[ours].items():
            layout[f"{theirs}.{names[kind]}"] = Entry(f"{ours}.{kind}", shape_to_released(shape))
    return layout


FROM_RELEASED = (2, 3, 1, 0)  # axes of kernels
TO_RELEASED = (3, 2, 0, 1)


def from_released(array: np.ndarray) -> np.ndarray:
    """A view of a torch kernel (out, in, h, w) as (h, w, in, out); other arrays as they are."""
    return array.transpose(FROM_RELEASED) if array.ndim == 4 else array


def to_released(array: np.ndarray) -> np.ndarray:
    """Reverses `from_released`."""
    return array.transpose(TO_RELEASED) if array.ndim == 4 else array


def shape_to_released(shape: Shape) -> Shape:
    """The shape that `to_released` gives an array of this one."""
    return tuple(shape[axis] for axis in TO_RELEASED) if len(shape) == 4 else tuple(shape)


def model_from_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Released generator entries -> {our name: array in our layout, a view}; InputError lists every
    entry that does not fit.
    """
    layout = model_layout(config, head_channels(arrays, config))
    refuse_unless_fitting(find_problems(arrays, layout), "the released checkpoint", config)
    return _from_released(arrays, layout)


def discriminator_from_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Released discriminator entries -> {our name: array in our layout, a view}; InputError lists
    every entry that does not fit.
    """
    layout = discriminator_layout(config)
    refuse_unless_fitting(find_problems(arrays, layout), "the released checkpoint", config)
    return _from_released(arrays, layout)


def model_to_released(arrays: Arrays, config: ModelConfig, teacher_channels: Mapping[int, int] = TEACHER_CHANNELS) -> dict[str, np.ndarray]:
    """Reverses `model_from_released`; InputError lists every parameter that does not fit."""
    return _to_released(arrays, model_layout(config, teacher_channels), config)


def discriminator_to_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reverses `discriminator_from_released`, both names of the first convolution; InputError lists
    every array that does not fit.
    """
    return _to_released(arrays, discriminator_layout(config), config)


def _from_released(arrays: Arrays, layout: Layout) -> dict[str, np.ndarray]:
    return {entry.ours: from_released(arrays[name]) for name, entry in layout.items()}


def _to_released(arrays: Arrays, layout: Layout, config: ModelConfig) -> dict[str, np.ndarray]:
    wanted = {
        entry.ours: tuple(entry.shape[axis] for axis in FROM_RELEASED) if len(entry.shape) == 4 else entry.shape
        for entry in layout.values()
    }
    problems = compare_names(wanted, {name: np.shape(array) for name, array in arrays.items()})
    refuse_unless_fitting(problems, "what is to be exported", config)
    return {name: to_released(arrays[entry.ours]) for name, entry in layout.items()}


def find_problems(arrays: Arrays, layout: Layout) -> list[str]:
    """A line for every entry that is missing, left over or misshapen, and for two names of one
    array that differ.
    """
    problems = compare_names({name: entry.shape for name, entry in layout.items()}, {n: a.shape for n, a in arrays.items()})
    first: dict[str, str] = {}  # of the names of each of our arrays
    for name, entry in layout.items():
        twin = first.setdefault(entry.ours, name)
        if twin != name and twin in arrays and name in arrays and not _same_bits(arrays[twin], arrays[name]):
            problems.append(f"{twin} and {name} are one array under two names and must be equal")
    return problems


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def refuse_unless_fitting(problems: list[str], what: str, config: ModelConfig, hint: str = "") -> None:
    """Raises InputError with all problems, if there are any."""
    if problems:
        raise InputError(f"{what} does not fit the model {config.kind}{hint and f' ({hint})'}: " + "; ".join(problems))


def head_channels(arrays: Arrays, config: ModelConfig) -> dict[int, int]:
    """{level: channels} of the teacher, from the heads' kernels; TResNet-L's where a kernel is
    missing, is none or has no channels.
    """
    kernels = {level: arrays.get(f"{HEADS[level]}.weight") for level in sorted(config.prior_levels)}
    return {
        level: kernel.shape[0] if kernel is not None and kernel.ndim == 4 and kernel.shape[0] else TEACHER_CHANNELS[level]
        for level, kernel in kernels.items()
    }


@dataclasses.dataclass(frozen=True)
class Entries:
    """One network's entries in a released file: {name without prefixes: array}, and {that name: the
    file's own}.
    """

    arrays: dict[str, np.ndarray]
    whole: dict[str, str]

    def whole_name(self, name: str) -> str:
        """The file's own name of an entry; of one that is not there, the name it would have beside
        the others.
        """
        return self.whole.get(name, self._prefix + name)

    def misfits(self, layout: Layout) -> list[str]:
        """`find_problems`, by the file's own names."""
        named = {self.whole_name(name): array for name, array in self.arrays.items()}
        return find_problems(named, {self.whole_name(name): entry for name, entry in layout.items()})

    def bad_numbers(self) -> list[str]:
        """A line for every entry that is not float32 and for every one that is not finite."""
        lines = [
            f"{self.whole[name]} is {array.dtype} instead of float32" for name, array in self.arrays.items() if array.dtype != np.float32
        ]
        for name, array in self.arrays.items():
            if np.issubdtype(array.dtype, np.floating) and (count := array.size - np.isfinite(array).sum()):
                lines.append(f"{self.whole[name]} holds numbers that are not finite ({count} of {array.size})")
        return lines

    @functools.cached_property
    def _prefix(self) -> str:
        prefixes = collections.Counter(whole.removesuffix(name) for name, whole in self.whole.items())
        return max(prefixes, key=lambda prefix: prefixes[prefix], default="")


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """The entries of a released file by network; the discriminator's are none where the file has
    none.
    """

    generator: Entries
    discriminator: Entries
    left_out: list[str]  # whole names of what belongs to neither
    problems: list[str]  # names that two entries share once the prefixes are off


def split_released(arrays: Arrays) -> ReleasedFile:
    """Sorts the entries of a released file, bare or with `generator.` or `discriminator.`, then
    perhaps `module.`, in front.
    """
    judges = {theirs for config in FULL_SIZE.values() for _, theirs in discriminator_modules(config)}
    file = ReleasedFile(Entries({}, {}), Entries({}, {}), [], [])
    for name, array in arrays.items():
        if name.removeprefix("module.").startswith(LEFT_OUT):
            file.left_out.append(name)
            continue
        network, dot, rest = name.partition(".")
        if not dot or network not in NETWORKS:
            network, rest = "", name
        bare = rest.removeprefix("module.")
        if not network:
            network = "discriminator" if bare.rpartition(".")[0] in judges else "generator"
        entries = file.generator if network == "generator" else file.discriminator
        if bare in entries.arrays:
            file.problems.append(f"{entries.whole[bare]} and {name} are the same entry")
            continue
        entries.arrays[bare], entries.whole[bare] = array, name
    return file


def detect_kind(file: ReleasedFile, what: str) -> str:
    """The kind of model that a file's generator is of; `what` says in an error which file it is.

    Raises:
        InputError: its names have nothing in common with any.
    """
    if kind := nearest_kind(file.generator.arrays):
        return kind
    needed = "it must hold a generator, that is entries such as encoder_conv1.weight or generator.module.encoder_conv1.weight"
    names = [*file.generator.whole.values(), *file.discriminator.whole.values(), *file.left_out]
    if not names:
        raise InputError(f"{what} is empty; {needed}")
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if file.discriminator.arrays and not file.generator.arrays:
        raise InputError(f"{what} holds a discriminator and no generator ({shown}); {needed}")
    raise InputError(f"{what} holds nothing of {', '.join(FULL_SIZE)} ({shown}); {needed}")


def nearest_kind(names: Iterable[str]) -> str | None:
    """The kind whose modules released generator names without prefixes agree with most; None if
    they agree with none.
    """
    given = {name.rpartition(".")[0] for name in names}
    modules = {kind: {theirs for _, theirs in model_modules(config)} for kind, config in FULL_SIZE.items()}
    shares = {kind: len(given & known) / len(given | known) for kind, known in modules.items()}
    kind = max(shares, key=lambda kind: shares[kind])
    return kind if shares[kind] else None


@dataclasses.dataclass(frozen=True)
class Converted:
    """A released file in our names and layout; the arrays are views of the file's."""

    model: dict[str, np.ndarray]
    discriminator: dict[str, np.ndarray] | None
    teacher_channels: dict[int, int]


def convert_released(
    file: ReleasedFile, config: ModelConfig, what: str, *, teacher_channels: Mapping[int, int] | None = None, hint: str = ""
) -> Converted:
    """A released file as the model that `config` describes.

    Args:
        what: says in an error which file it is.
        teacher_channels: {level: channels} that the distillation heads must have; None: those they
            have.
        hint: says in an error about entries that do not fit what to do if the model has other
            sizes.

    Raises:
        InputError: lists every entry, of both networks, that does not fit, is not float32 or holds
            numbers that are not finite.
    """
    channels = head_channels(file.generator.arrays, config)
    if teacher_channels is not None:
        channels = {level: teacher_channels[level] for level in channels}
    model, discriminator = model_layout(config, channels), discriminator_layout(config)
    misfits, numbers = file.generator.misfits(model), file.generator.bad_numbers()
    if file.discriminator.arrays:
        misfits += file.discriminator.misfits(discriminator)
        numbers += file.discriminator.bad_numbers()
    if (kind := nearest_kind(file.generator.arrays)) not in (None, config.kind):
        what, hint = f"{what}, whose names are those of {kind},", ""
    refuse_unless_fitting([*file.problems, *misfits, *numbers], what, config, hint if misfits else "")
    return Converted(
        model=_from_released(file.generator.arrays, model),
        discriminator=_from_released(file.discriminator.arrays, discriminator) if file.discriminator.arrays else None,
        teacher_channels=channels,
    )
