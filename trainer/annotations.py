"""From the annotations of one task to one label or none.

Owns the rules by which several, skipped, empty and outdated annotations become a label: drafts and predictions never
count, skipped and empty annotations neither; ground truth goes before the rest; of each annotator the newest counts;
then the majority, and a tie is no label.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

Annotation = Mapping[str, Any]
Task = Mapping[str, Any]
"""A task as Label Studio exports it: `id`, `data` and `annotations`."""


class LeftOut(Exception):
    """Why a task or an annotation gives no label; carries one of the reasons below."""


NOT_LABELLED: Final = "not labelled yet"
SKIPPED: Final = "skipped by the annotator"
EMPTY: Final = "empty annotation"
NO_CHOICE: Final = "no choice made"
SEVERAL_CHOICES: Final = "more than one choice made"
OUTDATED: Final = "label no longer in the labelling config"
TIED: Final = "annotators disagree evenly"


def choices_made(tasks: Iterable[Task], control: str) -> Counter[str]:
    """How often each label of a control was chosen, in annotations that count."""
    chosen = (_chosen(annotation, control) for task in tasks for annotation in valid_annotations(task))
    return Counter(label for labels in chosen for label in labels)


def decide(task: Task, control: str, known: Container[str]) -> str:
    """One label for the task: ground truth before others, of each annotator the newest, of those the majority.

    Raises:
        LeftOut: if that gives none.
    """
    annotations = valid_annotations(task)
    if not annotations:
        raise LeftOut(_why_none(task))
    trusted = [annotation for annotation in annotations if annotation.get("ground_truth")]
    votes = Counter[str]()
    reasons = Counter[str]()
    for annotation in _newest_of_each(trusted or annotations):
        try:
            votes[_one_choice(annotation, control, known)] += 1
        except LeftOut as reason:
            reasons[str(reason)] += 1
    if not votes:
        raise LeftOut(reasons.most_common(1)[0][0])
    (winner, most), *others = votes.most_common()
    if others and others[0][1] == most:
        raise LeftOut(TIED)
    return winner


def _annotations(task: Task) -> list[Annotation]:
    return [annotation for annotation in task.get("annotations") or [] if isinstance(annotation, Mapping)]


def valid_annotations(task: Task) -> list[Annotation]:
    """The annotations that say something: neither skipped nor empty."""
    return [each for each in _annotations(task) if not each.get("was_cancelled") and each.get("result")]


def _why_none(task: Task) -> str:
    annotations = _annotations(task)
    if any(not annotation.get("was_cancelled") for annotation in annotations):
        return EMPTY
    return SKIPPED if annotations else NOT_LABELLED


def _newest_of_each(annotations: Sequence[Annotation]) -> list[Annotation]:
    """An annotator's later annotation replaces the earlier one; those without an annotator stand for themselves."""
    newest: dict[object, Annotation] = {}
    for position, annotation in enumerate(sorted(annotations, key=_age)):
        newest[_annotator(annotation) or f"unknown {position}"] = annotation
    return list(newest.values())


def _annotator(annotation: Annotation) -> object:
    """The annotator's number; exports may hold the whole person."""
    by = annotation.get("completed_by")
    return by.get("id") if isinstance(by, Mapping) else by


def _age(annotation: Annotation) -> tuple[datetime, int]:
    text = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    number = annotation.get("id")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC), number if isinstance(number, int) else 0


def choice_items(annotation: Annotation) -> list[Annotation]:
    """The choices in an annotation's result, of whichever control."""
    result = annotation.get("result")
    items = result if isinstance(result, list) else []
    return [item for item in items if isinstance(item, Mapping) and item.get("type") == "choices"]


def _chosen(annotation: Annotation, control: str) -> list[str]:
    values = [item.get("value") for item in choice_items(annotation) if item.get("from_name") == control]
    return [str(choice) for value in values if isinstance(value, Mapping) for choice in value.get("choices") or []]


def _one_choice(annotation: Annotation, control: str, known: Container[str]) -> str:
    choices = _chosen(annotation, control)
    if len(choices) != 1:
        raise LeftOut(SEVERAL_CHOICES if choices else NO_CHOICE)
    if choices[0] not in known:
        raise LeftOut(OUTDATED)
    return choices[0]
