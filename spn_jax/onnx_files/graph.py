"""The nodes and weights of an ONNX graph while it is being written. Maps are b c h w, as ONNX has
them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# the newest that ONNX Runtime Web 1.16 and all later ones run, with reductions that take their axes
# as attributes
OPSET = 17
IR_VERSION = 8  # of the file format, the one that belongs to this opset

Precision = Literal["float32", "float16"]
Name = str  # of a value in the graph

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class Graph:
    """Collects nodes in the order of computation.

    Args:
        precision: convolutions compute in it, and their weights are stored in it. Statistics are
            always float32.
    """

    def __init__(self, precision: Precision):
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[Name, onnx.TensorProto] = {}

    def node(self, operation: str, *inputs: Name, **attributes: Any) -> Name:
        """Adds a node of one output, whose name it returns. An input "" is one that is left out."""
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def called(self, value: Name, name: Name) -> Name:
        """The same value under a name of its own, for an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        return name

    def weight(self, name: Name, array: np.ndarray) -> Name:
        """A constant array under a name of its own; the same name always means the same array."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def constant(self, value: Any, dtype: str) -> Name:
        """A small constant, a number or a list of numbers."""
        array = np.asarray(value, dtype)
        return self.weight(f"{dtype}_{'_'.join(map(str, array.ravel().tolist()))}_{array.ndim}", array)

    def number(self, value: float, like: Precision | None = None) -> Name:
        """A number in the compute precision, or another."""
        return self.constant(value, like or self.precision)

    def cast(self, x: Name, dtype: str) -> Name:
        return self.node("Cast", x, to=TYPES[dtype])

    def narrow(self, x: Name) -> Name:
        """float32 -> the compute precision."""
        return x if self.precision == "float32" else self.cast(x, self.precision)

    def wide(self, x: Name) -> Name:
        """The compute precision -> float32."""
        return x if self.precision == "float32" else self.cast(x, "float32")

    def add(self, *values: Name) -> Name:
        total, *rest = values
        for value in rest:
            total = self.node("Add", total, value)
        return total

    def multiply(self, a: Name, b: Name) -> Name:
        return self.node("Mul", a, b)

    def complement(self, x: Name, dtype: Precision = "float32") -> Name:
        """1 - x."""
        return self.node("Sub", self.number(1, dtype), x)

    def concatenate(self, *values: Name) -> Name:
        """Along the channels."""
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=1)

    def relu(self, x: Name) -> Name:
        return self.node("Relu", x)

    def leaky_relu(self, x: Name, slope: float = 0.2) -> Name:
        return self.node("LeakyRelu", x, alpha=slope) if slope else self.relu(x)

    def mean_of_pixels(self, x: Name) -> Name:
        """(b, c, h, w) -> (b, c, 1, 1)."""
        return self.node("ReduceMean", x, axes=[2, 3], keepdims=1)

    def sum_of_pixels(self, x: Name) -> Name:
        """(b, c, h, w) -> (b, c, 1, 1)."""
        return self.node("ReduceSum", x, self.constant([2, 3], "int64"), keepdims=1)

    def reflected(self, x: Name, padding: int) -> Name:
        """Height and width continued by reflection to all sides."""
        return self.node("Pad", x, self.constant([0, 0, padding, padding, 0, 0, padding, padding], "int64"), mode="reflect")

    def enlarged(self, x: Name) -> Name:
        """Every pixel twice in height and width."""
        scales = self.constant([1, 1, 2, 2], "float32")
        return self.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")

    def cut_to(self, x: Name, like: Name) -> Name:
        """The upper left part of x that is as high and as wide as `like`."""
        start, end, axes = (self.constant(value, "int64") for value in ([2], [4], [0]))
        sides = self.node("Slice", self.node("Shape", like), start, end, axes)
        return self.node("Slice", x, self.constant([0, 0], "int64"), sides, self.constant([2, 3], "int64"))

    def mean_of_neighbours(self, x: Name) -> Name:
        """The mean of 3 x 3 pixels, with the border continued outwards."""
        padded = self.node("Pad", x, self.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), mode="edge")
        return self.node("AveragePool", padded, kernel_shape=[3, 3])

    def every(self, x: Name, step: int) -> Name:
        """Every so many pixels in height and width, from the first on."""
        if step == 1:
            return x
        first, last, axes, steps = ([0, 0], [2**31 - 1] * 2, [2, 3], [step, step])
        return self.node("Slice", x, *(self.constant(value, "int64") for value in (first, last, axes, steps)))

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str) -> onnx.ModelProto:
        """The finished model. ValueError: it is not a valid one."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="spn_jax")
        onnx.checker.check_model(model, full_check=True)
        return model


def described(name: Name, dtype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output; a side that is a word may have any length."""
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)
