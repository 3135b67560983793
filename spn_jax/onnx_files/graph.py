"""Collects the nodes and weights of an ONNX graph. Maps are b c h w, as ONNX has them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# the newest opset that ONNX Runtime Web 1.16 and later run; its reductions take their axes as
# attributes
OPSET = 17
IR_VERSION = 8  # version of the file format that belongs to this opset

Precision = Literal["float32", "float16"]
Name = str  # the name of a value in the graph

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
        precision: the type of convolutions and their stored weights. Statistics are always float32.
    """

    def __init__(self, precision: Precision):
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[Name, onnx.TensorProto] = {}

    def node(self, operation: str, *inputs: Name, **attributes: Any) -> Name:
        """Adds a node of one output and returns its name. An input "" is left out."""
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def called(self, value: Name, name: Name) -> Name:
        """Gives a value another name, for an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        return name

    def weight(self, name: Name, array: np.ndarray) -> Name:
        """Adds a constant array under a given name; the same name always means the same array."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def constant(self, value: Any, dtype: str) -> Name:
        """Adds a small constant, a number or a list of numbers."""
        array = np.asarray(value, dtype)
        return self.weight(f"{dtype}_{'_'.join(map(str, array.ravel().tolist()))}_{array.ndim}", array)

    def number(self, value: float, like: Precision | None = None) -> Name:
        """Adds a number, in the compute precision by default."""
        return self.constant(value, like or self.precision)

    def cast(self, x: Name, dtype: str) -> Name:
        return self.node("Cast", x, to=TYPES[dtype])

    def narrow(self, x: Name) -> Name:
        """Casts float32 to the compute precision."""
        return x if self.precision == "float32" else self.cast(x, self.precision)

    def wide(self, x: Name) -> Name:
        """Casts the compute precision to float32."""
        return x if self.precision == "float32" else self.cast(x, "float32")

    def add(self, *values: Name) -> Name:
        total, *rest = values
        for value in rest:
            total = self.node("Add", total, value)
        return total

    def multiply(self, a: Name, b: Name) -> Name:
        return self.node("Mul", a, b)

    def complement(self, x: Name, dtype: Precision = "float32") -> Name:
        """Returns 1 - x."""
        return self.node("Sub", self.number(1, dtype), x)

    def concatenate(self, *values: Name) -> Name:
        """Concatenates along the channels."""
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=1)

    def relu(self, x: Name) -> Name:
        return self.node("Relu", x)

    def leaky_relu(self, x: Name, slope: float = 0.2) -> Name:
        return self.node("LeakyRelu", x, alpha=slope) if slope else self.relu(x)

    def mean_of_pixels(self, x: Name) -> Name:
        """Averages the pixels, (b, c, h, w) -> (b, c, 1, 1)."""
        return self.node("ReduceMean", x, axes=[2, 3], keepdims=1)

    def sum_of_pixels(self, x: Name) -> Name:
        """Sums the pixels, (b, c, h, w) -> (b, c, 1, 1)."""
        return self.node("ReduceSum", x, self.constant([2, 3], "int64"), keepdims=1)

    def reflected(self, x: Name, padding: int) -> Name:
        """Pads height and width by reflection on all sides."""
        return self.node("Pad", x, self.constant([0, 0, padding, padding, 0, 0, padding, padding], "int64"), mode="reflect")

    def enlarged(self, x: Name) -> Name:
        """Repeats every pixel twice in height and width."""
        scales = self.constant([1, 1, 2, 2], "float32")
        return self.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")

    def cut_to(self, x: Name, like: Name) -> Name:
        """Cuts x to the height and width of `like`, from the upper left."""
        start, end, axes = (self.constant(value, "int64") for value in ([2], [4], [0]))
        sides = self.node("Slice", self.node("Shape", like), start, end, axes)
        return self.node("Slice", x, self.constant([0, 0], "int64"), sides, self.constant([2, 3], "int64"))

    def mean_of_neighbours(self, x: Name) -> Name:
        """Returns the mean of 3 x 3 pixels, with the border replicated."""
        padded = self.node("Pad", x, self.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), mode="edge")
        return self.node("AveragePool", padded, kernel_shape=[3, 3])

    def every(self, x: Name, step: int) -> Name:
        """Subsamples height and width by `step`, from the first pixel on."""
        if step == 1:
            return x
        first, last, axes, steps = ([0, 0], [2**31 - 1] * 2, [2, 3], [step, step])
        return self.node("Slice", x, *(self.constant(value, "int64") for value in (first, last, axes, steps)))

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str) -> onnx.ModelProto:
        """Returns the finished model. Raises ValueError if it is not valid."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="spn_jax")
        onnx.checker.check_model(model, full_check=True)
        return model


def described(name: Name, dtype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Describes an input or output; a side given as a word may have any length."""
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)
