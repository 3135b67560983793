"""Packs a model as one archive that runs with JAX alone.

The archive holds a StableHLO program for each size, which the program that loads it compiles for
CPU, CUDA or TPU; the weights, which are its arguments; and manifest.json, which describes inputs
and outputs.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import export as jax_export

from spn_jax import __version__
from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import LoadedModel
from spn_jax.errors import InputError
from spn_jax.filling.completion import PRECISION, composite
from spn_jax.models.convolution import EVERY_PLATFORM, compiled_for
from spn_jax.models.spn import SMALLEST, SPN

PLATFORMS = ("cpu", "cuda", "tpu")


WEIGHTS, MANIFEST = "weights.npz", "manifest.json"


Size = tuple[int, int]  # height and width


def check_sizes(sizes: Sequence[Size], stride: int) -> None:
    """Raises InputError unless the network takes each size, and none comes twice."""
    least = max(SMALLEST, stride)
    for height, width in sizes:
        if height % stride or width % stride or min(height, width) < least:
            raise InputError(f"--size {height} {width}: both must be multiples of {stride} and at least {least}")
        if list(sizes).count((height, width)) > 1:
            raise InputError(f"--size {height} {width} was given twice; leave one out")


def archive(loaded: LoadedModel, sizes: Sequence[Size]) -> bytes:
    """Returns the archive's bytes."""
    weights, buffer = io.BytesIO(), io.BytesIO()
    np.savez(weights, allow_pickle=False, **{name: np.asarray(array) for name, array in named_arrays(loaded.model).items()})
    with zipfile.ZipFile(buffer, "w") as file:  # not compressed, since weights are incompressible
        file.writestr(WEIGHTS, weights.getvalue())
        for size in sizes:
            file.writestr(program_name(size), bytes(export_program(loaded.model, size).serialize()))
        file.writestr(MANIFEST, json.dumps(manifest(loaded, sizes), indent=1) + "\n")
    return buffer.getvalue()


def program_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}.stablehlo"


def export_program(model: SPN, size: Size) -> jax_export.Exported:
    """Exports the function (weights, image, mask[, noise]) -> completion for photos of one size and
    batches of any size.
    """
    (batch,) = jax_export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in named_arrays(model).items()}
    inputs = [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in input_shapes(model, size).values()]

    def complete(weights: Mapping[str, Array], image: Array, mask: Array, noise: Array | None = None) -> Array:
        filled = with_named_arrays(model, weights, what="weights")
        with PRECISION(), compiled_for(EVERY_PLATFORM):
            prediction = filled(image, mask, None if noise is None else noise[:, None]).image[:, 0]
        return composite(prediction, image, mask)

    return jax_export.export(jax.jit(complete), platforms=PLATFORMS)(shapes, *inputs)


def input_shapes(model: SPN, size: Size) -> dict[str, tuple[int, ...]]:
    """Returns {input: shape without the batch} in the order of the program's arguments, which
    follow the weights.
    """
    shapes: dict[str, tuple[int, ...]] = {"image": (*size, 3), "mask": (*size, 1)}
    return shapes | ({"noise": model.noise_shape(*size)} if model.variational else {})


def manifest(loaded: LoadedModel, sizes: Sequence[Size]) -> dict[str, Any]:
    """Returns what a program that loads the archive has to know."""
    ranges = {
        "image": "RGB in [0, 1]; what lies in the hole is not looked at",
        "mask": "1 in the hole, 0 elsewhere",
        "noise": "standard normal; another completion for another noise",
    }
    return {
        "format": 1,
        "model": loaded.config.model.kind,
        "step": loaded.step,
        "trained_size": loaded.config.data.image_size,
        "platforms": list(PLATFORMS),
        "versions": {"spn_jax": __version__, "jax": jax.__version__},
        "weights": WEIGHTS,
        "arguments": "a dictionary of the weights' arrays by name, then the inputs in this order; b is any batch",
        "programs": [
            {
                "file": program_name(size),
                "size": list(size),
                "inputs": [
                    {"name": name, "shape": ["b", *shape], "dtype": "float32", "range": ranges[name]}
                    for name, shape in input_shapes(loaded.model, size).items()
                ],
                "output": {
                    "name": "completion",
                    "shape": ["b", *size, 3],
                    "dtype": "float32",
                    "range": "RGB in [0, 1]: the prediction in the hole, the image elsewhere",
                },
            }
            for size in sizes
        ],
    }
