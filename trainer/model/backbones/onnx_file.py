"""An ONNX file as a backbone: any graph from an image to a vector, a feature map or tokens.

A JSON file next to it describes the preprocessing. The graph is untrusted, so it is inspected before it is run.
Normalisation is prepended, pooling is appended, and Dropout is removed.
"""

import json
from collections.abc import Iterable, Mapping
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

_MAX_BYTES: Final = 2**31 - 2**20
"""Size limit of a graph with its weights: protobuf's limit, less room for the added nodes."""
_MAX_JSON_BYTES: Final = 2**16
_TOLERANCE: Final = 1e-3
"""Maximum difference between an image's features in two batches, relative to the largest feature."""
_IMAGES: Final = "images"
_IR_VERSION: Final = 10
"""IR version that all engines with this opset can read."""
_INNER, _OUTER = "file/", "backbone/"
"""Name prefixes of the nodes in the file and of the added ones, to prevent name clashes."""
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)

Channel = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Description:
    """The JSON file next to a graph: its preprocessing, and which output contains the features."""

    image_size: Annotated[int, Field(ge=1)]
    """Pixels per side."""
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Deviation, Deviation, Deviation]
    """Mean and standard deviation of the red, green and blue channel, on a scale from 0 to 1."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Axis order of the graph's input and of an output feature map."""
    output: str | None = None
    """Name of the output to use; required if there are several."""
    token: Annotated[int, Field(ge=0)] | None = None
    """Index of the token to use; required if the output is a sequence."""

    @property
    def is_nchw(self) -> bool:
        """Whether the channel axis comes before height and width."""
        return self.layout == "nchw"


def default_image_size(name: str) -> int:
    """Return the image size from the JSON file next to a graph.

    Raises ConfigError if one of the files is missing or invalid.
    """
    return _read_description(Path(name)).image_size


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Load an ONNX file; see `load_backbone`."""
    path = Path(name)
    description = _read_description(path)
    if weights != "imagenet":
        raise ConfigError(f"--backbone {path} contains its weights; omit --weights, got {weights}")
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
        raise ConfigError(f"--backbone {path}: no such file")
    json_path = path.with_name(f"{path.name}.json")
    example = Description(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    example_json = json.dumps({key: value for key, value in asdict(example).items() if value is not None})
    try:
        with json_path.open("rb") as file:
            return TypeAdapter(Description).validate_json(file.read(_MAX_JSON_BYTES))
    except OSError as err:
        raise ConfigError(
            f"--backbone {path}: cannot read {json_path.name}, which describes its preprocessing; create it, such as "
            f"{example_json}"
        ) from err
    except ValidationError as err:
        faults = "; ".join(f"{key}: {fault}" if key else fault for key, fault in explain_errors(err))
        raise ConfigError(f"{json_path}: {faults}; expected an object such as {example_json}") from err


# ---- loading


def _load(path: Path) -> ModelProto:
    """Read and inspect a graph; inline its functions and weights."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise ConfigError(f"not an ONNX graph ({first_line(err)})") from err
    files = _weight_files(model, path.parent)
    if (total := path.stat().st_size + sum(files.values())) > _MAX_BYTES:
        raise ConfigError(
            f"graph and weights have {total / 1e9:.1f} GB, more than the {_MAX_BYTES / 1e9:.1f} GB allowed"
        )
    try:
        inspect_graph(model, weights_bytes=files)
    except UnsafeGraph as err:
        raise ConfigError(str(err).removesuffix(f"; {REMEDY}")) from err
    _check_overlap(model, files)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        return inliner.inline_local_functions(model) if model.functions else model
    except (OSError, RuntimeError, ValueError, onnx.checker.ValidationError) as err:
        raise ConfigError(f"cannot load its weights and functions ({first_line(err)})") from err


def _weight_files(model: ModelProto, folder: Path) -> dict[str, int]:
    """Return the sizes of a graph's weight files by name; only regular files in its folder count."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    paths = [folder / name for name in names if name == Path(name).name]
    return {path.name: path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()}


def _check_overlap(model: ModelProto, files: Mapping[str, int]) -> None:
    """Raise ConfigError if tensors share bytes of their files, which could take any amount of memory."""
    external = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    lengths = (int(each.get("length", files[each["location"]] - int(each.get("offset", "0")))) for each in external)
    if sum(lengths) > sum(files.values()):
        raise ConfigError("its tensors overlap in the files of its weights; export it again")


def _convert(model: ModelProto) -> ModelProto:
    """Convert a graph to the opset `OPSET`."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as err:  # errors of the C++ converters share no base class
        raise ConfigError(
            f"onnx cannot convert it from opset {opset} to {OPSET} ({first_line(err)}); export it with "
            f"opset_version={OPSET}"
        ) from err


def _check_deterministic(model: ModelProto) -> None:
    """Raise ConfigError if a graph draws random numbers or normalises by batch statistics."""
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type in RANDOM_OPS or (node.op_type == "BatchNormalization" and training):
            raise ConfigError(
                f"its node {node.name[:80] or node.op_type!r} ({node.op_type}) is not deterministic; export it in "
                "evaluation mode"
            )


def _choose_output(model: ModelProto, name: str | None) -> str:
    """Return the name of the output with the features."""
    names: list[str] = [info.name for info in model.graph.output]
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    outputs = name_some([f"{info.name} {list(shape_of(info))}" for info in model.graph.output], limit=8)
    fault = f"it has {len(names)} outputs" if name is None else f"it has no output {name[:80]!r}"
    raise ConfigError(f'{fault}; set "output" in the JSON file to one of {outputs}')


# ---- pixels to features


def _wrap(model: ModelProto, output: str, description: Description, *, grid: int, shape: Shape | None) -> ModelProto:
    """Add normalisation and pooling to a graph: `images` uint8 (N, H, W, 3) to `features` (N, F).

    `shape` is the shape of the output for one image; if None, the output is returned without pooling.
    """
    source = _input(model, description)
    inner = compose.add_prefix(model, _INNER).graph
    builder = GraphBuilder(_OUTER)
    _normalise(builder, f"{_INNER}{source.name}", description, kind=source.type.tensor_type.elem_type)
    builder.nodes += _without_dropout(inner.node)
    last = builder.add("Cast", [f"{_INNER}{output}"], to=TensorProto.FLOAT)
    features: list[str | int] | None = None
    if shape:  # rounded to float16, so that features can be stored as float16
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
    """Return the only input; raise ConfigError if there are several, or it has another shape or type."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto] = [info for info in model.graph.input if info.name not in weights]
    if len(inputs) != 1:
        names = name_some([info.name[:80] for info in inputs], limit=8)
        raise ConfigError(f"expected one input, got {len(inputs)} ({names}); export only the image encoder")
    side = description.image_size
    expected = ("N", 3, side, side) if description.is_nchw else ("N", side, side, 3)
    shape, kind = shape_of(inputs[0]), inputs[0].type.tensor_type.elem_type
    fits = len(shape) == 4 and isinstance(shape[0], str)
    fits = fits and all(isinstance(axis, str) or axis == size for axis, size in zip(shape, expected, strict=True))
    if not fits or kind not in _FLOATS:
        raise ConfigError(
            f"expected a FLOAT or FLOAT16 input {list(expected)} with a dynamic axis N, got "
            f"{TensorProto.DataType.Name(kind)} {list(shape)}; correct image_size and layout, or export it again"
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
                raise ConfigError(f"it uses the mask of Dropout {node.name[:80]!r}; export it in evaluation mode")
            replaced[index] = helper.make_node("Identity", node.input[:1], node.output[:1])
    return replaced


def _pool(builder: GraphBuilder, last: str, description: Description, shape: Shape, *, grid: int) -> str:
    """Add the nodes from the output to a vector: pool a map to the grid, channel-major, or select a token."""
    if len(shape) == 2:
        return last
    if len(shape) == 3:
        return builder.add("Gather", [last, builder.constant(np.array(_token(description, shape[1])))], axis=1)
    if len(shape) != 4:
        raise ConfigError(f"expected a vector, a feature map or tokens for each image, got shape {list(shape)}")
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
            f'the output has {tokens} tokens: set "token" in the JSON file to the index of one (most transformers have '
            'the class token at 0), or "output" to another output'
        )
    if description.token >= tokens:
        raise ConfigError(f"expected a token from 0 to {tokens - 1}, got {description.token}")
    return description.token


# ---- checks on noise


def _noise(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return random images uint8 (count, size, size, 3); the first ones do not depend on `count`."""
    return np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def _run(graph: ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only fatal errors: the exception has the reason
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: npt.NDArray[Any] = session.run(None, {_IMAGES: images})[0]
    except Exception as err:  # onnxruntime's errors share no base class
        raise ConfigError(
            f"onnxruntime cannot run it on {len(images)} images of {images.shape[1]} x {images.shape[2]} pixels "
            f"({first_line(err)}); check image_size, layout, and that the batch axis is dynamic"
        ) from err
    return result


def _check_batches(graph: ModelProto, *, size: int) -> int:
    """Return F; raise ConfigError if features are not finite or depend on the other images of the batch."""
    images = _noise(3, size)
    together, alone = _run(graph, images), _run(graph, images[:1])
    if not np.isfinite(together).all():
        raise ConfigError(
            "its features of random images are not finite in float16, whose maximum is 65504; check mean and std, or "
            "scale its output"
        )
    if together.shape[0] != len(images) or np.abs(together[:1] - alone).max() > _TOLERANCE * np.abs(alone).max():
        raise ConfigError(
            "its features depend on the other images of the batch; export it in evaluation mode, with a dynamic batch "
            "axis"
        )
    return int(together.shape[1])
