"""The page of a report, and what stands beside it: figures.json and classes.csv."""

import csv
import json
import platform
from base64 import b64encode
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from contract.versions.learning_curve import draw, find_line
from trainer.report.data import LEAST_JUDGED, Inputs, work_out
from trainer.report.html import render
from trainer.report.metrics import ClassMetrics
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


def write_report(inputs: Inputs, folder: Path) -> None:
    """Write index.html, figures.json and classes.csv into a folder that is made for them."""
    figures = work_out(inputs)
    folder.mkdir()
    (folder / "index.html").write_text(_page(inputs, figures), encoding="utf-8")
    document = json.dumps(figures, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / "figures.json").write_text(document + "\n", encoding="utf-8")
    with (folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(ClassMetrics.__annotations__))
        table.writeheader()
        table.writerows(figures["classes"])


def _page(inputs: Inputs, figures: dict[str, Any]) -> str:
    manifest, calibration, curve = inputs.manifest, figures["calibration"], inputs.curve
    measured, classes = bool(len(inputs.bald)), len(manifest.labels)
    has_matrix = measured and not manifest.multiple and classes <= _PICTURE_CLASSES

    def picture(image: int) -> str:
        return "data:image/jpeg;base64," + b64encode(to_thumbnail(inputs.pixels.images[image])).decode("ascii")

    return render(
        "version.html",
        manifest=manifest,
        metrics=manifest.metrics,
        training=manifest.training,
        advice=manifest.training.advice,
        figures=figures,
        calibration=calibration,
        errors=figures["label_errors"],
        measured=measured,
        points=curve,
        curve=Markup(draw(curve, in_use=manifest.version)) if len(curve) > 1 else None,  # noqa: S704  # numbers
        line=find_line(curve),
        reliability=draw_reliability(calibration["before"], calibration["after"], multiple=manifest.multiple)
        if calibration["tells"]
        else None,
        least_judged=LEAST_JUDGED,
        bald=draw_histogram(figures["bald"]) if measured else None,
        weakest=_weakest_first(figures["classes"])[:_ROWS],
        matrix=_confusion_matrix(figures, manifest.labels) if has_matrix else None,
        compact=classes > _TABLE_CLASSES,
        pairs=figures["confusions"][:_PAIRS] if classes > _TABLE_CLASSES else [],
        validated={each["label"]: each["validated"] for each in figures["classes"]},
        picture=picture,
        origin=inputs.origin,
        unreadable=inputs.pixels.unreadable[:_NAMED],
        settings=_settings(inputs),
        versions={name: version_of(name) for name in _LIBRARIES} | {"Python": platform.python_version()},
    )


def _weakest_first(classes: list[ClassMetrics]) -> list[ClassMetrics]:
    """By rising F1, of equals the largest first; those without one come last."""
    return sorted(classes, key=lambda each: (each["f1"] is None, each["f1"] or 0.0, -each["validated"]))


def _confusion_matrix(figures: dict[str, Any], labels: tuple[str, ...]) -> list[list[int]]:
    """How many images of each class (rows) are taken for each (columns)."""
    images = {(each["true"], each["predicted"]): each["images"] for each in figures["confusions"]}
    images |= {(each["label"], each["label"]): each["hits"] for each in figures["classes"]}
    return [[images.get((true, predicted), 0) for predicted in labels] for true in labels]


def _settings(inputs: Inputs) -> dict[str, Any]:
    """What the version was trained with, flat, by names for people."""
    manifest, training = inputs.manifest, inputs.manifest.training
    return {
        "backbone": manifest.backbone.name,
        "trained part": training.part,
        "image size": f"{manifest.input.width} x {manifest.input.height}",
        "weights": training.weights["origin"],
        "sha256 of the weights": training.weights["sha256"],
        "freshly initialised": ", ".join(training.weights["fresh"]),
        **{name.replace("_", " "): value for name, value in training.recipe.items()},
        "attempts": training.attempts,
        "last training loss": training.final_loss,
        "seed": training.seed,
        "passes": manifest.passes,
        "control": manifest.control,
    }
