"""Maps names and layouts of the released PyTorch checkpoints to ours and back, without torch.

One table (`model_modules`, `discriminator_modules`) pairs the names of every module, for all kinds
of model. Our networks define which arrays a module has and their shapes. Released convolution
kernels are (out, in, h, w) and ours (h, w, in, out); all other arrays are the same. A file fits if
it holds exactly the entries of this layout; an error lists all differences at once.
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
TEACHER_CHANNELS = {1: 76, 2: 76, 3: 152}  # of TResNet-L, which the released heads predict
LEFT_OUT = (  # labels, teacher, VGG19 of the published training objects; VGG19's slices unprefixed
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
    """Yields (our name, released name) of every module of prior learner and generator that has
    parameters.

    Args:
        config: kind and sizes.
        distilled: levels that have a distillation head; by default all levels of the prior.
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
    """Yields the modules of SPN's decoder. A level without prior has no SPADE."""
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
    """Yields the modules of SPL's decoder."""
    for i, (conv, norm) in enumerate(((0, 2), (4, 6))):
        yield f"generator.decoder.{i}.conv", f"decoder.{conv}"
        for ours, theirs in ("importance", "conv1"), ("gamma", "gamma_conv"), ("beta", "beta_conv"):
            yield f"generator.decoder.{i}.region_norm.{ours}", f"decoder.{norm}.sa.{theirs}"
    yield "generator.output", "decoder.9"


def spade_modules(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yields the three convolutions of a SPADE."""
    yield f"{ours}.shared", f"{theirs}.mlp_shared.0"
    yield f"{ours}.gamma", f"{theirs}.mlp_gamma"
    yield f"{ours}.beta", f"{theirs}.mlp_beta"


def residual_modules(ours: str, theirs: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    """Yields the two convolutions of a residual block, and its shortcut's where it has one."""
    yield f"{ours}.conv_in", f"{theirs}.conv_block.1"
    yield f"{ours}.conv_out", f"{theirs}.conv_block.4"
    if shortcut:
        yield f"{ours}.shortcut", f"{theirs}.shortcut.1"


def discriminator_modules(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields (our name, released name) of every convolution. With spectral normalisation on all
    layers, the released file holds the first under two names.
    """
    for i in range(5):
        yield f"convs.{i}", f"conv{i + 1}.0"
    if config.discriminator == "spectral_norm":
        yield "convs.0", "features.0"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Describes a released entry: the name of our array and its released shape."""

    ours: str
    shape: Shape


Layout = dict[str, Entry]  # released name -> entry; two names may stand for one array of ours


def model_layout(config: ModelConfig, teacher_channels: Mapping[int, int] = TEACHER_CHANNELS) -> Layout:
    """Returns the released layout of prior learner and generator. The heads have the teacher's
    channels {level: channels}.

    Raises:
        InputError: the released programs have no such model.
    """
    if config.conditioning != "spade":
        raise InputError(f"model.conditioning={config.conditioning} is an ablation that the released programs do not have; use spade")
    # imported after the cheap checks, because it takes seconds
    from spn_jax.models.abstract import abstract_network
    from spn_jax.models.spn import SPN

    model = abstract_network(lambda rng: SPN(config, teacher_channels, rng=rng))
    return _layout(model, model_modules(config, teacher_channels))


def discriminator_layout(config: ModelConfig) -> Layout:
    """Returns the released layout of the discriminator."""
    from spn_jax.models.abstract import abstract_network
    from spn_jax.models.discriminator import Discriminator

    discriminator = abstract_network(lambda rng: Discriminator(config, rng=rng, dtype=np.float32))
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
    """Returns a view of a torch kernel (out, in, h, w) as (h, w, in, out), and other arrays as they
    are.
    """
    return array.transpose(FROM_RELEASED) if array.ndim == 4 else array


def to_released(array: np.ndarray) -> np.ndarray:
    """Reverses `from_released`."""
    return array.transpose(TO_RELEASED) if array.ndim == 4 else array


def shape_to_released(shape: Shape) -> Shape:
    """Returns the shape of `to_released(array)` for an array of this shape."""
    return tuple(shape[axis] for axis in TO_RELEASED) if len(shape) == 4 else tuple(shape)


def model_from_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Converts released generator entries to {our name: array in our layout, a view}. Raises
    InputError that lists every entry that does not fit.
    """
    layout = model_layout(config, head_channels(arrays, config))
    refuse_unless_fitting(find_problems(arrays, layout), "the released checkpoint", config)
    return _from_released(arrays, layout)


def discriminator_from_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Converts released discriminator entries to {our name: array in our layout, a view}. Raises
    InputError that lists every entry that does not fit.
    """
    layout = discriminator_layout(config)
    refuse_unless_fitting(find_problems(arrays, layout), "the released checkpoint", config)
    return _from_released(arrays, layout)


def model_to_released(arrays: Arrays, config: ModelConfig, teacher_channels: Mapping[int, int] = TEACHER_CHANNELS) -> dict[str, np.ndarray]:
    """Reverses `model_from_released`. Raises InputError that lists every parameter that does not
    fit.
    """
    return _to_released(arrays, model_layout(config, teacher_channels), config)


def discriminator_to_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reverses `discriminator_from_released` and writes both names of the first convolution. Raises
    InputError that lists every array that does not fit.
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
    """Returns a line for every entry that is missing, left over or misshapen, and for two names of
    one array that differ.
    """
    problems = compare_names({name: entry.shape for name, entry in layout.items()}, {n: a.shape for n, a in arrays.items()})
    first: dict[str, str] = {}  # {our array: the first of its released names}
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
    """Returns the teacher's {level: channels} from the kernels of the heads. A level whose kernel
    is missing or malformed gets TResNet-L's.
    """
    kernels = {level: arrays.get(f"{HEADS[level]}.weight") for level in sorted(config.prior_levels)}
    return {
        level: kernel.shape[0] if kernel is not None and kernel.ndim == 4 and kernel.shape[0] else TEACHER_CHANNELS[level]
        for level, kernel in kernels.items()
    }


@dataclasses.dataclass(frozen=True)
class Entries:
    """Holds one network's entries in a released file.

    arrays: {name without prefixes: array}. whole: {that name: the full name in the file}.
    """

    arrays: dict[str, np.ndarray]
    whole: dict[str, str]

    def whole_name(self, name: str) -> str:
        """Returns an entry's full name in the file. For a missing entry it is the name with the
        prefix that most others have.
        """
        return self.whole.get(name, self._prefix + name)

    def misfits(self, layout: Layout) -> list[str]:
        """Returns `find_problems` with the full names of the file."""
        named = {self.whole_name(name): array for name, array in self.arrays.items()}
        return find_problems(named, {self.whole_name(name): entry for name, entry in layout.items()})

    def bad_numbers(self) -> list[str]:
        """Returns a line for every entry that is not float32 and for every one with values that are
        not finite.
        """
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
    """Holds the entries of a released file by network. The discriminator's are empty where the file
    has none.
    """

    generator: Entries
    discriminator: Entries
    left_out: list[str]  # full names of entries that belong to neither
    problems: list[str]  # lines about entries whose names are equal without their prefixes


def split_released(arrays: Arrays) -> ReleasedFile:
    """Sorts the entries of a released file by network. Names may begin with `generator.` or
    `discriminator.`, then with `module.`.
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
    """Returns the kind of model in a file's generator entries. `what` names the file in errors.

    Raises:
        InputError: the names have nothing in common with any kind.
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
    """Returns the kind whose modules overlap most with released generator names without prefixes,
    or None without any overlap.
    """
    given = {name.rpartition(".")[0] for name in names}
    modules = {kind: {theirs for _, theirs in model_modules(config)} for kind, config in FULL_SIZE.items()}
    shares = {kind: len(given & known) / len(given | known) for kind, known in modules.items()}
    kind = max(shares, key=lambda kind: shares[kind])
    return kind if shares[kind] else None


@dataclasses.dataclass(frozen=True)
class Converted:
    """Holds a released file in our names and layout. The arrays are views of the file's."""

    model: dict[str, np.ndarray]
    discriminator: dict[str, np.ndarray] | None
    teacher_channels: dict[int, int]


def convert_released(
    file: ReleasedFile, config: ModelConfig, what: str, *, teacher_channels: Mapping[int, int] | None = None, hint: str = ""
) -> Converted:
    """Converts a released file to the model that `config` describes.

    Args:
        what: names the file in errors.
        teacher_channels: {level: channels} that the distillation heads must have; None accepts any.
        hint: advice for errors about entries that do not fit, if the model has other sizes.

    Raises:
        InputError: an entry of either network does not fit, is not float32 or holds numbers that
            are not finite; it lists all of them.
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
