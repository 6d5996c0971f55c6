"""Writing ONNX graphs node by node, and the reduction that every graph of passes ends in. Knows onnx and numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

PREFIX = "labelnext_"
"""Of all names that are added to a graph."""

OUTPUTS = ("mean_probabilities", "bald", "entropy", "pass_probabilities")


class GraphBuilder:
    """The nodes and constants of a graph so far, in an order in which they can run."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output, and return that output's name."""
        output = output or f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        """Add a constant, and return its name."""
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 vector, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def concat(self, names: Sequence[str], axis: int = 0) -> str:
        """Join tensors along an axis."""
        return self.add("Concat", names, axis=axis)

    def join(self, name: str, rest: str, output: str | None = None) -> str:
        """Reshape to (-1, *rest), where `rest` names a tensor that holds a shape."""
        return self.add("Reshape", [name, self.concat([self.integers(-1), rest])], output)

    def reduce(self, logits: str) -> None:
        """Reduce the passes' logits (N, T, C), float32, to `OUTPUTS`.

        BALD is computed as mean_t sum_c p log p - sum_c m log m = H[m] - mean_t H[p_t], with m = mean_t p_t.
        """
        passes = self.add("Softmax", [logits], "pass_probabilities", axis=2)
        terms = self.add("Mul", [passes, self.add("LogSoftmax", [logits], axis=2)])  # p log p
        known = self.add("ReduceSum", [terms, self.integers(2)], keepdims=0)  # (N, T)
        known = self.add("ReduceMean", [known, self.integers(1)], keepdims=0)  # (N,)
        mean = self.add("ReduceMean", [passes, self.integers(1)], "mean_probabilities", keepdims=0)  # (N, C)
        least = self.constant(np.array(np.finfo(np.float32).tiny))  # so that 0 log 0 is 0
        terms = self.add("Mul", [mean, self.add("Log", [self.add("Max", [mean, least])])])  # m log m
        total = self.add("ReduceSum", [terms, self.integers(1)], keepdims=0)  # (N,)
        self.add("Neg", [total], "entropy")
        self.add("Relu", [self.add("Sub", [known, total])], "bald")  # rounding below 0 is clipped


def describe_outputs(batch: int | str, classes: int | str) -> list[ValueInfoProto]:
    """Return the types and shapes of `OUTPUTS`."""
    shapes: list[list[int | str]] = [[batch, classes], [batch], [batch], [batch, "T", classes]]
    return [describe(name, shape) for name, shape in zip(OUTPUTS, shapes, strict=True)]


def describe(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    """Return the type and shape of a float32 tensor."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
