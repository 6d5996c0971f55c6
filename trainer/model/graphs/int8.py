"""The backbone in 8-bit integers, for CPUs: how it is made, and whether it is served, and so trained on.

Convolutions and linear layers are quantised statically by onnxruntime's own tool: weights per output channel, signed;
activations per tensor, unsigned, over the range that they take on the calibration images. Pixels are 8-bit integers
already: what normalises them is folded into the first convolution, so that it reads them as they come.

It is taken where it gives what float32 does, faster. That is decided once for a backbone, and kept with it: made anew
on other images it would give other features, and all that servers have kept would be lost.
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

LEAST_IMAGES: Final = 32
"""To calibrate on: the range that activations take is one of few images, and kept for good."""
LEAST_SIMILARITY: Final = 0.98
LEAST_SPEEDUP: Final = 1.2
_COMPARED_IMAGES: Final = 16
_VERDICT_FILE: Final = "int8.json"
CALIBRATION_IMAGES: Final = 64
_IMAGES_A_RUN = 4
_OPERATORS = ["Add", "Clip", "Conv", "Gemm", "MaxPool", "Relu", "Reshape"]
"""What is quantised, or passes 8-bit integers on."""
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Tells the tool that the graph is one that it can take: inlined, its shapes known."""

Vector = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


def choose_precision(
    backbone: FrozenBackbone, images: Images, *, repository: Repository | None = None
) -> FrozenBackbone:
    """Return a backbone, given in float32, in 8-bit integers if it is as good there and faster.

    What versions in the repository have is taken as it is; else it is made and judged now on images uint8 (N, H, W, 3),
    unless it was before.
    """
    target, verdict = backbone.folder / INT8_BACKBONE_FILE, backbone.folder / _VERDICT_FILE
    reduced = replace(backbone, precision="int8")
    if repository is not None and _take_published(repository, backbone.fingerprint, target):
        return reduced
    better = _read_verdict(verdict, target)
    if better is None:
        if len(images) < LEAST_IMAGES:
            _log.info("int8: not made yet, %d images to calibrate on are needed, got %d", LEAST_IMAGES, len(images))
            return backbone
        judged = _judge(backbone, reduced, images)
        verdict.write_text(json.dumps(judged), encoding="utf-8")
        better = bool(judged["better"])
    return reduced if better else backbone


def _read_verdict(verdict: Path, target: Path) -> bool | None:
    """Return what was judged before; None if nothing was, or what it was about is gone."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        better = bool(json.loads(verdict.read_text(encoding="utf-8"))["better"])
        return better if target.exists() or not better else None
    return None


def _take_published(repository: Repository, fingerprint: str, target: Path) -> bool:
    """Copy what the newest version of that backbone has; False if none has any."""
    for name in reversed(repository.versions()):
        # Damaged, or being removed: of no use here, and not this run's business.
        with suppress(LabelnextError, OSError):
            manifest = repository.read_manifest(name)
            if manifest.backbone.fingerprint == fingerprint and INT8_BACKBONE_FILE in manifest.files:
                if not target.exists() or digest_file(target) != manifest.files[INT8_BACKBONE_FILE]:
                    with repository.open_verified(name) as verified:
                        verified.copy(INT8_BACKBONE_FILE, target)
                return True
    return False


def _judge(backbone: FrozenBackbone, reduced: FrozenBackbone, images: Images) -> dict[str, object]:
    """Make the backbone in 8-bit integers, and compare it with that in float32: similarity, and speed."""
    try:
        quantise(backbone, images, backbone.folder / INT8_BACKBONE_FILE)
        compared = images[np.linspace(0, len(images) - 1, num=min(_COMPARED_IMAGES, len(images)), dtype=np.int64)]
        (exact, exact_s), (found, found_s) = (_time(each, compared) for each in (backbone, reduced))
    except Exception as err:  # of a tool with many, for networks that it was not made for
        _log.warning("int8: not to be had of %s: %s", backbone.name, err)
        return {"better": False, "reason": str(err)}
    like, faster = similarity(exact, found), exact_s / found_s
    better = like >= LEAST_SIMILARITY and faster >= LEAST_SPEEDUP
    used = "used" if better else "not used"
    _log.info("int8: features are like float32's to %.4f, %.1f times as fast: %s", like, faster, used)
    return {"better": better, "likeness": like, "speedup": faster}


def similarity(exact: Features, found: Features) -> float:
    """Return the mean cosine between features (N, F) and what stands for them, both less the mean of the exact ones."""
    centre = exact.mean(axis=0)
    a, b = exact - centre, found - centre
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)).mean())


def _time(backbone: FrozenBackbone, images: Images) -> tuple[Features, float]:
    backbone.compute(images[:1], title="int8")
    started = time.perf_counter()
    features = backbone.compute(images, title="int8")
    return features, time.perf_counter() - started


# ---- how it is made


def quantise(backbone: FrozenBackbone, images: Images, target: Path) -> None:
    """Write a backbone in 8-bit integers to a file, calibrated on images uint8 (N, H, W, 3), weights included."""
    model, mean, deviation = backbone.graph_with_weights(), np.array(backbone.mean), np.array(backbone.deviation)
    chosen = images[np.linspace(0, len(images) - 1, num=min(CALIBRATION_IMAGES, len(images)), dtype=np.int64)]
    centre = round(255 * float(np.mean(mean)))
    _fold_normalisation(model, mean, deviation, centre)
    helper.set_model_props(model, _PREPARED)
    of_pixels = {"scale": np.array(1, np.float32), "zero_point": np.array(centre, np.uint8)}
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
        extra_options={"TensorQuantOverrides": {"centred": [of_pixels]}},
    )
    quantised = onnx.load(target)
    _read_pixels_directly(quantised)
    onnx.save(quantised, target)


def _fold_normalisation(model: ModelProto, mean: Vector, deviation: Vector, centre: int) -> None:
    """Have the first convolution take pixels less `centre` in place of what `Normalise` makes of pixels.

    At the border alone the results differ a little: there the convolution pads with what is 0 after normalisation,
    which is another pixel in each channel, and now with `centre` in all.
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
    before = {node.output[0] for node in prune(graph.node, first.input[:1])}
    kept = [node for node in graph.node if node.output[0] not in before]
    first.input[0] = "centred"
    _set_nodes(model, [*centring, *kept])


def _read_pixels_directly(model: ModelProto) -> None:
    """Drop what makes of the pixels numbers that quantisation makes pixels of again."""
    rounding = next(node for node in model.graph.node if list(node.input[:1]) == ["centred"])
    for node in model.graph.node:
        node.input[:] = ["planes" if name == rounding.output[0] else name for name in node.input]
    gone = ("values", "centred", *rounding.output)
    _set_nodes(model, [node for node in model.graph.node if node.output[0] not in gone])


def _set_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Replace a graph's nodes, and drop the constants that none of them uses."""
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(constants)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration images, a few at a time."""

    def __init__(self, name: str, images: Images) -> None:
        starts = range(0, len(images), _IMAGES_A_RUN)
        feeds = [{name: images[start : start + _IMAGES_A_RUN]} for start in starts]
        self._feeds = iter(Bar(feeds, "int8: calibrating", unit="run"))

    def get_next(self) -> dict[str, Images] | None:
        return next(self._feeds, None)
