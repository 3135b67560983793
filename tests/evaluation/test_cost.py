import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import LoadedModel
from spn_jax.config import ModelConfig
from spn_jax.errors import InputError
from spn_jax.evaluation import cost as profile
from spn_jax.evaluation import paper
from spn_jax.models.abstract import abstract_network
from spn_jax.models.spn import SPN
from spn_jax.runtime import compiling
from tests.tiny import CHANNELS, tiny

CONFIG = tiny()


def loaded(*overrides: str) -> LoadedModel:
    config = tiny(*overrides)
    return LoadedModel(config, SPN(config.model, CHANNELS, rng=np.random.default_rng(0)), 7, {})


@pytest.fixture(scope="module")
def measured() -> profile.Profile:
    return profile.measure(loaded(), batch_size=2, repeats=3)


def conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)


def test_operations_of_a_convolution_and_a_product_are_two_a_multiply_add() -> None:
    x, kernel = jnp.zeros((2, 10, 9, 8)), jnp.zeros((3, 5, 8, 16))
    assert profile.count_operations(conv, x, kernel) == 2 * (2 * 8 * 5 * 16) * (3 * 5 * 8)
    grouped = jnp.zeros((3, 5, 2, 16))
    assert profile.count_operations(lambda x, k: conv(x, k, 4), x, grouped) == 2 * (2 * 8 * 5 * 16) * (3 * 5 * 2)
    a, b = jax.ShapeDtypeStruct((6, 3, 4), np.float32), jax.ShapeDtypeStruct((6, 4, 5), np.float32)
    assert profile.count_operations(jnp.matmul, a, b) == 2 * 6 * 3 * 4 * 5
    # XLA counts an unpadded convolution alike.
    compiled = jax.jit(conv).lower(x, kernel).compile()
    assert profile.operations_of_compiled(compiled) == pytest.approx(profile.count_operations(conv, x, kernel), rel=0.01)


def test_operations_in_nested_programs_and_none_that_nothing_uses() -> None:
    a = jnp.zeros((4, 4))
    product = 2 * 4**3

    def unused(x: jax.Array) -> jax.Array:
        x @ x  # noqa: B018
        return x @ x

    assert profile.count_operations(unused, a) == product
    assert profile.count_operations(jax.jit(unused), a) == product
    assert profile.count_operations(jax.checkpoint(unused), a) == product
    assert profile.count_operations(lambda x: lax.scan(lambda c, _: (c @ c, None), x, length=5)[0], a) == 5 * product
    by_platform = lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)  # noqa: E731
    # the form without work that is cut away
    assert profile.count_operations(by_platform, a) == product
    assert profile.count_operations(lambda x: jnp.sin(x) + 1, a) == 0
    with pytest.raises(ValueError, match="length is not known"):
        profile.count_operations(lambda x: lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ c, x), a)


def layer(side: int, features_in: int, features_out: int, size: int, times: int = 1) -> int:
    """Operations of a convolution whose result is side x side."""
    return times * 2 * side**2 * features_in * features_out * size**2


def spade(side: int, prior: int, features: int, times: int = 1) -> int:
    return times * (layer(side, prior, 128, 3) + layer(side, 128, features, 3, times=2))


def test_full_size_model_has_the_operations_of_its_layers_added_by_hand() -> None:
    prior = layer(512, 4, 64, 7) + layer(256, 64, 128, 4) + layer(128, 128, 256, 4) + layer(64, 256, 256, 4)
    prior += layer(64, 256, 256, 3) + 16 * (sum(layer(64, 256 + 32 * j, 32, 3) for j in range(6)) + layer(64, 448, 256, 1))
    prior += layer(64, 4096, 256, 1) + layer(64, 256, 256, 3) + layer(64, 256, 256, 3, times=8)
    prior += layer(64, 256, 512, 3) + layer(128, 384, 128, 3, times=2) + layer(128, 128, 128, 3)
    prior += layer(128, 128, 256, 3) + layer(256, 192, 64, 3, times=2) + layer(256, 64, 64, 3)
    generator = layer(256, 3, 64, 7) + layer(128, 64, 128, 4) + layer(64, 128, 256, 4)
    generator += 8 * (spade(64, 256, 256, times=2) + layer(64, 256, 256, 3, times=2))
    generator += spade(128, 128, 256, times=2) + spade(128, 128, 128) + layer(128, 256, 128, 3, times=2) + layer(128, 128, 128, 3)
    generator += spade(256, 64, 128, times=2) + spade(256, 64, 64) + layer(256, 128, 64, 3, times=2) + layer(256, 64, 64, 3)
    generator += layer(256, 64, 3, 7)

    graph, shapes = nnx.split(abstract_network(lambda rng: SPN(ModelConfig(), {1: 76, 2: 76, 3: 152}, rng=rng)))
    image, mask = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32), jax.ShapeDtypeStruct((1, 256, 256, 1), np.float32)
    counted = profile.count_operations(lambda s, i, m: nnx.merge(graph, s)(i, m).image, shapes, image, mask)
    assert counted == prior + generator == 725_631_369_216  # without the distillation heads


def test_profile_of_a_tiny_model(measured: profile.Profile) -> None:
    arrays = {name: array.size for name, array in named_arrays(loaded().model).items()}
    heads = sum(size for name, size in arrays.items() if "distillation_heads" in name)
    assert measured.parameters == sum(arrays.values()) and heads > 0
    assert measured.without_heads == measured.parameters - heads
    assert (measured.kind, measured.step, measured.samples, measured.dtype) == ("spn", 7, 1, "float32")
    for seconds in (measured.network, measured.complete):
        assert 0 < seconds.lower_quartile <= seconds.median <= seconds.upper_quartile
    assert measured.compile_seconds > measured.network.median and measured.trace_seconds > 0
    # XLA has the additions and norms too, which matter in a model as small as this one, and leaves
    # out taps on padding.
    assert measured.compiled_operations is not None
    assert 0.7 < measured.operations / measured.compiled_operations < 1.1


def test_operations_are_of_one_image_with_all_its_samples(measured: profile.Profile) -> None:
    one = profile.measure(loaded(), repeats=1)
    assert one.operations == measured.operations  # whatever the batch
    config = tiny("model.variational=true", "data.image_size=64")
    model = SPN(config.model, CHANNELS, rng=np.random.default_rng(0))
    image, mask = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 1))

    def operations(samples: int) -> int:
        noise = jnp.zeros((1, samples, *model.noise_shape(64, 64)))
        return profile.count_operations(lambda *inputs: model(*inputs).image, image, mask, noise)

    # what precedes the latent is computed once
    assert operations(1) < operations(2) < 2 * operations(1)


def test_report_names_device_precision_and_definitions(measured: profile.Profile) -> None:
    text = profile.report(measured)
    for part in (
        f"{measured.parameters:,}",
        f"{measured.without_heads:,}",
        "A multiply-add is 2 FLOPs",
        "compiled program (XLA)",
        "time of tracing",
        "time of compilation",
        "network alone",
        "with pre- and post-processing",
        "cores (cpu)",
        "float32, matrix products at highest precision",
        "2 a call; 3 calls",
        jax.__version__,
    ):
        assert part in text, part
    ours, theirs = text.split("### paper, other device and program: times are not comparable")
    assert "SPL" not in ours and "| SPL    | 45M        | 0.04 s" in theirs
    assert all(f"| {method}" in theirs for method in paper.COSTS["deterministic"])

    probabilistic = dataclasses.replace(measured, kind="spn-probabilistic", samples=5, compiled_operations=None, device="NVIDIA X (gpu)")
    text = profile.report(probabilistic)
    assert "5 samples of each" in text and "not known to this backend" in text and "NVIDIA X (gpu)" in text
    assert "| DSI    | 256M       | 25 s" in text and "EC" not in text


def test_json_has_every_figure(measured: profile.Profile) -> None:
    content = json.loads(profile.as_json(measured))
    assert content == dataclasses.asdict(measured)
    assert content["network"]["median"] == measured.network.median


def test_compilation_is_timed_without_the_cache_and_the_cache_comes_back() -> None:
    before = jax.config.values["jax_enable_compilation_cache"]
    with profile.without_compilation_cache():
        assert not jax.config.values["jax_enable_compilation_cache"]
    assert jax.config.values["jax_enable_compilation_cache"] == before
    with pytest.raises(RuntimeError), profile.without_compilation_cache():
        raise RuntimeError
    assert jax.config.values["jax_enable_compilation_cache"] == before


def test_tracing_and_compiling_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow_to_trace(x: jax.Array) -> jax.Array:
        clock[0] += 3
        return x + 1

    made = profile.compiled(slow_to_trace, jnp.zeros(3))
    assert made.program(jnp.zeros(3)).tolist() == [1, 1, 1]
    assert (made.trace_s, made.compile_s) == (3, 0)


def test_backends_without_a_count_of_operations() -> None:
    class Program:
        def __init__(self, analysis: object):
            self.analysis: object = analysis

        def cost_analysis(self) -> object:
            if isinstance(self.analysis, Exception):
                raise self.analysis
            return self.analysis

    none: list[object] = [None, {}, {"flops": -1.0}, [], NotImplementedError()]
    for analysis in none:
        assert profile.operations_of_compiled(Program(analysis)) is None
    assert profile.operations_of_compiled(Program({"flops": 3.0})) == 3


def test_files_are_read_as_evaluation_reads_them() -> None:
    for invert in ("false", "true"):
        config = tiny(f"data.invert_masks={invert}")
        photos, masks = profile.read_files(profile.example_files(config, 2), config)
        size = config.data.image_size
        assert photos.shape == (2, size, size, 3) and masks.shape == (2, size, size, 1) and photos.dtype == masks.dtype == np.uint8
        assert (masks.mean((1, 2, 3)) > 0.2).all() and (masks.mean((1, 2, 3)) <= 0.3).all()
        assert not np.array_equal(photos[0], photos[1])


def test_wrong_numbers_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="--batch-size 0 must be at least 1"):
        profile.measure(loaded(), batch_size=0)
    with pytest.raises(InputError, match="--repeats 0 must be at least 1"):
        profile.measure(loaded(), repeats=0)
    with pytest.raises(InputError, match="deterministic"):
        profile.measure(loaded(), samples=2)
