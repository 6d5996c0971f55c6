"""Everything that a report says, worked out: the pages and the files only show it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contract.images.download import public_name
from contract.scores.calibration import temper
from contract.versions.learning_curve import Point, find_points
from contract.versions.manifest import Manifest
from trainer.evaluation.holdout import Decisions, as_decisions, decide
from trainer.evaluation.metrics import measure
from trainer.labels.class_folders import as_text
from trainer.labels.dataset import Indices
from trainer.report import figures, label_errors
from trainer.report.calibration import Bin, cross_fit, error_by_chance, reliability
from trainer.report.evidence import Evidence
from trainer.report.figures import ClassFigures, Histogram
from trainer.report.folds import deal
from trainer.report.label_errors import Judgement

LEAST_JUDGED: Final = 100
"""Images below which a reliability diagram says nothing: even the share of all that are right is then only known to 0.1
more or less (95 %), and a bin holds a few of them."""

ERRORS_SHOWN: Final = 24
"""The most label errors that are named."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of the validation part."""

    image: int
    """Its row among all images."""
    name: str
    given: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: float
    """That what is predicted holds, tempered; of several labels, that of what is said of the least sure one."""
    bald: float
    """In nats."""
    right: bool


@dataclass(frozen=True, slots=True)
class Doubted:
    """One image whose label is probably wrong."""

    image: int
    """Its row among all images."""
    name: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    given_probability: float
    suggested_probability: float


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
class Findings:
    """What is to be told of a version."""

    classes: tuple[ClassFigures, ...]
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
    doubted: tuple[Doubted, ...]
    """The first of what was found."""
    curve: tuple[Point, ...]
    """The version itself comes last, if it was measured."""


def find(evidence: Evidence) -> Findings:
    """Work everything out."""
    manifest, classes = evidence.manifest, len(evidence.manifest.labels)
    targets, parts = evidence.pixels.targets, evidence.parts
    true = as_decisions(targets[parts.validation], classes)  # (V, C)
    predicted = decide(evidence.probabilities, multiple=manifest.multiple)  # (V, C)
    uncertain, certain = figures.extremes(evidence.bald, _certainty(evidence))
    judgement = _judge(evidence)
    return Findings(
        classes=figures.by_class(
            manifest.labels,
            labelled=as_decisions(targets, classes),
            trained_on=as_decisions(targets[parts.train], classes),
            true=true,
            predicted=predicted,
        ),
        matrix=None if manifest.multiple else figures.confusion_matrix(true, predicted),
        calibration=_calibrate(evidence),
        histogram=figures.histogram(evidence.bald, (true == predicted).all(axis=1)),
        uncertain=_show(evidence, uncertain, predicted, true),
        confident=_show(evidence, certain, predicted, true),
        judged_by="validation" if evidence.embeddings is None else "cross-validation",
        judgement=judgement,
        doubted=_doubt(evidence, judgement),
        curve=tuple(find_points([*evidence.earlier, manifest])),
    )


def _calibrate(evidence: Evidence) -> Calibration:
    validation, multiple = evidence.parts.validation, evidence.manifest.multiple
    targets, before = evidence.pixels.targets[validation], evidence.probabilities
    folds = deal(targets, evidence.pixels.groups[validation])
    after = cross_fit(before, targets, folds, multiple=multiple)
    metrics = measure(after, targets)
    return Calibration(
        before=reliability(before, targets, multiple=multiple),
        after=reliability(after, targets, multiple=multiple),
        nll=metrics.nll,
        ece=metrics.ece,
        by_chance=error_by_chance(before, multiple=multiple),
        tells=len(before) >= LEAST_JUDGED,
    )


def _judge(evidence: Evidence) -> Judgement:
    """Judge the labels of all images that a model can be kept from, in rows of the images."""
    pixels, parts = evidence.pixels, evidence.parts
    rows = parts.validation
    probabilities: npt.NDArray[np.floating] = evidence.probabilities
    if evidence.embeddings is not None:
        rows = np.sort(np.concatenate([parts.train, parts.validation]))
        features, classes = evidence.embeddings[rows], len(evidence.manifest.labels)
        probabilities = label_errors.predict_unseen(
            features, pixels.targets[rows], pixels.groups[rows], classes=classes
        )
    judgement = label_errors.judge(probabilities, pixels.targets[rows], pixels.groups[rows])
    return judgement.of_rows(rows)


def _show(evidence: Evidence, chosen: Indices, predicted: Decisions, true: Decisions) -> tuple[Shown, ...]:
    """Describe images by their rows in the validation part."""
    manifest, certainty = evidence.manifest, _certainty(evidence)
    return tuple(
        Shown(
            image=int(evidence.parts.validation[row]),
            name=name_image(evidence, int(evidence.parts.validation[row])),
            given=_names(manifest, np.flatnonzero(true[row])),
            predicted=_names(manifest, np.flatnonzero(predicted[row])),
            probability=float(certainty[row]),
            bald=float(evidence.bald[row]),
            right=bool((predicted[row] == true[row]).all()),
        )
        for row in chosen.tolist()
    )


def _certainty(evidence: Evidence) -> npt.NDArray[np.floating]:
    """How probable it is that what is predicted holds, tempered: (V,)."""
    multiple = evidence.manifest.multiple
    tempered = temper(evidence.probabilities, evidence.manifest.temperature, multiple=multiple)  # (V, C)
    if multiple:
        return np.asarray(np.maximum(tempered, 1 - tempered).min(axis=1))
    return np.asarray(tempered.max(axis=1))


def _doubt(evidence: Evidence, judgement: Judgement) -> tuple[Doubted, ...]:
    return tuple(
        Doubted(
            image=each.image,
            name=name_image(evidence, each.image),
            given=_names(evidence.manifest, each.given),
            suggested=_names(evidence.manifest, each.suggested),
            given_probability=each.given_probability,
            suggested_probability=each.suggested_probability,
        )
        for each in judgement.found[:ERRORS_SHOWN]
    )


def name_image(evidence: Evidence, image: int) -> str:
    """Return what an image is found by: its task, or its file and the folder that this lies in."""
    task, reference = int(evidence.pixels.task_ids[image]), evidence.pixels.references[image]
    if task >= 0:
        return f"task {task}"
    if evidence.manifest.control is not None:
        return public_name(reference)
    return as_text("/".join(PurePath(reference).parts[-2:]))


def _names(manifest: Manifest, labels: Sequence[int] | Indices) -> tuple[str, ...]:
    return tuple(manifest.labels[label] for label in labels)


def to_json(findings: Findings, manifest: Manifest) -> dict[str, Any]:
    """Return the findings as a JSON object, the confusions as pairs of labels."""
    labels, shown = manifest.labels, findings
    confusions = [] if shown.matrix is None else figures.confusions(shown.matrix)
    return {
        "version": manifest.version,
        "metrics": asdict(manifest.metrics),
        "temperature": manifest.temperature,
        "calibration": asdict(shown.calibration),
        "classes": [figures.to_json(each) for each in shown.classes],
        "confusions": [
            {"true": labels[each.true], "predicted": labels[each.predicted], "images": each.count}
            for each in confusions
        ],
        "bald": asdict(shown.histogram),
        "most_uncertain": [asdict(each) for each in shown.uncertain],
        "most_confident": [asdict(each) for each in shown.confident],
        "label_errors": {
            "judged_by": shown.judged_by,
            "judged": shown.judgement.images,
            "found": len(shown.judgement.found),
            "too_few": [labels[each] for each in shown.judgement.too_few],
            "likeliest": [asdict(each) for each in shown.doubted],
        },
        "curve": [_describe(each) for each in shown.curve],
        "training": asdict(manifest.training),
    }


def _describe(point: Point) -> dict[str, Any]:
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
