"""Writes a checkpoint's model as one .onnx file.

Inputs, all float32: `image` (batch, 3, height, width), RGB in [0, 1]; `mask` (batch, 1, height,
width), above 0.5 in the hole; and for the probabilistic model `noise` (batch, z, height/32,
width/32), standard normal. Height and width are any multiples of the stride, at least 16. Outputs,
float32 (batch, 3, height, width): `completion`, the prediction in the hole and the image elsewhere,
and `prediction`, the network's own pixels everywhere.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import onnx

from spn_jax import __version__
from spn_jax.checkpoints.store import LoadedModel
from spn_jax.filling.onnx_network import OWN_METADATA
from spn_jax.models.spn import SMALLEST, SPN
from spn_jax.onnx_files.graph import Graph, Name, Precision, described
from spn_jax.onnx_files.network import Writer

RANGES = {
    "image": "RGB in [0, 1]; what lies in the hole is not looked at",
    "mask": "above 0.5 in the hole",
    "noise": "standard normal; another completion for another noise",
    "completion": "RGB in [0, 1]: the prediction in the hole, the image elsewhere",
    "prediction": "RGB in [0, 1]: the network's own pixels, everywhere",
}


def network_file(loaded: LoadedModel, precision: Precision) -> bytes:
    """Returns the file's bytes. `precision` is that of convolutions and stored weights; inputs,
    outputs and statistics are always float32.
    """
    graph = Graph(precision)
    batch, sides = "batch", ("height", "width")
    inputs = [described("image", "float32", (batch, 3, *sides)), described("mask", "float32", (batch, 1, *sides))]
    if loaded.model.latent_channels is not None:
        inputs.append(described("noise", "float32", (batch, loaded.model.latent_channels, "height/32", "width/32")))
    hole = graph.node("Greater", "mask", graph.number(0.5, "float32"))
    prediction = graph.called(predict(graph, loaded.model, "image", hole, "noise"), "prediction")
    completion = graph.called(graph.node("Where", hole, prediction, "image"), "completion")
    outputs = [described(name, "float32", (batch, 3, *sides)) for name in (completion, prediction)]
    model = graph.model(inputs, outputs, loaded.config.model.kind)
    return finished(model, loaded, precision, {"contract": "network", "ranges": RANGES})


def predict(graph: Graph, model: SPN, image: Name, hole: Name, noise: Name) -> Name:
    """Adds the network, which maps image float32 (b, 3, h, w) in [0, 1] and hole bool (b, 1, h, w)
    to the prediction float32 (b, 3, h, w).
    """
    writer = Writer(graph, model)
    masked = graph.node("Where", hole, graph.number(1, "float32"), image)
    prediction = writer.spn(masked, graph.cast(hole, "float32"), noise if model.variational else None)
    forgotten = [name for name in writer.left_out if ".distillation_heads." not in name]
    assert not forgotten, f"no node uses {', '.join(forgotten)}"
    return prediction


def finished(model: onnx.ModelProto, loaded: LoadedModel, precision: Precision, more: Mapping[str, Any]) -> bytes:
    """Returns the model's bytes, with its description as metadata."""
    config = loaded.config
    about = {
        "format": 1,
        "model": config.model.kind,
        "step": loaded.step,
        "trained_size": config.data.image_size,
        "stride": config.model.stride,
        "smallest": max(SMALLEST, config.model.stride),
        "precision": precision,
        "licence": "of the program that wrote this file: Apache-2.0; the weights' is that of the checkpoint they come from",
        "source": {key: loaded.info.get(key) for key in ("teacher", "converted_from") if loaded.info.get(key) is not None},
        "versions": {"spn_jax": __version__, "jax": jax.__version__, "onnx": onnx.__version__},
        **more,
    }
    model.doc_string = f"{config.model.kind}: image inpainting with a learned semantic pyramid, written by spn_jax {__version__}"
    onnx.helper.set_model_props(model, {OWN_METADATA: json.dumps(about)})
    return model.SerializeToString()
