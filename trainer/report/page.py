"""The page of a report, and what stands beside it: figures.json and classes.csv."""

import csv
import json
import platform
from base64 import b64encode
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final, TypeVar

from markupsafe import Markup

from contract.versions.learning_curve import draw, find_line
from trainer.report import data, metrics
from trainer.report.data import Inputs, ReportData, Shown
from trainer.report.html import render
from trainer.report.label_errors import LabelError
from trainer.report.metrics import ClassMetrics, Confusion
from trainer.report.plots import draw_histogram, draw_reliability
from trainer.report.thumbnails import to_thumbnail

_TABLE_CLASSES: Final = 12
"""Up to so many, the confusions are a table with figures."""
_PICTURE_CLASSES: Final = 40
"""Up to so many, they are a table of shades; beyond, a list."""
_PAIRS: Final = 20
"""The most pairs of confused classes that are listed."""
_ROWS: Final = 60
"""The most classes that are listed."""
_NAMED: Final = 5
"""Unreadable images that are named."""
_LIBRARIES: Final = ("torch", "torchvision", "baal", "numpy", "scikit-learn", "cleanlab", "onnxruntime")

_Image = TypeVar("_Image", Shown, LabelError)


def write_report(inputs: Inputs, folder: Path) -> None:
    """Write index.html, figures.json and classes.csv into a folder that is made for them."""
    found = data.work_out(inputs)
    folder.mkdir()
    (folder / "index.html").write_text(_page(inputs, found), encoding="utf-8")
    document = json.dumps(data.to_json(found, inputs.manifest), ensure_ascii=False, allow_nan=False, indent=1)
    (folder / "figures.json").write_text(document + "\n", encoding="utf-8")
    _write_classes(found.classes, folder / "classes.csv")


def _write_classes(classes: Sequence[ClassMetrics], path: Path) -> None:
    rows = [metrics.to_json(each) for each in classes]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _page(inputs: Inputs, found: ReportData) -> str:
    manifest, calibration = inputs.manifest, found.calibration
    measured = bool(len(inputs.bald))
    weakest = metrics.weakest_first(found.classes)
    return render(
        "version.html",
        manifest=manifest,
        metrics=manifest.metrics,
        training=manifest.training,
        advice=manifest.training.advice,
        found=found,
        measured=measured,
        curve=Markup(draw(found.curve, in_use=manifest.version)) if len(found.curve) > 1 else None,  # noqa: S704  # numbers
        line=find_line(found.curve),
        reliability=draw_reliability(calibration.before, calibration.after, multiple=manifest.multiple)
        if calibration.tells
        else None,
        least_judged=data.LEAST_JUDGED,
        bald=draw_histogram(found.histogram) if measured else None,
        weakest=weakest[:_ROWS],
        matrix=_matrix(found) if measured else None,
        compact=len(manifest.labels) > _TABLE_CLASSES,
        pairs=_pairs(found, manifest.labels),
        pictures=_pictures(inputs, found),
        doubted=_with_thumbnails(inputs, found.judgement.found[: data.ERRORS_SHOWN]),
        too_few=found.judgement.too_few,
        origin=inputs.origin,
        unreadable=inputs.pixels.unreadable[:_NAMED],
        settings=_settings(inputs),
        versions={name: version_of(name) for name in _LIBRARIES} | {"Python": platform.python_version()},
    )


def _matrix(found: ReportData) -> list[list[int]] | None:
    """The rows of the confusion matrix, where it is small enough to be shown."""
    if found.matrix is None or len(found.matrix) > _PICTURE_CLASSES:
        return None
    return [list(row) for row in found.matrix.tolist()]


def _pairs(found: ReportData, labels: Sequence[str]) -> list[tuple[str, str, Confusion, ClassMetrics]]:
    """The classes that are confused most, where a table does not say so at a glance: names, number, the true class."""
    if found.matrix is None or len(labels) <= _TABLE_CLASSES:
        return []
    pairs = metrics.confusions(found.matrix)[:_PAIRS]
    return [(labels[each.true], labels[each.predicted], each, found.classes[each.true]) for each in pairs]


def _pictures(inputs: Inputs, found: ReportData) -> list[tuple[str, list[tuple[Shown, str]]]]:
    titles = ("Most uncertain: what the passes disagree on most", "Most certain: the greatest probability")
    parts = (found.uncertain, found.confident)
    return [(title, _with_thumbnails(inputs, part)) for title, part in zip(titles, parts, strict=True) if part]


def _with_thumbnails(inputs: Inputs, images: Sequence[_Image]) -> list[tuple[_Image, str]]:
    """Each with its picture as a data URI."""
    return [(each, _data_uri(inputs, each.image)) for each in images]


def _data_uri(inputs: Inputs, image: int) -> str:
    return "data:image/jpeg;base64," + b64encode(to_thumbnail(inputs.pixels.images[image])).decode("ascii")


def _settings(inputs: Inputs) -> dict[str, Any]:
    """What the version was trained with, flat, by names for people."""
    manifest = inputs.manifest
    training = manifest.training
    weights = training.weights
    return {
        "backbone": manifest.backbone.name,
        "trained part": training.part,
        "image size": f"{manifest.input.width} x {manifest.input.height}",
        "weights": weights["origin"],
        "sha256 of the weights": weights["sha256"],
        "freshly initialised": ", ".join(weights["fresh"]),
        **{name.replace("_", " "): value for name, value in training.recipe.items()},
        "attempts": training.attempts,
        "last training loss": training.final_loss,
        "seed": training.seed,
        "passes": manifest.passes,
        "control": manifest.control,
    }
