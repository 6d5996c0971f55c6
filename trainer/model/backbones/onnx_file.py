"""A graph in an ONNX file as a backbone: any that leads from one image to a vector, a map or a token.

A small file beside it says how pixels become its input. The graph may come from anywhere, so it is looked over before
anything computes with it. It gets pixels in front and pooling behind, loses its Dropout, and onnxruntime shows what it
gives.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx.version_converter
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, external_data_helper, helper, inliner
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from contract.errors import ConfigError, UnsafeGraph, name_some
from contract.graph.builder import RANDOM_OPS, GraphBuilder, prune, shape_of
from contract.graph.lowering import FEATURES
from contract.settings import explain_errors
from contract.versions.inspection import REMEDY, inspect_graph
from contract.versions.manifest import InputSpec
from contract.versions.version import digest_file
from trainer.model.backbones.layers import pooling_matrix
from trainer.model.backbones.loaded import LoadedBackbone
from trainer.model.head import OPSET
from trainer.model.weights import Provenance, first_line

_MOST_BYTES: Final = 2**31 - 2**20
"""Of a graph with its weights: what protobuf can hold in one piece, less what is added."""
_MOST_JSON_BYTES: Final = 2**16
_TOLERANCE: Final = 1e-3
"""By how much an image's features may differ when it comes in another batch, as a share of the largest."""
_IMAGES: Final = "images"
_IR_VERSION: Final = 10
"""Which engines of that opset read."""
_INNER, _OUTER = "file/", "backbone/"
"""Of all names of somebody's graph, and of what stands around it, so that none is one of ours."""
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)

Channel = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shape = tuple[int, ...]


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


def default_image_size(name: str) -> int:
    """Return the pixels a side that the file beside a graph names."""
    return _read_description(Path(name)).image_size


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Open an ONNX file; see `load_backbone`."""
    path = Path(name)
    description = _read_description(path)
    if weights != "imagenet":
        raise ConfigError(f"--backbone {path} brings its own weights: leave --weights out, got {weights}")
    description = replace(description, image_size=image_size or description.image_size)
    size, mean, deviation = description.image_size, description.mean, description.std
    try:
        model = _convert(_load(path))
        _check_fixed(model)
        output = _choose_output(model, description.output)
        unpooled = _wrap(model, output, description, grid=grid or 1, shape=None)
        shape = _run(unpooled, _noise(1, size)).shape  # of the output for one image
        graph = _wrap(model, output, description, grid=grid or 1, shape=shape)
        features, channels = _check_batches(graph, size=size), _channels(shape, description)
    except ConfigError as err:
        raise ConfigError(f"--backbone {path}: {err}") from err
    provenance, spec = Provenance(path.name, digest_file(path).sha256, (path.stem,), ()), InputSpec(size, size)
    return LoadedBackbone(path.stem, spec, features, channels, mean, deviation, provenance, None, graph=graph)


def _read_description(path: Path) -> Description:
    if not path.is_file():
        raise ConfigError(f"--backbone {path}: there is no such file")
    beside = path.with_name(f"{path.name}.json")
    example = Description(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    wanted = json.dumps({key: value for key, value in asdict(example).items() if value is not None})
    try:
        with beside.open("rb") as file:
            return TypeAdapter(Description).validate_json(file.read(_MOST_JSON_BYTES))
    except OSError as err:
        raise ConfigError(
            f"--backbone {path}: {beside.name} is expected beside it, to say how images are made for it, such as "
            f"{wanted}"
        ) from err
    except ValidationError as err:
        faults = "; ".join(f"{where}: {what}" if where else what for where, what in explain_errors(err))
        raise ConfigError(f"{beside}: {faults}; expected is the like of {wanted}") from err


# ---- from a file to a graph of our opset


def _load(path: Path) -> ModelProto:
    """Return a graph that has been looked over, without functions, its weights inside."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise ConfigError(f"this is no ONNX graph ({first_line(err)})") from err
    files = _weight_files(model, path.parent)
    if (total := path.stat().st_size + sum(files.values())) > _MOST_BYTES:
        raise ConfigError(
            f"the graph and its weights have {total / 1e9:.1f} GB, at most {_MOST_BYTES / 1e9:.1f} are taken"
        )
    try:
        inspect_graph(model, weights_bytes=files)
    except UnsafeGraph as err:
        raise ConfigError(str(err).removesuffix(f"; {REMEDY}")) from err
    external = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    lengths = (int(each.get("length", files[each["location"]] - int(each.get("offset", "0")))) for each in external)
    if sum(lengths) > sum(files.values()):
        raise ConfigError("its tensors together are larger than the files that hold them: they overlap")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        return inliner.inline_local_functions(model) if model.functions else model
    except (OSError, RuntimeError, ValueError, onnx.checker.ValidationError) as err:
        raise ConfigError(f"it cannot be read whole ({first_line(err)})") from err


def _weight_files(model: ModelProto, folder: Path) -> dict[str, int]:
    """Return the lengths of the files beside a graph that hold its weights, as far as they are plain files there."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    paths = [folder / name for name in names if name == Path(name).name]
    return {path.name: path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()}


def _convert(model: ModelProto) -> ModelProto:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as err:  # each operator has a converter in C++, whose errors have no class in common
        raise ConfigError(
            f"it is of opset {opset}, and onnx cannot convert it to {OPSET} ({first_line(err)}); export it again with "
            f"opset_version={OPSET}"
        ) from err


def _check_fixed(model: ModelProto) -> None:
    """Refuse a graph that is no fixed function of an image: it draws numbers, or normalises by what is in a batch."""
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type in RANDOM_OPS or (node.op_type == "BatchNormalization" and training):
            raise ConfigError(
                f"its node {node.name[:80] or node.op_type!r} ({node.op_type}) gives an image other features each "
                "time; export the network in evaluation mode"
            )


def _choose_output(model: ModelProto, wanted: str | None) -> str:
    """Return the output of a graph that gives the features: that of the name, or the only one."""
    names: list[str] = [info.name for info in model.graph.output]
    if wanted in names or (wanted is None and len(names) == 1):
        return wanted or names[0]
    outputs = name_some([f"{info.name} {list(shape_of(info))}" for info in model.graph.output], most=8)
    got = "several" if wanted is None else f"none that is called {wanted[:80]!r}"
    raise ConfigError(f'the graph has {got}: name one of its outputs as "output" in the JSON beside it: {outputs}')


# ---- from pixels to features


def _wrap(model: ModelProto, output: str, description: Description, *, grid: int, shape: Shape | None) -> ModelProto:
    """Return a graph from `images` uint8 (N, H, W, 3) through somebody's to `features`, a map pooled to the grid.

    `shape` is that of the output for one image, from which follows what stands behind it; None to have nothing there.
    """
    source = _input(model, description)
    inner = compose.add_prefix(model, _INNER).graph
    around = GraphBuilder(_OUTER)
    _prepare(around, f"{_INNER}{source.name}", description, kind=source.type.tensor_type.elem_type)
    around.nodes += _without_dropout(inner.node)
    last = around.add("Cast", [f"{_INNER}{output}"], to=TensorProto.FLOAT)
    features: list[str | int] | None = None
    if shape:  # rounded, so that rows can be kept in float16 and are the same afterwards
        last = around.add("Cast", [_reduce(around, last, description, shape, grid=grid)], to=TensorProto.FLOAT16)
        features = ["N", _channels(shape, description) * (grid**2 if len(shape) == 4 else 1)]
    around.add("Cast", [last], FEATURES, to=TensorProto.FLOAT)
    nodes = prune(around.nodes, [FEATURES])
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in [*inner.initializer, *around.constants] if tensor.name in used]
    side = description.image_size
    images = helper.make_tensor_value_info(_IMAGES, TensorProto.UINT8, ["N", side, side, 3])
    given = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, features)
    graph = helper.make_graph(nodes, "backbone", [images], [given], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def _channels(shape: Shape, description: Description) -> int:
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
    planes = around.add("Transpose", [_IMAGES], perm=[0, 3, 1, 2]) if description.is_nchw else _IMAGES
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


def _reduce(around: GraphBuilder, last: str, description: Description, shape: Shape, *, grid: int) -> str:
    """Make a vector of what a graph gives: of a map its grid, channel slowest, of tokens the one that is asked for."""
    if len(shape) == 2:
        return last
    if len(shape) == 3:
        return around.add("Gather", [last, around.constant(np.array(_token(description, shape[1])))], axis=1)
    if len(shape) != 4:
        raise ConfigError(f"the output has shape {list(shape)} for one image; a vector, a map or tokens are expected")
    height, width = shape[2:] if description.is_nchw else shape[1:3]
    if not description.is_nchw:
        last = around.add("Transpose", [last], perm=[0, 3, 1, 2])
    if (height, width) != (grid, grid):
        rows, columns = (pooling_matrix(cells, grid).numpy() for cells in (height, width))
        last = around.add("MatMul", [around.constant(rows), last])
        last = around.add("MatMul", [last, around.constant(np.ascontiguousarray(columns.T))])
    return around.add("Flatten", [last], axis=1)


def _token(description: Description, tokens: int) -> int:
    if description.token is None:
        raise ConfigError(
            f'the output is a sequence of {tokens} tokens: take one by "token" in the JSON beside it (0 for the class '
            'token, which most transformers put first), or choose another output by "output"'
        )
    if description.token >= tokens:
        raise ConfigError(f"token {description.token} is asked for, and the output has {tokens} tokens, counted from 0")
    return description.token


# ---- what it gives


def _noise(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return images uint8 (count, size, size, 3), of which the first are always the same."""
    return np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def _run(graph: ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its reasons stand in what it raises
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: npt.NDArray[Any] = session.run(None, {_IMAGES: images})[0]
    except Exception as err:  # onnxruntime's errors have no class in common either
        raise ConfigError(
            f"onnxruntime cannot run it on {len(images)} images of {images.shape[1]} pixels a side "
            f"({first_line(err)}); check image_size and layout, and that the batch axis is dynamic"
        ) from err
    return result


def _check_batches(graph: ModelProto, *, size: int) -> int:
    """Return F, having seen that an image's features do not depend on the others in its batch."""
    images = _noise(3, size)
    together, alone = _run(graph, images), _run(graph, images[:1])
    if not np.isfinite(together).all():
        raise ConfigError(
            "of noise it makes values that are not finite, or larger than the 65504 that float16 holds; check mean and "
            "std, or have it scale them"
        )
    if together.shape[0] != len(images) or np.abs(together[:1] - alone).max() > _TOLERANCE * np.abs(alone).max():
        raise ConfigError(
            "an image's features depend on the other images of its batch; export it in evaluation mode, with a dynamic "
            "batch axis"
        )
    return int(together.shape[1])
