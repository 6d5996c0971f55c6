"""Builds ONNX graphs node by node, with the final reduction of passes to scores."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

PREFIX = "labelnext_"
"""Prefix of the names that the lowering adds."""

RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

OUTPUTS = ("mean_probabilities", "bald", "entropy", "pass_probabilities")


class GraphBuilder:
    """Nodes and constants of a graph, in topological order."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        output = output or f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        """Add a constant, and return its name."""
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 vector, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def assemble(
        self, literal: ModelProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> ModelProto:
        """Return a graph of the outputs, with the needed nodes, constants and weights of the literal graph."""
        nodes = prune(self.nodes, [info.name for info in outputs])
        used = {name for node in nodes for name in node.input}
        weights = [tensor for tensor in (*literal.graph.initializer, *self.constants) if tensor.name in used]
        graph = helper.make_graph(nodes, literal.graph.name, inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=literal.opset_import, ir_version=literal.ir_version)

    def concat(self, names: Sequence[str]) -> str:
        """Concatenate tensors along the first axis."""
        return self.add("Concat", names, axis=0)

    def join(self, name: str, shape: str, output: str | None = None) -> str:
        """Reshape to (-1, *shape), where `shape` names a tensor."""
        return self.add("Reshape", [name, self.concat([self.integers(-1), shape])], output)

    def reduce(self, logits: str, *, multiple: bool) -> None:
        """Reduce logits (N, T, C), float32, to `OUTPUTS`.

        BALD is H[m] - mean_t H[p_t] with m = mean_t p_t. With `multiple` labels, of which any number may apply, p are
        sigmoids, and BALD and entropy are sums over the labels of the binary values.
        """
        if multiple:
            self._reduce_sigmoids(logits)
        else:
            self._reduce_softmax(logits)

    def _reduce_softmax(self, logits: str) -> None:
        passes = self.add("Softmax", [logits], "pass_probabilities", axis=2)
        terms = self.add("Mul", [passes, self.add("LogSoftmax", [logits], axis=2)])  # p log p
        known = self.add("ReduceSum", [terms, self.integers(2)], keepdims=0)  # (N, T)
        known = self.add("ReduceMean", [known, self.integers(1)], keepdims=0)  # (N,)
        mean = self.add("ReduceMean", [passes, self.integers(1)], "mean_probabilities", keepdims=0)  # (N, C)
        total = self.add("ReduceSum", [self._multiply_by_log(mean), self.integers(1)], keepdims=0)  # (N,)
        self.add("Neg", [total], "entropy")
        self.add("Relu", [self.add("Sub", [known, total])], "bald")  # clips rounding errors below 0

    def _reduce_sigmoids(self, logits: str) -> None:
        """Compute with the less likely of a label and its absence: 1 - p loses precision if p is close to 1.

        With d = |x|, the likelier has log q = -softplus(-d), the other log q - d, and the binary entropy is -log q + d
        (1 - q), whose terms are not negative.
        """
        distance = self.add("Abs", [logits])
        surprise = self.add("Softplus", [self.add("Neg", [distance])])  # -log q
        likelier = self.add("Exp", [self.add("Neg", [surprise])])
        unlikelier = self.add("Exp", [self.add("Neg", [self.add("Add", [distance, surprise])])])
        is_positive = self.add("Greater", [logits, self.constant(np.array(0, np.float32))])
        passes = self.add("Where", [is_positive, likelier, unlikelier], "pass_probabilities")
        absence = self.add("Where", [is_positive, unlikelier, likelier])
        mean = self.add("ReduceMean", [passes, self.integers(1)], "mean_probabilities", keepdims=0)  # (N, C)
        mean_absence = self.add("ReduceMean", [absence, self.integers(1)], keepdims=0)  # (N, C)
        total = self.add("Add", [self._multiply_by_log(mean), self._multiply_by_log(mean_absence)])  # (N, C), -H
        known = self.add("Add", [surprise, self.add("Mul", [distance, unlikelier])])  # (N, T, C)
        known = self.add("ReduceMean", [known, self.integers(1)], keepdims=0)  # (N, C)
        self.add("Neg", [self.add("ReduceSum", [total, self.integers(1)], keepdims=0)], "entropy")
        lost = self.add("ReduceSum", [self.add("Add", [total, known]), self.integers(1)], keepdims=0)  # (N,), -BALD
        self.add("Relu", [self.add("Neg", [lost])], "bald")

    def _multiply_by_log(self, p: str) -> str:
        """Add p log p, with 0 log 0 = 0."""
        smallest = self.constant(np.array(np.finfo(np.float32).tiny))
        return self.add("Mul", [p, self.add("Log", [self.add("Max", [p, smallest])])])


def describe_outputs(batch: int | str, classes: int | str) -> list[ValueInfoProto]:
    """Return the types and shapes of `OUTPUTS`."""
    shapes: list[list[int | str]] = [[batch, classes], [batch], [batch], [batch, "T", classes]]
    return [describe(name, shape) for name, shape in zip(OUTPUTS, shapes, strict=True)]


def describe(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    """Return the type and shape of a float32 tensor."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def shape_of(info: ValueInfoProto) -> tuple[int | str, ...]:
    """Return the shape of a tensor: sizes, names of symbolic axes, or "" if unknown."""
    axes = info.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes)


def prune(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes that the outputs depend on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
