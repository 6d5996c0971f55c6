"""Labelled tasks that a person is asked to look at again, because their labels are probably wrong.

A version's report says which these are. Each is given a prediction of the ranking's name that holds the label which the
model would give: that is how Label Studio shows it, and how the tab finds the task. Whom a person has looked at since,
and left as it was, is not asked about again.
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
from trainer.tabs.record import Listed

_log = logging.getLogger(__name__)

_FIGURES_FILE: Final = f"{REPORT_FOLDER}/figures.json"
_MOST_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that is probably wrong, as a version's report has it."""

    task: int
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    given_probability: float
    suggested_probability: float


_SUSPECTS: Final = TypeAdapter(list[Suspect])


@dataclass(frozen=True, slots=True)
class Doubt:
    """A labelled task that is to be looked at again."""

    task: int
    score: float
    """The greater, the likelier its label is wrong: in [0, 1]."""
    result: Sequence[Mapping[str, Any]]
    """The label that the model would give."""
    changed_at: str
    """When the task last changed, as Label Studio writes it."""
    given: tuple[str, ...]


def read_suspects(repository: Repository, manifest: Manifest, project_id: int) -> list[Suspect]:
    """Return what a version finds wrong among the labels of a project, the likeliest first.

    Nothing without a report, or where it was trained on another project's labels.
    """
    if manifest.training.project is None or manifest.training.project.id != project_id:
        return []
    try:
        document = json.loads(repository.read_file(manifest.version, _FIGURES_FILE, most_bytes=_MOST_BYTES))
        return _SUSPECTS.validate_python(document["label_errors"]["tasks"])
    except (LabelnextError, OSError):
        return []
    except (ValueError, LookupError, TypeError) as err:
        _log.info("the report of %s names no tasks whose labels look wrong (%s)", manifest.version, type(err).__name__)
        return []


def find_doubts(
    client: ProjectClient,
    suspects: Sequence[Suspect],
    *,
    control: ChoicesControl,
    marker: str,
    listed: Mapping[int, Listed],
) -> list[Doubt]:
    """Return the suspects that are labelled as they were, and that nobody has looked at since they were listed.

    The control is that whose labels they are. The marker is to stand in their predictions.
    """
    tasks = {task["id"]: task for task in tasks_by_number(client, [suspect.task for suspect in suspects])}
    forms = {choice.stored: choice.result_value for choice in control.choices}
    found = []
    for suspect in suspects:
        task = tasks.get(suspect.task)
        known = all(label in forms for label in suspect.suggested)
        if task is None or not known or _is_settled(task, suspect, control, listed.get(suspect.task)):
            continue
        given, suggested = (" and ".join(labels) or "nothing" for labels in (suspect.given, suspect.suggested))
        likely = round(100 * suspect.given_probability)
        region = {  # the Data Manager shows it as it is written
            "value": {"choices": [forms[label] for label in suspect.suggested]},
            "meta": {"reason": f"labelled {given} ({likely} % likely), looks like {suggested}", MARK: marker},
            "from_name": control.from_name,
            "to_name": control.to_name,
            "type": "choices",
            "score": suspect.suggested_probability,
        }
        score = min(1.0, max(0.0, 1 - suspect.given_probability))
        found.append(Doubt(suspect.task, score, [region], str(task["updated_at"]), suspect.given))
    return found


def _is_settled(task: Mapping[str, Any], suspect: Suspect, control: ChoicesControl, listed: Listed | None) -> bool:
    """Whether there is no need to look: it has another label by now, or a person stands by the one that it has."""
    try:
        given = aggregate(task, control.from_name, set(control.labels), multiple=control.multiple)
    except LeftOut:
        return True
    annotations = [each for each in task["annotations"] or [] if not each["was_cancelled"]]
    if given != frozenset(suspect.given) or any(each.get("ground_truth") for each in annotations):
        return True
    if listed is None or frozenset(listed.given) != given:
        return False
    return any(str(each["updated_at"]) > listed.since for each in annotations)


def note_listed(
    listed: Mapping[int, Listed], doubts: Iterable[Doubt], *, unlabelled: Container[int]
) -> dict[int, Listed]:
    """Return what is to be remembered of tasks that are listed now, beside those listed before that are labelled."""
    noted = {task: each for task, each in listed.items() if task not in unlabelled}
    for doubt in doubts:
        former = noted.get(doubt.task)
        if former is None or frozenset(former.given) != frozenset(doubt.given):
            noted[doubt.task] = Listed(doubt.changed_at, doubt.given)
    return noted


def just_after(doubts: Iterable[Doubt]) -> str | None:
    """Return a moment just after the last change of any of these tasks; None without tasks.

    Written as the Data Manager's filters want it, to which a time without microseconds is an error.
    """
    last = max((datetime.fromisoformat(doubt.changed_at).astimezone(UTC) for doubt in doubts), default=None)
    return f"{last + timedelta(microseconds=1):%Y-%m-%dT%H:%M:%S.%fZ}" if last else None
