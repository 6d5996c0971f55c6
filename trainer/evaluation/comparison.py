"""Comparison of versions on the same images, for the learning curve.

The labelled part of the random holdout grows, so each version was evaluated on more images than the previous one.
Earlier versions therefore predict the images that were labelled since. Their earlier predictions are stored with the
newest version, so that only new images need computing. A failure costs a metric or a point of the curve, never the
version.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

from contract.errors import LabelnextError, RepositoryError
from contract.scores.acquisition import max_bald
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.results import Advice, ComparedVersion, Comparison
from trainer.evaluation.advice import CurvePoint, advise
from trainer.evaluation.holdout import LabelMatrix, macro_f1_interval, predict_labels
from trainer.evaluation.metrics import macro_f1
from trainer.model.frozen import Features
from trainer.model.graphs.validation import predict

logger = logging.getLogger(__name__)

PREDICTIONS_FILE: Final = "answers.json"
_MAX_PREDICTIONS: Final = 1000
"""Maximum number of predictions of earlier versions in one run, newest versions first; one takes 0.1 s on two CPUs."""
_MAX_BYTES: Final = 64 * 2**20
_MAX_MANIFESTS: Final = 20
COMPARED_PASSES: Final = 200
"""Enough that dropout masks hardly matter: between two sets of masks, kappa on photos is 0.91 to 0.96 with 20 passes,
and 0.96 to 0.99 with 100."""

TaskPredictions = Mapping[int, Sequence[int]]
"""Predicted label indices by task ID."""


@dataclass(frozen=True, slots=True)
class CommonImages:
    """N images of the random holdout, which no measured network was trained on."""

    tasks: Sequence[int]
    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)"""
    known: Mapping[str, Features]
    """Features of the images, (N, F), by backbone fingerprint."""
    true: LabelMatrix
    """(N, C)"""
    predicted: LabelMatrix
    """(N, C): predictions of the new network that was trained without these images."""


def compare_versions(
    repository: Repository, manifest: Manifest, before: Sequence[Manifest], test: CommonImages
) -> tuple[Comparison, dict[str, TaskPredictions]]:
    """Measure a new version and the comparable ones `before` it, oldest first; return metrics and predictions.

    Versions with another holdout, and refitted versions without stored predictions, are left out, and so are the oldest
    ones if all would take too long.
    """
    share = manifest.training.audit_share
    same_holdout = [each for each in before if each.training.is_on_random_sample and each.training.audit_share == share]
    stored = _read_predictions(repository, same_holdout)
    comparable = [each for each in same_holdout if each.version in stored or not each.training.refitted]
    predictions = {manifest.version: _by_task(test.tasks, test.predicted)}
    remaining = _MAX_PREDICTIONS
    for each in reversed(comparable):
        known = stored.get(each.version, {})
        missing = [row for row, task in enumerate(test.tasks) if task not in known]
        remaining -= len(missing)
        if remaining < 0:
            break
        new = _predict(repository, each, test, missing)
        if new is not None:
            predictions[each.version] = {task: {**known, **new}[task] for task in test.tasks}
    compared = [each for each in (*comparable, manifest) if each.version in predictions]
    measured = [_measure(each, predictions[each.version], test) for each in compared]
    return Comparison(len(test.tasks), tuple(filter(None, measured))), predictions


def save_predictions(predictions: Mapping[str, TaskPredictions], folder: Path) -> None:
    """Write the predictions of each version into the new version's folder."""
    (folder / PREDICTIONS_FILE).write_text(json.dumps(predictions, separators=(",", ":")), encoding="utf-8")


def _read_predictions(repository: Repository, versions: Sequence[Manifest]) -> Mapping[str, TaskPredictions]:
    """Read the predictions that are stored with the newest version: its own and those of earlier versions."""
    for each in reversed([each for each in versions if PREDICTIONS_FILE in each.files]):
        try:
            text = repository.read_published(each, PREDICTIONS_FILE, max_bytes=_MAX_BYTES)
            return {name: _parse(labels, len(each.labels)) for name, labels in json.loads(text).items()}
        except (LabelnextError, OSError, ValueError, TypeError, AttributeError) as err:
            logger.info("ignoring %s of version %s: %s", PREDICTIONS_FILE, each.version, err)
    return {}


def _parse(labels_by_task: Mapping[str, Sequence[int]], classes: int) -> TaskPredictions:
    predicted = {int(task): [int(label) for label in labels] for task, labels in labels_by_task.items()}
    if not all(0 <= label < classes for labels in predicted.values() for label in labels):
        raise ValueError(f"expected labels below {classes}")
    return predicted


def _predict(repository: Repository, manifest: Manifest, test: CommonImages, rows: list[int]) -> TaskPredictions | None:
    """Predict images with an earlier version; return None if it cannot be run."""
    if not rows:
        return {}
    try:
        with repository.open_verified(manifest.version) as version:
            known = {backbone: features[rows] for backbone, features in test.known.items()}
            means = predict(version, test.images[rows], passes=COMPARED_PASSES, known=known)
    except Exception as err:  # onnxruntime's errors share no base class; the new version must not be lost
        logger.warning("version %s is missing in the learning curve: %s", manifest.version, err)
        return None
    return _by_task([test.tasks[row] for row in rows], predict_labels(means, multiple=manifest.multiple))


def _by_task(tasks: Sequence[int], predicted: LabelMatrix) -> TaskPredictions:
    return {task: np.flatnonzero(row).tolist() for task, row in zip(tasks, predicted, strict=True)}


def _to_matrix(predictions: TaskPredictions, tasks: Sequence[int], classes: int) -> LabelMatrix:
    """Return the predictions for tasks as a matrix (N, C)."""
    return np.array([np.isin(np.arange(classes), predictions[task]) for task in tasks], np.bool_).reshape(-1, classes)


def _measure(manifest: Manifest, predictions: TaskPredictions, test: CommonImages) -> ComparedVersion | None:
    predicted = _to_matrix(predictions, test.tasks, test.true.shape[1])
    score, interval = macro_f1(predicted, test.true), macro_f1_interval(predicted, test.true)
    labels = manifest.training.images
    if score is None or interval is None or labels is None:
        return None
    return ComparedVersion(manifest.version, labels, score, *interval)


# ---- agreement and advice


def earlier_versions(repository: Repository, manifest: Manifest) -> list[Manifest]:
    """Return the manifests of earlier versions with the same labels and network, oldest first.

    Versions with an invalid manifest are left out. Raises OSError if the repository cannot be read.
    """
    manifests = []
    for name in repository.history()[-_MAX_MANIFESTS:]:
        try:
            manifests.append(repository.read_manifest(name))
        except RepositoryError as err:
            logger.info("ignoring version %s: %s", name, err)
    return [each for each in manifests if _kind(each) == _kind(manifest)]


def _kind(manifest: Manifest) -> tuple[object, ...]:
    project, backbone = manifest.training.project, manifest.backbone.name
    compared = (manifest.labels, manifest.multiple, manifest.control, manifest.input, backbone, manifest.training.part)
    return (project and project.id, *compared)


def find_agreement(
    predictions: Mapping[str, TaskPredictions], before: Sequence[Manifest], manifest: Manifest
) -> float | None:
    """Return Cohen's kappa between a new version and the newest earlier one in `predictions`; None without one.

    `predictions` are by version; `before` are the earlier versions, oldest first.
    """
    compared = [predictions[each.version] for each in before if each.version in predictions]
    if not compared:
        return None
    now = predictions[manifest.version]
    return kappa(*(_to_matrix(each, list(now), len(manifest.labels)) for each in (compared[-1], now)))


def kappa(first: LabelMatrix, second: LabelMatrix) -> float:
    """Return Cohen's kappa between two label matrices (N, C); 1 if they are equal.

    The rated items are the images if each has one label, and otherwise all pairs of image and label.
    """
    if (first == second).all():
        return 1.0
    single = (first.sum(axis=1) == 1).all() and (second.sum(axis=1) == 1).all()
    ratings = (first.argmax(axis=1), second.argmax(axis=1)) if single else (first.ravel(), second.ravel())
    return float(cohen_kappa_score(*ratings))


def describe_advice(
    before: Sequence[Manifest],
    manifest: Manifest,
    curve: Comparison | None,
    *,
    kappa: float | None,
    unseen: Sequence[str],
) -> Advice:
    """Return the advice for a new version.

    Args:
        before: manifests of earlier versions, oldest first.
        manifest: manifest of the new version.
        curve: None if the new version was not measured on the random holdout.
        kappa: agreement of the new version with the previous one.
        unseen: labels without an image in the random holdout.
    """
    manifests = {each.version: each for each in (*before, manifest)}
    agreements = {each.version: each.training.advice.kappa for each in before if each.training.advice}
    agreements[manifest.version] = kappa
    points = []
    for each in curve.versions if curve else ():
        bald, agreement = manifests[each.version].metrics.mean_bald, agreements.get(each.version)
        if curve and bald is not None:
            points.append(CurvePoint(each.labels, curve.images, each.macro_f1, each.low, each.high, bald, agreement))
    bound = max_bald(len(manifest.labels), multiple=manifest.multiple)
    images = manifest.training.audit_images or 0
    return replace(advise(points, images=images, max_bald=bound, unseen=unseen), kappa=kappa)
