"""In which order unlabelled images are to be labelled, and the scores that make Label Studio follow it.

A strategy decides, over images that stand for themselves. Near-duplicates come behind all of these, those of images
that the random holdout is about to bring up among them. Once labels are no longer few, one place in so many is the
holdout's. The same candidates get the same order in whichever order they come.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from contract.scores.acquisition import label_studio_score
from contract.scores.holdout import holdout_order, is_held_out
from trainer.ordering import strategies
from trainer.ordering.batchbald import Passes
from trainer.ordering.duplicates import Outlook, are_told_apart, find_representatives
from trainer.ordering.reasons import HELD_OUT, UNTICKED, explain, near_duplicate
from trainer.ordering.strategies import (
    UNLABELLED,
    Aim,
    Bools,
    Candidates,
    Floats,
    Ints,
    LabelledImages,
    Preference,
    descending,
)

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
    """The order of N candidates."""

    order: Ints
    """(N,): indices of candidates; the first is labelled first."""
    scores: Floats
    """(N,), in the candidates' order: what Label Studio is to store, in [0, 1], lowest first."""
    reasons: tuple[str, ...]
    """(N,), in the candidates' order: why each stands where it stands."""
    held_out: Bools
    """(N,), in the candidates' order: which are of the random holdout."""
    representative: Ints
    """(N,), in the candidates' order: the index of the image that it nearly duplicates, its own where there is none."""


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

    Args:
        candidates: N images.
        strategy: one of `strategies.STRATEGIES`.
        project: its number, which decides which tasks are of the random holdout.
        name: the ranking's, which decides what falls to chance.
        labels_by_class: (C,), how many labels there are already.
        holdout_share: of the tasks, those whose place is left to chance.
        batch_size: how many are about to be labelled: so many are chosen with regard to each other.
        labelled: images that have labels.
        duplicates: whether near-duplicates are put behind all others.
        passes: gives the probabilities of the passes of candidates by index; needed by batch-bald.
        labels: (C,), the classes' names, to be used in the reasons.
        unticked: tasks of which a person saw that the predicted label is wrong: no label teaches more, so they come
            before all others.

    Raises:
        ConfigError: if there is no such strategy for such labels, or the share is not one.
        ValueError: if batch-bald is given no passes.
    """
    strategies.check(strategy, multiple=candidates.multiple)
    by_task = np.argsort(candidates.task_ids)
    ordered = candidates.take(by_task)
    task_ids = ordered.task_ids
    sampled = is_held_out(project, task_ids, holdout_share)
    before_holdout = places_before_holdout(len(task_ids), labels=sum(labels_by_class), classes=len(labels_by_class))
    of_the_batch = math.ceil(max(batch_size - before_holdout, 0) * holdout_share)
    soon = _in_order(project, task_ids, sampled)[:of_the_batch]
    aim = Aim(
        strategy=strategy,
        name=name,
        labels_by_class=labels_by_class,
        labelled=labelled,
        told_apart=are_told_apart(ordered.embeddings, labelled),
        batch_size=batch_size,
        passes=None if passes is None else lambda indices: passes(by_task[indices]),
    )
    ranked = _rank(ordered, aim, eligible=~sampled, soon=soon, duplicates=duplicates, labels=labels)
    places = np.argsort(by_task)
    seen = np.isin(candidates.task_ids, np.array([*unticked], np.int64))
    queue = by_task[ranked.queue]
    reasons = [ranked.reasons[place] for place in places]
    return compose(
        queue[np.argsort(~seen[queue], kind="stable")],
        task_ids=candidates.task_ids,
        project=project,
        holdout_share=holdout_share,
        before_holdout=before_holdout,
        scores=_agreement(candidates),
        reasons=[UNTICKED if known else reason for known, reason in zip(seen.tolist(), reasons, strict=True)],
        representative=by_task[ranked.representative[places]],
    )


def compose(
    queue: Ints,
    *,
    task_ids: Ints,
    project: int,
    holdout_share: float,
    before_holdout: int,
    scores: Floats,
    reasons: Sequence[str],
    representative: Ints,
) -> Arrangement:
    """Give the random holdout its places in a queue of the other tasks, and hand out scores along it.

    Args:
        queue: int64 (B,), the indices of all tasks that are not held out, in order.
        task_ids: int64 (N,), of all tasks.
        project: its number.
        holdout_share: of the tasks.
        before_holdout: how many places come before those of which the holdout has its share.
        scores: float64 (N,) in [0, 1]: the first place gets the lowest, whoever's it is.
        reasons: (N,), by task.
        representative: int64 (N,), by task.
    """
    sampled = is_held_out(project, task_ids, holdout_share)
    order = interleave(_in_order(project, task_ids, sampled), queue, holdout_share, start=before_holdout)
    handed_out = np.empty(len(order), np.float64)
    handed_out[order] = _spread(np.sort(scores))
    explained = tuple(HELD_OUT if own else reason for own, reason in zip(sampled.tolist(), reasons, strict=True))
    return Arrangement(order, handed_out, explained, sampled, representative)


def _in_order(project: int, task_ids: Ints, sampled: Bools) -> Ints:
    """Return the indices of the holdout's tasks, bool (N,), in the order in which they are labelled: int64 (H,).

    The order is random too, so that the holdout's labelled part is a uniform sample of the pool at any time.
    """
    found = np.flatnonzero(sampled)
    by_place: Ints = found[np.lexsort((task_ids[found], holdout_order(project, task_ids[found])))]
    return by_place


def places_before_holdout(images: int, *, labels: int, classes: int) -> int:
    """Return how many of the next labels the strategy chooses alone, before the random holdout has its places.

    While labels are few, each one teaches a model the most, and a sample of a few images says the least about it
    (docs/decisions/0014-default-order.md). With many classes, or few images, the pool is to be measured earlier.

    Args:
        images: how many have no label.
        labels: how many there are.
        classes: how many.
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


def _agreement(candidates: Candidates) -> Floats:
    """Return what a server would score each candidate: float64 (N,) in [0, 1]."""
    nats, classes = candidates.bald.astype(np.float64), candidates.probabilities.shape[1]
    return cast(Floats, label_studio_score(nats, classes, multiple=candidates.multiple))


@dataclass(frozen=True, slots=True)
class _Ranked:
    """What a strategy makes of N candidates in rising order of their tasks' numbers."""

    queue: Ints
    """(B,): the eligible, in order."""
    reasons: list[str]
    """(N,)"""
    representative: Ints
    """(N,)"""


def _rank(
    candidates: Candidates, aim: Aim, *, eligible: Bools, soon: Ints, duplicates: bool, labels: Sequence[str]
) -> _Ranked:
    base = strategies.base_utility(candidates, aim.strategy, name=aim.name)
    own = np.arange(len(base))
    representative = own.copy()
    if duplicates:
        others = np.flatnonzero(eligible)
        leading = np.concatenate([soon, others[descending(base[others])]])  # what chance brings up soon, and the rest
        found = candidates.take(leading)
        order = np.arange(len(leading))
        stands = find_representatives(found.embeddings, order, Outlook.of(found), told_apart=aim.told_apart)
        representative[leading[len(soon) :]] = leading[stands[len(soon) :]]
    preference = strategies.prefer(candidates, base, aim, eligible=eligible & (representative == own))
    reasons = explain(candidates, preference, strategy=aim.strategy, labels_by_class=aim.labels_by_class, labels=labels)
    for index in np.flatnonzero(representative != own):
        reasons[index] = near_duplicate(candidates.task_ids[representative[index]])
    return _Ranked(_queue(preference, eligible, representative == own), reasons, representative)


def _queue(preference: Preference, eligible: Bools, stands_for_itself: Bools) -> Ints:
    """Return the eligible: those chosen, then others that stand for themselves, then near-duplicates."""
    open_ = eligible.copy()
    open_[preference.chosen] = False
    rest = descending(preference.utility)
    return np.concatenate(
        [preference.chosen, *(rest[(open_ & kind)[rest]] for kind in (stands_for_itself, ~stands_for_itself))]
    )


def _spread(rising: Floats) -> Floats:
    """Move rising values (N,) in [0, 1] apart, so that none equals the one before it or leaves [0, 1]."""
    gaps = min(_GAP, _FARTHEST / max(len(rising), 1)) * np.arange(len(rising))
    spread = np.maximum.accumulate(rising - gaps) + gaps
    return cast(Floats, np.clip(np.minimum(spread, 1 - gaps[::-1]), 0, 1))
