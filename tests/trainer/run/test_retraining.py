"""Successive runs with a frozen backbone, and studies, which train like runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from contract.versions.manifest import InputSpec
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE
from tests.trainer.run.training import CLASSIFIER, TRAINING, train
from tests.trainer.small import COLOURS, coloured_images
from trainer import run as run_module
from trainer.model.bayes import PROBE_IMAGES
from trainer.model.fit import fit
from trainer.model.graphs.validation import validate_version
from trainer.model.head import to_onnx
from trainer.publish import choose_probe
from trainer.settings import Source
from trainer.study.model import Dataset, Trainer

pytestmark = pytest.mark.slow  # trains or exports networks


def test_retraining_computes_only_features_of_new_images(folders, environment, computed):
    """Only the head changes; it is measured without the validation images, and published with them."""
    first = train(folders, CLASSIFIER, environment)
    images, targets = coloured_images(np.random.default_rng(99), 6, size=40)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        Image.fromarray(image).save(folders / list(COLOURS)[target] / f"new{number:03}.png")
    training = first.manifest.training
    assert (training.images, training.validation_images, training.refitted) == (30, 6, True)
    second = train(folders, replace(CLASSIFIER, epochs=60), environment)
    assert second.manifest.metrics.accuracy > 0.8
    assert computed == [30, 6]
    assert first.manifest.backbone == second.manifest.backbone
    assert (first.manifest.backbone.name, first.manifest.backbone.precision) == ("small", "fp32")
    files = [version.manifest.files for version in (first, second)]
    assert files[0][BACKBONE_WEIGHTS_FILE] == files[1][BACKBONE_WEIGHTS_FILE]
    assert files[0][HEAD_WEIGHTS_FILE] != files[1][HEAD_WEIGHTS_FILE]
    assert (second.manifest.training.images, second.manifest.training.part) == (36, "classifier")
    validate_version(second)


def test_probe_changes_little_between_rounds(folders, environment):
    """So that its features are cached. Classes are balanced; only new images with smaller digests replace others."""
    data = run_module._read(Source(images=folders), TRAINING, environment, InputSpec(32, 32))
    rng = np.random.default_rng(0)
    digests = tuple(rng.bytes(32) for _ in range(200))
    targets = rng.integers(0, 3, 200)
    probes = []
    for count in (180, 200):
        pixels = replace(data.pixels, digests=digests[:count], targets=targets[:count])
        probes.append(choose_probe(replace(data, pixels=pixels)))
    earlier, later = ({digests[row] for row in rows} for rows in probes)
    assert len(earlier) == len(later) == PROBE_IMAGES
    assert len(earlier & later) >= PROBE_IMAGES - 4
    assert np.ptp(np.bincount(targets[probes[1]])) <= 1


def test_studies_train_the_same_head_as_runs(folders, environment, monkeypatch):
    calls = []

    def record(module, inputs, targets, **options):
        calls.append((to_onnx(module).SerializeToString(deterministic=True), inputs, targets))
        return fit(module, inputs, targets, **options)

    monkeypatch.setattr("trainer.model.fit_head.fit", record)
    training = replace(CLASSIFIER, seed=4, units=16)
    train(folders, training, environment)
    _, (initial_head, features, targets) = calls
    dataset = Dataset(tuple(COLOURS), targets, np.empty(0), features.numpy(), environment.cache_dir)
    for seed in (4, 5):
        trainer = Trainer(dataset, replace(training, seed=seed), device=torch.device("cpu"))
        trainer.train(np.arange(len(targets)), f"study/{seed}/0")
    assert calls[2][0] == initial_head != calls[3][0]
