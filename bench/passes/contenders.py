"""The contenders of `bench.passes`, on the same version, images and threads.

Those that repeat the whole network T times are slow. They are timed apart from those that run it once, so that neither
baal's memory nor a dozen loaded models slow down the others.

One deterministic pass, without uncertainty, is a lower bound. In onnxruntime it is the literal graph, whose Dropout the
optimiser deletes. OpenVINO refuses Dropout in training mode, and gets the graph without. It is compiled for each batch
size, which suits OpenVINO best, in float32, or in int8 as quantised by NNCF's defaults from real images.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch

from bench.passes.rounds import Images, Run
from contract.versions.version import Version
from server.settings import Device, Precision
from trainer.model.backbones import LoadedBackbone
from trainer.model.bayes import ModelWrapper, TrainingArgs
from trainer.model.build import Network, build_head_for, open_backbone_for
from trainer.settings import Training

if TYPE_CHECKING:
    import openvino

NAMES = {Precision.FP32: "ours", Precision.FP16: "ours_fp16", Precision.INT8: "ours_int8"}

_CALIBRATION_IMAGES = 64
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""As in the server, so that ratios compare equal precisions."""


def repeated(version: Version, *, passes: int, device: Device, threads: int) -> dict[str, Run]:
    """Return the contenders that run the network T times: baal in torch, and a loop in onnxruntime.

    baal's network has fresh weights, which do not affect its speed.
    """
    torch.set_num_threads(threads)
    spec, labels = version.manifest.input, version.manifest.labels
    training = Training(weights="none", backbone=version.manifest.backbone.name, image_size=spec.height)
    network = build_network(training, classes=len(labels))
    on_gpu = device is Device.CUDA
    wrapper = ModelWrapper(network.cuda() if on_gpu else network, TrainingArgs(use_cuda=on_gpu))
    wrapper.eval()
    naive = open_session(version, device=device, threads=threads, keep_dropout=True)

    def run_baal(images: Images) -> object:
        # The copy waits for the GPU to finish.
        return wrapper.predict_on_batch(torch.from_numpy(images), iterations=passes).cpu()

    def run_naive(images: Images) -> object:
        return [naive.run(None, {"images": images}) for _ in range(passes)]

    return {"baal": run_baal, "naive": run_naive}


def build_network(training: Training, *, classes: int) -> Network:
    """Return a network with fresh weights, with its backbone in torch."""
    backbone = open_backbone_for(training, cache=Path())
    assert isinstance(backbone, LoadedBackbone)
    assert backbone.module is not None
    head, _ = build_head_for(training, backbone, classes=classes)
    return Network(backbone.module, head)


def single(version: Version, images: Images, *, device: Device, threads: int) -> dict[str, Run]:
    """Return the contenders that run the network once, without uncertainty; OpenVINO only on the CPU.

    Its int8 network is calibrated on the images, uint8 (N, H, W, 3).
    """
    session = open_session(version, device=device, threads=threads)
    runs: dict[str, Run] = {"single": lambda images: session.run(None, {"images": images})}
    if device is Device.CPU:
        plain = _read_plain(version)
        runs["openvino"] = _compile_by_batch(plain, threads=threads)
        runs["openvino_int8"] = _compile_by_batch(_quantise(plain, images), threads=threads)
    return runs


def open_session(
    version: Version, *, device: Device, threads: int, keep_dropout: bool = False
) -> onnxruntime.InferenceSession:
    """Open a version's literal graph in onnxruntime, by default without Dropout, which the optimiser deletes."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    cuda: list[Any] = [("CUDAExecutionProvider", _CUDA_OPTIONS)] if device is Device.CUDA else []
    return onnxruntime.InferenceSession(
        version.model_path,
        settings,
        providers=[*cuda, "CPUExecutionProvider"],
        disabled_optimizers=["EliminateDropout"] if keep_dropout else [],
    )


def _read_plain(version: Version) -> openvino.Model:
    """Return a version's network without dropout: uint8 (N, H, W, 3) to logits (N, C), with dynamic N."""
    import openvino

    graph = onnx.load(version.model_path)
    for node in graph.graph.node:
        if node.op_type == "Dropout":
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    return openvino.Core().read_model(graph.SerializeToString())


def _quantise(model: openvino.Model, images: Images) -> openvino.Model:
    """Quantise a network to int8 with NNCF, calibrated on the last images, uint8 (N, H, W, 3)."""
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress; stdout is for results
        import nncf

        nncf.set_log_level(logging.WARNING)
        samples = [image[np.newaxis] for image in images[-_CALIBRATION_IMAGES:]]
        quantised: openvino.Model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    return quantised


def _compile_by_batch(model: openvino.Model, *, threads: int) -> Run:
    """Return a function that runs a network in OpenVINO, compiled once for each batch size."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # of layers that are not quantised; the default may be a smaller type
        "INFERENCE_NUM_THREADS": threads,
    }
    requests: dict[int, openvino.InferRequest] = {}

    def run(images: Images) -> object:
        if len(images) not in requests:
            fixed = model.clone()
            fixed.reshape(list(images.shape))
            requests[len(images)] = openvino.Core().compile_model(fixed, "CPU", settings).create_infer_request()
        return requests[len(images)].infer([images], share_inputs=True)

    return run
