"""Writes a version's report: index.html, figures.json and classes.csv."""

import csv
import json
import platform
from base64 import b64encode
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from contract.versions.learning_curve import draw, find_line
from trainer.report.data import MIN_DIAGRAM_IMAGES, Inputs, compute_figures
from trainer.report.html import render
from trainer.report.metrics import ClassMetrics
from trainer.report.plots import draw_histogram, draw_reliability
from trainer.report.thumbnails import to_thumbnail

_MAX_NUMBERED: Final = 12
"""Maximum number of classes of a confusion matrix with numbers."""
_MAX_SHADED: Final = 40
"""Maximum number of classes of a confusion matrix with shades only; with more there is only a list of pairs."""
_MAX_PAIRS: Final = 20
_MAX_ROWS: Final = 60
_MAX_UNREADABLE: Final = 5
_LIBRARIES: Final = ("torch", "torchvision", "baal", "numpy", "scikit-learn", "cleanlab", "onnxruntime")


def write_report(inputs: Inputs, folder: Path) -> None:
    """Write index.html, figures.json and classes.csv to a new folder.

    Raises OSError if the folder exists, or cannot be written.
    """
    figures = compute_figures(inputs)
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
    has_matrix = measured and not manifest.multiple and classes <= _MAX_SHADED

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
        min_diagram_images=MIN_DIAGRAM_IMAGES,
        bald=draw_histogram(figures["bald"]) if measured else None,
        weakest=_weakest_first(figures["classes"])[:_MAX_ROWS],
        matrix=_confusion_matrix(figures, manifest.labels) if has_matrix else None,
        compact=classes > _MAX_NUMBERED,
        pairs=figures["confusions"][:_MAX_PAIRS] if classes > _MAX_NUMBERED else [],
        validated={each["label"]: each["validated"] for each in figures["classes"]},
        picture=picture,
        origin=inputs.origin,
        unreadable=inputs.pixels.unreadable[:_MAX_UNREADABLE],
        settings=_settings(inputs),
        versions={name: version_of(name) for name in _LIBRARIES} | {"Python": platform.python_version()},
    )


def _weakest_first(classes: list[ClassMetrics]) -> list[ClassMetrics]:
    """Sort by ascending F1, then by descending size; classes without F1 come last."""
    return sorted(classes, key=lambda each: (each["f1"] is None, each["f1"] or 0.0, -each["validated"]))


def _confusion_matrix(figures: dict[str, Any], labels: tuple[str, ...]) -> list[list[int]]:
    """Return the numbers of images by true class (rows) and predicted class (columns)."""
    images = {(each["true"], each["predicted"]): each["images"] for each in figures["confusions"]}
    images |= {(each["label"], each["label"]): each["hits"] for each in figures["classes"]}
    return [[images.get((true, predicted), 0) for predicted in labels] for true in labels]


def _settings(inputs: Inputs) -> dict[str, Any]:
    """Return the training settings by display name."""
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
