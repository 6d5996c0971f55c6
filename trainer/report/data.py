"""Everything that a report says, worked out: the pages and the files only show it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contract.scores.calibration import temper
from contract.versions.learning_curve import Point, find_points
from contract.versions.manifest import Manifest
from trainer.evaluation.holdout import HeldOut, as_decisions, decide
from trainer.evaluation.metrics import measure
from trainer.labels.dataset import Pixels
from trainer.report import label_errors, metrics
from trainer.report.calibration import Bin, cross_fit, deal, error_by_chance, reliability
from trainer.report.label_errors import Judgement, LabelError
from trainer.report.metrics import ClassMetrics, Histogram

LEAST_JUDGED: Final = 100
"""Images below which a reliability diagram says nothing: even the share of all that are right is then only known to 0.1
more or less (95 %), and a bin holds a few of them."""

ERRORS_SHOWN: Final = 24
"""The most label errors that are shown."""
ERRORS_NAMED: Final = 1000
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


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of the validation part."""

    image: int
    """Its row among all images."""
    given: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: float
    """That what is predicted holds, tempered; of several labels, that of what is said of the least sure one."""
    bald: float
    """In nats."""
    right: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the validation part bears the probabilities out, as they are and tempered."""

    before: tuple[Bin, ...]
    after: tuple[Bin, ...]
    """Cross-fitted, as the two figures are."""
    nll: float | None
    ece: float | None
    by_chance: float
    """The calibration error that a version whose probabilities are right stays below in 95 of 100 cases."""
    tells: bool
    """Whether there are images enough for bins to say anything."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """What is to be told of a version."""

    classes: tuple[ClassMetrics, ...]
    """In the order of the labels."""
    matrix: npt.NDArray[np.int64] | None
    """True classes by predicted ones, (C, C); None of multiple labels."""
    calibration: Calibration
    histogram: Histogram
    uncertain: tuple[Shown, ...]
    confident: tuple[Shown, ...]
    judged_by: str
    """`cross-validation` or `validation`: how the images whose labels were judged had been kept from the judge."""
    judgement: Judgement
    names: Mapping[int, str]
    """What the images are found by that are shown, by row."""
    doubted_tasks: tuple[int, ...]
    """The tasks of the label errors, -1 where an image is of none; the likeliest, up to a thousand."""
    curve: tuple[Point, ...]
    """The version itself comes last, if it was measured."""


def work_out(inputs: Inputs) -> ReportData:
    """Work everything out."""
    manifest, classes = inputs.manifest, len(inputs.manifest.labels)
    targets, parts = inputs.pixels.targets, inputs.parts
    true = as_decisions(targets[parts.validation], classes)  # (V, C)
    predicted = decide(inputs.probabilities, multiple=manifest.multiple)  # (V, C)
    certainty = _certainty(inputs)  # (V,)

    def show(row: int) -> Shown:
        return Shown(
            image=int(parts.validation[row]),
            given=tuple(compress(manifest.labels, true[row])),
            predicted=tuple(compress(manifest.labels, predicted[row])),
            probability=float(certainty[row]),
            bald=float(inputs.bald[row]),
            right=bool((predicted[row] == true[row]).all()),
        )

    uncertain, confident = (tuple(map(show, rows.tolist())) for rows in metrics.extremes(inputs.bald, certainty))
    judgement = _judge(inputs)
    named: list[Shown | LabelError] = [*uncertain, *confident, *judgement.found[:ERRORS_SHOWN]]
    return ReportData(
        classes=metrics.by_class(
            manifest.labels,
            labelled=as_decisions(targets, classes),
            trained_on=as_decisions(targets[parts.train], classes),
            true=true,
            predicted=predicted,
        ),
        matrix=None if manifest.multiple else metrics.confusion_matrix(true, predicted),
        calibration=_calibrate(inputs),
        histogram=metrics.histogram(inputs.bald, (true == predicted).all(axis=1)),
        uncertain=uncertain,
        confident=confident,
        judged_by="validation" if inputs.embeddings is None else "cross-validation",
        judgement=judgement,
        names={each.image: inputs.pixels.name(each.image, is_file=manifest.control is None) for each in named},
        doubted_tasks=tuple(int(inputs.pixels.task_ids[each.image]) for each in judgement.found[:ERRORS_NAMED]),
        curve=tuple(find_points([*inputs.earlier, manifest])),
    )


def _calibrate(inputs: Inputs) -> Calibration:
    validation, multiple = inputs.parts.validation, inputs.manifest.multiple
    targets, before = inputs.pixels.targets[validation], inputs.probabilities
    folds = deal(targets, inputs.pixels.groups[validation])
    after = cross_fit(before, targets, folds, multiple=multiple)
    found = measure(after, targets)
    return Calibration(
        before=reliability(before, targets, multiple=multiple),
        after=reliability(after, targets, multiple=multiple),
        nll=found.nll,
        ece=found.ece,
        by_chance=error_by_chance(before, multiple=multiple),
        tells=len(before) >= LEAST_JUDGED,
    )


def _judge(inputs: Inputs) -> Judgement:
    """Judge the labels of all images that a model can be kept from."""
    pixels, rows, labels = inputs.pixels, inputs.parts.validation, inputs.manifest.labels
    probabilities: npt.NDArray[np.floating] = inputs.probabilities
    if inputs.embeddings is not None:
        rows = np.sort(np.concatenate([inputs.parts.train, inputs.parts.validation]))
        probabilities = label_errors.predict_unseen(
            inputs.embeddings[rows], pixels.targets[rows], pixels.groups[rows], classes=len(labels)
        )
    return label_errors.judge(probabilities, pixels.targets, pixels.groups, labels=labels, among=rows)


def _certainty(inputs: Inputs) -> npt.NDArray[np.floating]:
    """How probable it is that what is predicted holds, tempered: (V,)."""
    multiple = inputs.manifest.multiple
    tempered = temper(inputs.probabilities, inputs.manifest.temperature, multiple=multiple)  # (V, C)
    if multiple:
        return np.asarray(np.maximum(tempered, 1 - tempered).min(axis=1))
    return np.asarray(tempered.max(axis=1))


def to_json(data: ReportData, manifest: Manifest) -> dict[str, Any]:
    """Return the data as a JSON object, the confusions as pairs of labels."""
    labels, judgement = manifest.labels, data.judgement
    confusions = [] if data.matrix is None else metrics.confusions(data.matrix)

    def named(images: Sequence[Shown | LabelError]) -> list[dict[str, Any]]:
        return [{**asdict(each), "name": data.names[each.image]} for each in images]

    return {
        "version": manifest.version,
        "metrics": asdict(manifest.metrics),
        "temperature": manifest.temperature,
        "calibration": asdict(data.calibration),
        "classes": [asdict(each) for each in data.classes],
        "confusions": [
            {"true": labels[true], "predicted": labels[predicted], "images": count}
            for true, predicted, count in confusions
        ],
        "bald": asdict(data.histogram),
        "most_uncertain": named(data.uncertain),
        "most_confident": named(data.confident),
        "label_errors": {
            "judged_by": data.judged_by,
            "judged": judgement.images,
            "found": len(judgement.found),
            "too_few": judgement.too_few,
            "likeliest": named(judgement.found[:ERRORS_SHOWN]),
            "tasks": [
                {**asdict(each), "task": task}
                for each, task in zip(judgement.found[:ERRORS_NAMED], data.doubted_tasks, strict=True)
                if task >= 0
            ],
        },
        "curve": [_describe(each) for each in data.curve],
        "training": asdict(manifest.training),
    }


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
