"""Names and layouts of the released PyTorch checkpoints, and the way from them to ours. Imports no torch.

Convolution kernels are (out, in, h, w) there and (h, w, in, out) here; all other arrays are the same.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from spn_jax.config import ModelConfig
from spn_jax.parameters import compare_names

Arrays = Mapping[str, np.ndarray]

LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "hole_gamma": "foreground_gamma",
    "hole_beta": "foreground_beta",
    "known_gamma": "background_gamma",
    "known_beta": "background_beta",
}
SPECTRAL_LEAVES = {"kernel": "weight_orig", "u": "weight_u", "v": "weight_v"}


def model_modules(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our name, released name) of every module of prior learner and generator that holds parameters."""
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
    for ours, theirs in ("generator.decoder.0", "decoder.1"), ("generator.decoder.1", "decoder.3"):
        yield from spade_modules(f"{ours}.norm_in", f"{theirs}.conv_block.0")
        yield f"{ours}.conv_in", f"{theirs}.conv_block.2"
        yield from spade_modules(f"{ours}.norm_out", f"{theirs}.conv_block.3")
        yield f"{ours}.conv_out", f"{theirs}.conv_block.5"
        yield from spade_modules(f"{ours}.norm_shortcut", f"{theirs}.SPADE_s")
        yield f"{ours}.conv_shortcut", f"{theirs}.conv_s"
    yield "generator.output", "decoder.6"

    yield "prior_learner.stem", "encoder_conv1_sm"
    yield "prior_learner.trunk_in", "encoder_sm_out"
    for i in range(config.dense_blocks):
        for j in range(config.dense_layers):
            yield f"prior_learner.dense_blocks.{i}.layers.{j}", f"rdbs.{i}.layers.{j}.conv"
        yield f"prior_learner.dense_blocks.{i}.fusion", f"rdbs.{i}.lff"
    yield "prior_learner.trunk_fusion", "gff.0"
    yield "prior_learner.trunk_out", "gff.1"
    for i in range(config.prior_blocks):
        yield from residual_modules(f"prior_learner.prior_blocks.{i}", f"feature_recon.{i}")
    for i, (conv, block) in enumerate(((0, 3), (4, 7))):
        yield f"prior_learner.upsampling.{i}.conv", f"feature_recon_decoder.{conv}"
        yield from residual_modules(f"prior_learner.upsampling.{i}.block", f"feature_recon_decoder.{block}")
        yield f"prior_learner.upsampling.{i}.block.shortcut", f"feature_recon_decoder.{block}.shortcut.1"
    for i, theirs in enumerate(("feature_mapping", "feature_mapping_128", "feature_mapping_256")):
        yield f"prior_learner.distillation_heads.{i}", theirs


def spade_modules(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """The three convolutions of a SPADE."""
    yield f"{ours}.shared", f"{theirs}.mlp_shared.0"
    yield f"{ours}.gamma", f"{theirs}.mlp_gamma"
    yield f"{ours}.beta", f"{theirs}.mlp_beta"


def residual_modules(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """The two convolutions of a residual block."""
    yield f"{ours}.conv_in", f"{theirs}.conv_block.1"
    yield f"{ours}.conv_out", f"{theirs}.conv_block.4"


def model_from_released(arrays: Arrays, config: ModelConfig) -> dict[str, np.ndarray]:
    """Released generator entries -> {our name: array in our layout}; ValueError lists what no row of the table explains."""
    return _translate(arrays, dict(model_modules(config)), LEAVES)


def discriminator_from_released(arrays: Arrays) -> dict[str, np.ndarray]:
    """Released discriminator entries -> ours. The first convolution stands there under two names, `conv1` and `features`."""
    kept = {name: array for name, array in arrays.items() if not name.startswith("conv1.")}
    modules = {f"convs.{i}": "features.0" if i == 0 else f"conv{i + 1}.0" for i in range(5)}
    return _translate(kept, modules, SPECTRAL_LEAVES)


def _translate(arrays: Arrays, modules: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, np.ndarray]:
    ours_by_theirs = {theirs: ours for ours, theirs in modules.items()}
    leaf_by_theirs = {theirs: ours for ours, theirs in leaves.items()}
    translated, unknown = {}, {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if module in ours_by_theirs and leaf in leaf_by_theirs:
            is_kernel = np.ndim(array) == 4
            translated[f"{ours_by_theirs[module]}.{leaf_by_theirs[leaf]}"] = array.transpose(2, 3, 1, 0) if is_kernel else array
        else:
            unknown[name] = np.shape(array)
    if unknown:
        raise ValueError("the released checkpoint does not fit the model: " + "; ".join(compare_names({}, unknown)))
    return translated
