"""What a graph from elsewhere is looked over for before anything computes with it, or opens what it refers to.

Digests say that a file is the one that was published, not who published it. A graph may name any file as one that holds
its weights, claim tensors of any size, and hold functions that grow without bounds when they are written out; engines
check some of it, each on its own terms.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto

from contract.errors import UnsafeGraph

REMEDY: Final = "publish again with the trainer, or roll back to an earlier version"
MOST_NODES: Final = 100_000
"""Of a graph whose functions are written out; a VGG-16 has about 60."""
MOST_FUNCTIONS: Final = 200
"""Exporters write a few, one for each kind of operator that they break up."""

_STANDARD = ("", "ai.onnx")
_ELEMENTS_A_BYTE = 4
"""At most: the smallest type takes two bits."""
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}

_Name = tuple[str, str, str]
"""Of a function: domain, name and overload."""


def inspect_graph(model: ModelProto, *, weights_bytes: Mapping[str, int]) -> None:
    """Raise UnsafeGraph of a graph that no trainer of ours writes and that would not be safe to open.

    That has weights outside itself and these files beside it, of which the lengths are given; tensors larger than what
    they hold; branches, loops or other nested graphs; operators that are not ONNX's own; or too many nodes. The model
    is loaded without its external data.
    """
    graph = model.graph
    if graph.sparse_initializer or model.training_info:
        raise UnsafeGraph(f"the graph has sparse weights or training information, none is expected; {REMEDY}")
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    if len(model.functions) > MOST_FUNCTIONS or len(functions) < len(model.functions):
        raise UnsafeGraph(
            f"the graph has {len(model.functions)} functions of {len(functions)} names; one for each name and at most "
            f"{MOST_FUNCTIONS} are expected; {REMEDY}"
        )
    _check_length(model, functions)
    for node in _nodes(model):
        _check_node(node, functions)
    for tensor in _tensors(model):
        _check_tensor(tensor, weights_bytes)


def _check_length(model: ModelProto, functions: Mapping[_Name, FunctionProto]) -> None:
    """Count the nodes as they are when each call of a function is replaced by the function's own nodes."""
    lengths: dict[_Name, float] = {}

    def measure(node: NodeProto) -> float:
        name = _called(node)
        if name in functions and name not in lengths:
            lengths[name] = math.inf  # for a function that calls itself
            lengths[name] = sum(map(measure, functions[name].node))
        return 1 + lengths.get(name, 0)

    if (total := sum(map(measure, model.graph.node))) > MOST_NODES:
        raise UnsafeGraph(
            f"the graph has {total:.0f} nodes when its functions are written out, at most {MOST_NODES} are taken; "
            f"{REMEDY}"
        )


def _called(node: NodeProto) -> _Name:
    return node.domain, node.op_type, node.overload


def _check_node(node: NodeProto, functions: Mapping[_Name, FunctionProto]) -> None:
    name = (node.name or node.op_type)[:80]
    if node.domain not in _STANDARD and _called(node) not in functions:
        raise UnsafeGraph(
            f"node {name!r} is of the domain {node.domain!r}; only ONNX's own operators are expected; {REMEDY}"
        )
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise UnsafeGraph(f"node {name!r} branches or loops; a network without control flow is expected")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise UnsafeGraph(f"node {name!r} holds a sparse tensor, none is expected; {REMEDY}")


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
    held = _external_bytes(tensor, weights_bytes) if is_external else tensor.ByteSize()
    elements = math.prod(tensor.dims)
    if min(tensor.dims, default=0) < 0 or elements > held * _ELEMENTS_A_BYTE:
        raise UnsafeGraph(
            f"tensor {tensor.name[:80]!r} is said to be of shape {list(tensor.dims)[:8]} and holds {held} bytes: the "
            f"graph was edited; {REMEDY}"
        )


def _external_bytes(tensor: TensorProto, weights_bytes: Mapping[str, int]) -> int:
    """Return how many bytes of its file a tensor takes, which must all be there."""
    keys = [entry.key for entry in tensor.external_data]
    entries = {entry.key: entry.value for entry in tensor.external_data}
    # Of two entries of one name one reader takes the first, another the last.
    if len(keys) != len(entries) or not _EXTERNAL_KEYS.issuperset(keys):
        raise UnsafeGraph(f"tensor {tensor.name[:80]!r} says {keys[:8]} of where it lies; {REMEDY}")
    file = entries.get("location", "")
    if file not in weights_bytes:
        places = " or ".join(["the graph itself", *(f"{name} beside it" for name in sorted(weights_bytes))])
        raise UnsafeGraph(f"tensor {tensor.name[:80]!r} lies in {file[:80]!r}; weights must lie in {places}; {REMEDY}")
    offset = _whole(entries.get("offset", "0"))
    length = _whole(entries.get("length", str(max(0, weights_bytes[file] - offset))))
    if offset + length > weights_bytes[file]:
        raise UnsafeGraph(
            f"tensor {tensor.name[:80]!r} takes bytes {offset} to {offset + length} of {file}, which has "
            f"{weights_bytes[file]}; {REMEDY}"
        )
    return length


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UnsafeGraph(f"{text[:40]!r} is no place in a file of weights; {REMEDY}")
    return int(text)
