"""Quantisation of the backbone to 8-bit integers, for CPUs, and the choice between int8 and float32.

Convolutions and linear layers are quantised statically by onnxruntime: weights per output channel, signed; activations
per tensor, unsigned, over their range on the calibration images. Normalisation is folded into the first convolution,
which then reads the pixels directly, as they are 8-bit integers already.

The quantised backbone is used if it is faster and its features are similar to those of float32. This is decided once
per backbone, and the quantised file is kept: calibration on other images would change the features, which would
invalidate those that servers have stored.
"""

import json
import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from contract.errors import LabelnextError
from contract.graph.builder import prune
from contract.versions.repository import Repository
from contract.versions.version import INT8_BACKBONE_FILE, digest_file
from trainer.model.frozen import Features, FrozenBackbone, Images
from trainer.progress_bar import Bar

MIN_IMAGES: Final = 32
"""Minimum number of images for calibration, which fixes the ranges of activations for good."""
MIN_SIMILARITY: Final = 0.98
MIN_SPEEDUP: Final = 1.2
_COMPARED_IMAGES: Final = 16
_VERDICT_FILE: Final = "int8.json"
CALIBRATION_IMAGES: Final = 64
_BATCH_IMAGES = 4
_OPERATORS = ["Add", "Clip", "Conv", "Gemm", "MaxPool", "Relu", "Reshape"]
"""Operators that are quantised or that pass on 8-bit integers."""
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Metadata by which `quantize_static` recognises a preprocessed graph: inlined, with known shapes."""

Vector = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


def choose_precision(
    backbone: FrozenBackbone, images: Images, *, repository: Repository | None = None
) -> FrozenBackbone:
    """Return the int8 variant of a float32 backbone if it is similar and faster, else the backbone itself.

    If a published version has a quantised backbone, it is used. Otherwise the backbone is quantised, compared on images
    uint8 (N, H, W, 3), and the verdict is saved next to it. Raises OSError if the repository cannot be read.
    """
    target, verdict = backbone.folder / INT8_BACKBONE_FILE, backbone.folder / _VERDICT_FILE
    int8 = replace(backbone, precision="int8")
    if repository is not None and _copy_published(repository, backbone.fingerprint, target):
        return int8
    better = _read_verdict(verdict, target)
    if better is None:
        if len(images) < MIN_IMAGES:
            _log.info("int8: not quantised yet: calibration needs %d images, got %d", MIN_IMAGES, len(images))
            return backbone
        comparison = _compare(backbone, int8, images)
        verdict.write_text(json.dumps(comparison), encoding="utf-8")
        better = bool(comparison["better"])
    return int8 if better else backbone


def _read_verdict(verdict: Path, target: Path) -> bool | None:
    """Return the verdict of an earlier comparison; None if there is none, or the quantised file is missing."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        better = bool(json.loads(verdict.read_text(encoding="utf-8"))["better"])
        return better if target.exists() or not better else None
    return None


def _copy_published(repository: Repository, fingerprint: str, target: Path) -> bool:
    """Copy the quantised backbone of the newest version that has one; return False if none has."""
    for name in reversed(repository.versions()):
        # Damaged versions, and versions being removed, are skipped.
        with suppress(LabelnextError, OSError):
            manifest = repository.read_manifest(name)
            if manifest.backbone.fingerprint == fingerprint and INT8_BACKBONE_FILE in manifest.files:
                if not target.exists() or digest_file(target) != manifest.files[INT8_BACKBONE_FILE]:
                    with repository.open_verified(name) as verified:
                        verified.copy(INT8_BACKBONE_FILE, target)
                return True
    return False


def _compare(backbone: FrozenBackbone, int8: FrozenBackbone, images: Images) -> dict[str, object]:
    """Quantise a backbone, and compare its features and speed with float32."""
    try:
        quantise(backbone, images, backbone.folder / INT8_BACKBONE_FILE)
        compared = images[np.linspace(0, len(images) - 1, num=min(_COMPARED_IMAGES, len(images)), dtype=np.int64)]
        (exact, exact_s), (approximate, int8_s) = (_time(each, compared) for each in (backbone, int8))
    except Exception as err:  # errors of the quantiser share no base class
        _log.warning("int8: cannot quantise %s: %s", backbone.name, err)
        return {"better": False, "reason": str(err)}
    likeness, speedup = similarity(exact, approximate), exact_s / int8_s
    better = likeness >= MIN_SIMILARITY and speedup >= MIN_SPEEDUP
    verdict = "used" if better else "not used"
    _log.info("int8: %s; similarity to float32 %.4f, %.1f times as fast", verdict, likeness, speedup)
    return {"better": better, "likeness": likeness, "speedup": speedup}


def similarity(exact: Features, approximate: Features) -> float:
    """Return the mean cosine similarity of features (N, F), centred by the mean of the exact ones."""
    centre = exact.mean(axis=0)
    a, b = exact - centre, approximate - centre
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)).mean())


def _time(backbone: FrozenBackbone, images: Images) -> tuple[Features, float]:
    backbone.compute(images[:1], title="int8")
    started = time.perf_counter()
    features = backbone.compute(images, title="int8")
    return features, time.perf_counter() - started


# ---- quantisation


def quantise(backbone: FrozenBackbone, images: Images, target: Path) -> None:
    """Quantise a backbone, calibrated on images uint8 (N, H, W, 3), and write it to a file with its weights."""
    model, mean, deviation = backbone.graph_with_weights(), np.array(backbone.mean), np.array(backbone.deviation)
    chosen = images[np.linspace(0, len(images) - 1, num=min(CALIBRATION_IMAGES, len(images)), dtype=np.int64)]
    centre = round(255 * float(np.mean(mean)))
    _fold_normalisation(model, mean, deviation, centre)
    helper.set_model_props(model, _PREPARED)
    pixel_scale = {"scale": np.array(1, np.float32), "zero_point": np.array(centre, np.uint8)}
    quantize_static(
        model,
        target,
        _Batches(model.graph.input[0].name, chosen),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=_OPERATORS,
        extra_options={"TensorQuantOverrides": {"centred": [pixel_scale]}},
    )
    quantised = onnx.load(target)
    _read_pixels_directly(quantised)
    onnx.save(quantised, target)


def _fold_normalisation(model: ModelProto, mean: Vector, deviation: Vector, centre: int) -> None:
    """Fold the normalisation into the first convolution, whose input is then pixels minus `centre`.

    The results differ slightly at the border, where zero padding then means `centre` instead of each channel's mean.
    """
    graph = model.graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    gain = 1 / (255 * deviation)  # normalised = gain pixel + offset, (3,) each
    offset = -mean / deviation
    weight, bias = (next(t for t in graph.initializer if t.name == name) for name in first.input[1:])
    kernel = numpy_helper.to_array(weight).astype(np.float64)  # (outputs, 3, height, width)
    shift = (kernel * (gain * centre + offset)[:, None, None]).sum(axis=(1, 2, 3))  # (outputs,)
    for tensor, value in ((weight, kernel * gain[:, None, None]), (bias, numpy_helper.to_array(bias) + shift)):
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    centring = [
        helper.make_node("Transpose", [graph.input[0].name], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["values", "centre"], ["centred"]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(centre, np.float32), "centre"))
    normalisation = {node.output[0] for node in prune(graph.node, first.input[:1])}
    kept = [node for node in graph.node if node.output[0] not in normalisation]
    first.input[0] = "centred"
    _set_nodes(model, [*centring, *kept])


def _read_pixels_directly(model: ModelProto) -> None:
    """Remove the conversion of pixels to float32 and back to 8-bit integers."""
    rounding = next(node for node in model.graph.node if list(node.input[:1]) == ["centred"])
    for node in model.graph.node:
        node.input[:] = ["planes" if name == rounding.output[0] else name for name in node.input]
    removed = ("values", "centred", *rounding.output)
    _set_nodes(model, [node for node in model.graph.node if node.output[0] not in removed])


def _set_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Replace a graph's nodes, and remove unused constants."""
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(constants)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration images in batches."""

    def __init__(self, name: str, images: Images) -> None:
        starts = range(0, len(images), _BATCH_IMAGES)
        feeds = [{name: images[start : start + _BATCH_IMAGES]} for start in starts]
        self._feeds = iter(Bar(feeds, "int8: calibrating", unit="batch"))

    def get_next(self) -> dict[str, Images] | None:
        return next(self._feeds, None)
