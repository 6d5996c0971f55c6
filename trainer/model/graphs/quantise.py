"""The backbone in 8-bit integers, for CPUs: built at publish time, calibrated on training images.

Convolutions and linear layers are quantised statically by onnxruntime's own tool: weights per output channel, signed;
activations per tensor, unsigned, over the range that they take on the calibration images. Pixels are 8-bit integers
already: what normalises them is folded into the first convolution, so that it reads them as they come. The head stays
in float32.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from contract.graph.builder import prune
from trainer.progress_bar import Bar

Vector = npt.NDArray[np.float64]

CALIBRATION_IMAGES = 64
_IMAGES_A_RUN = 4

_OPERATORS = ["Add", "Clip", "Conv", "Gemm", "MaxPool", "Relu", "Reshape"]
"""What is quantised, or passes 8-bit integers on."""

_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Tells the tool that the graph is one that it can take: inlined, its shapes known."""


def quantise(
    backbone: ModelProto,
    images: npt.NDArray[np.uint8],
    target: Path,
    *,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> None:
    """Write a backbone, given in float32 with its weights, in 8-bit integers to a file, weights included.

    It normalises pixels by mean and deviation, from 0 to 1; images uint8 (N, H, W, 3) are to calibrate on.
    """
    model = ModelProto()
    model.CopyFrom(backbone)
    chosen = images[np.linspace(0, len(images) - 1, num=min(CALIBRATION_IMAGES, len(images)), dtype=np.int64)]
    centre = round(255 * float(np.mean(mean)))
    _fold_normalisation(model, np.array(mean), np.array(deviation), centre)
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

    def __init__(self, name: str, images: npt.NDArray[np.uint8]) -> None:
        starts = range(0, len(images), _IMAGES_A_RUN)
        feeds = [{name: images[start : start + _IMAGES_A_RUN]} for start in starts]
        self._feeds = iter(Bar(feeds, "int8: calibrating", unit="run"))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return next(self._feeds, None)
