"""One deterministic pass, the least that any use of the network costs, as people run it without uncertainty.

In onnxruntime it is the literal graph, whose Dropout the optimiser deletes. OpenVINO refuses Dropout in training mode,
and is given the graph without. It is compiled for each batch size apart, which suits OpenVINO best: in float32, or in
int8 as NNCF, OpenVINO's own quantiser, makes it by default from the float32 network and real images. On a GPU it is not
needed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from bench.passes.rounds import Images
from contract.versions.version import Version
from server.settings import Device

if TYPE_CHECKING:
    import openvino

_CALIBRATION_IMAGES = 64
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""As the server's: the same arithmetic, so that a ratio compares passes and not precisions."""


def open_session(
    version: Version, *, device: Device, threads: int, keep_dropout: bool = False
) -> onnxruntime.InferenceSession:
    """Open a version's literal graph in onnxruntime: as it is by default, or so that its Dropout lives."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    cuda: list[Any] = [("CUDAExecutionProvider", _CUDA_OPTIONS)] if device is Device.CUDA else []
    return onnxruntime.InferenceSession(
        version.model_path,
        settings,
        providers=[*cuda, "CPUExecutionProvider"],
        disabled_optimizers=["EliminateDropout"] if keep_dropout else [],
    )


def read_plain(version: Version) -> openvino.Model:
    """Return a version's network without dropout: images uint8 (N, H, W, 3) to logits (N, C), N free."""
    import openvino

    graph = remove_dropout(onnx.load(version.model_path))
    return openvino.Core().read_model(graph.SerializeToString())


def remove_dropout(model: ModelProto) -> ModelProto:
    """Turn every Dropout, in place, into an Identity."""
    for node in model.graph.node:
        if node.op_type == "Dropout":
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    return model


def quantise(model: openvino.Model, images: Images) -> openvino.Model:
    """Return the network in int8 after NNCF, calibrated on the last of the images, uint8 (N, H, W, 3)."""
    with contextlib.redirect_stdout(sys.stderr):  # it shows its progress, and stdout belongs to results
        import nncf

        nncf.set_log_level(logging.WARNING)
        samples = [image[np.newaxis] for image in images[-_CALIBRATION_IMAGES:]]
        quantised: openvino.Model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    return quantised


def compile_by_batch(model: openvino.Model, *, threads: int) -> Callable[[Images], object]:
    """Return what runs a network in OpenVINO, compiled anew for each batch size that it meets."""
    requests: dict[int, openvino.InferRequest] = {}

    def run(images: Images) -> object:
        if len(images) not in requests:
            requests[len(images)] = _compile(model, images.shape, threads=threads)
        return requests[len(images)].infer([images], share_inputs=True)

    return run


def _compile(model: openvino.Model, shape: tuple[int, ...], *, threads: int) -> openvino.InferRequest:
    import openvino

    fixed = model.clone()
    fixed.reshape(list(shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not quantised; the default may be a shorter type
        "INFERENCE_NUM_THREADS": threads,
    }
    return openvino.Core().compile_model(fixed, "CPU", settings).create_infer_request()
