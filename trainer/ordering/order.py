"""In which order unlabelled images are to be labelled, and the scores that make Label Studio follow it.

A strategy decides, over images that stand for themselves. Near-duplicates come behind all of these, those of images
that the random holdout is about to bring up among them. Once labels are no longer few, one place in so many is the
holdout's. The same candidates get the same order in whichever order they come.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np

from contract.scores.acquisition import label_studio_score
from contract.scores.holdout import holdout_order, is_held_out
from trainer.ordering import strategies
from trainer.ordering.batchbald import Passes
from trainer.ordering.duplicates import Outlook, are_told_apart, find_representatives
from trainer.ordering.reasons import HELD_OUT, UNTICKED, explain
from trainer.ordering.strategies import UNLABELLED, Aim, Bools, Candidates, Floats, Ints, LabelledImages, descending

_GAP: Final = 1e-9
"""Between scores that would be equal, so that Label Studio cannot swap them."""
_FARTHEST: Final = 1e-6
"""How far gaps may push a score altogether."""
_MOST_BEFORE_HOLDOUT: Final = 500
"""Labels after which the random holdout has its places, however many classes there are."""
_SHARE_BEFORE_HOLDOUT: Final = 0.2
"""Of the images, after which it has them in any case."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The order of N candidates; all but `order` are in the candidates' own."""

    order: Ints
    """(N,): indices of candidates; the first is labelled first."""
    scores: Floats
    """(N,): what Label Studio is to store, in [0, 1], lowest first."""
    reasons: tuple[str, ...]
    """(N,): why each stands where it stands."""
    held_out: Bools
    """(N,): which are of the random holdout."""
    representative: Ints
    """(N,): the index of the image that each nearly duplicates, its own where there is none."""

    @classmethod
    def along(
        cls, order: Ints, scores: Floats, reasons: Sequence[str], *, held_out: Bools, representative: Ints
    ) -> Self:
        """Hand out scores, float64 (N,) in [0, 1], along an order: the first place gets the lowest, whoever's it is."""
        handed_out = np.empty(len(order), np.float64)
        handed_out[order] = _spread(np.sort(scores))
        explained = tuple(HELD_OUT if own else reason for own, reason in zip(held_out, reasons, strict=True))
        return cls(order, handed_out, explained, held_out, representative)


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
    """Put candidates in the order in which they are to be labelled.

    The project's number decides which tasks are of the random holdout; all else that an order is for is in `Aim`. The
    `labels`, (C,), name the classes in the reasons. Of tasks that are `unticked` a person saw that the predicted label
    is wrong: no label teaches more, so they come before all others.

    Raises:
        ConfigError: if there is no such strategy for such labels, or the share is not one.
        ValueError: if batch-bald is given no passes.
    """
    strategies.check(strategy, multiple=candidates.multiple)
    by_task = np.argsort(candidates.task_ids)
    ordered, places = candidates.take(by_task), np.argsort(by_task)
    held_out = is_held_out(project, ordered.task_ids, holdout_share)
    drawn = in_draw_order(project, ordered.task_ids, held_out)
    start = places_before_holdout(len(by_task), labels=sum(labels_by_class), classes=len(labels_by_class))
    aim = Aim(
        strategy=strategy,
        name=name,
        labels_by_class=labels_by_class,
        labelled=labelled,
        told_apart=are_told_apart(ordered.embeddings, labelled),
        batch_size=batch_size,
        passes=None if passes is None else lambda indices: passes(by_task[indices]),
    )
    soon = drawn[: math.ceil(max(batch_size - start, 0) * holdout_share)] if duplicates else None
    queue, reasons, representative = _rank(ordered, aim, eligible=~held_out, soon=soon, labels=labels)
    seen = np.isin(ordered.task_ids, np.array([*unticked], np.int64))
    for index in np.flatnonzero(seen):
        reasons[index] = UNTICKED
    queue = queue[np.argsort(~seen[queue], kind="stable")]
    nats, classes = candidates.bald.astype(np.float64), candidates.probabilities.shape[1]
    return Arrangement.along(
        by_task[interleave(drawn, queue, holdout_share, start=start)],
        cast(Floats, label_studio_score(nats, classes, multiple=candidates.multiple)),
        [reasons[place] for place in places],
        held_out=held_out[places],
        representative=by_task[representative[places]],
    )


def _rank(
    candidates: Candidates, aim: Aim, *, eligible: Bools, soon: Ints | None, labels: Sequence[str]
) -> tuple[Ints, list[str], Ints]:
    """Let a strategy rank N candidates in rising order of their tasks' numbers.

    What chance brings up `soon`, (S,), claims near-duplicates before the rest; where it is None, all images stand for
    themselves.

    Returns:
        (B,): the eligible, (N,), in order: those chosen, then others that stand for themselves, then near-duplicates.
        (N,): the reasons. (N,): which image stands for each.
    """
    base = strategies.base_utility(candidates, aim.strategy, name=aim.name)
    own = np.arange(len(base))
    representative = own.copy()
    if soon is not None:
        others = np.flatnonzero(eligible)
        leading = np.concatenate([soon, others[descending(base[others])]])
        found = candidates.take(leading)
        order = np.arange(len(leading))
        stands = find_representatives(found.embeddings, order, Outlook.of(found), told_apart=aim.told_apart)
        representative[leading[len(soon) :]] = leading[stands[len(soon) :]]
    leads = representative == own
    chosen, utility = strategies.prefer(candidates, base, aim, eligible=eligible & leads)
    reasons = explain(candidates, chosen, strategy=aim.strategy, labels_by_class=aim.labels_by_class, labels=labels)
    for index in np.flatnonzero(~leads):
        reasons[index] = f"near-duplicate of task {candidates.task_ids[representative[index]]}"
    open_, rest = eligible.copy(), descending(utility)
    open_[chosen] = False
    queue = np.concatenate([chosen, *(rest[(open_ & kind)[rest]] for kind in (leads, ~leads))])
    return queue, reasons, representative


def in_draw_order(project: int, task_ids: Ints, held_out: Bools) -> Ints:
    """Return the indices of the holdout's tasks, bool (N,), in the order in which they are labelled: int64 (H,).

    The order is random too, so that the holdout's labelled part is a uniform sample of the pool at any time.
    """
    found = np.flatnonzero(held_out)
    return cast(Ints, found[np.lexsort((task_ids[found], holdout_order(project, task_ids[found])))])


def places_before_holdout(images: int, *, labels: int, classes: int) -> int:
    """Return how many of the next labels the strategy chooses alone, before the random holdout has its places.

    While labels are few, each one teaches a model the most, and a sample of a few images says the least about it
    (docs/decisions/0014-default-order.md). With many classes, or few images without a label, the pool is to be measured
    earlier.
    """
    few = min(strategies.few_labels(classes), _MOST_BEFORE_HOLDOUT, int(_SHARE_BEFORE_HOLDOUT * (images + labels)))
    return max(0, few - labels)


def interleave(held_out: Ints, others: Ints, share: float, *, start: int = 0) -> Ints:
    """Merge two orders, int64 (H,) and (B,), into one (H + B,): from `start` on the holdout has `share` of the places.

    The k-th of the holdout, from 0, comes at place start + (k + 1/2) / share: with a tenth 5, 15, 25 behind it. Where
    one order is used up, the other one goes on.
    """
    if not len(held_out):
        return others
    places = start + np.floor((np.arange(len(held_out)) + 0.5) / share)
    total = len(held_out) + len(others)
    latest = total - len(held_out) + np.arange(len(held_out))  # so that all of the holdout find a place
    merged = np.empty(total, np.int64)
    taken = np.zeros(total, np.bool_)
    taken[np.minimum(places, latest).astype(np.int64)] = True
    merged[taken], merged[~taken] = held_out, others
    return merged


def _spread(rising: Floats) -> Floats:
    """Move rising values (N,) in [0, 1] apart, so that none equals the one before it or leaves [0, 1]."""
    gaps = min(_GAP, _FARTHEST / max(len(rising), 1)) * np.arange(len(rising))
    spread = np.maximum.accumulate(rising - gaps) + gaps
    return cast(Floats, np.clip(np.minimum(spread, 1 - gaps[::-1]), 0, 1))
