"""From the annotations of one task to its label or labels, or to none.

Owns the rules by which several, skipped, empty and outdated annotations become a label: drafts and predictions never
count, skipped and empty annotations neither, nor what was chosen for a region; ground truth goes before the rest; of
each annotator the newest counts; then the majority, and a tie is no label. What was confirmed in bulk counts where
nobody looked at the task by itself. Where several labels may hold, each is put to the vote by itself; and since an
annotation without a choice may mean that none holds as well as that nobody looked, it counts only as ground truth.
That none holds must be the majority's word, too: who agree on nothing have not said it.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from contract.scores.sure import MARK, parse_mark
from contract.tasks import labels_in

Annotation = Mapping[str, Any]
Task = Mapping[str, Any]
"""A task as Label Studio exports it: `id`, `data` and `annotations`."""


class LeftOut(Exception):
    """Why a task or an annotation gives no label: one of the reasons below."""

    def __init__(self, reason: str, lost: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.lost = frozenset(lost)
        """The labels that the labelling config has lost, where that is the reason."""


NOT_LABELLED: Final = "not labelled yet"
SKIPPED: Final = "skipped by the annotator"
EMPTY: Final = "empty annotation"
NO_CHOICE: Final = "no choice made"
FOR_A_REGION: Final = "choice made for a region or one of several images"
SEVERAL_CHOICES: Final = "more than one choice made"
OUTDATED: Final = "label no longer in the labelling config"
TIED: Final = "annotators disagree evenly"
CONFIRMED: Final = "confirmed in bulk"
"""Not the label of whoever looked at the task: for models to be measured and trained on, it is none."""


def find_choices(tasks: Iterable[Task]) -> list[Mapping[str, frozenset[str]]]:
    """What each annotation that counts chose for the whole image, where it chose something, by control."""
    counted = (each for task in tasks for each in _objects(task.get("annotations")) if _says_something(each))
    return [_split(annotation)[0] for annotation in counted]


def aggregate(task: Task, control: str, known: Container[str], *, multiple: bool = False) -> frozenset[str]:
    """What holds of the task by the rules above: one label, or any number of them where `multiple` may hold.

    Raises:
        LeftOut: if that gives none, or if of one label it is undecided whether it holds.
    """
    there = _objects(task.get("annotations"))
    annotations = [each for each in there if _says_something(each, multiple)]
    if not annotations:
        skipped = all(each.get("was_cancelled") for each in there)
        raise LeftOut(EMPTY if not skipped else SKIPPED if there else NOT_LABELLED)
    trusted = [each for each in annotations if each.get("ground_truth")]
    by_people = [each for each in annotations if not was_confirmed(each)]
    ballots, spoilt = list[frozenset[str]](), list[LeftOut]()
    for annotation in _newest_of_each(trusted or by_people or annotations):
        try:
            ballots.append(_ballot(annotation, control, known, multiple))
        except LeftOut as reason:
            spoilt.append(reason)
    if not ballots:
        most, _ = Counter(map(str, spoilt)).most_common(1)[0]
        raise LeftOut(most, {label for reason in spoilt if str(reason) == most for label in reason.lost})
    return _vote_on_each(ballots) if multiple else _vote(ballots)


def was_confirmed(annotation: Annotation) -> bool:
    """Whether an annotation was made of a prediction in bulk, and saved by nobody since.

    Label Studio's action notes no time that it took, which its editor always does, also where a prediction was ticked
    and submitted. The prediction that it was made of is named until that is removed; a copy of one of Labelnext's is
    known by the `meta` of its regions after that, too.
    """
    if annotation.get("lead_time") is not None or annotation.get("ground_truth") or not annotation.get("result"):
        return False
    return annotation.get("parent_prediction") is not None or any(map(_OURS.intersection, _metas(annotation)))


_OURS: Final = frozenset({MARK, "bald"})
"""Keys of a region's `meta` that Labelnext writes."""


def _metas(annotation: Annotation) -> list[Mapping[str, Any]]:
    return [meta for item in _objects(annotation.get("result")) if isinstance(meta := item.get("meta"), Mapping)]


def is_confirmed(task: Task) -> bool:
    """Whether a task has no label but what was confirmed in bulk."""
    said = [each for each in _objects(task.get("annotations")) if not each.get("was_cancelled") and each.get("result")]
    return bool(said) and all(map(was_confirmed, said))


def confirmed_groups(task: Task) -> frozenset[tuple[str, int]]:
    """Return by which rankings a task was offered whose offer was confirmed, and as which label's index."""
    confirmed = filter(was_confirmed, _objects(task.get("annotations")))
    marks = (parse_mark(meta.get(MARK)) for each in confirmed for meta in _metas(each))
    return frozenset(found for found in marks if found)


def _vote(ballots: Sequence[frozenset[str]]) -> frozenset[str]:
    (winner, most), *others = Counter(ballots).most_common()
    if others and others[0][1] == most:
        raise LeftOut(TIED)
    return winner


def _vote_on_each(ballots: Sequence[frozenset[str]]) -> frozenset[str]:
    votes = Counter(label for ballot in ballots for label in ballot)
    held = frozenset(label for label, count in votes.items() if 2 * count > len(ballots))
    said_none = sum(not ballot for ballot in ballots)
    if any(2 * count == len(ballots) for count in votes.values()) or not (held or 2 * said_none > len(ballots)):
        raise LeftOut(TIED)
    return held


def _objects(values: object) -> list[Mapping[str, Any]]:
    """What of a list is an object, for tasks can be imported with anything in them."""
    return [each for each in values if isinstance(each, Mapping)] if isinstance(values, list) else []


def _says_something(annotation: Annotation, multiple: bool = False) -> bool:
    said = annotation.get("result") or (multiple and annotation.get("ground_truth"))
    return bool(said) and not annotation.get("was_cancelled")


def _newest_of_each(annotations: Sequence[Annotation]) -> list[Annotation]:
    """An annotator's later annotation replaces the earlier one; those without an annotator stand for themselves."""
    newest: dict[object, Annotation] = {}
    for position, annotation in enumerate(sorted(annotations, key=_age)):
        by = annotation.get("completed_by")
        number = by.get("id") if isinstance(by, Mapping) else by  # exports may hold the whole person
        newest[number or f"unknown {position}"] = annotation
    return list(newest.values())


def _age(annotation: Annotation) -> tuple[datetime, int]:
    number = annotation.get("id")
    try:
        moment = datetime.fromisoformat(str(annotation.get("updated_at") or annotation.get("created_at")))
    except ValueError:
        moment = datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC), number if isinstance(number, int) else 0


# ---- results


_WHERE: Final = frozenset(
    {"x", "y", "points", "vertices", "rle", "imageDataURL", "start", "end", "startOffset", "sequence", "ranges"}
)
"""What the value of a result holds of the place in the task that it is for, whatever the kind of region."""


def _split(annotation: Annotation) -> tuple[Mapping[str, frozenset[str]], set[str]]:
    """What was chosen for the whole task, by control; and the controls that were answered for a part of it.

    Parts are regions, whose results share an `id`, and one image of several.
    """
    items = _objects(annotation.get("result"))
    regions = {str(item["id"]) for item in items if _has_a_place(item) and item.get("id") is not None}
    whole, parts = dict[str, frozenset[str]](), set[str]()
    for item in items:
        control, labels = item.get("from_name"), frozenset(labels_in(item.get("value")))
        if item.get("type") != "choices" or not isinstance(control, str) or not labels:
            continue
        if _has_a_place(item) or str(item.get("id")) in regions or item.get("item_index") is not None:
            parts.add(control)
        else:
            whole[control] = whole.get(control, frozenset()) | labels
    return whole, parts


def _has_a_place(item: Annotation) -> bool:
    value = item.get("value")
    return isinstance(value, Mapping) and not _WHERE.isdisjoint(value)


def _ballot(annotation: Annotation, control: str, known: Container[str], multiple: bool) -> frozenset[str]:
    """What one annotation says. A label that the config has lost may have a new name, so it spoils those beside it."""
    whole, parts = _split(annotation)
    choices = whole.get(control, frozenset())
    if not choices and control in parts:
        raise LeftOut(FOR_A_REGION)
    if not choices and not (multiple and annotation.get("ground_truth")):
        raise LeftOut(NO_CHOICE)
    if len(choices) > 1 and not multiple:
        raise LeftOut(SEVERAL_CHOICES)
    if lost := [choice for choice in choices if choice not in known]:
        raise LeftOut(OUTDATED, lost)
    return choices
