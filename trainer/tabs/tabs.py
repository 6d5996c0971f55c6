"""Which tabs a ranking makes in Label Studio's Data Manager, what they hold and in which order.

Tasks are found by what their predictions hold, for that is all that Label Studio lets us say of a task without touching
its data: a marker in a region's `meta`, which names the ranking. So nothing of an earlier ranking is found by mistake.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from contract.scores.sure import MARK, common_mark, mark, percent_below
from contract.tasks import labels_in
from trainer.labelstudio.tasks import condition
from trainer.tabs.views import Filter

MOST_SURE_TABS: Final = 8
"""Labels with a tab of their own, those of most tasks; the others share one."""
OTHER_LABELS: Final = "other labels"

_SCORE: Final = "tasks:predictions_score"
_PREDICTION: Final = "tasks:predictions_results"
_ANNOTATION: Final = "tasks:annotations_results"

_UNLABELLED: Final = condition("total_annotations", "equal", 0)
_LABELLED: Final = condition("total_annotations", "greater", 0)
_NOT_SKIPPED: Final = condition("cancelled_annotations", "equal", 0)
_WITHOUT_LABEL: Final = condition("predictions_results", "equal", "[]", "String")
_WITHOUT_REASON: Final = condition("predictions_results", "not_contains", '"reason": ', "String")


@dataclass(frozen=True, slots=True)
class Tab:
    """A tab as it is to be."""

    key: str
    """What it is for."""
    title: str
    filters: tuple[Filter, ...]
    """All of which hold for its tasks."""
    ordering: str
    """A column, with a hyphen before it where the greatest comes first."""
    columns: tuple[str, ...]
    """Shown beside the tasks' numbers and data."""
    grid: bool = False
    """Whether it is a grid of images, where tasks have one; Label Studio shows none of the columns there."""
    ticked: bool = False
    """Whether all of its tasks are selected when it is opened."""


def label_next(*, skipped_are_done: bool) -> Tab:
    """Return the tab of what is to be labelled, in the order of its scores."""
    filters = (_UNLABELLED, _NOT_SKIPPED) if skipped_are_done else (_UNLABELLED,)
    return Tab("next", "Label next", filters, _SCORE, (_SCORE, _PREDICTION))


def look_again(marker: str, changed_before: str) -> Tab:
    """Return the tab of labels that are probably wrong, the likeliest first; who saves one takes it out.

    Args:
        marker: in the predictions of its tasks.
        changed_before: a moment at which none of them had changed yet.
    """
    unchanged = condition("updated_at", "less", changed_before, "Datetime")
    filters = (_LABELLED, _holds(marker), unchanged)
    return Tab("again", "Look again", filters, f"-{_SCORE}", (_ANNOTATION, _PREDICTION, _SCORE))


def random_holdout() -> Tab:
    """Return the tab of what of the random holdout is not labelled: unlabelled tasks of which we show no label."""
    filters = (_UNLABELLED, _WITHOUT_LABEL, _WITHOUT_REASON)
    return Tab("holdout", "Random holdout", filters, _SCORE, (), grid=True)


def sure(marker: str, label: str, low: float | None) -> Tab:
    """Return the tab of tasks whose predicted label may be confirmed, the surest first.

    Its title says how closely to look: at least a share `low` of such labels is right.
    """
    filters = (_UNLABELLED, _holds(marker))
    title = f"Sure: {label}" if low is None else f"Sure: {label} ≥{percent_below(low)} %"
    return Tab(f"sure/{label}", title, filters, f"-{_SCORE}", (_SCORE, _PREDICTION), grid=True, ticked=True)


def _holds(marker: str) -> Filter:
    return condition("predictions_results", "contains", marker, "String")


# ---- markers


def doubt_marker(ranking: str) -> str:
    """Return what stands in predictions of labelled tasks that are to be looked at again."""
    return f"{ranking}/again."


class Predicted(Protocol):
    """A task's prediction, as far as it is looked at here; a dataclass."""

    @property
    def result(self) -> Sequence[Mapping[str, Any]]:
        """Its regions."""

    @property
    def sure(self) -> str:
        """Why its label may be confirmed; empty where it may not."""


_P = TypeVar("_P", bound=Predicted)


def mark_sure(items: Sequence[_P], ranking: str, *, labels: Sequence[str], groups: Mapping[str, str]) -> list[_P]:
    """Return predictions, those with a marker whose label may be confirmed.

    Args:
        items: of one ranking.
        ranking: its name.
        labels: the labelling config's.
        groups: what the tabs of the ranking that are there already look for, and their labels.
    """
    known = set(groups.values())
    counts = Counter(label for item in items if item.sure and (label := _label_of(item)) in labels)
    new = [label for label, _ in counts.most_common() if label not in known]
    own = known | set(new[: max(0, MOST_SURE_TABS - len(known - {OTHER_LABELS}))])
    markers = {label: mark(ranking, labels.index(label), other=label not in own) for label in counts}
    return [_marked(item, marker) if item.sure and (marker := markers.get(_label_of(item))) else item for item in items]


def find_groups(items: Collection[Predicted], ranking: str) -> dict[str, str]:
    """Return what tabs are to look for among predictions of a ranking that were marked, and the labels of each."""
    others = common_mark(ranking)
    found = {}
    for item in items:
        for marker in {region["meta"][MARK] for region in item.result if item.sure and MARK in region["meta"]}:
            is_other = marker.startswith(others)
            found[others if is_other else marker] = OTHER_LABELS if is_other else _label_of(item)
    return found


def with_a_task(groups: Collection[str], ranking: str, labels: Collection[int]) -> set[str]:
    """Return what of that which tabs look for is on tasks of these labels, by their indices."""
    others = common_mark(ranking)
    own = {mark(ranking, label) for label in labels}
    is_other = any(mark(ranking, label) not in groups for label in labels)
    return {marker for marker in groups if marker in own or (marker == others and is_other)}


def _label_of(item: Predicted) -> str:
    """The first of its labels."""
    labels = [label for region in item.result for label in labels_in(region.get("value"))]
    return labels[0] if labels else ""


def _marked(item: _P, marker: str) -> _P:
    result = [{**region, "meta": {"sure": item.sure, **region["meta"], MARK: marker}} for region in item.result]
    return replace(item, result=result)  # type: ignore[type-var]  # a dataclass
