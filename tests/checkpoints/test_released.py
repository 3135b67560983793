"""The table of released names: complete in both directions for all three models, bit-identical, and
strict. No forward passes.
"""

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest

from spn_jax.checkpoints.released import (
    FULL_SIZE,
    TEACHER_CHANNELS,
    Converted,
    ReleasedFile,
    convert_released,
    detect_kind,
    discriminator_from_released,
    discriminator_layout,
    discriminator_to_released,
    find_problems,
    from_released,
    model_from_released,
    model_layout,
    model_to_released,
    nearest_kind,
    shape_to_released,
    split_released,
    to_released,
)
from spn_jax.config import ModelConfig
from spn_jax.errors import InputError
from tests import parity_fill
from tests.golden_model import GOLDEN

Arrays = dict[str, np.ndarray]

FILES = {"spn": "det", "spn-probabilistic": "prob", "spl": "spl"}
PARAMETERS = {"spn": 50_702_643, "spn-probabilistic": 68_512_883, "spl": 45_597_223}
DISCRIMINATOR_PARAMETERS = {"spn": 2_763_776, "spn-probabilistic": 2_763_841, "spl": 2_763_776}
kinds = pytest.mark.parametrize("kind", FILES)


def golden_layout(kind: str, network: str) -> dict[str, tuple[int, ...]]:
    """The entries of the authors' checkpoint and their shapes."""
    return {name: tuple(shape) for name, shape in json.loads((GOLDEN / f"{FILES[kind]}_state_dict.json").read_text())[network]}


def golden_vgg19() -> list[str]:
    """Names of VGG19's slices beside the probabilistic model."""
    return [name for name, _ in json.loads((GOLDEN / "prob_state_dict.json").read_text())["vgg19"]]


def zeros(kind: str, network: str) -> Arrays:
    """Arrays of the released shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in golden_layout(kind, network).items()}


def filled(kind: str, network: str) -> Arrays:
    """The same with values of their own, each name another array; the first convolution's two names
    have the same.
    """
    prefix = "discriminator." if network == "discriminator" else ""
    spectral = kind != "spn-probabilistic"
    return {
        name: parity_fill.weight(prefix + (name.replace("conv1.", "features.") if prefix and spectral else name), shape)
        for name, shape in golden_layout(kind, network).items()
    }


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def problems_of(error: InputError) -> set[str]:
    return set(str(error).partition(": ")[2].split("; "))


def convert(arrays: Arrays, config: ModelConfig) -> Converted:
    return convert_released(split_released(arrays), config, "file.pt")


def file_of(*names: str) -> ReleasedFile:
    return split_released({name: np.zeros(0, np.float32) for name in names})


def assert_identical(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if ours[name].dtype != theirs[name].dtype or ours[name].tobytes() != theirs[name].tobytes()]
    assert shapes(ours) == shapes(theirs)


@kinds
def test_the_table_covers_exactly_the_released_layout(kind: str) -> None:
    model, discriminator = model_layout(FULL_SIZE[kind]), discriminator_layout(FULL_SIZE[kind])
    assert {name: entry.shape for name, entry in model.items()} == golden_layout(kind, "generator")
    assert {name: entry.shape for name, entry in discriminator.items()} == golden_layout(kind, "discriminator")
    assert len({entry.ours for entry in model.values()}) == len(model)


@kinds
def test_every_parameter_of_ours_is_covered(kind: str) -> None:
    model = model_from_released(zeros(kind, "generator"), FULL_SIZE[kind])
    discriminator = discriminator_from_released(zeros(kind, "discriminator"), FULL_SIZE[kind])
    assert sum(math.prod(array.shape) for array in model.values()) == PARAMETERS[kind]
    kernels = {name: array for name, array in discriminator.items() if not name.endswith((".u", ".v"))}
    assert sum(math.prod(array.shape) for array in kernels.values()) == DISCRIMINATOR_PARAMETERS[kind]


@kinds
def test_there_and_back_is_bit_identical(kind: str) -> None:
    config = FULL_SIZE[kind]
    generator, discriminator = filled(kind, "generator"), filled(kind, "discriminator")
    assert_identical(model_to_released(model_from_released(generator, config), config), generator)
    back = discriminator_to_released(discriminator_from_released(discriminator, config), config)
    assert_identical(back, discriminator)
    assert any(name.endswith("weight_u") for name in back) and any(name.endswith("weight_v") for name in back)


def test_kernels_are_transposed_and_other_arrays_are_not() -> None:
    rng = np.random.default_rng(0)
    arrays = zeros("spn", "generator")
    for name in "encoder_conv1.weight", "encoder_conv1.bias":
        arrays[name] = rng.random(arrays[name].shape, np.float32)
    converted = model_from_released(arrays, FULL_SIZE["spn"])
    kernel, bias = converted["generator.encoder.0.conv.kernel"], converted["generator.encoder.0.conv.bias"]
    assert kernel[6, 5, 2, 63] == arrays["encoder_conv1.weight"][63, 2, 6, 5]
    np.testing.assert_array_equal(bias, arrays["encoder_conv1.bias"])


def test_the_layout_of_kernels_is_open_to_other_tables() -> None:
    kernel, vector = np.arange(120, dtype=np.float32).reshape(5, 4, 3, 2), np.arange(3)
    ours = from_released(kernel)
    assert ours.shape == (3, 2, 4, 5) and ours[2, 1, 3, 4] == kernel[4, 3, 2, 1] and from_released(vector) is vector
    np.testing.assert_array_equal(to_released(ours), kernel)
    assert to_released(vector) is vector
    assert shape_to_released(ours.shape) == kernel.shape and shape_to_released((3,)) == (3,)


@kinds
def test_all_that_does_not_fit_is_listed_at_once(kind: str) -> None:
    arrays = zeros(kind, "generator") | zeros(kind, "discriminator")
    arrays["encoder_conv1.wait"] = arrays.pop("encoder_conv1.weight")  # renamed
    arrays["conv3.0.weight_w"] = arrays.pop("conv3.0.weight_v")
    del arrays["middle.3.conv_block.4.mlp_beta.bias"], arrays["feature_mapping.weight"]
    arrays |= {"surprise": np.zeros(1, np.float32), "optimizer.lr": np.zeros(1)}
    arrays["gff.1.weight"] = np.zeros((256, 256, 3, 1), np.float32)
    arrays["gff.0.bias"] = np.zeros(256, np.float64)
    with pytest.raises(InputError) as error:
        convert(arrays, FULL_SIZE[kind])
    assert str(error.value).startswith(f"file.pt does not fit the model {kind}: ")
    assert problems_of(error.value) == {
        "encoder_conv1.weight is missing",
        "encoder_conv1.wait is left over",
        "conv3.0.weight_v is missing",
        "conv3.0.weight_w is left over",
        "middle.3.conv_block.4.mlp_beta.bias is missing",
        "feature_mapping.weight is missing",
        "surprise is left over",
        "optimizer.lr is left over",
        "gff.1.weight has shape (256, 256, 3, 1) instead of (256, 256, 3, 3)",
        "gff.0.bias is float64 instead of float32",
        "optimizer.lr is float64 instead of float32",
    }


@kinds
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_any_entry_that_is_missing_is_named(kind: str, network: str) -> None:
    config, arrays = FULL_SIZE[kind], zeros(kind, network)
    layout = model_layout(config) if network == "generator" else discriminator_layout(config)
    for name in layout:
        assert find_problems({n: a for n, a in arrays.items() if n != name}, layout) == [f"{name} is missing"]


@pytest.mark.parametrize("kind", ["spn", "spl"])
def test_the_two_names_of_the_first_convolution_must_agree(kind: str) -> None:
    arrays = filled(kind, "discriminator")
    arrays["conv1.0.weight_u"] = arrays["conv1.0.weight_u"] + 1
    with pytest.raises(
        InputError, match=r": conv1\.0\.weight_u and features\.0\.weight_u are one array under two names and must be equal$"
    ):
        discriminator_from_released(arrays, FULL_SIZE[kind])
    del arrays["conv1.0.weight_u"]
    with pytest.raises(InputError, match=r": conv1\.0\.weight_u is missing$"):
        discriminator_from_released(arrays, FULL_SIZE[kind])


def test_parameters_that_do_not_fit_are_not_exported() -> None:
    arrays = model_from_released(zeros("spl", "generator"), FULL_SIZE["spl"])
    del arrays["generator.output.bias"]
    arrays["surprise"] = np.zeros(1, np.float32)
    with pytest.raises(InputError) as error:
        model_to_released(arrays, FULL_SIZE["spl"])
    assert problems_of(error.value) == {"generator.output.bias is missing", "surprise is left over"}


PREFIXES = {
    "bare": ("", ""),
    "module": ("module.", "module."),
    "networks": ("generator.", "discriminator."),
    "published": ("generator.module.", "discriminator.module."),
}


@pytest.mark.parametrize("prefixes", PREFIXES)
@kinds
def test_a_file_is_taken_apart(kind: str, prefixes: str) -> None:
    generator, discriminator = (golden_layout(kind, network) for network in ("generator", "discriminator"))
    others = ["adversarial_loss.real_label", "tresnet_xL_hold.body.conv1.0.weight", "vgg_loss.vgg.slice1.0.weight"]
    others += [f"module.{name}" for name in others] + list(golden_vgg19())
    before_generator, before_discriminator = PREFIXES[prefixes]
    names = [*(before_generator + n for n in generator), *(before_discriminator + n for n in discriminator), *others]
    file = split_released({name: np.zeros(0) for name in names})
    assert set(file.generator.arrays) == set(generator) and set(file.discriminator.arrays) == set(discriminator)
    assert [*file.generator.whole.values(), *file.discriminator.whole.values()] == names[: len(generator) + len(discriminator)]
    assert file.left_out == others and not file.problems


def test_the_same_entry_twice_is_refused() -> None:
    arrays = zeros("spn", "generator")
    arrays["generator.module.gff.0.bias"] = arrays["gff.0.bias"]
    with pytest.raises(InputError) as error:
        convert(arrays, FULL_SIZE["spn"])
    assert problems_of(error.value) == {"gff.0.bias and generator.module.gff.0.bias are the same entry"}


def test_a_file_may_have_no_discriminator() -> None:
    assert convert(zeros("spl", "generator"), FULL_SIZE["spl"]).discriminator is None


@kinds
def test_the_kind_is_recognised_by_most_names(kind: str) -> None:
    names = list(golden_layout(kind, "generator"))
    assert detect_kind(file_of(*(f"generator.module.{name}" for name in names), "vgg_loss.x"), "file.pt") == kind
    assert nearest_kind(names) == kind
    for i in range(0, len(names), 7):
        assert nearest_kind([*names[:i], "renamed.weight", *names[i + 1 :]]) == kind
    without_blocks = [name for name in names if not name.startswith(("middle.4", "middle.5", "middle.6", "middle.7"))]
    assert nearest_kind(without_blocks) == kind


NEEDED = "it must hold a generator, that is entries such as encoder_conv1.weight or generator.module.encoder_conv1.weight"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "file.pt is empty"),
        (["fc.weight", "fc.bias"], "file.pt holds nothing of spn, spn-probabilistic, spl (fc.weight, fc.bias)"),
        (["module.a", "b", "c", "d", "e"], "file.pt holds nothing of spn, spn-probabilistic, spl (module.a, b, c and 2 more)"),
        (["vgg_loss.a", "slice1.0.weight"], "file.pt holds nothing of spn, spn-probabilistic, spl (vgg_loss.a, slice1.0.weight)"),
        (
            ["discriminator.module.conv1.0.weight_u", "discriminator.module.conv2.0.weight_u"],
            "file.pt holds a discriminator and no generator (discriminator.module.conv1.0.weight_u, discriminator.module.conv2.0.weight_u)",
        ),
    ],
)
def test_a_file_without_generator_says_what_is_needed(names: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        detect_kind(file_of(*names), "file.pt")
    assert str(error.value) == f"{said}; {NEEDED}"


@pytest.mark.parametrize("names", [[], ["surprise"], ["discriminator.conv1.0.weight_orig"]])
def test_of_a_kind_that_is_asked_for_every_problem_is_listed(names: list[str]) -> None:
    with pytest.raises(InputError) as error:
        convert_released(file_of(*names), FULL_SIZE["spl"], "file.pt")
    assert str(error.value).startswith("file.pt does not fit the model spl: ")
    assert {f"{name} is missing" for name in golden_layout("spl", "generator")} <= problems_of(error.value)


def test_problems_are_told_by_the_file_s_own_names() -> None:
    generator, discriminator = zeros("spl", "generator"), zeros("spl", "discriminator")
    generator["gff.0.wait"] = generator.pop("gff.0.weight")
    generator["gff.1.weight"] = np.zeros((256, 256, 3, 1), np.float32)
    generator["gff.1.bias"] = np.zeros(256, np.float64)
    discriminator["conv1.0.weight_u"] = np.ones(64, np.float32)
    del discriminator["conv5.0.weight_u"]
    arrays = {f"generator.module.{n}": a for n, a in generator.items()} | {f"discriminator.{n}": a for n, a in discriminator.items()}
    # where names are mixed, one that is missing gets the usual
    arrays["decoder.9.bias"] = arrays.pop("generator.module.decoder.9.bias")
    with pytest.raises(InputError) as error:
        convert(arrays, FULL_SIZE["spl"])
    assert problems_of(error.value) == {
        "generator.module.gff.0.weight is missing",
        "generator.module.gff.0.wait is left over",
        "generator.module.gff.1.weight has shape (256, 256, 3, 1) instead of (256, 256, 3, 3)",
        "generator.module.gff.1.bias is float64 instead of float32",
        "discriminator.conv5.0.weight_u is missing",
        "discriminator.conv1.0.weight_u and discriminator.features.0.weight_u are one array under two names and must be equal",
    }


def test_numbers_that_are_not_finite_are_refused() -> None:
    arrays = zeros("spl", "generator") | zeros("spl", "discriminator")
    arrays["gff.0.bias"] = np.array([0, np.nan, np.inf, *[1] * 253], np.float32)
    arrays["conv5.0.weight_v"] = np.full_like(arrays["conv5.0.weight_v"], -np.inf)
    with pytest.raises(InputError) as error:
        convert_released(split_released(arrays), FULL_SIZE["spl"], "file.pt", hint="other sizes?")
    # of other sizes it is not
    assert str(error.value).startswith("file.pt does not fit the model spl: ")
    size = arrays["conv5.0.weight_v"].size
    assert problems_of(error.value) == {
        "gff.0.bias holds numbers that are not finite (2 of 256)",
        f"conv5.0.weight_v holds numbers that are not finite ({size} of {size})",
    }


def test_a_file_of_another_kind_says_which() -> None:
    with pytest.raises(InputError) as error:
        convert(zeros("spl", "generator") | zeros("spl", "discriminator"), FULL_SIZE["spn"])
    assert str(error.value).startswith("file.pt, whose names are those of spl, does not fit the model spn: ")
    assert {"feature_mapping_128.weight is missing", "decoder.9.bias is left over"} <= problems_of(error.value)


def test_channels_of_the_teacher_are_the_heads() -> None:
    arrays = zeros("spl", "generator")
    arrays["feature_mapping.weight"], arrays["feature_mapping.bias"] = np.zeros((256, 256, 1, 1), np.float32), np.zeros(256, np.float32)
    converted = convert(arrays, FULL_SIZE["spl"])
    assert converted.teacher_channels == {3: 256}
    assert model_to_released(converted.model, FULL_SIZE["spl"], {3: 256}).keys() == arrays.keys()


def test_heads_of_other_channels_than_asked_for_are_misshapen() -> None:
    arrays = zeros("spn", "generator")
    arrays["feature_mapping_256.weight"] = np.zeros((5, 64, 1, 1), np.float32)
    arrays["feature_mapping_256.bias"] = np.zeros(5, np.float32)
    file = split_released(arrays)
    assert convert_released(file, FULL_SIZE["spn"], "file.pt").teacher_channels == {1: 5, 2: 76, 3: 152}
    with pytest.raises(InputError) as error:
        convert_released(file, FULL_SIZE["spn"], "file.pt", teacher_channels=TEACHER_CHANNELS, hint="other sizes?")
    assert str(error.value).startswith("file.pt does not fit the model spn (other sizes?): ")
    assert problems_of(error.value) == {
        "feature_mapping_256.weight has shape (5, 64, 1, 1) instead of (76, 64, 1, 1)",
        "feature_mapping_256.bias has shape (5,) instead of (76,)",
    }


def test_heads_without_channels_are_misshapen() -> None:
    arrays = zeros("spl", "generator")
    arrays["feature_mapping.weight"], arrays["feature_mapping.bias"] = np.zeros((0, 256, 1, 1), np.float32), np.zeros(0, np.float32)
    with pytest.raises(InputError) as error:
        convert(arrays, FULL_SIZE["spl"])
    assert problems_of(error.value) == {
        "feature_mapping.weight has shape (0, 256, 1, 1) instead of (152, 256, 1, 1)",
        "feature_mapping.bias has shape (0,) instead of (152,)",
    }


@pytest.mark.parametrize("blocks", [4, 12])
def test_other_numbers_of_middle_blocks_are_covered(blocks: int) -> None:
    """Table 4's models: a checkpoint of another depth is refused, naming the blocks that are too
    many or missing.
    """
    with pytest.raises(InputError) as error:
        model_from_released(zeros("spn", "generator"), ModelConfig(middle_blocks=blocks))
    line = "middle.7.conv_block.7.bias is left over" if blocks == 4 else "middle.11.conv_block.7.bias is missing"
    assert line in problems_of(error.value) and len(problems_of(error.value)) == 4 * 16


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (ModelConfig(prior_levels=(2, 3), middle_blocks=4), {2: 76, 3: 152}),
        (ModelConfig(prior_levels=(3,)), {3: 152}),
        (ModelConfig(), {}),
        (ModelConfig(), {1: 3, 3: 5}),
    ],
)
def test_the_paper_s_ablations_have_their_place_in_the_table(config: ModelConfig, channels: dict[int, int]) -> None:
    """Scales without prior have no SPADE, levels without teacher no head; no array of ours is left
    without a name.
    """
    layout = model_layout(config, channels)
    assert ("feature_mapping_128.weight" in layout) == (2 in channels)
    assert ("decoder.1.SPADE_s.mlp_gamma.bias" in layout) == (2 in config.prior_levels)
    arrays = {
        entry.ours: np.broadcast_to(np.float32(0), [entry.shape[i] for i in (2, 3, 1, 0)] if len(entry.shape) == 4 else entry.shape)
        for entry in layout.values()
    }
    assert shapes(model_to_released(arrays, config, channels)) == {name: entry.shape for name, entry in layout.items()}


def test_an_ablation_that_was_never_released_has_no_layout() -> None:
    with pytest.raises(InputError, match="model.conditioning=concat is an ablation that the released programs do not have"):
        model_layout(ModelConfig(conditioning="concat"))
