"""From the annotations of one task to its label or labels, or to none.

Owns the rules by which several, skipped, empty and outdated annotations become a label: drafts and predictions never
count, skipped and empty annotations neither; ground truth goes before the rest; of each annotator the newest counts;
then the majority, and a tie is no label. Where several labels may hold, each is put to the vote by itself; and since an
annotation without a choice may mean that none holds as well as that nobody looked, it counts only as ground truth.
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


def times_answered(tasks: Iterable[Task], control: str) -> int:
    """How many annotations that count made a choice in a control."""
    return sum(bool(_chosen(annotation, control)) for task in tasks for annotation in valid_annotations(task))


def allows_several(tasks: Iterable[Task], control: str) -> bool:
    """Whether an annotation that counts made more than one choice in a control."""
    return any(len(_chosen(annotation, control)) > 1 for task in tasks for annotation in valid_annotations(task))


def decide(task: Task, control: str, known: Container[str], *, multiple: bool = False) -> frozenset[str]:
    """What holds of the task: ground truth before others, of each annotator the newest, of those the majority.

    That is one label, or any number of them where `multiple` may hold.

    Raises:
        LeftOut: if that gives none, or if of one label it is undecided whether it holds.
    """
    annotations = [each for each in _annotations(task) if _says_something(each, multiple)]
    if not annotations:
        raise LeftOut(_why_none(task))
    trusted = [annotation for annotation in annotations if annotation.get("ground_truth")]
    ballots: list[frozenset[str]] = []
    reasons = Counter[str]()
    for annotation in _newest_of_each(trusted or annotations):
        try:
            ballots.append(_ballot(annotation, control, known, multiple))
        except LeftOut as reason:
            reasons[str(reason)] += 1
    if not ballots:
        raise LeftOut(reasons.most_common(1)[0][0])
    return _vote_on_each(ballots) if multiple else _vote(ballots)


def _vote(ballots: Sequence[frozenset[str]]) -> frozenset[str]:
    (winner, most), *others = Counter(ballots).most_common()
    if others and others[0][1] == most:
        raise LeftOut(TIED)
    return winner


def _vote_on_each(ballots: Sequence[frozenset[str]]) -> frozenset[str]:
    votes = Counter(label for ballot in ballots for label in ballot)
    if any(2 * count == len(ballots) for count in votes.values()):
        raise LeftOut(TIED)
    return frozenset(label for label, count in votes.items() if 2 * count > len(ballots))


def _annotations(task: Task) -> list[Annotation]:
    return [annotation for annotation in task.get("annotations") or [] if isinstance(annotation, Mapping)]


def valid_annotations(task: Task) -> list[Annotation]:
    """The annotations that say something: neither skipped nor empty."""
    return [annotation for annotation in _annotations(task) if _says_something(annotation, False)]


def _says_something(annotation: Annotation, multiple: bool) -> bool:
    said = annotation.get("result") or (multiple and annotation.get("ground_truth"))
    return bool(said) and not annotation.get("was_cancelled")


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


def _ballot(annotation: Annotation, control: str, known: Container[str], multiple: bool) -> frozenset[str]:
    """What one annotation says. A label that the config has lost may have a new name, so it spoils those beside it."""
    choices = _chosen(annotation, control)
    if not choices and not (multiple and annotation.get("ground_truth")):
        raise LeftOut(NO_CHOICE)
    if len(choices) > 1 and not multiple:
        raise LeftOut(SEVERAL_CHOICES)
    if any(choice not in known for choice in choices):
        raise LeftOut(OUTDATED)
    return frozenset(choices)
