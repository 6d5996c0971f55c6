"""Definitions of our tabs: title, filters, ordering and columns.

Filters find tasks by a marker in the `meta` of their predictions, because predictions are the only part of a task that
we can write without changing its data. Markers contain the ranking's name, so earlier rankings do not match.
"""

from dataclasses import dataclass
from typing import Final

from contract.scores.sure import percent_below
from trainer.labelstudio.tasks import condition
from trainer.tabs.views import Filter

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
    """The definition of a tab."""

    key: str
    title: str
    filters: tuple[Filter, ...]
    ordering: str
    """A column, prefixed by a hyphen for descending order."""
    columns: tuple[str, ...]
    """Columns shown besides number and data."""
    grid: bool = False
    """Whether it is a grid of images, which has no columns, if tasks have exactly one image."""
    all_selected: bool = False
    """Whether all tasks are selected when it is opened."""


def label_next(*, skipped_are_done: bool) -> Tab:
    """Return the tab of unlabelled tasks, in the order of the ranking."""
    filters = (_UNLABELLED, _NOT_SKIPPED) if skipped_are_done else (_UNLABELLED,)
    return Tab("next", "Label next", filters, _SCORE, (_SCORE, _PREDICTION))


def look_again(marker: str, changed_before: str) -> Tab:
    """Return the tab of probable label errors, the likeliest first; saving a task removes it from the tab.

    The tasks have the marker in their predictions, and were not changed since `changed_before`.
    """
    unchanged = condition("updated_at", "less", changed_before, "Datetime")
    filters = (_LABELLED, _contains(marker), unchanged)
    return Tab("again", "Look again", filters, f"-{_SCORE}", (_ANNOTATION, _PREDICTION, _SCORE))


def random_holdout() -> Tab:
    """Return the tab of the unlabelled tasks of the random holdout, recognised by predictions without a label."""
    filters = (_UNLABELLED, _WITHOUT_LABEL, _WITHOUT_REASON)
    return Tab("holdout", "Random holdout", filters, _SCORE, (), grid=True)


def sure(marker: str, label: str, low: float | None) -> Tab:
    """Return the tab of tasks whose predicted label may be confirmed in bulk, the most certain first.

    The title contains `low`, the lower bound of the share of right labels.
    """
    filters = (_UNLABELLED, _contains(marker))
    title = f"Sure: {label}" if low is None else f"Sure: {label} ≥{percent_below(low)} %"
    return Tab(f"sure/{label}", title, filters, f"-{_SCORE}", (_SCORE, _PREDICTION), grid=True, all_selected=True)


def _contains(marker: str) -> Filter:
    return condition("predictions_results", "contains", marker, "String")
