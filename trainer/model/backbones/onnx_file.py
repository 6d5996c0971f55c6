"""An ONNX file as a backbone: any graph from an image to a vector, a feature map or tokens.

A JSON file beside it describes the preprocessing. The graph is untrusted, so it is inspected before it is run. Then
normalisation is prepended, pooling appended, and Dropout removed.
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
"""Size limit of a graph with its weights: protobuf's limit, less room for the added nodes."""
_MOST_JSON_BYTES: Final = 2**16
_TOLERANCE: Final = 1e-3
"""Largest difference between an image's features in two batches, relative to the largest feature."""
_IMAGES: Final = "images"
_IR_VERSION: Final = 10
"""IR version that engines of this opset can read."""
_INNER, _OUTER = "file/", "backbone/"
"""Name prefixes of the given graph and of the nodes builder it, so that names do not clash."""
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)

Channel = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Description:
    """The JSON file beside a graph: how pixels become its input, and which output are the features."""

    image_size: Annotated[int, Field(ge=1)]
    """Pixels a side."""
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Spread, Spread, Spread]
    """Of the red, green and blue channel, on a scale from 0 to 1."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of axes of the graph's input, and of an output feature map."""
    output: str | None = None
    """Name of the output to use, if there are several."""
    token: Annotated[int, Field(ge=0)] | None = None
    """Index of the token to use, if the output is a sequence."""

    @property
    def is_nchw(self) -> bool:
        """Whether the channel axis comes before height and width."""
        return self.layout == "nchw"


def default_image_size(name: str) -> int:
    """Return the image size from the JSON file beside a graph."""
    return _read_description(Path(name)).image_size


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Load an ONNX file; see `load_backbone`."""
    path = Path(name)
    description = _read_description(path)
    if weights != "imagenet":
        raise ConfigError(f"--backbone {path} brings its own weights: leave --weights out, got {weights}")
    description = replace(description, image_size=image_size or description.image_size)
    size, mean, deviation = description.image_size, description.mean, description.std
    try:
        model = _convert(_load(path))
        _check_deterministic(model)
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


# ---- loading


def _load(path: Path) -> ModelProto:
    """Read and inspect a graph; inline its functions and weights."""
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
    """Return the sizes of a graph's weight files by name; only regular files in its folder count."""
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
    except Exception as err:  # errors of the C++ converters share no base class
        raise ConfigError(
            f"it is of opset {opset}, and onnx cannot convert it to {OPSET} ({first_line(err)}); export it again with "
            f"opset_version={OPSET}"
        ) from err


def _check_deterministic(model: ModelProto) -> None:
    """Raise ConfigError if a graph draws random numbers or normalises by batch statistics."""
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type in RANDOM_OPS or (node.op_type == "BatchNormalization" and training):
            raise ConfigError(
                f"its node {node.name[:80] or node.op_type!r} ({node.op_type}) gives an image other features each "
                "time; export the network in evaluation mode"
            )


def _choose_output(model: ModelProto, wanted: str | None) -> str:
    """Return the name of the output with the features."""
    names: list[str] = [info.name for info in model.graph.output]
    if wanted in names or (wanted is None and len(names) == 1):
        return wanted or names[0]
    outputs = name_some([f"{info.name} {list(shape_of(info))}" for info in model.graph.output], limit=8)
    got = "several" if wanted is None else f"none that is called {wanted[:80]!r}"
    raise ConfigError(f'the graph has {got}: name one of its outputs as "output" in the JSON beside it: {outputs}')


# ---- pixels to features


def _wrap(model: ModelProto, output: str, description: Description, *, grid: int, shape: Shape | None) -> ModelProto:
    """Return a graph from `images` uint8 (N, H, W, 3) to `features`, `model` between normalisation and pooling.

    `shape` is that of the output for one image; if None, the output is returned as it is.
    """
    source = _input(model, description)
    inner = compose.add_prefix(model, _INNER).graph
    builder = GraphBuilder(_OUTER)
    _normalise(builder, f"{_INNER}{source.name}", description, kind=source.type.tensor_type.elem_type)
    builder.nodes += _without_dropout(inner.node)
    last = builder.add("Cast", [f"{_INNER}{output}"], to=TensorProto.FLOAT)
    features: list[str | int] | None = None
    if shape:  # rounded to float16, so that they can be stored as such
        last = builder.add("Cast", [_pool(builder, last, description, shape, grid=grid)], to=TensorProto.FLOAT16)
        features = ["N", _channels(shape, description) * (grid**2 if len(shape) == 4 else 1)]
    builder.add("Cast", [last], FEATURES, to=TensorProto.FLOAT)
    nodes = prune(builder.nodes, [FEATURES])
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in [*inner.initializer, *builder.constants] if tensor.name in used]
    side = description.image_size
    images = helper.make_tensor_value_info(_IMAGES, TensorProto.UINT8, ["N", side, side, 3])
    result = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, features)
    graph = helper.make_graph(nodes, "backbone", [images], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def _channels(shape: Shape, description: Description) -> int:
    return shape[1] if len(shape) == 4 and description.is_nchw else shape[-1]


def _input(model: ModelProto, description: Description) -> ValueInfoProto:
    """Return the input for images; raise ConfigError unless it is the only one and has the expected shape."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto] = [info for info in model.graph.input if info.name not in weights]
    if len(inputs) != 1:
        found = name_some([info.name[:80] for info in inputs], limit=8)
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


def _normalise(builder: GraphBuilder, target: str, description: Description, *, kind: int) -> None:
    """Add the nodes that normalise pixels to the graph's input `target`."""
    deviation = np.array(description.std)
    axes = (3, 1, 1) if description.is_nchw else (3,)
    gain = (1 / (255 * deviation)).reshape(axes).astype(np.float32)
    offset = (-np.array(description.mean) / deviation).reshape(axes).astype(np.float32)
    planes = builder.add("Transpose", [_IMAGES], perm=[0, 3, 1, 2]) if description.is_nchw else _IMAGES
    values = builder.add("Cast", [planes], to=TensorProto.FLOAT)
    scaled = builder.add("Mul", [values, builder.constant(gain)])
    builder.add("Cast", [builder.add("Add", [scaled, builder.constant(offset)])], target, to=kind)


def _without_dropout(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Replace each Dropout by Identity; raise ConfigError if its mask is used."""
    replaced = list(nodes)
    used = {name for node in replaced for name in node.input}
    for index, node in enumerate(replaced):
        if node.op_type == "Dropout":
            if used.intersection(node.output[1:]):
                raise ConfigError(
                    f"it reads the mask of Dropout {node.name[:80]!r}; export the network in evaluation mode"
                )
            replaced[index] = helper.make_node("Identity", node.input[:1], node.output[:1])
    return replaced


def _pool(builder: GraphBuilder, last: str, description: Description, shape: Shape, *, grid: int) -> str:
    """Add the nodes from the output to a vector: pool a map to the grid, channel-major, or select a token."""
    if len(shape) == 2:
        return last
    if len(shape) == 3:
        return builder.add("Gather", [last, builder.constant(np.array(_token(description, shape[1])))], axis=1)
    if len(shape) != 4:
        raise ConfigError(f"the output has shape {list(shape)} for one image; a vector, a map or tokens are expected")
    height, width = shape[2:] if description.is_nchw else shape[1:3]
    if not description.is_nchw:
        last = builder.add("Transpose", [last], perm=[0, 3, 1, 2])
    if (height, width) != (grid, grid):
        rows, columns = (pooling_matrix(cells, grid).numpy() for cells in (height, width))
        last = builder.add("MatMul", [builder.constant(rows), last])
        last = builder.add("MatMul", [last, builder.constant(np.ascontiguousarray(columns.T))])
    return builder.add("Flatten", [last], axis=1)


def _token(description: Description, tokens: int) -> int:
    if description.token is None:
        raise ConfigError(
            f'the output is a sequence of {tokens} tokens: take one by "token" in the JSON beside it (0 for the class '
            'token, which most transformers put first), or choose another output by "output"'
        )
    if description.token >= tokens:
        raise ConfigError(f"token {description.token} is asked for, and the output has {tokens} tokens, counted from 0")
    return description.token


# ---- checks on noise


def _noise(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return random images uint8 (count, size, size, 3), of which the first are always the same."""
    return np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def _run(graph: ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only fatal errors: the exception has the reason
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: npt.NDArray[Any] = session.run(None, {_IMAGES: images})[0]
    except Exception as err:  # onnxruntime's errors share no base class
        raise ConfigError(
            f"onnxruntime cannot run it on {len(images)} images of {images.shape[1]} pixels a side "
            f"({first_line(err)}); check image_size and layout, and that the batch axis is dynamic"
        ) from err
    return result


def _check_batches(graph: ModelProto, *, size: int) -> int:
    """Return F; raise ConfigError if features are not finite or depend on the other images of the batch."""
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
