"""Networks of other people's contracts as small .onnx files: each fills the hole with the mean of
what it sees outside it.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from spn_jax.onnx_files.graph import Graph, Name, described


def lama(path: Path, size: int = 512, white: float = 255) -> Path:
    """As LaMa's published file: `image` in [0, 1], `mask` 1 in the hole, `output` from 0 to 255."""
    graph = Graph("float32")
    filled = mean_fill(graph, "image", "mask")
    graph.called(graph.multiply(filled, graph.number(white)), "output")
    sides = (size, size)
    inputs = [described("image", "float32", (1, 3, *sides)), described("mask", "float32", (1, 1, *sides))]
    return save(path, graph, inputs, [described("output", "float32", (1, 3, *sides))])


def migan(path: Path) -> Path:
    """As MI-GAN's pipeline: bytes in and out, of any size, and a mask that is 255 where the photo
    is known.
    """
    graph = Graph("float32")
    mask = graph.cast(graph.node("Less", graph.cast("mask", "float32"), graph.number(128)), "float32")
    filled = mean_fill(graph, graph.cast("image", "float32"), mask)
    graph.called(graph.cast(graph.node("Round", filled), "uint8"), "result")
    inputs = [described("image", "uint8", (1, 3, "h", "w")), described("mask", "uint8", (1, 1, "h", "w"))]
    return save(path, graph, inputs, [described("result", "uint8", (1, 3, "h", "w"))])


def centred(path: Path) -> Path:
    """As no published file: channels last, values from -1 to 1, and a mask that is 0 in the
    hole.
    """
    graph = Graph("float32")
    image, mask = (graph.node("Transpose", name, perm=[0, 3, 1, 2]) for name in ("photo", "valid"))
    filled = mean_fill(graph, image, graph.complement(mask))
    graph.called(graph.node("Transpose", filled, perm=[0, 2, 3, 1]), "filled")
    inputs = [described("photo", "float32", ("n", "h", "w", 3)), described("valid", "float32", ("n", "h", "w", 1))]
    return save(path, graph, inputs, [described("filled", "float32", ("n", "h", "w", 3))])


CENTRED = {
    "image": {"name": "photo", "range": [-1, 1]},
    "mask": {"name": "valid", "hole": 0, "known": 1},
    "output": {"name": "filled", "range": [-1, 1]},
    "multiple": 8,
    "trained_size": 32,
}


def joined(path: Path) -> Path:
    """One input of four channels."""
    graph = Graph("float32")
    image, mask = (
        graph.node("Slice", "input", *(graph.constant([value], "int64") for value in (first, last, 1))) for first, last in ((0, 3), (3, 4))
    )
    graph.called(mean_fill(graph, image, mask), "output")
    return save(path, graph, [described("input", "float32", (1, 4, "h", "w"))], [described("output", "float32", (1, 3, "h", "w"))])


def mean_fill(graph: Graph, image: Name, mask: Name) -> Name:
    """Nodes for image (1, 3, h, w) and mask (1, 1, h, w), 1 = hole."""
    known = graph.complement(mask)
    mean = graph.node("Div", graph.sum_of_pixels(graph.multiply(image, known)), graph.sum_of_pixels(known))
    return graph.add(graph.multiply(image, known), graph.multiply(mask, mean))


def save(path: Path, graph: Graph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> Path:
    path.write_bytes(graph.model(inputs, outputs, path.stem).SerializeToString())
    return path
