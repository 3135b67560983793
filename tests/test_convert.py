"""The table of released names: complete in both directions, shapes included, and strict. Shapes only, no weights."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
from flax import nnx

from spn_jax.config import ModelConfig
from spn_jax.convert import discriminator_from_released, model_from_released
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN
from spn_jax.parameters import named_arrays, with_named_arrays
from tests.golden_model import TEACHER_CHANNELS, layout

CONFIG = ModelConfig()
Convert = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def released(part: str) -> dict[str, np.ndarray]:
    """Arrays of the released shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in layout(part).items()}


def build(part: str) -> nnx.Module:
    rng = np.random.default_rng(0)
    if part == "generator":
        return SPN(CONFIG, TEACHER_CHANNELS, rng=rng)
    return Discriminator(CONFIG, rng=rng, dtype="float32")


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def trees() -> dict[str, nnx.State]:
    return {part: nnx.as_pure(nnx.state(nnx.eval_shape(partial(build, part)))) for part in ("generator", "discriminator")}


CONVERT: dict[str, Convert] = {"generator": partial(model_from_released, config=CONFIG), "discriminator": discriminator_from_released}
parts = pytest.mark.parametrize("part", ["generator", "discriminator"])


@parts
def test_every_parameter_is_covered_and_every_shape_agrees(part: str, trees: dict[str, nnx.State]) -> None:
    assert shapes(CONVERT[part](released(part))) == shapes(named_arrays(trees[part]))


@parts
def test_every_entry_maps_to_one_parameter_of_its_own(part: str) -> None:
    entries = {name: array for name, array in released(part).items() if not name.startswith("conv1.") or part == "generator"}
    targets = [list(CONVERT[part]({name: array})) for name, array in entries.items()]
    assert all(len(target) == 1 for target in targets)
    assert len({target[0] for target in targets}) == len(entries)


def test_first_discriminator_layer_is_read_from_one_of_its_two_names() -> None:
    arrays = released("discriminator")
    twice = {name.removeprefix("conv1."): array.shape for name, array in arrays.items() if name.startswith("conv1.")}
    assert len(twice) == 3
    assert twice == {name.removeprefix("features."): array.shape for name, array in arrays.items() if name.startswith("features.")}


def test_kernels_are_transposed_and_other_arrays_are_not() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape) for name, shape in layout("generator").items() if name.startswith("encoder_conv1.")}
    converted = model_from_released(arrays, CONFIG)
    kernel, bias = converted["generator.encoder.0.conv.kernel"], converted["generator.encoder.0.conv.bias"]
    assert kernel[6, 5, 2, 63] == arrays["encoder_conv1.weight"][63, 2, 6, 5]
    np.testing.assert_array_equal(bias, arrays["encoder_conv1.bias"])


@parts
@pytest.mark.parametrize("name", ["decoder.7.weight", "encoder_conv1.gamma", "conv9.0.weight_orig", "surprise"])
def test_an_unknown_entry_is_refused_by_name(part: str, name: str) -> None:
    with pytest.raises(ValueError) as error:
        CONVERT[part]({**released(part), name: np.zeros((2, 3))})
    assert str(error.value) == f"the released checkpoint does not fit the model: {name} is left over"


def test_all_unknown_entries_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"a\.weight is left over; b\.weight is left over$"):
        model_from_released({**released("generator"), "a.weight": np.zeros(1), "b.weight": np.zeros(1)}, CONFIG)


def test_missing_and_misshapen_entries_are_listed_by_name(trees: dict[str, nnx.State]) -> None:
    arrays = released("generator")
    del arrays["middle.3.conv_block.4.mlp_beta.bias"], arrays["gff.1.weight"]
    arrays["decoder.6.bias"] = np.zeros(4)
    with pytest.raises(ValueError) as error:
        with_named_arrays(trees["generator"], model_from_released(arrays, CONFIG), what="released.pt")
    beginning, _, problems = str(error.value).partition(": ")
    assert beginning == "released.pt does not fit"
    assert set(problems.split("; ")) == {
        "generator.middle.3.norm_out.beta.bias is missing",
        "prior_learner.trunk_out.kernel is missing",
        "generator.output.bias has shape (4,) instead of (3,)",
    }


def test_released_arrays_fill_the_model(trees: dict[str, nnx.State]) -> None:
    for part, tree in trees.items():
        filled = with_named_arrays(tree, CONVERT[part](released(part)), what="released.pt")
        assert all(isinstance(array, np.ndarray) for array in named_arrays(filled).values())


@pytest.mark.parametrize("blocks", [4, 12])
def test_other_numbers_of_middle_blocks_are_covered(blocks: int) -> None:
    """Table 4's models: a checkpoint of another depth is refused, naming the blocks that are too many."""
    config = ModelConfig(middle_blocks=blocks)
    if blocks > CONFIG.middle_blocks:
        assert len(model_from_released(released("generator"), config)) == len(released("generator"))
    else:
        with pytest.raises(ValueError, match=r"middle\.4\.conv_block\.0\.mlp_shared\.0\.weight is left over"):
            model_from_released(released("generator"), config)
