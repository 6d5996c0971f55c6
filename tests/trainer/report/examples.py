"""Inputs of reports, without training."""

from dataclasses import replace

import numpy as np

from contract.scores.acquisition import bald
from contract.versions.manifest import DropoutSite, InputSpec
from contract.versions.results import TrainingRecord
from tests import versions
from trainer.evaluation.holdout import HeldOut, macro_f1_interval, predict_labels, to_label_matrix
from trainer.evaluation.metrics import compute_metrics
from trainer.labels.dataset import Pixels, Unreadable, split
from trainer.report.calibration import fit_temperature
from trainer.report.data import Inputs

PASSES = 5


def draw_passes(rng, targets, classes):
    """Return probabilities (N, T, C) that are mostly, but not always, right."""
    multiple = targets.ndim == 2
    logits = rng.normal(size=(len(targets), PASSES, classes)) + rng.normal(size=(len(targets), 1, classes))
    logits += (2.5 * (to_label_matrix(targets, classes) - 0.5 * multiple))[:, None]
    odds = np.exp(logits).astype(np.float32)
    return odds / (1 + odds) if multiple else odds / odds.sum(axis=2, keepdims=True)


def make_inputs(labels=("cat", "dog", "horse"), *, images=90, multiple=False, frozen=True):
    """Return the inputs of a report on images of noise."""
    rng, classes = np.random.default_rng(0), len(labels)
    targets = np.arange(images) % classes
    if multiple:
        targets = (rng.random((images, classes)) < 0.4).astype(np.uint8)
    train, validation = split(targets, fraction=0.4, seed=0)
    passes = draw_passes(rng, targets[validation], classes)
    mean, nats = passes.mean(axis=1), bald(passes, multiple=multiple)
    pixels = Pixels(
        images=rng.integers(0, 256, (images, 40, 40, 3), np.uint8),
        targets=targets,
        digests=tuple(number.to_bytes(32) for number in range(images)),
        groups=np.arange(images),
        task_ids=np.full(images, -1),
        references=tuple(f"/data/all/{number % classes}/{number:03}.png" for number in range(images)),
        unreadable=(Unreadable("broken.png", "cut short"),),
    )
    interval = macro_f1_interval(predict_labels(mean, multiple=multiple), to_label_matrix(targets[validation], classes))
    manifest = replace(
        versions.manifest("20260102T030405678Z-abcdef"),
        labels=tuple(labels),
        input=InputSpec(40, 40),
        passes=PASSES,
        dropout_sites=(DropoutSite((8,), 0.5),),
        multiple=multiple,
        temperature=fit_temperature(mean, targets[validation], multiple=multiple),
        metrics=replace(
            compute_metrics(mean, targets[validation]),
            macro_f1_interval=interval,
            mean_bald=float(nats.mean()) if len(nats) else None,
        ),
        training=TrainingRecord(
            images=images,
            validation="split",
            validation_images=len(validation),
            audit_images=0,
            unreadable=1,
            left_out={"file without a supported image suffix": 2},
            weights={"origin": "none", "sha256": None, "loaded": [], "fresh": ["a", "b"]},
            part="classifier" if frozen else "all",
            seed=0,
            recipe={"learning_rate": 0.1, "epochs": 3, "batch_images": 8},
            attempts=1,
            final_loss=0.5,
        ),
    )
    return Inputs(
        manifest=manifest,
        earlier=(),
        origin="the class folders of images",
        pixels=pixels,
        parts=HeldOut(train, validation, "split", 0),
        probabilities=mean,
        bald=nats,
        embeddings=rng.normal(size=(images, 16)).astype(np.float32) if frozen else None,
    )
