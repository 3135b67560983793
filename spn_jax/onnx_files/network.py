"""Writes the layers of `spn_jax.models` as nodes of an ONNX graph, one function for each layer.

Functions have the order of those modules, which define what a layer computes; here it is expressed
in ONNX. Types follow the model's: convolutions in the graph's precision, statistics in float32.
Kernels are transposed from h w in out to out in h w, because ONNX has channels before pixels.
"""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.models.generator import EncoderLayer, Generator, RegionNormUpsampling, SPADEResidualBlock, SPADEUpsampling
from spn_jax.models.layers import (
    EPSILON,
    REGION_THRESHOLD,
    SPADE,
    ConcatNorm,
    Conv,
    LearntRegionNorm,
    PlainNorm,
    RegionNorm,
    ResidualBlock,
    leaky_relu,
)
from spn_jax.models.prior import COARSEST, DenseBlock, PriorLearner, PriorUpsampling
from spn_jax.models.smooth_fill import GREY, HALVINGS, ROUNDS
from spn_jax.models.spn import SPN
from spn_jax.models.variational import VariationalModule
from spn_jax.onnx_files.graph import Graph, Name

Norm = SPADE | ConcatNorm | PlainNorm


class Writer:
    """Adds the nodes of a model's layers to a graph.

    Args:
        model: its parameters become the graph's weights, under their names in checkpoints.
    """

    def __init__(self, graph: Graph, model: SPN):
        self.graph, self.model = graph, model
        self._names = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
        self._written: set[str] = set()

    @property
    def left_out(self) -> list[str]:
        """The model's parameters that the graph does not use: only those of the distillation heads,
        unless a layer was forgotten.
        """
        return [name for name in named_arrays(self.model) if name.removesuffix(".value").rpartition(".")[0] not in self._written]

    def _name(self, module: nnx.Module) -> str:
        name = self._names[id(module)]
        self._written.add(name)
        return name

    def spn(self, masked: Name, mask: Name, noise: Name | None) -> Name:
        """Maps masked photo (b, 3, h, w), mask (b, 1, h, w) and noise (b, z, h/32, w/32) or None,
        all float32, to the prediction (b, 3, h, w).
        """
        learner, generator = self.model.prior_learner, self.model.generator
        base = self.smooth_fill(masked, mask) if self.model.hole_fill == "smooth" else None
        masked = masked if base is None else base
        trunk, skips = self.encode_prior(learner, masked, mask)
        priors = self.pyramid(learner, trunk, skips, noise)
        features = self.encode(generator, masked, mask)
        return self.decode(generator, self.refine(generator, features, priors), priors, mask, base)

    # --- smooth_fill.py ---

    def smooth_fill(self, image: Name, mask: Name) -> Name:
        """Fills the hole of mask (b, 1, h, w) in image (b, 3, h, w), all float32."""
        graph = self.graph
        known, one = graph.complement(mask), graph.number(1, "float32")
        image = graph.multiply(image, known)
        sizes = [(image, known)]
        for _ in range(HALVINGS):
            # If a side is odd, its last pixels are means of two, for colours and shares alike, so
            # their ratio is right.
            image, shares = (graph.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1) for x in (image, known))
            known = graph.cast(graph.node("Greater", shares, graph.number(0, "float32")), "float32")
            image = graph.node("Div", image, graph.add(shares, graph.complement(known)))
            sizes.append((image, known))
        pixels = graph.sum_of_pixels(known)
        mean = graph.node("Div", graph.sum_of_pixels(image), graph.node("Max", pixels, one))
        grey = graph.multiply(graph.number(GREY, "float32"), graph.node("Sub", one, graph.node("Min", pixels, one)))
        filled = self._laid_over(graph.add(mean, grey), image, known)
        for image, known in reversed(sizes[:-1]):
            filled = self._laid_over(graph.cut_to(graph.enlarged(filled), image), image, known)
            for _ in range(ROUNDS):
                filled = self._laid_over(graph.mean_of_neighbours(filled), image, known)
        return filled

    def _laid_over(self, filled: Name, image: Name, known: Name) -> Name:
        """Returns the image in known pixels, `filled` elsewhere. The image is 0 where it is
        unknown.
        """
        return self.graph.add(image, self.graph.multiply(self.graph.complement(known), filled))

    # --- layers.py ---

    def conv(self, layer: Conv, x: Name) -> Name:
        """Applies a convolution to x in the graph's precision."""
        graph, name = self.graph, self._name(layer)
        kernel = np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).astype(graph.precision)
        padding = layer.padding
        if layer.reflect and padding:
            x, padding = graph.reflected(x, padding), 0
        inputs = [x, graph.weight(f"{name}.kernel", kernel)]
        if layer.bias is not None:
            inputs.append(graph.weight(f"{name}.bias", np.asarray(layer.bias[...]).astype(graph.precision)))
        return graph.node(
            "Conv",
            *inputs,
            kernel_shape=list(kernel.shape[2:]),
            strides=[layer.stride] * 2,
            pads=[padding] * 4,
            dilations=[layer.dilation] * 2,
        )

    def shuffled(self, x: Name) -> Name:
        return self.graph.node("DepthToSpace", x, blocksize=2, mode="CRD")

    def residual_block(self, block: ResidualBlock, x: Name) -> Name:
        shortcut = x if block.shortcut is None else self.conv(block.shortcut, x)
        return self.graph.add(shortcut, self.conv(block.conv_out, self.graph.relu(self.conv(block.conv_in, x))))

    def instance_norm(self, x: Name, channels: int) -> Name:
        graph = self.graph
        scale, shift = (
            graph.weight(f"{word}_{channels}", np.full(channels, value, np.float32)) for word, value in (("ones", 1), ("zeros", 0))
        )
        return graph.narrow(graph.node("InstanceNormalization", graph.wide(x), scale, shift, epsilon=EPSILON))

    def region_normalise(self, x: Name, region: Name) -> tuple[Name, Name, Name, Name]:
        """Returns the centred map, the scales of region and rest, and the rest, for x and region in
        float32.
        """
        graph, one = self.graph, self.graph.number(1, "float32")
        rest = graph.complement(region)
        pixels = [graph.sum_of_pixels(part) for part in (region, rest)]
        areas = [graph.node("Max", count, one) for count in pixels]
        means = [
            graph.node("Div", graph.sum_of_pixels(graph.multiply(x, part)), area) for part, area in zip((region, rest), areas, strict=True)
        ]
        filling = graph.add(graph.multiply(region, means[0]), graph.multiply(rest, means[1]))
        centred = graph.node("Sub", x, filling)
        squares, total = graph.multiply(centred, centred), graph.add(*pixels)
        scales = []
        for part, area in zip((region, rest), areas, strict=True):
            variance = graph.mean_of_pixels(graph.multiply(squares, part))
            deviation = graph.node("Sqrt", graph.add(variance, graph.number(EPSILON, "float32")))
            scales.append(graph.node("Div", graph.node("Sqrt", graph.node("Div", area, total)), deviation))
        return centred, scales[0], scales[1], rest

    def region_norm(self, norm: RegionNorm, x: Name, mask: Name, step: int) -> Name:
        """Applies a region norm. `step`: the mask's size divided by the map's."""
        graph, name = self.graph, self._name(norm)
        hole = graph.every(mask, step)
        centred, scale_hole, scale_known, known = self.region_normalise(graph.wide(x), hole)

        def parameter(word: str, array: np.ndarray) -> Name:
            return graph.weight(f"{name}.{word}", array.astype(np.float32).reshape(1, -1, 1, 1))

        factors = []
        for part, scale, region in ((hole, scale_hole, "hole"), (known, scale_known, "known")):
            gamma = parameter(f"{region}_gamma_plus_1", 1 + np.asarray(getattr(norm, f"{region}_gamma")[...]))
            factors.append(graph.multiply(part, graph.multiply(scale, gamma)))
        beta = parameter("both_betas", np.asarray(norm.hole_beta[...]) + np.asarray(norm.known_beta[...]))
        return graph.narrow(graph.add(graph.multiply(centred, graph.add(*factors)), beta))

    def learnt_region_norm(self, norm: LearntRegionNorm, x: Name) -> Name:
        graph = self.graph
        wide = graph.wide(x)
        summary = graph.concatenate(*(graph.node(kind, wide, axes=[1], keepdims=1) for kind in ("ReduceMean", "ReduceMax")))
        importance = graph.node("Sigmoid", self.conv(norm.importance, graph.narrow(summary)))
        region = graph.cast(graph.node("GreaterOrEqual", importance, graph.number(REGION_THRESHOLD)), "float32")
        centred, scale, scale_rest, rest = self.region_normalise(wide, region)
        normed = graph.multiply(centred, graph.add(graph.multiply(region, scale), graph.multiply(rest, scale_rest)))
        gamma, beta = (graph.wide(self.conv(conv, importance)) for conv in (norm.gamma, norm.beta))
        return graph.narrow(graph.add(graph.multiply(normed, graph.add(gamma, graph.number(1, "float32"))), beta))

    def norm(self, norm: Norm, x: Name, channels: int, prior: Name | None) -> Name:
        """Applies any of the norms of the generator's SPADE blocks."""
        graph, normed = self.graph, self.instance_norm(x, channels)
        if isinstance(norm, PlainNorm):
            return normed
        assert prior is not None, "a norm of two inputs has a prior"
        if isinstance(norm, ConcatNorm):
            return self.conv(norm.conv, graph.concatenate(normed, prior))
        shared = graph.relu(self.conv(norm.shared, prior))
        gamma, beta = self.conv(norm.gamma, shared), self.conv(norm.beta, shared)
        return graph.add(graph.multiply(normed, graph.add(gamma, graph.number(1))), beta)

    # --- prior.py and variational.py ---

    def dense_block(self, block: DenseBlock, x: Name) -> Name:
        maps = [x]
        for layer in block.layers:
            maps.append(self.graph.relu(self.conv(layer, self.graph.concatenate(*maps))))
        return self.graph.add(x, self.conv(block.fusion, self.graph.concatenate(*maps)))

    def encode_prior(self, learner: PriorLearner, masked: Name, mask: Name) -> tuple[Name, dict[int, Name]]:
        graph = self.graph
        seen = graph.enlarged(graph.narrow(graph.concatenate(masked, mask)))
        x, skips = graph.leaky_relu(self.conv(learner.stem, seen), learner.encoder_slope), {}
        for level, conv in enumerate(learner.downsampling, 1):
            x = skips[level] = graph.leaky_relu(self.conv(conv, x), learner.encoder_slope)
        return self.trunk(learner, x), skips

    def trunk(self, learner: PriorLearner, encoded: Name) -> Name:
        x, outputs = self.conv(learner.trunk_in, encoded), []
        for block in learner.dense_blocks:
            x = self.dense_block(block, x)
            outputs.append(x)
        fused = self.conv(learner.trunk_fusion, self.graph.concatenate(*outputs))
        return self.graph.add(encoded, self.conv(learner.trunk_out, fused))

    def latent(self, module: VariationalModule, trunk: Name, noise: Name) -> Name:
        """Returns a latent as a map, (b, c, h/4, w/4)."""
        graph, x = self.graph, trunk
        for layer in module.encoder:
            x = graph.leaky_relu(self.conv(layer, x))
        mu, sigma = graph.wide(self.conv(module.mu, x)), graph.node("Softplus", graph.wide(self.conv(module.sigma, x)))
        x = graph.narrow(graph.add(mu, graph.multiply(sigma, noise)))
        for layer in module.decoder:
            x = graph.relu(self.shuffled(self.conv(layer, x)))
        return x

    def upsample_prior(self, step: PriorUpsampling, x: Name, skip: Name) -> Name:
        enlarged = self.graph.relu(self.shuffled(self.conv(step.conv, x)))
        return self.residual_block(step.block, self.graph.concatenate(skip, enlarged))

    def pyramid(self, learner: PriorLearner, trunk: Name, skips: Mapping[int, Name], noise: Name | None) -> dict[int, Name]:
        x = trunk
        if learner.variational is not None:
            assert noise is not None, "a probabilistic model is given noise"
            x = self.graph.concatenate(trunk, self.latent(learner.variational, trunk, noise))
        for block in learner.prior_blocks:
            x = self.residual_block(block, x)
        priors = {COARSEST: x}
        for level, step in zip(learner.levels[1:], learner.upsampling, strict=True):
            priors[level] = self.upsample_prior(step, priors[level + 1], skips[level])
        return priors

    # --- generator.py ---

    def encode(self, generator: Generator, masked: Name, mask: Name) -> Name:
        x, step = self.graph.narrow(masked), 1
        for layer in generator.encoder:
            step *= layer.conv.stride
            x = self.encoder_layer(layer, x, mask, step)
        return x

    def encoder_layer(self, layer: EncoderLayer, x: Name, mask: Name, step: int) -> Name:
        return self.graph.relu(self.region_norm(layer.region_norm, self.conv(layer.conv, x), mask, step))

    def spade_block(self, block: SPADEResidualBlock, x: Name, prior: Name | None) -> Name:
        graph = self.graph
        activation = graph.leaky_relu if block.activation is leaky_relu else graph.relu
        wide, narrow = block.conv_in.kernel.shape[2:]
        shortcut = x
        if block.conv_shortcut is not None and block.norm_shortcut is not None:
            shortcut = self.conv(block.conv_shortcut, self.norm(block.norm_shortcut, x, wide, prior))
        h = self.conv(block.conv_in, activation(self.norm(block.norm_in, x, wide, prior)))
        h = self.conv(block.conv_out, activation(self.norm(block.norm_out, h, narrow, prior)))
        return graph.add(shortcut, h)

    def decoder_block(self, block: SPADEUpsampling | RegionNormUpsampling, x: Name, prior: Name | None) -> Name:
        if isinstance(block, RegionNormUpsampling):
            return self.graph.relu(self.learnt_region_norm(block.region_norm, self.shuffled(self.conv(block.conv, x))))
        return self.spade_block(block, self.graph.enlarged(x), prior)

    def refine(self, generator: Generator, features: Name, priors: Mapping[int, Name]) -> Name:
        for block in generator.middle:
            features = self.spade_block(block, features, priors[COARSEST])
        return features

    def decode(self, generator: Generator, features: Name, priors: Mapping[int, Name], mask: Name, base: Name | None) -> Name:
        """Returns the prediction (b, 3, h, w) in [0, 1], float32, like mask and `base`."""
        graph = self.graph
        for level, block in zip((2, 1), generator.decoder, strict=True):
            features = self.decoder_block(block, features, priors.get(level))
        rgb = graph.wide(self.conv(generator.output, graph.leaky_relu(features)))
        tanh, half = graph.node("Tanh", rgb), graph.number(0.5, "float32")
        if base is None:
            return graph.add(graph.multiply(tanh, half), half)
        return graph.node("Clip", graph.add(base, graph.multiply(mask, tanh)), graph.number(0, "float32"), graph.number(1, "float32"))
