"""Versions measured on the same images, so that a curve shows what they have learnt and not what they were asked.

The labelled part of the audit slice grows: each version was measured on more of it than the one before, and what their
manifests say are figures of different samples. But none has trained on any of it, so all can be measured on what is
labelled by now. What each said of an image is kept beside the newest version, so that only new images cost anything.
Whatever fails here costs a point of the curve, never a version.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import LabelnextError
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.results import Compared, Comparison
from trainer.evaluation.holdout import Decisions, decide, macro_f1_interval
from trainer.evaluation.metrics import macro_f1
from trainer.model.validation import predict

logger = logging.getLogger(__name__)

ANSWERS_FILE: Final = "answers.json"
"""Within a version's folder."""

_MOST_ASKED: Final = 1000
"""Predictions of earlier versions in one run, each a tenth of a second of two processors: the newest come first."""

_MOST_BYTES: Final = 64 * 2**20

Answers = dict[str, dict[int, list[int]]]
"""By version and task: the labels that are predicted, as indices."""


@dataclass(frozen=True, slots=True)
class Exam:
    """Images of the audit slice, N of them, that no version has trained on."""

    tasks: Sequence[int]
    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)"""
    true: Decisions
    """(N, C)"""
    decided: Decisions
    """(N, C): what the new version says."""


def draw_up(
    repository: Repository, manifest: Manifest, before: Sequence[Manifest], exam: Exam
) -> tuple[Comparison, Answers]:
    """Measure a new version and those before it on the same images.

    Versions of which it is not known that they held the same slice out are left out, and the oldest where all would
    take too long.

    Args:
        repository: of the earlier versions.
        manifest: of the new version.
        before: those of the same kind, oldest first.
        exam: what they are measured on.
    """
    rivals = [each for each in before if _held_out_alike(each, manifest)]
    known = _recall(repository, rivals)
    answers: Answers = {manifest.version: _by_task(exam.tasks, exam.decided)}
    left = _MOST_ASKED
    for rival in reversed(rivals):
        said = known.get(rival.version, {})
        missing = [row for row, task in enumerate(exam.tasks) if task not in said]
        left -= len(missing)
        if left < 0:
            break
        found = _ask(repository, rival, exam, missing)
        if found is not None:
            answers[rival.version] = {task: {**said, **found}[task] for task in exam.tasks}
    asked = [each for each in (*rivals, manifest) if each.version in answers]
    measured = [_measure(each, answers[each.version], exam) for each in asked]
    return Comparison(len(exam.tasks), tuple(each for each in measured if each is not None)), answers


def dump(answers: Answers) -> str:
    """Return answers as the text that is kept."""
    return json.dumps(answers, separators=(",", ":"))


def _held_out_alike(before: Manifest, now: Manifest) -> bool:
    """Whether a version kept the slice from its training that is measured on now."""
    share = before.training.audit_share
    return before.training.is_on_random_sample and share is not None and share == now.training.audit_share


def _recall(repository: Repository, versions: Sequence[Manifest]) -> Answers:
    """Read what the newest of the versions that kept answers knows of itself and those before it."""
    for each in reversed(versions):
        if ANSWERS_FILE not in each.files:
            continue
        try:
            text = repository.read_file(each.version, ANSWERS_FILE, most_bytes=_MOST_BYTES)
            if sha256(text).hexdigest() != each.files[ANSWERS_FILE].sha256:
                raise ValueError("it is not what the manifest says")
            return {name: _parse(said, len(each.labels)) for name, said in json.loads(text).items()}
        except (LabelnextError, OSError, ValueError, TypeError, AttributeError) as err:
            logger.info("%s of %s is passed over: %s", ANSWERS_FILE, each.version, err)
    return {}


def _parse(said: Mapping[str, Sequence[int]], classes: int) -> dict[int, list[int]]:
    found = {int(task): [int(label) for label in labels] for task, labels in said.items()}
    if not all(0 <= label < classes for labels in found.values() for label in labels):
        raise ValueError(f"expected labels below {classes}")
    return found


def _ask(repository: Repository, manifest: Manifest, exam: Exam, rows: Sequence[int]) -> Mapping[int, list[int]] | None:
    """Have an earlier version predict images that it has not seen yet; None if it cannot."""
    if not rows:
        return {}
    try:
        with repository.open_verified(manifest.version) as version:
            means = predict(version, exam.images[list(rows)], passes=manifest.passes)
    except Exception as err:  # onnxruntime's errors share no base class, and what was trained is not to be lost for it
        logger.warning("version %s is not on the curve, for it cannot be asked: %s", manifest.version, err)
        return None
    return _by_task([exam.tasks[row] for row in rows], decide(means, multiple=manifest.multiple))


def _by_task(tasks: Sequence[int], decided: Decisions) -> dict[int, list[int]]:
    return {task: np.flatnonzero(row).tolist() for task, row in zip(tasks, decided, strict=True)}


def _measure(manifest: Manifest, said: Mapping[int, Sequence[int]], exam: Exam) -> Compared | None:
    decided = np.zeros_like(exam.true)
    for row, task in enumerate(exam.tasks):
        decided[row, said[task]] = True
    reached, interval = macro_f1(decided, exam.true), macro_f1_interval(decided, exam.true)
    labels = manifest.training.images
    if reached is None or interval is None or labels is None:
        return None
    return Compared(manifest.version, labels, reached, *interval)
