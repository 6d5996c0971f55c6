"""Computes the figures of a report: the content of figures.json, which the page shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contract.scores.calibration import temper
from contract.versions.learning_curve import Point, find_points
from contract.versions.manifest import Manifest
from trainer.evaluation.holdout import HeldOut, predict_labels, to_label_matrix
from trainer.evaluation.metrics import compute_metrics
from trainer.labels.dataset import Pixels
from trainer.report import label_errors, metrics
from trainer.report.calibration import assign_folds, cross_fit, ece_by_chance, reliability

MIN_DIAGRAM_IMAGES: Final = 100
"""With fewer images a reliability diagram is meaningless: even the overall accuracy is only known to +-0.1 (95 %)."""

_MAX_ERRORS_SHOWN: Final = 24
_MAX_ERROR_TASKS: Final = 1000
"""Maximum number of label errors listed with their tasks, for annotators to review."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A version, the N images it was trained and validated on, and its predictions for the V validation images."""

    manifest: Manifest
    """Complete except for the digests of the report's files."""
    earlier: Sequence[Manifest]
    """Manifests of earlier versions of the same kind, oldest first."""
    origin: str
    """Description of the labels' origin."""
    pixels: Pixels
    parts: HeldOut
    probabilities: npt.NDArray[np.float32]
    """Untempered means over the passes, (V, C)."""
    bald: npt.NDArray[np.floating]
    """In nats, (V,)."""
    embeddings: npt.NDArray[np.float32] | None
    """Embeddings of the frozen backbone's features, (N, E), undefined for images in neither the training nor the
    validation part; None without a frozen backbone."""

    @property
    def curve(self) -> list[Point]:
        """The learning curve; the version itself is the last point, if it was measured."""
        return find_points([*self.earlier, self.manifest])

    def name(self, image: int) -> str:
        """Return the name by which users find an image."""
        return self.pixels.name(image, is_file=self.manifest.control is None)


def compute_figures(inputs: Inputs) -> dict[str, Any]:
    """Return the content of figures.json."""
    manifest, parts, classes = inputs.manifest, inputs.parts, len(inputs.manifest.labels)
    targets = inputs.pixels.targets
    true = to_label_matrix(targets[parts.validation], classes)  # (V, C)
    predicted = predict_labels(inputs.probabilities, multiple=manifest.multiple)  # (V, C)
    right, certainty = (true == predicted).all(axis=1), _certainty(inputs)  # (V,)

    def describe(row: int) -> dict[str, Any]:
        image = int(parts.validation[row])
        return {
            "image": image,
            "given": tuple(compress(manifest.labels, true[row])),
            "predicted": tuple(compress(manifest.labels, predicted[row])),
            "probability": float(certainty[row]),
            "bald": float(inputs.bald[row]),
            "right": bool(right[row]),
            "name": inputs.name(image),
        }

    uncertain, confident = (list(map(describe, rows.tolist())) for rows in metrics.extremes(inputs.bald, certainty))
    return {
        "version": manifest.version,
        "metrics": asdict(manifest.metrics),
        "temperature": manifest.temperature,
        "calibration": _calibrate(inputs),
        "classes": metrics.by_class(
            manifest.labels,
            labelled=to_label_matrix(targets, classes),
            trained_on=to_label_matrix(targets[parts.train], classes),
            true=true,
            predicted=predicted,
        ),
        "confusions": [] if manifest.multiple else metrics.confusions(manifest.labels, true, predicted),
        "bald": metrics.histogram(inputs.bald, right),
        "most_uncertain": uncertain,
        "most_confident": confident,
        "label_errors": _find_label_errors(inputs),
        "curve": [_describe_point(each) for each in inputs.curve],
        "training": asdict(manifest.training),
    }


def _calibrate(inputs: Inputs) -> dict[str, Any]:
    """Return the calibration on the validation part before and after tempering, the latter cross-fitted."""
    validation, multiple = inputs.parts.validation, inputs.manifest.multiple
    targets, before = inputs.pixels.targets[validation], inputs.probabilities
    folds = assign_folds(targets, inputs.pixels.groups[validation])
    after = cross_fit(before, targets, folds, multiple=multiple)
    tempered = compute_metrics(after, targets)
    return {
        "before": reliability(before, targets, multiple=multiple),
        "after": reliability(after, targets, multiple=multiple),
        "nll": tempered.nll,
        "ece": tempered.ece,
        "by_chance": ece_by_chance(before, multiple=multiple),
        "tells": len(before) >= MIN_DIAGRAM_IMAGES,
    }


def _find_label_errors(inputs: Inputs) -> dict[str, Any]:
    """Return probable label errors among the images with predictions of a model that was not trained on them."""
    pixels, rows, labels = inputs.pixels, inputs.parts.validation, inputs.manifest.labels
    probabilities: npt.NDArray[np.floating] = inputs.probabilities
    if inputs.embeddings is not None:
        rows = np.sort(np.concatenate([inputs.parts.train, inputs.parts.validation]))
        probabilities = label_errors.cross_predict(
            inputs.embeddings[rows], pixels.targets[rows], pixels.groups[rows], classes=len(labels)
        )
    result = label_errors.find_errors(probabilities, pixels.targets, pixels.groups, labels=labels, among=rows)
    listed = [(each, int(pixels.task_ids[each.image])) for each in result.errors[:_MAX_ERROR_TASKS]]
    return {
        "judged_by": "validation" if inputs.embeddings is None else "cross-validation",
        "judged": result.images,
        "found": len(result.errors),
        "too_few": result.too_few,
        "likeliest": [{**asdict(each), "name": inputs.name(each.image)} for each, _ in listed[:_MAX_ERRORS_SHOWN]],
        "tasks": [{**asdict(each), "task": task} for each, task in listed if task >= 0],
    }


def _certainty(inputs: Inputs) -> npt.NDArray[np.floating]:
    """Return the tempered probability of each prediction, (V,); with several labels, of the least certain decision."""
    multiple = inputs.manifest.multiple
    tempered = temper(inputs.probabilities, inputs.manifest.temperature, multiple=multiple)  # (V, C)
    if multiple:
        return np.asarray(np.maximum(tempered, 1 - tempered).min(axis=1))
    return np.asarray(tempered.max(axis=1))


def _describe_point(point: Point) -> dict[str, Any]:
    metrics, (low, high) = point.manifest.metrics, point.interval or (None, None)
    return {
        "version": point.version,
        "labels": point.labels,
        "validated": point.images,
        "sample": point.manifest.training.validation,
        "common": point.is_joined,
        "macro_f1": point.macro_f1,
        "low": low,
        "high": high,
        "accuracy": metrics.accuracy,
        "mean_bald": metrics.mean_bald,
    }
