"""Safety checks of a graph, before anything computes with it or opens the files that it refers to.

Digests prove that a file is the published one, not who published it. A graph may name any file as its weights, claim
tensors of any size, and contain functions whose inlining grows without bounds; engines check only some of this.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto

from contract.errors import UnsafeGraph

REMEDY: Final = "publish again with the trainer, or roll back to an earlier version"
MAX_NODES: Final = 100_000
"""Nodes of a graph after inlining its functions; a VGG-16 has about 60."""
MAX_FUNCTIONS: Final = 200
"""Exporters write a few, one per kind of decomposed operator."""

_STANDARD = ("", "ai.onnx")
_ELEMENTS_A_BYTE = 4
"""Upper bound: the smallest type takes two bits."""
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}

_Name = tuple[str, str, str]
"""Domain, name and overload of a function."""


def inspect_graph(model: ModelProto, *, weights_bytes: Mapping[str, int]) -> None:
    """Raise UnsafeGraph for a graph that our trainer would not write, and that would not be safe to open.

    These have weights outside the graph and the files in `weights_bytes`, whose lengths it gives; tensors larger than
    their data; nested graphs such as branches and loops; non-standard operators; or too many nodes. The model is loaded
    without external data.
    """
    graph = model.graph
    if graph.sparse_initializer or model.training_info:
        raise UnsafeGraph(f"the graph has sparse weights or training information, none is expected; {REMEDY}")
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    if len(model.functions) > MAX_FUNCTIONS or len(functions) < len(model.functions):
        raise UnsafeGraph(
            f"the graph has {len(model.functions)} functions of {len(functions)} names; one for each name and at most "
            f"{MAX_FUNCTIONS} are expected; {REMEDY}"
        )
    _check_length(model, functions)
    for node in _nodes(model):
        _check_node(node, functions)
    for tensor in _tensors(model):
        _check_tensor(tensor, weights_bytes)


def _check_length(model: ModelProto, functions: Mapping[_Name, FunctionProto]) -> None:
    """Limit the number of nodes after inlining all functions."""
    lengths: dict[_Name, float] = {}

    def measure(node: NodeProto) -> float:
        name = _function_name(node)
        if name in functions and name not in lengths:
            lengths[name] = math.inf  # for recursive functions
            lengths[name] = sum(map(measure, functions[name].node))
        return 1 + lengths.get(name, 0)

    if (total := sum(map(measure, model.graph.node))) > MAX_NODES:
        raise UnsafeGraph(
            f"the graph has {total:.0f} nodes after inlining its functions, at most {MAX_NODES} are allowed; {REMEDY}"
        )


def _function_name(node: NodeProto) -> _Name:
    return node.domain, node.op_type, node.overload


def _check_node(node: NodeProto, functions: Mapping[_Name, FunctionProto]) -> None:
    name = (node.name or node.op_type)[:80]
    if node.domain not in _STANDARD and _function_name(node) not in functions:
        raise UnsafeGraph(
            f"node {name!r} is of the domain {node.domain!r}; only ONNX's own operators are expected; {REMEDY}"
        )
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise UnsafeGraph(f"node {name!r} branches or loops; a network without control flow is expected; {REMEDY}")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise UnsafeGraph(f"node {name!r} has a sparse tensor, none is expected; {REMEDY}")


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    return chain(model.graph.node, *(function.node for function in model.functions))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    defaults = (function.attribute_proto for function in model.functions)
    for attribute in chain(*defaults, *(node.attribute for node in _nodes(model))):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _check_tensor(tensor: TensorProto, weights_bytes: Mapping[str, int]) -> None:
    is_external = tensor.data_location != TensorProto.DEFAULT or len(tensor.external_data) > 0
    size_bytes = _external_bytes(tensor, weights_bytes) if is_external else tensor.ByteSize()
    elements = math.prod(tensor.dims)
    if min(tensor.dims, default=0) < 0 or elements > size_bytes * _ELEMENTS_A_BYTE:
        raise UnsafeGraph(
            f"tensor {tensor.name[:80]!r} claims shape {list(tensor.dims)[:8]} and has {size_bytes} bytes: the graph "
            f"was edited; {REMEDY}"
        )


def _external_bytes(tensor: TensorProto, weights_bytes: Mapping[str, int]) -> int:
    """Return a tensor's size in an external file, and check that the file has these bytes."""
    keys = [entry.key for entry in tensor.external_data]
    entries = {entry.key: entry.value for entry in tensor.external_data}
    # Readers disagree about which of two entries of the same name counts.
    if len(keys) != len(entries) or not _EXTERNAL_KEYS.issuperset(keys):
        raise UnsafeGraph(f"tensor {tensor.name[:80]!r} has an invalid location with the keys {keys[:8]}; {REMEDY}")
    file = entries.get("location", "")
    if file not in weights_bytes:
        places = " or ".join(["the graph itself", *(f"{name} beside it" for name in sorted(weights_bytes))])
        raise UnsafeGraph(
            f"tensor {tensor.name[:80]!r} is stored in {file[:80]!r}; weights must be in {places}; {REMEDY}"
        )
    offset = _parse_integer(entries.get("offset", "0"))
    length = _parse_integer(entries.get("length", str(max(0, weights_bytes[file] - offset))))
    if offset + length > weights_bytes[file]:
        raise UnsafeGraph(
            f"tensor {tensor.name[:80]!r} claims bytes {offset} to {offset + length} of {file}, which has "
            f"{weights_bytes[file]}; {REMEDY}"
        )
    return length


def _parse_integer(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UnsafeGraph(f"{text[:40]!r} is not a valid offset or length of weights; {REMEDY}")
    return int(text)
