"""Measurements in this process: of the server's engine in each precision, and of training."""

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from logging.handlers import BufferingHandler
from pathlib import Path

import numpy as np
import torch

from bench.gpu.cards import peak_tflops
from bench.gpu.placement import profiling, read_nodes, work_by_provider
from bench.gpu.setup import LEARNING_RATE, Setup
from bench.harness.frame import Row
from bench.passes.contenders import build_network
from bench.passes.rounds import time_in_turn
from contract.graph.lowering import FEATURES
from contract.graph.probe import Probe
from contract.versions.repository import Repository
from server.inference.sessions import CUDA
from server.inference.validation import admit
from server.settings import Precision
from trainer.model.build import sample_features
from trainer.model.fit import fit
from trainer.model.head import fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.settings import Training

_VGG16_MULTIPLY_ADDS = 15.35e9
"""Multiply-adds of the convolutions for an image of 224 x 224 pixels."""


def by_precision(measure: Callable[[Setup, Precision], Row], setup: Setup) -> Row:
    """Return the measurement in each precision, with all failures together under the key `failed`."""
    rows = {precision.value: measure(setup, precision) for precision in setup.precisions}
    return _with_failures(rows, [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row])


def _with_failures(row: Row, failures: Sequence[str]) -> Row:
    return {**row, "failed": "; ".join(failures)} if failures else row


def measure_placement(setup: Setup, precision: Precision) -> Row:
    """Return the nodes of backbone and head by provider; all heavy ones must run on the device."""
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        with profiling(Path(folder)) as sessions:
            engine = setup.open(setup.subject.version, precision)
            engine.run(setup.images[: setup.sizes.batches[0]])
        placed = {}
        for session in sessions:
            nodes = read_nodes(Path(session.end_profiling()))
            for name, tensors in (("backbone", session.get_outputs()), ("head", session.get_inputs())):
                if FEATURES in [tensor.name for tensor in tensors]:
                    placed[name] = nodes
    expected = CUDA if setup.on_gpu else "CPUExecutionProvider"
    failures = [] if engine.precision is precision else [f"the backbone computes in {engine.precision}"]
    for name, nodes in placed.items():
        if set(work := work_by_provider(nodes)) != {expected}:
            failures.append(f"expected the {name}'s convolutions and products on {expected}, got {work}")
    return _with_failures(placed, failures)


def validate(setup: Setup, precision: Precision) -> Row:
    """Run the server's validation of the version; a fallback to another precision is a failure, with its reasons."""
    subject, logger = setup.subject, logging.getLogger("server.inference")
    logger.addHandler(records := BufferingHandler(sys.maxsize))
    records.setLevel(logging.WARNING)
    try:
        admitted = admit(Repository(subject.root), subject.version.name, lambda version: setup.open(version, precision))
    finally:
        logger.removeHandler(records)
    probe, engine, validation = Probe.load(subject.version.probe_path), admitted.engine, admitted.validation
    row = {
        "precision": engine.precision.value,
        "provider": engine.provider,
        "largest_difference": validation.largest_difference,
        "rank_correlation": validation.rank_correlation,
        "mean_bald": validation.mean_bald,
        "features_largest_difference": float(np.abs(engine.backbone.compute(probe.images) - probe.features).max()),
        "features_largest": float(np.abs(probe.features).max()),
    }
    reasons = [str(getattr(record, "reason", record.getMessage())) for record in records.buffer]
    return _with_failures(row, [] if engine.precision is precision else [f"refused: {'; '.join(reasons)}"])


def measure_roofline(setup: Setup, precision: Precision) -> Row:
    """Return images/s of VGG-16's backbone by batch size, and the share of the card's peak, if known."""
    engine, batches = setup.open(setup.subject.version, precision), setup.sizes.batches
    peak = peak_tflops(torch.cuda.get_device_name(0), precision) if setup.on_gpu else None
    spec = engine.manifest.input
    operations = 2 * _VGG16_MULTIPLY_ADDS * spec.height * spec.width / 224**2  # a multiply-add is two operations
    timings = time_in_turn({"backbone": engine.backbone.compute}, setup.images, batches, rounds=setup.sizes.runs)
    rows: dict[str, Row] = {}
    for batch, rate in timings.images_per_s("backbone").items():
        tflops = rate * operations / 1e12
        rows[f"batch_{batch}"] = {
            "images_per_s": rate,
            "tflops": tflops,
            "share_of_peak": tflops / peak if peak else None,
        }
    return {**rows, "peak_tflops": peak}


def measure_epoch(setup: Setup) -> Row:
    """Time an epoch of training the whole VGG-16 with arbitrary labels, after a warm-up on one batch."""
    device, classes = torch.device(setup.device.value), len(setup.subject.version.manifest.labels)
    training = Training(weights="none", image_size=setup.sizes.image_size, epochs=1, learning_rate=LEARNING_RATE)
    torch.manual_seed(training.seed)
    network = build_network(training, classes=classes).to(device)
    images = np.resize(setup.images, (setup.sizes.images, *setup.images.shape[1:]))
    targets = np.arange(len(images)) % classes
    recipe = choose_recipe(training, "all", len(images))
    fit_standardisation(network.head, sample_features(network.backbone, images, device=device))
    for count in (recipe.batch_images, len(images)):
        inputs, started = torch.from_numpy(images[:count]), time.perf_counter()
        fitted = fit(network, inputs, targets[:count], classes=classes, recipe=recipe, device=device)
        seconds = time.perf_counter() - started
    return {
        "images": len(images),
        "batch_images": recipe.batch_images,
        "attempts": fitted.attempts,
        "epoch_s": seconds / fitted.attempts,
        "images_per_s": len(images) * fitted.attempts / seconds,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if setup.on_gpu else None,
    }
