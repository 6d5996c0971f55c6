"""What a report says, worked out once: the document that figures.json holds and the page shows."""

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
from trainer.report.calibration import cross_fit, deal, error_by_chance, reliability

LEAST_JUDGED: Final = 100
"""Images below which a reliability diagram says nothing: even the share of all that are right is then only known to 0.1
more or less (95 %), and a bin holds a few of them."""

_ERRORS_SHOWN: Final = 24
_ERRORS_NAMED: Final = 1000
"""The most that are named by their tasks, for people to look at them again there."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A version, the N images it was trained and measured on, and what it says of the V it was measured on."""

    manifest: Manifest
    """Complete but for the digests of the report's own files."""
    earlier: Sequence[Manifest]
    """Of versions of the same kind, oldest first."""
    origin: str
    """Where the labels come from, for people."""
    pixels: Pixels
    parts: HeldOut
    probabilities: npt.NDArray[np.float32]
    """Mean over the passes, not tempered: shape (V, C)."""
    bald: npt.NDArray[np.floating]
    """In nats, shape (V,)."""
    embeddings: npt.NDArray[np.float32] | None
    """Of what the frozen part of the network makes of each image, shape (N, E); rows of images that neither train nor
    validate mean nothing. None where no part was frozen."""

    @property
    def curve(self) -> list[Point]:
        """The learning curve; the version itself comes last, if it was measured."""
        return find_points([*self.earlier, self.manifest])

    def name(self, image: int) -> str:
        """Return what an image is found by."""
        return self.pixels.name(image, is_file=self.manifest.control is None)


def work_out(inputs: Inputs) -> dict[str, Any]:
    """Return everything that is told of a version, as JSON."""
    manifest, parts, classes = inputs.manifest, inputs.parts, len(inputs.manifest.labels)
    targets = inputs.pixels.targets
    true = to_label_matrix(targets[parts.validation], classes)  # (V, C)
    predicted = predict_labels(inputs.probabilities, multiple=manifest.multiple)  # (V, C)
    right, certainty = (true == predicted).all(axis=1), _certainty(inputs)  # (V,)

    def show(row: int) -> dict[str, Any]:
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

    uncertain, confident = (list(map(show, rows.tolist())) for rows in metrics.extremes(inputs.bald, certainty))
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
        "label_errors": _judge(inputs),
        "curve": [_describe(each) for each in inputs.curve],
        "training": asdict(manifest.training),
    }


def _calibrate(inputs: Inputs) -> dict[str, Any]:
    """How far the validation part bears the probabilities out, as they are and tempered; `after` is cross-fitted."""
    validation, multiple = inputs.parts.validation, inputs.manifest.multiple
    targets, before = inputs.pixels.targets[validation], inputs.probabilities
    after = cross_fit(before, targets, deal(targets, inputs.pixels.groups[validation]), multiple=multiple)
    found = compute_metrics(after, targets)
    return {
        "before": reliability(before, targets, multiple=multiple),
        "after": reliability(after, targets, multiple=multiple),
        "nll": found.nll,
        "ece": found.ece,
        "by_chance": error_by_chance(before, multiple=multiple),
        "tells": len(before) >= LEAST_JUDGED,
    }


def _judge(inputs: Inputs) -> dict[str, Any]:
    """Judge the labels of all images that a model can be kept from."""
    pixels, rows, labels = inputs.pixels, inputs.parts.validation, inputs.manifest.labels
    probabilities: npt.NDArray[np.floating] = inputs.probabilities
    if inputs.embeddings is not None:
        rows = np.sort(np.concatenate([inputs.parts.train, inputs.parts.validation]))
        probabilities = label_errors.predict_unseen(
            inputs.embeddings[rows], pixels.targets[rows], pixels.groups[rows], classes=len(labels)
        )
    judgement = label_errors.judge(probabilities, pixels.targets, pixels.groups, labels=labels, among=rows)
    named = [(each, int(pixels.task_ids[each.image])) for each in judgement.found[:_ERRORS_NAMED]]
    return {
        "judged_by": "validation" if inputs.embeddings is None else "cross-validation",
        "judged": judgement.images,
        "found": len(judgement.found),
        "too_few": judgement.too_few,
        "likeliest": [{**asdict(each), "name": inputs.name(each.image)} for each, _ in named[:_ERRORS_SHOWN]],
        "tasks": [{**asdict(each), "task": task} for each, task in named if task >= 0],
    }


def _certainty(inputs: Inputs) -> npt.NDArray[np.floating]:
    """How probable it is that what is predicted holds, (V,), tempered; of several labels, what is said least surely."""
    multiple = inputs.manifest.multiple
    tempered = temper(inputs.probabilities, inputs.manifest.temperature, multiple=multiple)  # (V, C)
    if multiple:
        return np.asarray(np.maximum(tempered, 1 - tempered).min(axis=1))
    return np.asarray(tempered.max(axis=1))


def _describe(point: Point) -> dict[str, Any]:
    found, (low, high) = point.manifest.metrics, point.interval or (None, None)
    return {
        "version": point.version,
        "labels": point.labels,
        "validated": point.images,
        "sample": point.manifest.training.validation,
        "common": point.is_joined,
        "macro_f1": point.macro_f1,
        "low": low,
        "high": high,
        "accuracy": found.accuracy,
        "mean_bald": found.mean_bald,
    }
