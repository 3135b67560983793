"""Writes a model as one .onnx file that takes a photo and a mask of any size and completes it.

Inputs: `image` uint8 (height, width, 3), RGB; `mask` uint8 (height, width), above 127 in the hole.
Output: `completed` uint8 (height, width, 3), the image's own values outside the hole, bit for bit.
Padding, rounding and pasting are nodes of the graph, and equal those of `spn_jax.filling.inpainter`
at the strategy "original": the network sees the whole photo as it is, which for photos of more than
twice the trained size takes much memory and shows the network sizes that it never saw. A
probabilistic model draws its own noise, so every run gives another completion.
"""

import numpy as np

from spn_jax.checkpoints.store import LoadedModel
from spn_jax.filling.padding import bucket_steps
from spn_jax.models.spn import SPN
from spn_jax.onnx_files.graph import Graph, Name, Precision, described
from spn_jax.onnx_files.write import finished, predict

RANGES = {
    "image": "RGB, 8 bits; what lies in the hole is not looked at",
    "mask": "above 127 in the hole",
    "completed": "RGB, 8 bits: the prediction in the hole, the image elsewhere",
}


def photo_file(loaded: LoadedModel, precision: Precision) -> bytes:
    """Returns the file's bytes. `precision` is that of convolutions and stored weights."""
    graph, config = Graph(precision), loaded.config
    sides = ("height", "width")
    inputs = [described("image", "uint8", (*sides, 3)), described("mask", "uint8", sides)]
    size, steps = config.data.image_size, bucket_steps(config)
    shape = graph.node("Shape", "mask")
    lengths = [graph.node("Gather", shape, graph.constant([axis], "int64"), axis=0) for axis in (0, 1)]
    padded = [padded_length(graph, length, size, steps) for length in lengths]
    hole = graph.node("Greater", graph.cast("mask", "float32"), graph.number(127, "float32"))

    image, seen_hole = graph.cast("image", "float32"), graph.cast(hole, "float32")
    for axis in (0, 1):
        places = mirrored_places(graph, lengths[axis], padded[axis])
        image, seen_hole = (graph.node("Gather", value, places, axis=axis) for value in (image, seen_hole))
    image = graph.node("Div", graph.node("Transpose", image, perm=[2, 0, 1]), graph.number(255, "float32"))
    image = graph.node("Unsqueeze", image, graph.constant([0], "int64"))
    seen_hole = graph.node("Unsqueeze", graph.cast(seen_hole, "bool"), graph.constant([0, 1], "int64"))
    prediction = predict(graph, loaded.model, image, seen_hole, drawn_noise(graph, loaded.model, padded))

    pixels = rounded(graph, prediction)
    ends = graph.node("Concat", *lengths, axis=0)
    pixels = graph.node("Slice", pixels, graph.constant([0, 0], "int64"), ends, graph.constant([2, 3], "int64"))
    pixels = graph.node("Transpose", graph.node("Squeeze", pixels, graph.constant([0], "int64")), perm=[1, 2, 0])
    pasted = graph.node("Where", graph.node("Unsqueeze", hole, graph.constant([2], "int64")), graph.cast(pixels, "uint8"), "image")
    outputs = [described(graph.called(pasted, "completed"), "uint8", (*sides, 3))]
    model = graph.model(inputs, outputs, f"{config.model.kind}-photo")
    return finished(model, loaded, precision, {"contract": "photo", "ranges": RANGES})


def padded_length(graph: Graph, length: Name, size: int, steps: tuple[int, int, int]) -> Name:
    """Computes `spn_jax.filling.inpainter.bucket` of a side, int64 (1)."""
    step = graph.constant([steps[2]], "int64")
    for most, smaller in ((2 * size, steps[1]), (size, steps[0])):
        within = graph.node("LessOrEqual", length, graph.constant([most], "int64"))
        step = graph.node("Where", within, graph.constant([smaller], "int64"), step)
    rounded_up = graph.node("Sub", graph.add(length, step), graph.constant([1], "int64"))
    return graph.multiply(graph.node("Div", rounded_up, step), step)


def mirrored_places(graph: Graph, length: Name, padded: Name) -> Name:
    """Returns the source row of each row of the padded photo: 0 1 2 2 1 0 0 1 ... for three rows,
    as in NumPy's "symmetric" padding; int64 (p).
    """
    one, first = graph.constant([1], "int64"), graph.constant(0, "int64")
    places = graph.node("Range", first, graph.node("Squeeze", padded), graph.constant(1, "int64"))
    within = graph.node("Mod", places, graph.add(length, length))
    back = graph.node("Sub", graph.node("Sub", graph.add(length, length), one), within)
    return graph.node("Min", within, back)


def rounded(graph: Graph, values: Name) -> Name:
    """Rounds values in [0, 1] to whole numbers 0..255, float32."""
    zero, one, peak = (graph.number(value, "float32") for value in (0, 1, 255))
    return graph.node("Round", graph.multiply(graph.node("Clip", values, zero, one), peak))


def drawn_noise(graph: Graph, model: SPN, padded: list[Name]) -> Name:
    """Draws standard normal (1, z, h/32, w/32); adds no node and returns an empty name for a
    deterministic model.
    """
    if model.latent_channels is None:
        return ""
    sides = [graph.node("Div", length, graph.constant([model.stride], "int64")) for length in padded]
    shape = graph.node("Concat", graph.constant([1, model.latent_channels], "int64"), *sides, axis=0)
    return graph.node("RandomNormalLike", graph.node("Expand", graph.constant(np.zeros(1), "float32"), shape))
