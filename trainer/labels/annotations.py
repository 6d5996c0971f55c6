"""Aggregation of the annotations of a task into its label.

Drafts, predictions, skipped annotations, empty annotations and choices for regions are ignored. Ground truth takes
precedence over other annotations, and these over bulk confirmations. The newest annotation of each annotator is a vote;
the majority decides, and a tie gives no label.

If a control allows several labels, each is voted on separately. An annotation without a choice may mean that no label
applies or that nobody looked, so it counts only as ground truth; an empty label set needs a majority of such votes.
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
    """A task or an annotation has no usable label, for one of the reasons below."""

    def __init__(self, reason: str, lost: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.lost = frozenset(lost)
        """For OUTDATED: the labels that the labelling config no longer has."""


NOT_LABELLED: Final = "not labelled yet"
SKIPPED: Final = "skipped by the annotator"
EMPTY: Final = "empty annotation"
NO_CHOICE: Final = "no choice made"
FOR_A_REGION: Final = "choice made for a region, or for one of several images"
SEVERAL_CHOICES: Final = "more than one choice made"
OUTDATED: Final = "label no longer in the labelling config"
TIED: Final = "tied between annotators"
CONFIRMED: Final = "confirmed in bulk"
"""Not used for training or evaluation, since nobody may have looked at the task."""


def find_choices(tasks: Iterable[Task]) -> list[Mapping[str, frozenset[str]]]:
    """Return the choices of each annotation for the whole image, by control."""
    annotations = (each for task in tasks for each in _mappings(task.get("annotations")) if _is_vote(each))
    return [_split_choices(annotation)[0] for annotation in annotations]


def aggregate(task: Task, control: str, known: Container[str], *, multiple: bool = False) -> frozenset[str]:
    """Return the label of a task or, if `multiple`, any number of labels.

    Raises:
        LeftOut: if there is no label, or the vote is tied.
    """
    annotations = _mappings(task.get("annotations"))
    voting = [each for each in annotations if _is_vote(each, multiple)]
    if not voting:
        skipped = all(each.get("was_cancelled") for each in annotations)
        raise LeftOut(EMPTY if not skipped else SKIPPED if annotations else NOT_LABELLED)
    ground_truth = [each for each in voting if each.get("ground_truth")]
    manual = [each for each in voting if not was_confirmed(each)]
    votes, invalid = list[frozenset[str]](), list[LeftOut]()
    for annotation in _newest_per_annotator(ground_truth or manual or voting):
        try:
            votes.append(_read_vote(annotation, control, known, multiple))
        except LeftOut as reason:
            invalid.append(reason)
    if not votes:
        main, _ = Counter(map(str, invalid)).most_common(1)[0]
        raise LeftOut(main, {label for reason in invalid if str(reason) == main for label in reason.lost})
    return _majority_per_label(votes) if multiple else _majority(votes)


def was_confirmed(annotation: Annotation) -> bool:
    """Return whether an annotation was created from a prediction in bulk, and not edited since.

    Unlike the editor, Label Studio's bulk action records no `lead_time`. The annotation names its prediction until that
    is deleted; after that, predictions of Labelnext are recognised by the `meta` of their regions.
    """
    if annotation.get("lead_time") is not None or annotation.get("ground_truth") or not annotation.get("result"):
        return False
    return annotation.get("parent_prediction") is not None or any(map(_META_KEYS.intersection, _metas(annotation)))


_META_KEYS: Final = frozenset({MARK, "bald"})
"""Keys of a region's `meta` that Labelnext writes."""


def _metas(annotation: Annotation) -> list[Mapping[str, Any]]:
    return [meta for item in _mappings(annotation.get("result")) if isinstance(meta := item.get("meta"), Mapping)]


def is_confirmed(task: Task) -> bool:
    """Return whether all labels of a task were confirmed in bulk."""
    voting = [each for each in _mappings(task.get("annotations")) if _is_vote(each)]
    return bool(voting) and all(map(was_confirmed, voting))


def confirmed_groups(task: Task) -> frozenset[tuple[str, int]]:
    """Return the ranking and the label index of each bulk confirmation of a task."""
    confirmed = filter(was_confirmed, _mappings(task.get("annotations")))
    marks = (parse_mark(meta.get(MARK)) for each in confirmed for meta in _metas(each))
    return frozenset(filter(None, marks))


def _majority(votes: Sequence[frozenset[str]]) -> frozenset[str]:
    (winner, count), *others = Counter(votes).most_common()
    if others and others[0][1] == count:
        raise LeftOut(TIED)
    return winner


def _majority_per_label(votes: Sequence[frozenset[str]]) -> frozenset[str]:
    counts = Counter(label for vote in votes for label in vote)
    labels = frozenset(label for label, count in counts.items() if 2 * count > len(votes))
    empty = sum(not vote for vote in votes)
    if any(2 * count == len(votes) for count in counts.values()) or not (labels or 2 * empty > len(votes)):
        raise LeftOut(TIED)
    return labels


def _mappings(values: object) -> list[Mapping[str, Any]]:
    """Return the objects in a list; imported tasks may contain any JSON."""
    return [each for each in values if isinstance(each, Mapping)] if isinstance(values, list) else []


def _is_vote(annotation: Annotation, multiple: bool = False) -> bool:
    result = annotation.get("result") or (multiple and annotation.get("ground_truth"))
    return bool(result) and not annotation.get("was_cancelled")


def _newest_per_annotator(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return the newest annotation of each annotator, and all annotations without an annotator."""
    newest: dict[object, Annotation] = {}
    for position, annotation in enumerate(sorted(annotations, key=_updated_at)):
        annotator = annotation.get("completed_by")
        number = annotator.get("id") if isinstance(annotator, Mapping) else annotator  # exports may have a user object
        newest[number or f"unknown {position}"] = annotation
    return list(newest.values())


def _updated_at(annotation: Annotation) -> tuple[datetime, int]:
    """Return the time of an annotation and, for equal times, its ID."""
    number = annotation.get("id")
    try:
        moment = datetime.fromisoformat(str(annotation.get("updated_at") or annotation.get("created_at")))
    except ValueError:
        moment = datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC), number if isinstance(number, int) else 0


_REGION_KEYS: Final = frozenset(
    {"x", "y", "points", "vertices", "rle", "imageDataURL", "start", "end", "startOffset", "sequence", "ranges"}
)
"""Keys that only the values of regions have."""


def _split_choices(annotation: Annotation) -> tuple[Mapping[str, frozenset[str]], set[str]]:
    """Return the choices for the whole task, by control, and the controls with choices for a part of it.

    Parts are regions, whose results share an `id`, and single images of a task with several.
    """
    items = _mappings(annotation.get("result"))
    regions = {str(item["id"]) for item in items if _is_region(item) and item.get("id") is not None}
    whole, parts = dict[str, frozenset[str]](), set[str]()
    for item in items:
        control, labels = item.get("from_name"), frozenset(labels_in(item.get("value")))
        if item.get("type") != "choices" or not isinstance(control, str) or not labels:
            continue
        if _is_region(item) or str(item.get("id")) in regions or item.get("item_index") is not None:
            parts.add(control)
        else:
            whole[control] = whole.get(control, frozenset()) | labels
    return whole, parts


def _is_region(item: Annotation) -> bool:
    value = item.get("value")
    return isinstance(value, Mapping) and not _REGION_KEYS.isdisjoint(value)


def _read_vote(annotation: Annotation, control: str, known: Container[str], multiple: bool) -> frozenset[str]:
    """Return the labels of one annotation; one outdated label, which may have been renamed, invalidates all."""
    whole, parts = _split_choices(annotation)
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
