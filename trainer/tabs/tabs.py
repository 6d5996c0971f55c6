"""Which tabs a ranking makes in Label Studio's Data Manager, what they hold and in which order.

Tasks are found by what their predictions hold, for that is all that Label Studio lets us say of a task without touching
its data: a marker in a region's `meta`, which names the ranking. So nothing of an earlier ranking is found by mistake.
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
    """A tab as it is to be."""

    key: str
    title: str
    filters: tuple[Filter, ...]
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

    The marker is in the predictions of its tasks, all of which last changed before the moment.
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
