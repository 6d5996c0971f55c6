"""From somebody's graph to one of ours: pixels in front, pooling behind, no Dropout, one input and one output.

Knows onnx and numpy; no engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper

from contract.errors import ConfigError, name_some
from contract.graph.builder import RANDOM_OPS, GraphBuilder, describe, prune, shape_of
from contract.graph.lowering import FEATURES
from trainer.model.backbones.layers import pooling_matrix

IMAGES: Final = "images"
OPSET: Final = 20
"""Of every graph of a version."""
_IR_VERSION: Final = 10
"""Which engines of that opset read."""
_INNER, _OUTER = "file/", "backbone/"
"""Of all names of somebody's graph, and of what stands around it, so that none is one of ours."""
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How pixels become a graph's input, and its output features."""

    image_size: int
    """Pixels a side."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    """Of red, green and blue, on a scale from 0 to 1."""
    is_nchw: bool
    """Or NHWC: the graph's input, and a map that it gives."""
    token: int | None
    """Which token of a sequence is taken."""
    grid: int
    """Cells a side that a map is pooled to."""


def check_fixed(model: ModelProto) -> None:
    """Refuse a graph that is no fixed function of an image.

    Raises:
        ConfigError: if it draws random numbers, or normalises by what is in a batch.
    """
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type in RANDOM_OPS or (node.op_type == "BatchNormalization" and training):
            raise ConfigError(
                f"its node {node.name[:80] or node.op_type!r} ({node.op_type}) gives an image other features each "
                "time; export the network in evaluation mode"
            )


def choose_output(model: ModelProto, wanted: str | None) -> str:
    """Return the output of a graph that gives the features.

    Raises:
        ConfigError: if there is none of that name, or several and none is named.
    """
    names: list[str] = [info.name for info in model.graph.output]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None and wanted in names:
        return wanted
    outputs = name_some([f"{info.name} {list(shape_of(info))}" for info in model.graph.output], most=8)
    got = "several" if wanted is None else f"none that is called {wanted[:80]!r}"
    raise ConfigError(f'the graph has {got}: name one of its outputs as "output" in the JSON beside it: {outputs}')


def wrap(model: ModelProto, output: str, recipe: Recipe, *, shape: tuple[int, ...] | None) -> ModelProto:
    """Return a graph from `images` uint8 (N, H, W, 3) to `features`, through a graph from one image input to `output`.

    Args:
        model: the graph, of opset `OPSET`, without functions; it is not changed.
        output: of it, a float tensor.
        recipe: what stands in front and behind.
        shape: that the output has for one image, from which follows what stands behind it; None to have nothing there.

    Raises:
        ConfigError: if the graph takes anything else than images, or gives none of a vector, a map and a token.
    """
    source = _input(model, recipe)
    inner = compose.add_prefix(model, _INNER).graph
    around = GraphBuilder(_OUTER)
    _prepare(around, f"{_INNER}{source.name}", recipe, kind=source.type.tensor_type.elem_type)
    around.nodes += _without_dropout(inner.node)
    last = around.add("Cast", [f"{_INNER}{output}"], to=TensorProto.FLOAT)
    if shape:  # rounded, so that rows can be kept in float16 and are the same afterwards
        last = around.add("Cast", [_reduce(around, last, recipe, shape)], to=TensorProto.FLOAT16)
    around.add("Cast", [last], FEATURES, to=TensorProto.FLOAT)
    nodes = prune(around.nodes, [FEATURES])
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in [*inner.initializer, *around.constants] if tensor.name in used]
    side = recipe.image_size
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", side, side, 3])
    given = describe(FEATURES, ["N", count_features(shape, recipe)]) if shape else ValueInfoProto(name=FEATURES)
    if not shape:
        given.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "backbone", [images], [given], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def count_channels(shape: tuple[int, ...], recipe: Recipe) -> int:
    """Return D of an output of that shape."""
    return shape[1] if len(shape) == 4 and recipe.is_nchw else shape[-1]


def count_features(shape: tuple[int, ...], recipe: Recipe) -> int:
    """Return F of an output of that shape."""
    return count_channels(shape, recipe) * (recipe.grid**2 if len(shape) == 4 else 1)


def _input(model: ModelProto, recipe: Recipe) -> ValueInfoProto:
    """Return the one input that takes images."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto] = [info for info in model.graph.input if info.name not in weights]
    if len(inputs) != 1:
        found = name_some([info.name[:80] for info in inputs], most=8)
        raise ConfigError(
            f"it takes {len(inputs)} inputs ({found}), one image is expected; export the image encoder alone"
        )
    side = recipe.image_size
    wanted = ("N", 3, side, side) if recipe.is_nchw else ("N", side, side, 3)
    shape, kind = shape_of(inputs[0]), inputs[0].type.tensor_type.elem_type
    fits = len(shape) == 4 and isinstance(shape[0], str)
    fits = fits and all(isinstance(axis, str) or axis == expected for axis, expected in zip(shape, wanted, strict=True))
    if not fits or kind not in _FLOATS:
        raise ConfigError(
            f"it takes {TensorProto.DataType.Name(kind)} {list(shape)}, expected are floats {list(wanted)}, N a "
            "dynamic axis; export it so, or correct image_size and layout"
        )
    return inputs[0]


def _prepare(around: GraphBuilder, target: str, recipe: Recipe, *, kind: int) -> None:
    """Make the graph's input of pixels."""
    deviation = np.array(recipe.deviation)
    axes = (3, 1, 1) if recipe.is_nchw else (3,)
    gain = (1 / (255 * deviation)).reshape(axes).astype(np.float32)
    offset = (-np.array(recipe.mean) / deviation).reshape(axes).astype(np.float32)
    planes = around.add("Transpose", [IMAGES], perm=[0, 3, 1, 2]) if recipe.is_nchw else IMAGES
    values = around.add("Cast", [planes], to=TensorProto.FLOAT)
    scaled = around.add("Mul", [values, around.constant(gain)])
    around.add("Cast", [around.add("Add", [scaled, around.constant(offset)])], target, to=kind)


def _without_dropout(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return the nodes, each Dropout as what it is in evaluation mode: nothing.

    Raises:
        ConfigError: if the mask of one is used.
    """
    before = list(nodes)
    read = {name for node in before for name in node.input}
    after = []
    for node in before:
        if node.op_type == "Dropout" and read.intersection(node.output[1:]):
            raise ConfigError(f"it reads the mask of Dropout {node.name[:80]!r}; export the network in evaluation mode")
        is_dropout = node.op_type == "Dropout"
        after.append(helper.make_node("Identity", node.input[:1], node.output[:1]) if is_dropout else node)
    return after


def _reduce(around: GraphBuilder, last: str, recipe: Recipe, shape: tuple[int, ...]) -> str:
    """Make a vector of what a graph gives: of a map its grid, of tokens the one that is asked for."""
    if len(shape) == 2:
        return last
    if len(shape) == 3:
        return around.add("Gather", [last, around.constant(np.array(_token(recipe, shape[1])))], axis=1)
    if len(shape) == 4:
        return _pool(around, last, recipe, shape)
    raise ConfigError(f"the output has shape {list(shape)} for one image; a vector, a map or tokens are expected")


def _token(recipe: Recipe, tokens: int) -> int:
    if recipe.token is None:
        raise ConfigError(
            f'the output is a sequence of {tokens} tokens: take one by "token" in the JSON beside it (0 for the class '
            'token, which most transformers put first), or choose another output by "output"'
        )
    if recipe.token >= tokens:
        raise ConfigError(f"token {recipe.token} is asked for, and the output has {tokens} tokens, counted from 0")
    return recipe.token


def _pool(around: GraphBuilder, last: str, recipe: Recipe, shape: tuple[int, ...]) -> str:
    """Pool a map to the grid and flatten it, channel slowest, as torch does."""
    height, width = shape[2:] if recipe.is_nchw else shape[1:3]
    if not recipe.is_nchw:
        last = around.add("Transpose", [last], perm=[0, 3, 1, 2])
    if (height, width) != (recipe.grid, recipe.grid):
        rows, columns = (pooling_matrix(cells, recipe.grid).numpy() for cells in (height, width))
        last = around.add("MatMul", [around.constant(rows), last])
        last = around.add("MatMul", [last, around.constant(np.ascontiguousarray(columns.T))])
    return around.add("Flatten", [last], axis=1)
