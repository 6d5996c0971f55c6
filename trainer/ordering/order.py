"""The order in which unlabelled images should be labelled, and the scores that make Label Studio follow it.

A strategy orders the images, and near-duplicates of other images or of the next holdout images follow behind them. Once
labels are no longer few, the random holdout has a fixed share of the places. The order does not depend on the order of
the candidates.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np

from contract.scores.acquisition import label_studio_score
from contract.scores.holdout import holdout_order, is_held_out
from trainer.ordering import strategies
from trainer.ordering.arrays import Bools, Float64s, Ints
from trainer.ordering.batchbald import Passes
from trainer.ordering.duplicates import PredictedLabels, are_fine_grained, find_representatives
from trainer.ordering.reasons import HELD_OUT, UNTICKED, explain
from trainer.ordering.strategies import (
    UNLABELLED,
    Candidates,
    LabelledImages,
    Selection,
    descending,
)

_MIN_GAP: Final = 1e-9
"""Minimum difference of scores, so that Label Studio cannot swap equal ones."""
_MAX_SHIFT: Final = 1e-6
"""Maximum change of a score by the sum of all gaps."""
_LABELS_BEFORE_HOLDOUT: Final = 500
"""Number of labels from which on the random holdout always has its places."""
_SHARE_BEFORE_HOLDOUT: Final = 0.2
"""Share of labelled images from which on it always has them."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The order of N candidates; all arrays but `order` are indexed by candidate."""

    order: Ints
    """(N,): indices of candidates, the first to be labelled first."""
    scores: Float64s
    """(N,): scores for Label Studio in [0, 1], lowest first."""
    reasons: tuple[str, ...]
    """(N,): the reason for each place."""
    held_out: Bools
    """(N,): whether an image is in the random holdout."""
    representative: Ints
    """(N,): the index of the image that each one nearly duplicates, or of itself."""

    @classmethod
    def from_scores(
        cls, order: Ints, scores: Float64s, reasons: Sequence[str], *, held_out: Bools, representative: Ints
    ) -> Self:
        """Return an arrangement with sorted scores, float64 (N,) in [0, 1]: the first place gets the lowest one."""
        by_place = np.empty(len(order), np.float64)
        by_place[order] = _spread(np.sort(scores))
        explained = tuple(HELD_OUT if is_held else reason for is_held, reason in zip(held_out, reasons, strict=True))
        return cls(order, by_place, explained, held_out, representative)


def arrange(
    candidates: Candidates,
    *,
    strategy: str,
    project: int,
    name: str,
    labels_by_class: Sequence[int],
    holdout_share: float,
    batch_size: int,
    labelled: LabelledImages = UNLABELLED,
    duplicates: bool = True,
    passes: Passes | None = None,
    labels: Sequence[str] = (),
    unticked: Collection[int] = (),
) -> Arrangement:
    """Order candidates for labelling.

    Args (others: see `Selection`):
        project: the project's number, which determines the random holdout.
        labels: (C,), names of the classes for the reasons.
        unticked: tasks whose predicted label a person found wrong. Their labels teach most, so they come first.

    Raises:
        ConfigError: if the strategy does not exist or does not support the labels, or the share is not in its range.
        ValueError: if batch-bald has no passes.
    """
    strategies.check(strategy, multiple=candidates.multiple)
    by_task = np.argsort(candidates.task_ids)
    ordered, places = candidates.take(by_task), np.argsort(by_task)
    held_out = is_held_out(project, ordered.task_ids, holdout_share)
    drawn = in_draw_order(project, ordered.task_ids, held_out)
    start = places_before_holdout(len(by_task), labels=sum(labels_by_class), classes=len(labels_by_class))
    selection = Selection(
        strategy=strategy,
        name=name,
        labels_by_class=labels_by_class,
        labelled=labelled,
        fine_grained=are_fine_grained(ordered.embeddings, labelled),
        batch_size=batch_size,
        passes=None if passes is None else lambda indices: passes(by_task[indices]),
    )
    next_held_out = drawn[: math.ceil(max(batch_size - start, 0) * holdout_share)] if duplicates else None
    queue, reasons, representative = _rank(
        ordered, selection, eligible=~held_out, next_held_out=next_held_out, labels=labels
    )
    was_unticked = np.isin(ordered.task_ids, np.array([*unticked], np.int64))
    for index in np.flatnonzero(was_unticked):
        reasons[index] = UNTICKED
    queue = queue[np.argsort(~was_unticked[queue], kind="stable")]
    nats, classes = candidates.bald.astype(np.float64), candidates.probabilities.shape[1]
    return Arrangement.from_scores(
        by_task[interleave(drawn, queue, holdout_share, start=start)],
        cast(Float64s, label_studio_score(nats, classes, multiple=candidates.multiple)),
        [reasons[place] for place in places],
        held_out=held_out[places],
        representative=by_task[representative[places]],
    )


def _rank(
    candidates: Candidates, selection: Selection, *, eligible: Bools, next_held_out: Ints | None, labels: Sequence[str]
) -> tuple[Ints, list[str], Ints]:
    """Rank N candidates, sorted by task number, with a strategy.

    Returns:
        (B,): the eligible ones, (N,), in order: chosen images, other images, near-duplicates.
        (N,): the reasons. (N,): the representative of each.
    """
    base = strategies.base_utility(candidates, selection.strategy, name=selection.name)
    representative = _assign_representatives(
        candidates, base, eligible=eligible, next_held_out=next_held_out, fine_grained=selection.fine_grained
    )
    is_leader = representative == np.arange(len(base))
    chosen, utility = strategies.select(candidates, base, selection, eligible=eligible & is_leader)
    reasons = explain(
        candidates, chosen, strategy=selection.strategy, labels_by_class=selection.labels_by_class, labels=labels
    )
    for index in np.flatnonzero(~is_leader):
        reasons[index] = f"near-duplicate of task {candidates.task_ids[representative[index]]}"
    remaining, by_utility = eligible.copy(), descending(utility)
    remaining[chosen] = False
    queue = np.concatenate([chosen, *(by_utility[(remaining & kind)[by_utility]] for kind in (is_leader, ~is_leader))])
    return queue, reasons, representative


def _assign_representatives(
    candidates: Candidates, base: Float64s, *, eligible: Bools, next_held_out: Ints | None, fine_grained: bool
) -> Ints:
    """Return the representative of each of N candidates, perhaps itself: indices, int64 (N,).

    The next holdout images lead, then the eligible ones by falling utility. With None, there are no near-duplicates.
    """
    representative: Ints = np.arange(len(base))
    if next_held_out is None:
        return representative
    others = np.flatnonzero(eligible)
    indices = np.concatenate([next_held_out, others[descending(base[others])]])
    leading = candidates.take(indices)
    leaders = find_representatives(
        leading.embeddings, np.arange(len(indices)), PredictedLabels.of(leading), fine_grained=fine_grained
    )
    representative[indices[len(next_held_out) :]] = indices[leaders[len(next_held_out) :]]
    return representative


def in_draw_order(project: int, task_ids: Ints, held_out: Bools) -> Ints:
    """Return the indices of the holdout's tasks, bool (N,), in random order: int64 (H,).

    Thus the labelled part of the holdout is a uniform sample of the pool at any time.
    """
    indices = np.flatnonzero(held_out)
    return cast(Ints, indices[np.lexsort((task_ids[indices], holdout_order(project, task_ids[indices])))])


def places_before_holdout(images: int, *, labels: int, classes: int) -> int:
    """Return the number of next places without random holdout.

    While labels are few, each teaches the model most, and a small random sample measures it badly
    (docs/decisions/0014-default-order.md). With many classes or few images, the holdout begins earlier.
    """
    few = min(strategies.few_labels(classes), _LABELS_BEFORE_HOLDOUT, int(_SHARE_BEFORE_HOLDOUT * (images + labels)))
    return max(0, few - labels)


def interleave(held_out: Ints, others: Ints, share: float, *, start: int = 0) -> Ints:
    """Merge two orders, int64 (H,) and (B,), into one (H + B,), in which the holdout has `share` of the places.

    Holdout image k, from 0, has place start + (k + 1/2) / share: for a share of a tenth 5, 15, 25 after `start`. When
    one order ends, the other one continues.
    """
    if not len(held_out):
        return others
    places = start + np.floor((np.arange(len(held_out)) + 0.5) / share)
    total = len(held_out) + len(others)
    latest = total - len(held_out) + np.arange(len(held_out))  # leaves enough places for the whole holdout
    merged = np.empty(total, np.int64)
    taken = np.zeros(total, np.bool_)
    taken[np.minimum(places, latest).astype(np.int64)] = True
    merged[taken], merged[~taken] = held_out, others
    return merged


def _spread(ascending: Float64s) -> Float64s:
    """Make ascending values (N,) in [0, 1] strictly ascending, within [0, 1]."""
    gaps = min(_MIN_GAP, _MAX_SHIFT / max(len(ascending), 1)) * np.arange(len(ascending))
    spread = np.maximum.accumulate(ascending - gaps) + gaps
    return cast(Float64s, np.clip(np.minimum(spread, 1 - gaps[::-1]), 0, 1))
