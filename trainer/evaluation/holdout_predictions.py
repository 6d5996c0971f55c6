"""Predictions for the labelled random holdout from the network trained without it, stored with the version.

Rankings derive from them which predictions may be confirmed in bulk. The published network cannot make them, since it
was trained on these images.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import LabelnextError
from contract.scores.acquisition import margin
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from trainer.evaluation.holdout import predict_labels

_log = logging.getLogger(__name__)

HOLDOUT_PREDICTIONS_FILE: Final = "witnesses.json"
_MAX_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class HoldoutPrediction:
    """Predicted labels of a task, and the margin of the mean prediction."""

    task: int
    margin: float
    labels: frozenset[str]


def save_holdout_predictions(
    folder: Path, tasks: Sequence[int], probabilities: npt.NDArray[np.float32], labels: Sequence[str], *, multiple: bool
) -> None:
    """Write the predictions for N tasks, from mean probabilities (N, C), into a version's folder."""
    margins = margin(probabilities.astype(np.float64), multiple=multiple)
    predicted = predict_labels(probabilities, multiple=multiple)
    rows = [
        [task, task_margin, [labels[label] for label in np.flatnonzero(row)]]
        for task, task_margin, row in zip(tasks, margins.tolist(), predicted, strict=True)
    ]
    (folder / HOLDOUT_PREDICTIONS_FILE).write_text(
        json.dumps(rows, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )


def read_holdout_predictions(repository: Repository, manifest: Manifest) -> list[HoldoutPrediction]:
    """Return the predictions that `save_holdout_predictions` wrote; empty if they cannot be read."""
    if HOLDOUT_PREDICTIONS_FILE not in manifest.files:
        return []
    try:
        text = repository.read_published(manifest, HOLDOUT_PREDICTIONS_FILE, max_bytes=_MAX_BYTES)
        return [
            HoldoutPrediction(int(task), float(task_margin), frozenset(map(str, names)))
            for task, task_margin, names in json.loads(text)
        ]
    except (LabelnextError, OSError, ValueError, TypeError) as err:
        _log.warning("ignoring %s of version %s: %s", HOLDOUT_PREDICTIONS_FILE, manifest.version, err)
        return []
