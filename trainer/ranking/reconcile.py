"""Bringing Label Studio to hold exactly one prediction of a ranking for each ranked task.

Goes by what is there and what should be, never by what was done: so it may be killed at any point and begun again. The
one thing that Label Studio cannot show is an import that it is still busy with; a note on disk tells of it.
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
from contract.label_studio import Refused, Unreachable
from trainer import labelstudio
from trainer.labelstudio import StoredPrediction
from trainer.labelstudio.client import ProjectClient
from trainer.progress_bar import Bar

_log = logging.getLogger(__name__)

IMPORT_TASKS: Final = 10_000
"""In one call, which costs as much as the project is large beside what it stores; a few megabytes."""

_ROUNDS: Final = 6
_TIMES_TAKEN: Final = 2
"""A prediction that Label Studio has dropped as often, the second time without its label, is beyond help."""
_SETTLE_S: Final = 3.0
_SETTLE_TASK_S: Final = 0.005
"""Four times what storing one takes on SQLite."""
_POLL_S: Final = 0.5
_SAME_SCORE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Wanted:
    """The one prediction that a task is to have."""

    score: float
    """In [0, 1]."""
    result: Sequence[Mapping[str, Any]]


def reconcile(
    client: ProjectClient,
    *,
    name: str,
    wanted: Mapping[int, Wanted],
    unwanted: Container[int] = (),
    note: Path,
    find_there: Callable[[], Collection[int]],
) -> int:
    """Have each wanted task hold one prediction of that name with that score, and every other task at most one.

    Tasks that turn out to be gone or labelled meanwhile, which `find_there` does not name, are left alone; those that
    are unwanted are to have none. The note is a file, made when needed, that tells a later call of an import whose end
    nobody saw.

    Returns:
        How many predictions were created.

    Raises:
        ConfigError: if Label Studio does not answer, or does not take a prediction even without its label.
    """
    wanted = dict(wanted)
    flight = _Flight(client, name, note)
    flight.settle()
    taken = Counter[int]()
    fewest, vain = len(wanted) + 1, 0
    while vain < _ROUNDS:
        there = labelstudio.count_predictions(client).get(name)  # costs less than to list what may be none
        create, delete = _compare(wanted, labelstudio.list_predictions(client, name) if there else [], unwanted)
        if not create and not delete:
            return taken.total()
        _report_dropped(create, taken)
        vain = 0 if len(create) < fewest else vain + 1
        fewest = min(fewest, len(create))
        with Bar(total=len(create), desc="importing", unit="prediction") as bar:
            for start in range(0, len(create), IMPORT_TASKS):
                tasks = create[start : start + IMPORT_TASKS]
                try:
                    flight.send([_prediction(task, name, wanted[task], bare=taken[task] > 0) for task in tasks])
                except Refused:
                    _keep_only(wanted, find_there())
                    break
                except Unreachable as err:
                    _log.warning("an import was cut short; waiting for what Label Studio makes of it: %s", err)
                    flight.settle(afresh=True)
                    break
                taken.update(tasks)
                bar.update(len(tasks))
        for number in Bar(delete, "removing duplicates", unit="prediction", disable=not delete):
            labelstudio.delete_prediction(client, number)
    raise ConfigError(
        f"expected Label Studio to hold one prediction of {name} for each of {len(wanted)} tasks of "
        f"{client.what}, after {_ROUNDS} attempts that changed nothing it does not; look into its log, then rank again"
    )


def _compare(
    wanted: Mapping[int, Wanted], held: Iterable[StoredPrediction], unwanted: Container[int]
) -> tuple[list[int], list[int]]:
    """Return the tasks that lack a prediction, rising, and the numbers of predictions that are to go.

    Where no label is wanted there must be none. Where one is, its score will do without: Label Studio drops labels that
    the labelling config has lost. Of predictions that are as good as each other the first one stays.
    """
    kept, delete = set[int](), list[int]()
    for each in held:
        if (to_be := wanted.get(each.task)) is None:
            good = each.task not in unwanted
        else:
            placed = each.score is not None and abs(each.score - to_be.score) < _SAME_SCORE
            good = placed and (each.blank or bool(to_be.result))
        if good and each.task not in kept:
            kept.add(each.task)
        else:
            delete.append(each.id)
    return sorted(wanted.keys() - kept), delete


def _report_dropped(create: Sequence[int], taken: Mapping[int, int]) -> None:
    """Warn of predictions that were imported and are not there; raises ConfigError where that was tried enough."""
    if lost := [task for task in create if taken[task] >= _TIMES_TAKEN]:
        raise ConfigError(
            f"Label Studio drops the predictions of {len(lost)} tasks without saying why, of "
            f"{', '.join(map(str, lost[:5]))} among them; look into its log for 'Prediction validation failed'"
        )
    if count := sum(taken[task] > 0 for task in create):
        _log.warning(
            "Label Studio dropped %d predictions, as it does with labels that the labelling config has lost meanwhile, "
            "and with nested choices of a control that is itself named choices; "
            "they are sent again with their score and without a label",
            count,
        )


def _keep_only(wanted: dict[int, Wanted], there: Collection[int]) -> None:
    gone = [task for task in wanted if task not in there]
    if not gone:
        raise ConfigError(
            "Label Studio refuses the import although all its tasks are there; look into its log for the reason"
        )
    for task in gone:
        del wanted[task]
    _log.info("%d tasks were labelled or deleted meanwhile and are left alone", len(gone))


def _prediction(task: int, name: str, wanted: Wanted, *, bare: bool) -> dict[str, Any]:
    result = [] if bare else [_valid_on_import(region) for region in wanted.result]
    return {"task": task, "model_version": name, "score": wanted.score, "result": result}


def _valid_on_import(region: Mapping[str, Any]) -> Mapping[str, Any]:
    """A region as Label Studio's import lets it pass, which knows no nested choices and drops the paths to them.

    What it checks it takes from under the control's name where something stands there; the editor does not look there.
    """
    choices = region["value"]["choices"]
    if not any(isinstance(choice, list) for choice in choices):
        return region
    checked = {region["from_name"]: {"choices": [choice[-1] for choice in choices]}}
    return {**region, "value": {**checked, **region["value"]}}


class _Flight:
    """Imports, of which it is on disk that they are under way until their end is known.

    Label Studio finishes what it was asked even if nobody waits for the answer.
    """

    def __init__(self, client: ProjectClient, name: str, note: Path) -> None:
        self._client = client
        self._name = name
        self._note = note

    def send(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Import predictions; the note stays if it is not known what became of them."""
        noted = {"before": self._count(), "sent": len(predictions), "at": time.time()}
        with explaining("a note", self._note.parent, remedy="set LABELNEXT_CACHE to a folder with room"):
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(json.dumps(noted))
        try:
            labelstudio.import_predictions(self._client, predictions)
        except Unreachable:
            raise
        except ConfigError:
            self._note.unlink()
            raise
        self._note.unlink()

    def settle(self, *, afresh: bool = False) -> None:
        """Wait until an import that was under way has arrived, or has had its time: from its start, or `afresh`."""
        try:
            noted = json.loads(self._note.read_bytes())
            before, sent, started = int(noted["before"]), int(noted["sent"]), float(noted["at"])
        except (OSError, ValueError, LookupError, TypeError):
            return
        allowed = _SETTLE_S + sent * _SETTLE_TASK_S
        end = time.time() + allowed if afresh else min(started, time.time()) + allowed
        while self._count() < before + sent and time.time() < end:
            time.sleep(_POLL_S)
        self._note.unlink(missing_ok=True)

    def _count(self) -> int:
        return labelstudio.count_predictions(self._client).get(self._name, 0)
