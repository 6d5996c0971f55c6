"""Active Dropout nodes of a graph and their probabilities; LoweringError if these are computed at run time."""

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from contract.errors import LoweringError


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return the constant tensors by name: initializers, and Constant nodes with a tensor."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return tensors


def dropout_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the active Dropout nodes in the order of the graph."""
    known = constants(model)
    return [node for node in model.graph.node if is_active(node, known)]


def is_active(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Return whether a node is an active Dropout. Since opset 12 its third input is `training_mode`."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = _constant_input(node, 2, "training_mode", constants)
    return bool(numpy_helper.to_array(mode)) and drop_probability(node, constants) > 0


def drop_probability(node: NodeProto, constants: Mapping[str, TensorProto]) -> float:
    """Return the drop probability of a Dropout node."""
    if not node.input[1]:
        return 0.5  # the operator's default
    return float(numpy_helper.to_array(_constant_input(node, 1, "ratio", constants)))


def _constant_input(node: NodeProto, index: int, name: str, constants: Mapping[str, TensorProto]) -> TensorProto:
    if node.input[index] not in constants:
        raise LoweringError(
            f"the {name} of Dropout {node.name or node.output[0]!r} is computed at run time; it must be a constant"
        )
    return constants[node.input[index]]
