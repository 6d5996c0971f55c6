"""Which nodes of a graph are dropout: Dropout nodes that drop, and what exporters write in their place.

Knows onnx and numpy; no engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from contract.errors import LoweringError
from contract.graph.nodes import PREFIX, prune

_DRAWS: Final = "RandomUniformLike"
_FILLS: Final = frozenset({"Expand", "ConstantOfShape"})


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return the tensors that are known before any image is: initializers and Constant nodes with a tensor."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def dimensions(info: ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape: whole numbers, names of symbolic axes, or "" where nothing is known."""
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in info.type.tensor_type.shape.dim
    )


def dropout_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the Dropout nodes that drop, in the order of the graph."""
    known = constants(model)
    return [node for node in model.graph.node if is_active(node, known)]


def is_active(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Say whether a node is a Dropout that drops. From opset 12 on, `training_mode` is its third input.

    Raises:
        LoweringError: if that is known at run time only.
    """
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    if mode is None:
        raise LoweringError(
            f"the training_mode of Dropout {node.name or node.output[0]!r} is computed at run time; it must be "
            "a constant"
        )
    return bool(numpy_helper.to_array(mode)) and drop_probability(node, constants) > 0


def drop_probability(node: NodeProto, constants: Mapping[str, TensorProto]) -> float:
    """Return with which probability a Dropout node drops.

    Raises:
        LoweringError: if that is known at run time only.
    """
    if not node.input[1]:
        return 0.5  # the operator's default
    if node.input[1] not in constants:
        raise LoweringError(
            f"the ratio of Dropout {node.name or node.output[0]!r} is computed at run time; it must be a constant"
        )
    return float(numpy_helper.to_array(constants[node.input[1]]))


def restore(model: ModelProto) -> ModelProto:
    """Return a graph in which a dropout that torch wrote as random numbers and a product is a Dropout node.

    So it writes those that work in place, which mean the same. The model is not changed.

    Raises:
        LoweringError: if whole channels are dropped.
    """
    if not any(node.op_type == _DRAWS for node in model.graph.node):
        return model
    return _Restoring(model).run()


@dataclass(frozen=True, slots=True)
class _Spelled:
    """A dropout as torch spells it out: uniform numbers below what is kept, as numbers, over what is kept, a factor."""

    like: str
    """What has as many uniform numbers."""
    product: NodeProto
    source: str
    """What is dropped."""
    keep: float


class _Restoring:
    """One search through a graph."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.constants = constants(model)
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        infos = [*inferred.input, *inferred.value_info, *inferred.output]
        self.shapes = {info.name: dimensions(info) for info in infos}

    def run(self) -> ModelProto:
        spelled = [found for node in self.model.graph.node if (found := self._read(node))]
        for each in spelled:
            self._check_shape(each)
        return self._replace(spelled) if spelled else self.model

    def _read(self, draw: NodeProto) -> _Spelled | None:
        if draw.op_type != _DRAWS:
            return None
        less = self._only_reader(draw, "Less")
        cast = self._only_reader(less, "Cast")
        divided = self._only_reader(cast, "Div")
        product = self._only_reader(divided, "Mul")
        if less is None or cast is None or divided is None or product is None:
            return None
        keep = self._constant(less.input[1])
        if keep is None or keep != self._constant(divided.input[1]):
            return None
        (source,) = set(product.input) - set(divided.output)
        return _Spelled(draw.input[0], product, source, keep)

    def _only_reader(self, node: NodeProto | None, op: str) -> NodeProto | None:
        readers = [] if node is None else self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == op else None

    def _constant(self, name: str) -> float | None:
        tensor = self.constants.get(name)
        return None if tensor is None or tensor.dims else float(numpy_helper.to_array(tensor))

    def _check_shape(self, each: _Spelled) -> None:
        """Make sure that each value is dropped by itself."""
        made = self.producers.get(each.like)
        if made is not None and made.op_type in _FILLS:
            measured = self.producers.get(made.input[-1])
            if measured is not None and measured.op_type == "Shape" and measured.input[0] == each.source:
                return
        if each.like != each.source and self.shapes.get(each.like) != self.shapes.get(each.source, ()):
            raise LoweringError(
                "the graph drops whole channels, as torch.nn.Dropout2d does; only dropout of each value by itself can "
                "be given masks: use torch.nn.Dropout in place of that one"
            )

    def _replace(self, spelled: list[_Spelled]) -> ModelProto:
        restored = ModelProto()
        restored.CopyFrom(self.model)
        graph, training = restored.graph, f"{PREFIX}training"
        graph.initializer.append(numpy_helper.from_array(np.array(True), training))
        products = {each.product.output[0]: (each, f"{PREFIX}ratio_{i}") for i, each in enumerate(spelled)}
        for each, ratio in products.values():
            graph.initializer.append(numpy_helper.from_array(np.array(1 - each.keep, np.float32), ratio))
        nodes = []
        for node in self.model.graph.node:
            if node.output[0] in products:
                each, ratio = products[node.output[0]]
                nodes.append(helper.make_node("Dropout", [each.source, ratio, training], node.output, name=node.name))
            else:
                nodes.append(node)
        del graph.node[:]
        graph.node.extend(prune(nodes, [info.name for info in graph.output]))
        return restored
