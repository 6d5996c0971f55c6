"""A graph in an ONNX file as a backbone: any that leads from one image to a vector, a map or a token.

Owns the small file beside it that says how pixels become its input, and what is refused. The graph may come from
anywhere, so it is looked over before anything computes with it; then onnxruntime shows what it gives.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import ModelProto, external_data_helper, inliner, version_converter
from pydantic import TypeAdapter, ValidationError

from contract.errors import ConfigError, UnsafeGraph
from contract.settings import explain
from contract.versions.inspection import REMEDY, inspect_graph
from contract.versions.manifest import InputSpec
from contract.versions.version import digest_file
from trainer.model.backbones.onnx_wrapping import IMAGES, Description, check_fixed, choose_output, count_channels, wrap
from trainer.model.backbones.opened import Opened
from trainer.model.head import OPSET
from trainer.model.weights import Provenance, first_line

_MOST_BYTES: Final = 2**31 - 2**20
"""Of a graph with its weights: what protobuf can hold in one piece, less what is added."""
_MOST_JSON_BYTES: Final = 2**16
_TOLERANCE: Final = 1e-3
"""By how much an image's features may differ when it comes in another batch, as a share of the largest."""


def default_image_size(name: str) -> int:
    """Return the pixels a side that the file beside a graph names."""
    return read_description(Path(name)).image_size


def open_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> Opened:
    """Open an ONNX file; see `open_backbone`."""
    path = Path(name)
    description = read_description(path)
    if weights != "imagenet":
        raise ConfigError(f"--backbone {path} brings its own weights: leave --weights out, got {weights}")
    description = replace(description, image_size=image_size or description.image_size)
    size, mean, deviation = description.image_size, description.mean, description.std
    try:
        graph, channels = _open_graph(path, description, grid=grid or 1)
        features = _check_batches(graph, size=size)
    except ConfigError as err:
        raise ConfigError(f"--backbone {path}: {err}") from err
    provenance, spec = Provenance(path.name, digest_file(path).sha256, (path.stem,), ()), InputSpec(size, size)
    return Opened(path.stem, spec, features, channels, mean, deviation, provenance, None, graph=graph)


def _open_graph(path: Path, description: Description, *, grid: int) -> tuple[ModelProto, int]:
    """Return a file's graph from pixels to features, and D."""
    model = _convert(_load(path))
    check_fixed(model)
    output = choose_output(model, description.output)
    unpooled = wrap(model, output, description, grid=grid, shape=None)
    shape = _run(unpooled, _images(1, description.image_size)).shape  # of the output for one image
    return wrap(model, output, description, grid=grid, shape=shape), count_channels(shape, description)


def read_description(path: Path) -> Description:
    """Read what stands beside a graph."""
    if not path.is_file():
        raise ConfigError(f"--backbone {path}: there is no such file")
    beside = path.with_name(f"{path.name}.json")
    example = Description(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    wanted = {key: value for key, value in asdict(example).items() if value is not None}
    try:
        with beside.open("rb") as file:
            content = file.read(_MOST_JSON_BYTES)
        return TypeAdapter(Description).validate_json(content)
    except OSError as err:
        raise ConfigError(
            f"--backbone {path}: {beside.name} is expected beside it, to say how images are made for it, such as "
            f"{json.dumps(wanted)}"
        ) from err
    except ValidationError as err:
        faults = "; ".join(f"{where}: {what}" if where else what for where, what in explain(err))
        raise ConfigError(f"{beside}: {faults}; expected is the like of {json.dumps(wanted)}") from err


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
    """Return a graph in the set of operators that all graphs here are of."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as err:
        # Each operator has a converter of its own in C++, whose errors have no class in common.
        raise ConfigError(
            f"it is of opset {opset}, and onnx cannot convert it to {OPSET} ({first_line(err)}); export it again with "
            f"opset_version={OPSET}"
        ) from err


def _images(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return noise, uint8 (count, size, size, 3), of which the first images are always the same."""
    return np.random.default_rng(0).integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def _run(graph: ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return what a wrapped graph gives for images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its reasons stand in what it raises
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: npt.NDArray[Any] = session.run(None, {IMAGES: images})[0]
    except Exception as err:
        # What onnxruntime raises has no class in common either.
        raise ConfigError(
            f"onnxruntime cannot run it on {len(images)} images of {images.shape[1]} pixels a side "
            f"({first_line(err)}); check image_size and layout, and that the batch axis is dynamic"
        ) from err
    return result


def _check_batches(graph: ModelProto, *, size: int) -> int:
    """Return F, having seen that an image's features do not depend on the others in its batch."""
    images = _images(3, size)
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
