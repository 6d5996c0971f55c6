"""Reconciliation of the predictions in Label Studio with a ranking: exactly one for each ranked task.

Each round compares desired with stored predictions, so that an interrupted run can be repeated. Imports that Label
Studio is still processing are invisible there; they are recorded in a journal on disk.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError
from contract.files import explaining
from contract.label_studio import BadRequest, Unreachable
from trainer import labelstudio
from trainer.labelstudio import StoredPrediction
from trainer.labelstudio.client import ProjectClient
from trainer.progress_bar import Bar

_log = logging.getLogger(__name__)

IMPORT_TASKS: Final = 10_000
"""Tasks per import, a few megabytes: each import has a cost in proportion to the project's size."""

_MAX_ROUNDS: Final = 6
_MAX_ATTEMPTS: Final = 2
"""Attempts per prediction that Label Studio drops; the second one is without the label."""
_SETTLE_S: Final = 3.0
_SETTLE_TASK_S: Final = 0.005
"""Four times the duration on SQLite."""
_POLL_S: Final = 0.5
_SCORE_TOLERANCE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class DesiredPrediction:
    """The desired prediction of a task."""

    score: float
    """In [0, 1]."""
    result: Sequence[Mapping[str, Any]]


def reconcile(
    client: ProjectClient,
    *,
    name: str,
    desired: Mapping[int, DesiredPrediction],
    without: Container[int] = (),
    journal: Path,
    find_open_tasks: Callable[[], Collection[int]],
) -> int:
    """Create and delete predictions until each task has exactly the desired one, and every other task at most one.

    Args:
        client: the project's client.
        name: the model version of the predictions.
        desired: the desired predictions by task.
        without: tasks that should have none.
        journal: the journal's path, from which a later call learns of an import with unknown outcome.
        find_open_tasks: returns the ids of the tasks that are still unlabelled or to be reviewed. It is called when
            Label Studio refuses an import, and all other tasks are then skipped.

    Returns:
        The number of created predictions.

    Raises:
        ConfigError: if Label Studio does not answer, or rejects a prediction even without its label.
    """
    desired = dict(desired)
    importer = _Importer(client, name, journal)
    importer.await_pending()
    sent = Counter[int]()
    fewest_missing, stalled_rounds = len(desired) + 1, 0
    while stalled_rounds < _MAX_ROUNDS:
        current = labelstudio.count_predictions(client).get(name)  # cheaper than a list that may be empty
        create, delete = _compare(desired, labelstudio.list_predictions(client, name) if current else [], without)
        if not create and not delete:
            return sent.total()
        _check_dropped(create, sent)
        stalled_rounds = 0 if len(create) < fewest_missing else stalled_rounds + 1
        fewest_missing = min(fewest_missing, len(create))
        with Bar(total=len(create), desc="importing", unit="prediction") as bar:
            for start in range(0, len(create), IMPORT_TASKS):
                tasks = create[start : start + IMPORT_TASKS]
                try:
                    importer.send(
                        [_prediction(task, name, desired[task], without_label=sent[task] > 0) for task in tasks]
                    )
                except BadRequest:
                    _drop_missing(desired, find_open_tasks())
                    break
                except Unreachable as err:
                    _log.warning("an import was interrupted; waiting for its outcome: %s", err)
                    importer.await_pending(from_now=True)
                    break
                sent.update(tasks)
                bar.update(len(tasks))
        for number in Bar(delete, "removing duplicates", unit="prediction", disable=not delete):
            labelstudio.delete_prediction(client, number)
    raise ConfigError(
        f"expected one prediction of {name} for each of {len(desired)} tasks of {client.what}; {_MAX_ROUNDS} imports "
        "in a row added none of the missing ones; see Label Studio's log, then rank again"
    )


def _compare(
    desired: Mapping[int, DesiredPrediction], stored: Iterable[StoredPrediction], without: Container[int]
) -> tuple[list[int], list[int]]:
    """Return the tasks without the desired prediction, sorted, and the numbers of predictions to delete.

    If no label is desired, there must be none. If one is, a prediction without it is accepted, because Label Studio
    drops labels that are missing in the labelling config. Of equal predictions the first one is kept.
    """
    kept, delete = set[int](), list[int]()
    for each in stored:
        if (target := desired.get(each.task)) is None:
            is_valid = each.task not in without
        else:
            has_score = each.score is not None and abs(each.score - target.score) < _SCORE_TOLERANCE
            is_valid = has_score and (each.blank or bool(target.result))
        if is_valid and each.task not in kept:
            kept.add(each.task)
        else:
            delete.append(each.id)
    return sorted(desired.keys() - kept), delete


def _check_dropped(create: Sequence[int], sent: Mapping[int, int]) -> None:
    """Log imported predictions that Label Studio dropped; raise ConfigError after too many attempts."""
    if dropped := [task for task in create if sent[task] >= _MAX_ATTEMPTS]:
        raise ConfigError(
            f"Label Studio drops the predictions of {len(dropped)} tasks without a reason, such as those of "
            f"{', '.join(map(str, dropped[:5]))}; see its log for 'Prediction validation failed'"
        )
    if count := sum(sent[task] > 0 for task in create):
        _log.warning(
            "Label Studio dropped %d predictions, perhaps because the labelling config has changed, or because a "
            "control with nested choices is named choices; importing them again without their labels",
            count,
        )


def _drop_missing(desired: dict[int, DesiredPrediction], open_tasks: Collection[int]) -> None:
    gone = [task for task in desired if task not in open_tasks]
    if not gone:
        raise ConfigError("Label Studio refuses the import although all of its tasks exist; see its log for the reason")
    for task in gone:
        del desired[task]
    _log.info("%d tasks were labelled or deleted meanwhile; skipping them", len(gone))


def _prediction(task: int, name: str, desired: DesiredPrediction, *, without_label: bool) -> dict[str, Any]:
    result = [] if without_label else [_valid_on_import(region) for region in desired.result]
    return {"task": task, "model_version": name, "score": desired.score, "result": result}


def _valid_on_import(region: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a region that Label Studio's import accepts, which would drop nested choices as invalid.

    It validates the value under the control's name, if there is one, which the editor ignores.
    """
    choices = region["value"]["choices"]
    if not any(isinstance(choice, list) for choice in choices):
        return region
    checked = {region["from_name"]: {"choices": [choice[-1] for choice in choices]}}
    return {**region, "value": {**checked, **region["value"]}}


class _Importer:
    """Imports with a journal on disk of the pending one, whose outcome is unknown.

    Label Studio completes an import even if the client has disconnected.
    """

    def __init__(self, client: ProjectClient, name: str, journal: Path) -> None:
        self._client = client
        self._name = name
        self._journal = journal

    def send(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Import predictions; the journal stays if the outcome is unknown."""
        entry = {"before": self._count(), "sent": len(predictions), "at": time.time()}
        with explaining(
            "the journal of imports", self._journal.parent, remedy="set LABELNEXT_CACHE to a folder with room"
        ):
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            self._journal.write_text(json.dumps(entry))
        try:
            labelstudio.import_predictions(self._client, predictions)
        except Unreachable:
            raise
        except ConfigError:
            self._journal.unlink()
            raise
        self._journal.unlink()

    def await_pending(self, *, from_now: bool = False) -> None:
        """Wait until a pending import is complete or its time, from its start or (`from_now`) from now, is over."""
        try:
            entry = json.loads(self._journal.read_bytes())
            before, sent, started = int(entry["before"]), int(entry["sent"]), float(entry["at"])
        except (OSError, ValueError, LookupError, TypeError):
            return
        allowed = _SETTLE_S + sent * _SETTLE_TASK_S
        end = time.time() + allowed if from_now else min(started, time.time()) + allowed
        while self._count() < before + sent and time.time() < end:
            time.sleep(_POLL_S)
        self._journal.unlink(missing_ok=True)

    def _count(self) -> int:
        return labelstudio.count_predictions(self._client).get(self._name, 0)
