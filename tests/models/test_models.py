"""The networks as wholes: sizes by table, shapes, and what may and may not influence what."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.config import ModelConfig
from spn_jax.models.abstract import abstract_network
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN, SPNOutput
from tests.tiny import CHANNELS, tiny

FULL_CHANNELS = {1: 76, 2: 76, 3: 152}


def parameter_count(module: nnx.Module) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def abstract_spn(config: ModelConfig, channels: dict[int, int] = FULL_CHANNELS) -> SPN:
    return abstract_network(lambda rng: SPN(config, channels, rng=rng))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 50_702_643),  # the paper's Table 4: 8 middle blocks
        ({"middle_blocks": 4}, 38_898_995),
        ({"middle_blocks": 12}, 62_506_291),
    ],
)
def test_generator_and_prior_learner_have_the_papers_number_of_parameters(changes: dict, count: int) -> None:
    assert parameter_count(abstract_spn(dataclasses.replace(ModelConfig(), **changes))) == count


PROBABILISTIC = {"variational": True, "spade_hidden_up_to_prior": True, "discriminator": "instance_norm"}
SPL = {"decoder": "region_norm", "prior_levels": (3,), "prior_encoder_slope": 0.1}


@pytest.mark.parametrize(
    ("changes", "generator", "discriminator"),
    [({}, 50_702_643, 2_763_776), (PROBABILISTIC, 68_512_883, 2_763_841), (SPL, 45_597_223, 2_763_776)],
)
def test_all_three_models_have_the_released_number_of_parameters(changes: dict, generator: int, discriminator: int) -> None:
    config = dataclasses.replace(ModelConfig(), **changes)
    assert parameter_count(abstract_spn(config)) == generator
    judge = abstract_network(lambda rng: Discriminator(config, rng=rng, dtype=jnp.float32))
    assert parameter_count(judge) == discriminator


def test_distillation_heads_have_53808_parameters() -> None:
    model = abstract_spn(ModelConfig())
    assert parameter_count(model.prior_learner.distillation_heads) == 53_808
    assert parameter_count(abstract_spn(ModelConfig(), {})) == 50_702_643 - 53_808


@pytest.fixture(scope="module")
def model() -> SPN:
    return SPN(tiny().model, CHANNELS, rng=np.random.default_rng(0))


@jax.jit
def complete(model: SPN, image: jax.Array, mask: jax.Array) -> SPNOutput:
    return model(image, mask)


def photos(height: int = 32, width: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.random((2, height, width, 3), np.float32)
    return image, (random.random((2, height, width, 1)) < 0.4).astype(np.float32)


def test_output_has_a_sample_axis_and_a_pyramid_by_level(model: SPN) -> None:
    output = complete(model, *photos())
    width = tiny().model.width
    assert output.image.shape == (2, 1, 32, 32, 3)
    assert {level: prior.shape for level, prior in output.prior.items()} == {
        1: (2, 1, 32, 32, width),
        2: (2, 1, 16, 16, 2 * width),
        3: (2, 1, 8, 8, 4 * width),
    }
    assert {level: maps.shape[-1] for level, maps in output.distilled.items()} == CHANNELS
    assert output.posterior is None
    assert float(output.image.min()) >= 0 and float(output.image.max()) <= 1


def test_photo_under_the_mask_cannot_influence_anything(model: SPN) -> None:
    image, mask = photos()
    elsewhere = np.where(mask == 1, photos(seed=1)[0], image)
    for ours, theirs in zip(*(jax.tree.leaves(complete(model, x, mask)) for x in (image, elsewhere)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_known_pixels_do_influence_the_hole(model: SPN) -> None:
    image, mask = photos()
    changed = complete(model, np.where(mask == 0, 1 - image, image), mask).image
    assert float(jnp.abs((changed - complete(model, image, mask).image) * mask[:, None]).max()) > 1e-3


@pytest.mark.parametrize("share", [0, 1])
def test_empty_and_full_masks_give_finite_images(model: SPN, share: int) -> None:
    image, mask = photos()
    assert np.isfinite(complete(model, image, np.full_like(mask, share)).image).all()


def test_any_size_divisible_by_the_stride_works(model: SPN) -> None:
    assert complete(model, *photos(20, 36)).image.shape == (2, 1, 20, 36, 3)


def test_a_photo_alone_gives_what_it_gives_in_a_batch(model: SPN) -> None:
    image, mask = photos()
    together, alone = complete(model, image, mask).image, complete(model, image[1:], mask[1:]).image
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)


def test_wrong_inputs_are_refused_in_words(model: SPN) -> None:
    image, mask = photos()
    with pytest.raises(ValueError, match="multiples of 4"):
        model(image[:, :30], mask[:, :30])
    with pytest.raises(ValueError, match=r"must have shapes \(b, h, w, 3\) and \(b, h, w, 1\)"):
        model(image, mask[:, :16])
    with pytest.raises(ValueError, match="deterministic"):
        model(image, mask, np.zeros((2, 1, 1, 1, 4), np.float32))


def probabilistic() -> ModelConfig:
    return dataclasses.replace(tiny().model, latent_channels=6, **PROBABILISTIC)


@pytest.fixture(scope="module")
def sampler() -> SPN:
    return SPN(probabilistic(), CHANNELS, rng=np.random.default_rng(0))


@jax.jit
def sample(model: SPN, image: jax.Array, mask: jax.Array, noise: jax.Array) -> SPNOutput:
    return model(image, mask, noise)


def noise(samples: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, samples, height // 32, width // 32, 6)).astype(np.float32)


def test_probabilistic_model_gives_a_completion_and_a_pyramid_for_each_noise(sampler: SPN) -> None:
    output = sample(sampler, *photos(64, 32), noise(3, 64, 32))
    width = tiny().model.width
    assert output.image.shape == (2, 3, 64, 32, 3)
    assert {level: prior.shape for level, prior in output.prior.items()} == {
        1: (2, 3, 64, 32, width),
        2: (2, 3, 32, 16, 2 * width),
        3: (2, 3, 16, 8, 4 * width),
    }
    assert output.posterior is not None
    assert output.posterior.mu.shape == output.posterior.sigma.shape == (2, 2, 1, 6)
    assert float(output.posterior.sigma.min()) > 0
    for maps in (output.image, *output.prior.values(), *output.distilled.values()):
        assert float(jnp.abs(maps[:, 0] - maps[:, 1]).max()) > 0


def test_samples_of_one_call_equal_single_calls_with_their_noise(sampler: SPN) -> None:
    image, mask = photos()
    together = sample(sampler, image, mask, noise(3)).image
    for i in range(3):
        np.testing.assert_allclose(together[:, i : i + 1], sample(sampler, image, mask, noise(3)[:, i : i + 1]).image, atol=1e-5)


def test_what_precedes_the_latent_is_computed_once_however_many_samples_there_are(sampler: SPN) -> None:
    """Convolutions of the photo itself and of what is made of it have batch 2, all after the latent
    2 x 3.
    """
    text = jax.jit(lambda m, *inputs: m(*inputs)).trace(sampler, *photos(), noise(3)).lower().as_text()
    width = tiny().model.width
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    batches = [int(re.search(r"-> tensor<(\d+)x", line)[1]) for line in convolutions]  # type: ignore[index]
    # prior encoder, trunk (1x1 are products), posterior, image encoder
    encoders = 4 + 1 + tiny().model.dense_layers + 1 + 3 + 3
    assert batches.count(2) == encoders
    assert set(batches) == {2, 6}
    assert f"tensor<6x32x32x{width}xf32>" in text


def test_a_key_stands_for_the_noise_it_draws(sampler: SPN) -> None:
    image, mask = photos()
    key = jax.random.key(3)
    drawn = jax.random.normal(key, (2, 2, *sampler.noise_shape(32, 32)))
    by_key = jax.jit(lambda m, *inputs: m(*inputs, key=key, samples=2))(sampler, image, mask)
    np.testing.assert_allclose(by_key.image, sample(sampler, image, mask, drawn).image, atol=1e-5)


def test_photo_under_the_mask_cannot_influence_the_posterior(sampler: SPN) -> None:
    image, mask = photos()
    elsewhere = np.where(mask == 1, photos(seed=1)[0], image)
    for ours, theirs in zip(*(jax.tree.leaves(sample(sampler, x, mask, noise(1))) for x in (image, elsewhere)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_wrong_noise_is_refused_in_words(sampler: SPN, model: SPN) -> None:
    image, mask = photos()
    with pytest.raises(ValueError, match="multiples of 32"):
        sampler(image[:, :16], mask[:, :16], noise(1))
    with pytest.raises(ValueError, match=r"must have the shape \(b, s, h/32, w/32, z\), here \(2, s, 1, 1, 6\)"):
        sampler(image, mask, noise(1)[..., :5])
    with pytest.raises(ValueError, match="s at least 1"):
        sampler(image, mask, noise(0))
    with pytest.raises(ValueError, match="a probabilistic SPN needs noise"):
        sampler.decode(sampler.encode(image, mask))
    for both_or_none in ({}, {"noise": noise(1), "key": jax.random.key(0)}, {"noise": noise(2), "samples": 3}):
        with pytest.raises(ValueError, match="give it either noise"):
            sampler(image, mask, **both_or_none)
    with pytest.raises(ValueError, match="deterministic"):
        model(image, mask, key=jax.random.key(0))
    with pytest.raises(ValueError, match="deterministic"):
        model.noise_shape(32, 32)


def test_spl_has_one_prior_and_a_decoder_that_normalises_regions_of_its_own() -> None:
    config = dataclasses.replace(tiny().model, **SPL)
    spl = SPN(config, CHANNELS, rng=np.random.default_rng(0))
    output = complete(spl, *photos(20, 36))
    assert output.image.shape == (2, 1, 20, 36, 3)
    assert set(output.prior) == set(output.distilled) == {3}
    names = [name for name in named_arrays(nnx.as_pure(nnx.state(spl))) if name.startswith("generator.decoder.1.")]
    assert sorted(names) == [
        "generator.decoder.1.conv.bias",
        "generator.decoder.1.conv.kernel",
        "generator.decoder.1.region_norm.beta.bias",
        "generator.decoder.1.region_norm.beta.kernel",
        "generator.decoder.1.region_norm.gamma.bias",
        "generator.decoder.1.region_norm.gamma.kernel",
        "generator.decoder.1.region_norm.importance.kernel",
    ]


def test_prior_encoder_of_spl_leaks() -> None:
    plain, leaking = (
        SPN(dataclasses.replace(tiny().model, prior_encoder_slope=slope), CHANNELS, rng=np.random.default_rng(0)) for slope in (0, 0.1)
    )
    smallest = [min(float(maps.min()) for maps in m.prior_learner.encode(*photos())[1].values()) for m in (plain, leaking)]
    assert smallest[0] == 0 > smallest[1]


@pytest.mark.parametrize("levels", [(3,), (2, 3)])
def test_fewer_prior_scales_leave_the_others_without_priors_heads_and_spade(levels: tuple[int, ...]) -> None:
    config = dataclasses.replace(tiny().model, prior_levels=levels)
    output = complete(SPN(config, CHANNELS, rng=np.random.default_rng(0)), *photos())
    assert set(output.prior) == set(output.distilled) == set(levels)
    names = named_arrays(nnx.as_pure(nnx.state(abstract_spn(config))))
    assert any(name.startswith("generator.decoder.0.norm_in") for name in names) == (2 in levels)
    assert not any(name.startswith("generator.decoder.1.norm_in") for name in names)


def test_concatenation_takes_the_place_of_every_spade_and_of_nothing_else() -> None:
    """Fig. 7's ablation: all that is not a norm keeps its name and shape, and the prior still
    reaches the image.
    """
    spade, concat = (abstract_spn(dataclasses.replace(ModelConfig(), conditioning=kind)) for kind in ("spade", "concat"))
    ours, theirs = ({n: x.shape for n, x in named_arrays(nnx.as_pure(nnx.state(m))).items()} for m in (concat, spade))
    assert {n: s for n, s in ours.items() if ".norm_" not in n} == {n: s for n, s in theirs.items() if ".norm_" not in n}
    norms = {name.rpartition(".")[0].rpartition(".")[0] for name in theirs if ".norm_" in name}
    assert {name for name in ours if ".norm_" in name} == {f"{norm}.conv.{leaf}" for norm in norms for leaf in ("kernel", "bias")}
    assert parameter_count(concat) == 55_118_451

    model = SPN(dataclasses.replace(tiny().model, conditioning="concat"), CHANNELS, rng=np.random.default_rng(0))
    encoding = jax.jit(lambda model, *inputs: model.encode(*inputs))(model, *photos())
    decode = jax.jit(lambda model, encoding: model.decode(encoding).image)
    with_prior, without = decode(model, encoding), decode(model, encoding._replace(trunk=jnp.zeros_like(encoding.trunk)))
    assert float(jnp.abs(with_prior - without).max()) > 1e-5


def test_every_parameter_gets_a_gradient_but_biases_that_a_norm_cancels(model: SPN) -> None:
    image, mask = photos()

    @jax.jit
    def gradients(model: SPN) -> SPN:
        def loss(model: SPN) -> jax.Array:
            output = model(image, mask)
            return jnp.mean(output.image**2) + sum(jnp.mean(maps**2) for maps in output.distilled.values())

        return jax.grad(loss)(model)

    sizes = {name: float(jnp.abs(g).max()) for name, g in named_arrays(nnx.as_pure(nnx.state(gradients(model)))).items()}
    largest = max(sizes.values())
    cancelled = {
        *(f"generator.encoder.{i}.conv.bias" for i in range(3)),
        *(f"generator.middle.{i}.{conv}.bias" for i in range(tiny().model.middle_blocks) for conv in ("conv_in", "conv_out")),
        *(f"generator.decoder.0.{conv}.bias" for conv in ("conv_in", "conv_out", "conv_shortcut")),
        "generator.decoder.1.conv_in.bias",
    }
    assert {name for name, size in sizes.items() if size < 1e-6 * largest} == cancelled


def test_bfloat16_computes_in_bfloat16_and_returns_float32_images_near_float32s() -> None:
    image, mask = photos()
    exact, low = (SPN(tiny().model, CHANNELS, rng=np.random.default_rng(0), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(low))} == {jnp.dtype("float32")}
    output = complete(low, image, mask)
    assert output.image.dtype == jnp.float32
    assert output.prior[3].dtype == jnp.bfloat16
    np.testing.assert_allclose(output.image, complete(exact, image, mask).image, atol=0.03)


def test_discriminator_gives_five_maps_and_patch_scores() -> None:
    discriminator = Discriminator(tiny().model, rng=np.random.default_rng(0), dtype=jnp.float32)
    judgement = discriminator(photos(64, 64)[0])
    assert [features.shape for features in judgement.features] == [
        (2, 32, 32, 4),
        (2, 16, 16, 8),
        (2, 8, 8, 16),
        (2, 7, 7, 32),
        (2, 6, 6, 1),
    ]
    np.testing.assert_array_equal(judgement.logits, judgement.features[-1])


def test_probabilistic_discriminator_gives_the_features_of_its_normalised_layers_and_raw_scores() -> None:
    discriminator = Discriminator(probabilistic(), rng=np.random.default_rng(0), dtype=jnp.float32)
    judgement = discriminator(photos(64, 64)[0])
    assert [features.shape for features in judgement.features] == [(2, 16, 16, 8), (2, 8, 8, 16), (2, 7, 7, 32)]
    assert judgement.logits.shape == (2, 6, 6, 1)
    # undoes LeakyReLU
    positive = jnp.where(judgement.features[0] > 0, judgement.features[0], judgement.features[0] / 0.2)
    np.testing.assert_allclose(positive.mean((1, 2)), 0, atol=1e-5)
    names = named_arrays(nnx.as_pure(nnx.state(discriminator)))
    assert {name for name in names if name.endswith("bias")} == {"convs.0.bias", "convs.4.bias"}
    assert {name for name in names if name.endswith(".u")} == {f"convs.{i}.u" for i in (1, 2, 3)}


def test_tree_mode_of_nnx_gives_the_same_numbers(model: SPN) -> None:
    """The mode that Flax is moving to has no shared references; the model must not need them."""
    program = (
        "from tests.models.test_models import *\n"
        "model = SPN(tiny().model, CHANNELS, rng=np.random.default_rng(0))\n"
        "print(repr(float(complete(model, *photos()).image.sum())))\n"
    )
    environment = {**os.environ, "NNX_GRAPH_MODE": "false"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(complete(model, *photos()).image.sum()), rel=1e-6)
