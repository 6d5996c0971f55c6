"""Versions measured on the same images, so that a curve shows what they have learnt and not what they were asked.

The labelled part of the random holdout grows, so that each version was measured on more of it than the one before. But
of each is known what it says of images that it has not seen: of those labelled since, what it predicts; of those that
were labelled then, what was predicted by the network that was measured on them. That is kept beside the newest version,
so that only new images cost anything. Whatever fails here costs a figure or a point of the curve, never a version.
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
from contract.scores.acquisition import greatest_bald
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
"""Within a version's folder."""
_MOST_PREDICTED: Final = 1000
"""Predictions of earlier versions in one run, each a tenth of a second of two processors: the newest come first."""
_MOST_BYTES: Final = 64 * 2**20
_VERSIONS: Final = 20
"""The most manifests that are read."""
COMPARED_PASSES: Final = 200
"""Of one version with itself under other masks, 20 passes give a kappa of 0.91 to 0.96 on photos, 100 one of 0.96 to
0.99: what versions differ in must not be the draw."""

TaskPredictions = Mapping[int, Sequence[int]]
"""By task: the labels that a version predicts, as indices."""


@dataclass(frozen=True, slots=True)
class CommonImages:
    """Images of the random holdout, N of them, that no version was measured on after it had seen them."""

    tasks: Sequence[int]
    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)"""
    known: Mapping[str, Features]
    """Features of the images, (N, F), by the fingerprint of the backbone that they are of."""
    true: LabelMatrix
    """(N, C)"""
    decided: LabelMatrix
    """(N, C): what the network says that was trained without them."""


def compare_versions(
    repository: Repository, manifest: Manifest, before: Sequence[Manifest], test: CommonImages
) -> tuple[Comparison, dict[str, TaskPredictions]]:
    """Measure a new version and those of its kind before it, oldest first, on equal images; return predictions, too.

    Versions of which it is not known that they held the same images out are left out, as are those whose predictions
    are lost and that have learnt these images since, and the oldest where all would take too long.
    """
    share = manifest.training.audit_share
    alike = [each for each in before if each.training.is_on_random_sample and each.training.audit_share == share]
    known = _read_predictions(repository, alike)
    comparable = [each for each in alike if each.version in known or not each.training.refitted]
    predictions = {manifest.version: _by_task(test.tasks, test.decided)}
    left = _MOST_PREDICTED
    for each in reversed(comparable):
        found = known.get(each.version, {})
        missing = [row for row, task in enumerate(test.tasks) if task not in found]
        left -= len(missing)
        if left < 0:
            break
        new = _predict(repository, each, test, missing)
        if new is not None:
            predictions[each.version] = {task: {**found, **new}[task] for task in test.tasks}
    there = [each for each in (*comparable, manifest) if each.version in predictions]
    measured = [_measure(each, predictions[each.version], test) for each in there]
    return Comparison(len(test.tasks), tuple(filter(None, measured))), predictions


def save_predictions(predictions: Mapping[str, TaskPredictions], folder: Path) -> None:
    """Keep what versions predict in the new version's folder."""
    (folder / PREDICTIONS_FILE).write_text(json.dumps(predictions, separators=(",", ":")), encoding="utf-8")


def _read_predictions(repository: Repository, versions: Sequence[Manifest]) -> Mapping[str, TaskPredictions]:
    """Read what the newest of the versions that kept predictions has of itself and those before it."""
    for each in reversed([each for each in versions if PREDICTIONS_FILE in each.files]):
        try:
            text = repository.read_published(each, PREDICTIONS_FILE, most_bytes=_MOST_BYTES)
            return {name: _parse(found, len(each.labels)) for name, found in json.loads(text).items()}
        except (LabelnextError, OSError, ValueError, TypeError, AttributeError) as err:
            logger.info("%s of %s is passed over: %s", PREDICTIONS_FILE, each.version, err)
    return {}


def _parse(found: Mapping[str, Sequence[int]], classes: int) -> TaskPredictions:
    predicted = {int(task): [int(label) for label in labels] for task, labels in found.items()}
    if not all(0 <= label < classes for labels in predicted.values() for label in labels):
        raise ValueError(f"expected labels below {classes}")
    return predicted


def _predict(repository: Repository, manifest: Manifest, test: CommonImages, rows: list[int]) -> TaskPredictions | None:
    """Have an earlier version predict images that it has not seen yet; None if it cannot."""
    if not rows:
        return {}
    try:
        with repository.open_verified(manifest.version) as version:
            known = {backbone: features[rows] for backbone, features in test.known.items()}
            means = predict(version, test.images[rows], passes=COMPARED_PASSES, known=known)
    except Exception as err:  # onnxruntime's errors share no base class, and what was trained is not to be lost for it
        logger.warning("version %s is not on the curve, for it cannot predict: %s", manifest.version, err)
        return None
    return _by_task([test.tasks[row] for row in rows], predict_labels(means, multiple=manifest.multiple))


def _by_task(tasks: Sequence[int], decided: LabelMatrix) -> TaskPredictions:
    return {task: np.flatnonzero(row).tolist() for task, row in zip(tasks, decided, strict=True)}


def _decisions(predicted: TaskPredictions, tasks: Sequence[int], classes: int) -> LabelMatrix:
    """What is predicted of tasks, (N, C)."""
    return np.array([np.isin(np.arange(classes), predicted[task]) for task in tasks], np.bool_).reshape(-1, classes)


def _measure(manifest: Manifest, predicted: TaskPredictions, test: CommonImages) -> ComparedVersion | None:
    decided = _decisions(predicted, test.tasks, test.true.shape[1])
    reached, interval = macro_f1(decided, test.true), macro_f1_interval(decided, test.true)
    labels = manifest.training.images
    if reached is None or interval is None or labels is None:
        return None
    return ComparedVersion(manifest.version, labels, reached, *interval)


# ---- what comes of it


def earlier_versions(repository: Repository, manifest: Manifest) -> list[Manifest]:
    """Return the manifests of versions that differ from this one in little but their labels, oldest first."""
    found = []
    for name in repository.history()[-_VERSIONS:]:
        try:
            found.append(repository.read_manifest(name))
        except RepositoryError as err:
            logger.info("version %s is passed over: %s", name, err)
    return [each for each in found if _kind(each) == _kind(manifest)]


def _kind(manifest: Manifest) -> tuple[object, ...]:
    project, backbone = manifest.training.project, manifest.backbone.name
    alike = (manifest.labels, manifest.multiple, manifest.control, manifest.input, backbone, manifest.training.part)
    return (project and project.id, *alike)


def find_agreement(
    predictions: Mapping[str, TaskPredictions], before: Sequence[Manifest], manifest: Manifest
) -> float | None:
    """Return Cohen's kappa between what a new version predicts and the newest of those before it, oldest first.

    None if none of these was measured on the same images. Predictions are by version.
    """
    compared = [predictions[each.version] for each in before if each.version in predictions]
    if not compared:
        return None
    now = predictions[manifest.version]
    return kappa(*(_decisions(each, list(now), len(manifest.labels)) for each in (compared[-1], now)))


def kappa(first: LabelMatrix, second: LabelMatrix) -> float:
    """Return Cohen's kappa between two sets of decisions (N, C); 1 where all are alike.

    One label an image is one rating; of multiple, each label of an image is.
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
    """Return the advice that belongs into a new version's manifest, which is complete but for it.

    The curve is None where the new version was not measured on random images, of which `unseen` labels have none;
    `kappa` is its agreement with the version before.
    """
    manifests = {each.version: each for each in (*before, manifest)}
    agreements = {each.version: each.training.advice.kappa for each in before if each.training.advice}
    agreements[manifest.version] = kappa
    measured = []
    for each in curve.versions if curve else ():
        bald, agreement = manifests[each.version].metrics.mean_bald, agreements.get(each.version)
        if curve and bald is not None:
            measured.append(CurvePoint(each.labels, curve.images, each.macro_f1, each.low, each.high, bald, agreement))
    greatest = greatest_bald(len(manifest.labels), multiple=manifest.multiple)
    images = manifest.training.audit_images or 0
    return replace(advise(measured, images=images, greatest_bald=greatest, unseen=unseen), kappa=kappa)
