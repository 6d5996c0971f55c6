"""The page of a report, and what stands beside it: figures.json and classes.csv."""

import csv
import json
import platform
from base64 import b64encode
from dataclasses import asdict
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from contract.versions.learning_curve import draw, find_line
from trainer.report import data, metrics
from trainer.report.data import Inputs, ReportData
from trainer.report.html import render
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
    found = data.work_out(inputs)
    folder.mkdir()
    (folder / "index.html").write_text(_page(inputs, found), encoding="utf-8")
    document = json.dumps(data.to_json(found, inputs.manifest), ensure_ascii=False, allow_nan=False, indent=1)
    (folder / "figures.json").write_text(document + "\n", encoding="utf-8")
    rows = [asdict(each) for each in found.classes]
    with (folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _page(inputs: Inputs, found: ReportData) -> str:
    manifest, calibration = inputs.manifest, found.calibration
    measured, classes = bool(len(inputs.bald)), len(manifest.labels)
    confusions = [] if found.matrix is None else metrics.confusions(found.matrix)

    def picture(image: int) -> str:
        return "data:image/jpeg;base64," + b64encode(to_thumbnail(inputs.pixels.images[image])).decode("ascii")

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
        weakest=metrics.weakest_first(found.classes)[:_ROWS],
        matrix=found.matrix.tolist() if found.matrix is not None and measured and classes <= _PICTURE_CLASSES else None,
        compact=classes > _TABLE_CLASSES,
        pairs=confusions[:_PAIRS] if classes > _TABLE_CLASSES else [],
        picture=picture,
        doubted=found.judgement.found[: data.ERRORS_SHOWN],
        too_few=found.judgement.too_few,
        origin=inputs.origin,
        unreadable=inputs.pixels.unreadable[:_NAMED],
        settings=_settings(inputs),
        versions={name: version_of(name) for name in _LIBRARIES} | {"Python": platform.python_version()},
    )


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
