"""Who runs against whom in `bench.passes`, all on the same version, images and threads.

Those that repeat the whole network T times are slow by design, and are timed apart from those that run it once, so that
neither baal's memory nor a dozen models at once slow down the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bench.passes.rounds import Contender, Images
from bench.passes.single_pass import compile_by_batch, open_session, quantise, read_plain
from contract.versions.version import Version
from server.inference.engine import Engine
from server.settings import Device, Precision
from trainer.model.backbones import Opened
from trainer.model.bayes import ModelWrapper, TrainingArgs
from trainer.model.build import build_head_of, open_backbone_of
from trainer.model.network import Network
from trainer.settings import Training

NAMES = {Precision.FP32: "ours", Precision.FP16: "ours_fp16", Precision.INT8: "ours_int8"}


def ours(engines: Mapping[Precision, Engine], batches: Sequence[int]) -> dict[str, Contender]:
    """Return the server's engine, as a contender by precision."""
    return {NAMES[precision]: Contender(engine.run, tuple(batches)) for precision, engine in engines.items()}


def repeated(
    version: Version, batches: Sequence[int], *, passes: int, device: Device, threads: int
) -> dict[str, Contender]:
    """Return what computes T passes by running the network T times: baal in torch, and a plain loop in onnxruntime.

    baal's network has fresh weights: nothing is faster or slower for what it knows.
    """
    torch.set_num_threads(threads)
    spec, labels = version.manifest.input, version.manifest.labels
    asked = Training(weights="none", backbone=version.manifest.backbone.name, image_size=spec.height)
    network = build_network(asked, classes=len(labels))
    on_gpu = device is Device.CUDA
    wrapper = ModelWrapper(network.cuda() if on_gpu else network, TrainingArgs(use_cuda=on_gpu))
    wrapper.eval()
    naive = open_session(version, device=device, threads=threads, keep_dropout=True)

    def run_baal(images: Images) -> object:
        # On a GPU the result is there only when it has been copied.
        return wrapper.predict_on_batch(torch.from_numpy(images), iterations=passes).cpu()

    def run_naive(images: Images) -> object:
        return [naive.run(None, {"images": images}) for _ in range(passes)]

    runs = {"baal": run_baal, "naive": run_naive}
    return {name: Contender(run, tuple(batches), is_slow=not on_gpu) for name, run in runs.items()}


def build_network(training: Training, *, classes: int) -> Network:
    """Return a network of fresh weights, all of it in torch."""
    backbone = open_backbone_of(training, cache=Path())
    assert isinstance(backbone, Opened)
    assert backbone.module is not None
    head, _ = build_head_of(training, backbone, classes=classes)
    return Network(backbone.module, head)


def single(
    version: Version, images: Images, batches: Sequence[int], *, device: Device, threads: int
) -> dict[str, Contender]:
    """Return what runs the network once, without uncertainty; OpenVINO takes part on the CPU alone.

    Its int8 is calibrated on the images, uint8 (N, H, W, 3).
    """
    session = open_session(version, device=device, threads=threads)
    runs = {"single": lambda images: session.run(None, {"images": images})}
    if device is Device.CPU:
        plain = read_plain(version)
        runs["openvino"] = compile_by_batch(plain, threads=threads)
        runs["openvino_int8"] = compile_by_batch(quantise(plain, images), threads=threads)
    return {name: Contender(run, tuple(batches)) for name, run in runs.items()}
