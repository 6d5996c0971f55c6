"""Labelled tasks whose labels are probably wrong, for review in the tab *Look again*.

They are listed in a version's report. Each gets a prediction of the current ranking with the suggested label, which
Label Studio displays and by which the tab finds the task. Tasks reviewed without a change are not listed again.
"""

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter

from contract.errors import LabelnextError
from contract.labelconfig import ChoicesControl
from contract.scores.sure import MARK
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import REPORT_FOLDER
from trainer.labels.annotations import LeftOut, aggregate
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import tasks_by_number
from trainer.tabs.record import ListedTask

_log = logging.getLogger(__name__)

_FIGURES_FILE: Final = f"{REPORT_FOLDER}/figures.json"
_MAX_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """A probably wrong label, from a version's report."""

    task: int
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    given_probability: float
    suggested_probability: float


_LABEL_ISSUES: Final = TypeAdapter(list[LabelIssue])


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """A labelled task to be reviewed."""

    task: int
    score: float
    """Probability in [0, 1] that the label is wrong."""
    result: Sequence[Mapping[str, Any]]
    """The regions of the suggested label."""
    changed_at: str
    """Time of the task's last change, in Label Studio's format."""
    given: tuple[str, ...]


def read_label_issues(repository: Repository, manifest: Manifest, project_id: int) -> list[LabelIssue]:
    """Return the label issues in a version's report, the likeliest first.

    Empty without a report, or if the version was trained on another project.
    """
    if manifest.training.project is None or manifest.training.project.id != project_id:
        return []
    try:
        document = json.loads(repository.read_file(manifest.version, _FIGURES_FILE, max_bytes=_MAX_BYTES))
        return _LABEL_ISSUES.validate_python(document["label_errors"]["tasks"])
    except (LabelnextError, OSError):
        return []
    except (ValueError, LookupError, TypeError) as err:
        _log.info("cannot read label issues from the report of %s (%s)", manifest.version, type(err).__name__)
        return []


def find_review_tasks(
    client: ProjectClient,
    issues: Sequence[LabelIssue],
    *,
    control: ChoicesControl,
    marker: str,
    listed: Mapping[int, ListedTask],
) -> list[ReviewTask]:
    """Return the tasks of issues that still have the reported label and were not reviewed since they were listed.

    The marker is added to the predictions. Raises ConfigError if Label Studio does not answer.
    """
    tasks = {task["id"]: task for task in tasks_by_number(client, [issue.task for issue in issues])}
    forms = {choice.stored: choice.result_value for choice in control.choices}
    review_tasks = []
    for issue in issues:
        task = tasks.get(issue.task)
        known = all(label in forms for label in issue.suggested)
        if task is None or not known or _is_resolved(task, issue, control, listed.get(issue.task)):
            continue
        given, suggested = (" and ".join(labels) or "nothing" for labels in (issue.given, issue.suggested))
        likely = round(100 * issue.given_probability)
        region = {  # the Data Manager shows the keys in this order
            "value": {"choices": [forms[label] for label in issue.suggested]},
            "meta": {"reason": f"labelled {given} ({likely} % likely), looks like {suggested}", MARK: marker},
            "from_name": control.from_name,
            "to_name": control.to_name,
            "type": "choices",
            "score": issue.suggested_probability,
        }
        score = min(1.0, max(0.0, 1 - issue.given_probability))
        review_tasks.append(ReviewTask(issue.task, score, [region], str(task["updated_at"]), issue.given))
    return review_tasks


def _is_resolved(
    task: Mapping[str, Any], issue: LabelIssue, control: ChoicesControl, listed: ListedTask | None
) -> bool:
    """Return whether the label was changed, or confirmed by a person."""
    try:
        given = aggregate(task, control.from_name, set(control.labels), multiple=control.multiple)
    except LeftOut:
        return True
    annotations = [each for each in task["annotations"] or [] if not each["was_cancelled"]]
    if given != frozenset(issue.given) or any(each.get("ground_truth") for each in annotations):
        return True
    if listed is None or frozenset(listed.given) != given:
        return False
    return any(str(each["updated_at"]) > listed.since for each in annotations)


def update_listed(
    listed: Mapping[int, ListedTask], review_tasks: Iterable[ReviewTask], *, unlabelled: Container[int]
) -> dict[int, ListedTask]:
    """Return `listed` with the tasks to be reviewed added, and unlabelled ones removed."""
    updated = {task: former for task, former in listed.items() if task not in unlabelled}
    for each in review_tasks:
        former = updated.get(each.task)
        if former is None or frozenset(former.given) != frozenset(each.given):
            updated[each.task] = ListedTask(each.changed_at, each.given)
    return updated


def time_after_changes(review_tasks: Iterable[ReviewTask]) -> str | None:
    """Return a time just after the last change of all tasks; None without tasks.

    In the format of the Data Manager's filters, which require microseconds.
    """
    last = max((datetime.fromisoformat(each.changed_at).astimezone(UTC) for each in review_tasks), default=None)
    return f"{last + timedelta(microseconds=1):%Y-%m-%dT%H:%M:%S.%fZ}" if last else None
