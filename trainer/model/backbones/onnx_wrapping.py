"""From somebody's graph to one of ours: pixels in front, pooling behind, no Dropout, one input and one output.

Knows onnx and numpy; no engine.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper
from pydantic import Field
from pydantic.dataclasses import dataclass

from contract.errors import ConfigError, name_some
from contract.graph.builder import RANDOM_OPS, GraphBuilder, prune, shape_of
from contract.graph.lowering import FEATURES
from trainer.model.backbones.layers import pooling_matrix
from trainer.model.head import OPSET

IMAGES: Final = "images"
_IR_VERSION: Final = 10
"""Which engines of that opset read."""
_INNER, _OUTER = "file/", "backbone/"
"""Of all names of somebody's graph, and of what stands around it, so that none is one of ours."""
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


Channel = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Description:
    """What the file beside a graph says: how pixels become the graph's input, and its output features."""

    image_size: Annotated[int, Field(ge=1)]
    """Pixels a side."""
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Spread, Spread, Spread]
    """Of red, green and blue, on a scale from 0 to 1."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """The order of axes of the graph's input, and of a map that it gives."""
    output: str | None = None
    """Which of the graph's outputs to take, where it has several."""
    token: Annotated[int, Field(ge=0)] | None = None
    """Which token of a sequence to take."""

    @property
    def is_nchw(self) -> bool:
        """Whether channels come before height and width."""
        return self.layout == "nchw"


def check_fixed(model: ModelProto) -> None:
    """Refuse a graph that is no fixed function of an image: it draws numbers, or normalises by what is in a batch."""
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type in RANDOM_OPS or (node.op_type == "BatchNormalization" and training):
            raise ConfigError(
                f"its node {node.name[:80] or node.op_type!r} ({node.op_type}) gives an image other features each "
                "time; export the network in evaluation mode"
            )


def choose_output(model: ModelProto, wanted: str | None) -> str:
    """Return the output of a graph that gives the features: that of the name, or the only one."""
    names: list[str] = [info.name for info in model.graph.output]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None and wanted in names:
        return wanted
    outputs = name_some([f"{info.name} {list(shape_of(info))}" for info in model.graph.output], most=8)
    got = "several" if wanted is None else f"none that is called {wanted[:80]!r}"
    raise ConfigError(f'the graph has {got}: name one of its outputs as "output" in the JSON beside it: {outputs}')


def wrap(
    model: ModelProto, output: str, description: Description, *, grid: int, shape: tuple[int, ...] | None
) -> ModelProto:
    """Return a graph from `images` uint8 (N, H, W, 3) to `features`, through a graph from one image input to `output`.

    Args:
        model: the graph, of opset `OPSET`, without functions; it is not changed.
        output: of it, a float tensor.
        description: says what stands in front and behind.
        grid: cells a side that a map is pooled to.
        shape: that the output has for one image, from which follows what stands behind it; None to have nothing there.
    """
    source = _input(model, description)
    inner = compose.add_prefix(model, _INNER).graph
    around = GraphBuilder(_OUTER)
    _prepare(around, f"{_INNER}{source.name}", description, kind=source.type.tensor_type.elem_type)
    around.nodes += _without_dropout(inner.node)
    last = around.add("Cast", [f"{_INNER}{output}"], to=TensorProto.FLOAT)
    if shape:  # rounded, so that rows can be kept in float16 and are the same afterwards
        last = around.add("Cast", [_reduce(around, last, description, shape, grid=grid)], to=TensorProto.FLOAT16)
    around.add("Cast", [last], FEATURES, to=TensorProto.FLOAT)
    nodes = prune(around.nodes, [FEATURES])
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in [*inner.initializer, *around.constants] if tensor.name in used]
    side = description.image_size
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", side, side, 3])
    features = count_channels(shape, description) * (grid**2 if len(shape) == 4 else 1) if shape else 0
    given = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", features] if shape else None)
    graph = helper.make_graph(nodes, "backbone", [images], [given], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def count_channels(shape: tuple[int, ...], description: Description) -> int:
    """Return D of an output of that shape."""
    return shape[1] if len(shape) == 4 and description.is_nchw else shape[-1]


def _input(model: ModelProto, description: Description) -> ValueInfoProto:
    """Return the one input that takes images."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto] = [info for info in model.graph.input if info.name not in weights]
    if len(inputs) != 1:
        found = name_some([info.name[:80] for info in inputs], most=8)
        raise ConfigError(
            f"it takes {len(inputs)} inputs ({found}), one image is expected; export the image encoder alone"
        )
    side = description.image_size
    wanted = ("N", 3, side, side) if description.is_nchw else ("N", side, side, 3)
    shape, kind = shape_of(inputs[0]), inputs[0].type.tensor_type.elem_type
    fits = len(shape) == 4 and isinstance(shape[0], str)
    fits = fits and all(isinstance(axis, str) or axis == expected for axis, expected in zip(shape, wanted, strict=True))
    if not fits or kind not in _FLOATS:
        raise ConfigError(
            f"it takes {TensorProto.DataType.Name(kind)} {list(shape)}, expected are floats {list(wanted)}, N a "
            "dynamic axis; export it so, or correct image_size and layout"
        )
    return inputs[0]


def _prepare(around: GraphBuilder, target: str, description: Description, *, kind: int) -> None:
    """Make the graph's input of pixels."""
    deviation = np.array(description.std)
    axes = (3, 1, 1) if description.is_nchw else (3,)
    gain = (1 / (255 * deviation)).reshape(axes).astype(np.float32)
    offset = (-np.array(description.mean) / deviation).reshape(axes).astype(np.float32)
    planes = around.add("Transpose", [IMAGES], perm=[0, 3, 1, 2]) if description.is_nchw else IMAGES
    values = around.add("Cast", [planes], to=TensorProto.FLOAT)
    scaled = around.add("Mul", [values, around.constant(gain)])
    around.add("Cast", [around.add("Add", [scaled, around.constant(offset)])], target, to=kind)


def _without_dropout(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return the nodes, each Dropout as what it is in evaluation mode: nothing. None may read its mask."""
    after = list(nodes)
    read = {name for node in after for name in node.input}
    for place, node in enumerate(after):
        if node.op_type == "Dropout":
            if read.intersection(node.output[1:]):
                raise ConfigError(
                    f"it reads the mask of Dropout {node.name[:80]!r}; export the network in evaluation mode"
                )
            after[place] = helper.make_node("Identity", node.input[:1], node.output[:1])
    return after


def _reduce(around: GraphBuilder, last: str, description: Description, shape: tuple[int, ...], *, grid: int) -> str:
    """Make a vector of what a graph gives: of a map its grid, of tokens the one that is asked for."""
    if len(shape) == 2:
        return last
    if len(shape) == 3:
        return around.add("Gather", [last, around.constant(np.array(_token(description, shape[1])))], axis=1)
    if len(shape) == 4:
        return _pool(around, last, description, shape, grid=grid)
    raise ConfigError(f"the output has shape {list(shape)} for one image; a vector, a map or tokens are expected")


def _token(description: Description, tokens: int) -> int:
    if description.token is None:
        raise ConfigError(
            f'the output is a sequence of {tokens} tokens: take one by "token" in the JSON beside it (0 for the class '
            'token, which most transformers put first), or choose another output by "output"'
        )
    if description.token >= tokens:
        raise ConfigError(f"token {description.token} is asked for, and the output has {tokens} tokens, counted from 0")
    return description.token


def _pool(around: GraphBuilder, last: str, description: Description, shape: tuple[int, ...], *, grid: int) -> str:
    """Pool a map to the grid and flatten it, channel slowest, as torch does."""
    height, width = shape[2:] if description.is_nchw else shape[1:3]
    if not description.is_nchw:
        last = around.add("Transpose", [last], perm=[0, 3, 1, 2])
    if (height, width) != (grid, grid):
        rows, columns = (pooling_matrix(cells, grid).numpy() for cells in (height, width))
        last = around.add("MatMul", [around.constant(rows), last])
        last = around.add("MatMul", [last, around.constant(np.ascontiguousarray(columns.T))])
    return around.add("Flatten", [last], axis=1)
