"""SpecialisedHeads heads: the passes of fixed masks, without the products with zero.

Under given masks a pass is a network of its own, thinned by the units that are off (Srivastava et al. 2014, section 2).
Where the masks are a version's and stay, the T thinned networks can be written down once: of each linear layer between
two Dropouts only the columns of the units that are on before it and the rows of those that are on behind it, which for
p = 1/2 is a quarter. The results are those of the masked products, up to rounding; each pass needs weights of its own,
so a head is thinned only while that fits a limit. Knows onnx and numpy; no engine.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from contract.graph.builder import GraphBuilder
from contract.graph.dropouts import dropout_nodes
from contract.graph.lowering import FEATURES, Lowered
from contract.graph.masks import Masks, mask_name

_ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Elu", "Selu", "Gelu", "Sigmoid", "Tanh"})

_ROWS_AT_ONCE = 128
"""Of a weight that is copied: few enough to stay in a processor's cache."""

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpecialisedHeads:
    """The heads of all passes, in one graph.

    `model` takes `features` float32 (N, F) and gives `contract.graph.builder.OUTPUTS`. The weights of its
    linear layers are not in it: they are declared as external data, and to be handed to the engine by name.
    """

    model: ModelProto
    weights: Mapping[str, Weights]


@dataclass(frozen=True, slots=True)
class _Linear:
    """x (N, inputs) to x W^T + b, with the Dropouts before and behind it."""

    node: NodeProto
    before: int
    """Site of the Dropout that drops its inputs."""
    behind: int | None
    """Site of the one that drops its outputs, with only elementwise functions between; None for the last layer."""
    activations: tuple[NodeProto, ...]
    """What is applied to its outputs."""


def specialise(
    literal: ModelProto, lowered: Lowered, folder: Path, masks: Masks, *, most_bytes: int
) -> SpecialisedHeads | None:
    """Write down the heads of a graph under masks (T, D); None if it cannot be or is not worth it.

    It can be where everything behind the first Dropout is a chain of Dropout, linear layer, elementwise function,
    Dropout, and so on up to a last linear layer, as in a VGG. `literal` is the graph that `lowered` was made from,
    `folder` where its weights are. The weights of all passes together take at most `most_bytes`.
    """
    layers = _parse(literal)
    if layers is None or len(lowered.sites) != len(layers) or any(len(site.features) > 1 for site in lowered.sites):
        return None
    dense = {tensor.name: tensor for tensor in literal.graph.initializer}
    if _estimate(layers, dense, masks) > most_bytes:
        return None
    full = [_read_layer(layer.node, dense, folder) for layer in layers]
    kept = [_specialise_layer(layer, *weights, masks) for layer, weights in zip(layers, full, strict=True)]
    return _write(lowered, layers, kept, masks)


def _parse(literal: ModelProto) -> list[_Linear] | None:
    """Return the linear layers behind the first Dropout, if that is a chain of the form that can be specialised."""
    active = [node.output[0] for node in dropout_nodes(literal)]
    chain = _chain(literal, active[0]) if active else None  # a function's nodes are not the graph's
    if chain is None:
        return None
    constants = {tensor.name for tensor in literal.graph.initializer}
    site = 0
    layers: list[_Linear] = []
    between: list[NodeProto] = []
    expects_linear = True
    for node in chain:
        if expects_linear:
            if not _is_linear(node, constants):
                return None
            layers.append(_Linear(node, site, None, ()))
            expects_linear = False
        elif node.output[0] in active:
            site += 1
            layers[-1] = _Linear(layers[-1].node, layers[-1].before, site, tuple(between))
            between.clear()
            expects_linear = True
        elif node.op_type in _ELEMENTWISE:
            between.append(node)
        else:
            return None
    return None if expects_linear or between else layers


def _chain(literal: ModelProto, start: str) -> list[NodeProto] | None:
    """Return the nodes from a tensor to the graph's output, each fed by the one before.

    None if they branch, or if one is of a domain in which its name may mean something else.
    """
    chain: list[NodeProto] = []
    tip = start
    while tip != literal.graph.output[0].name:
        readers = [node for node in literal.graph.node if tip in node.input]
        if len(readers) != 1 or readers[0].input[0] != tip or readers[0].domain:
            return None
        chain.append(readers[0])
        tip = readers[0].output[0]
    return chain


def _is_linear(node: NodeProto, constants: set[str]) -> bool:
    if node.op_type not in ("Gemm", "MatMul") or not constants.issuperset(node.input[1:]):
        return False
    plain = {"transA": 0, "alpha": 1, "beta": 1}
    return all(a.name == "transB" or helper.get_attribute_value(a) == plain[a.name] for a in node.attribute)


def _is_transposed(node: NodeProto) -> bool:
    return any(a.name == "transB" and a.i == 1 for a in node.attribute)


def _estimate(layers: Sequence[_Linear], dense: Mapping[str, TensorProto], masks: Masks) -> int:
    """Return the bytes of all specialised weights; biases are next to nothing."""
    total = 0
    for layer in layers:
        shape = dense[layer.node.input[1]].dims
        outputs = shape[0] if _is_transposed(layer.node) else shape[1]
        before = np.count_nonzero(masks[mask_name(layer.before)], axis=1)  # (T,)
        behind = np.count_nonzero(masks[mask_name(layer.behind)], axis=1) if layer.behind is not None else outputs
        total += int((before * behind).sum()) * np.dtype(np.float32).itemsize
    return total


def _read_layer(node: NodeProto, dense: Mapping[str, TensorProto], folder: Path) -> tuple[Weights, Weights]:
    """Return weight (outputs, inputs) and bias (outputs,)."""
    weight = numpy_helper.to_array(dense[node.input[1]], str(folder))
    if not _is_transposed(node):
        weight = np.ascontiguousarray(weight.T)
    if len(node.input) < 3:
        return weight, np.zeros(len(weight), np.float32)
    bias = numpy_helper.to_array(dense[node.input[2]], str(folder))
    return weight, np.broadcast_to(bias.reshape(-1), len(weight))


def _specialise_layer(layer: _Linear, weight: Weights, bias: Weights, masks: Masks) -> list[tuple[Weights, Weights]]:
    """Return what is left of a layer in each pass, of the units that are on.

    Weight (units behind, units before), scaled by 1 / (1 - p), and bias (units behind,).
    """
    before = masks[mask_name(layer.before)]  # (T, inputs)
    every = np.arange(len(weight))

    def keep(index: int) -> tuple[Weights, Weights]:
        rows = every if layer.behind is None else np.flatnonzero(masks[mask_name(layer.behind)][index])
        return _take(weight, rows, before[index]), bias.take(rows)

    with ThreadPoolExecutor() as pool:  # numpy copies without holding the interpreter
        return list(pool.map(keep, range(len(before))))


def _take(weight: Weights, rows: npt.NDArray[np.int64], scale: Weights) -> Weights:
    """Return some rows of (outputs, inputs), of the columns where `scale` (inputs,) is not 0, times `scale`."""
    columns = np.flatnonzero(scale)
    taken = np.empty((len(rows), len(columns)), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = taken[start : start + _ROWS_AT_ONCE]
        np.take(weight[rows[start : start + _ROWS_AT_ONCE]], columns, axis=1, out=part, mode="clip")  # checks nothing
        part *= scale[columns]
    return taken


def _write(
    lowered: Lowered, layers: Sequence[_Linear], kept: Sequence[Sequence[tuple[Weights, Weights]]], masks: Masks
) -> SpecialisedHeads:
    """Write the graph of all passes."""
    graph, weights, logits = GraphBuilder(), dict[str, Weights](), []
    one = graph.integers(1)
    for index, first in enumerate(masks[mask_name(layers[0].before)]):
        tip = graph.add("Gather", [FEATURES, graph.constant(np.flatnonzero(first))], axis=1)
        for number, layer in enumerate(layers):
            name, (weight, bias) = f"weight_{number}_{index}", kept[number][index]
            weights[name] = weight
            tip = graph.add("Gemm", [tip, name, graph.constant(bias)], transB=1)
            for activation in layer.activations:
                attributes = {a.name: helper.get_attribute_value(a) for a in activation.attribute}
                tip = graph.add(activation.op_type, [tip], **attributes)
        logits.append(graph.add("Unsqueeze", [tip, one]))  # (N, 1, C)
    graph.reduce(graph.concat(logits, axis=1), multiple=lowered.multiple)  # (N, T, C)
    head = lowered.head
    features = [info for info in head.graph.input if info.name == FEATURES]
    known = [*graph.constants, *(_declare(name, weight) for name, weight in weights.items())]
    written = helper.make_graph(graph.nodes, head.graph.name, features, head.graph.output, known)
    return SpecialisedHeads(
        helper.make_model(written, opset_imports=head.opset_import, ir_version=head.ir_version), weights
    )


def _declare(name: str, value: Weights) -> TensorProto:
    """Return a weight that is to be found elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="given to the engine")
    return tensor
