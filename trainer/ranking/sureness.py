"""Which of a ranking's tasks may be confirmed in bulk: from scores, labels, and what came of the ranking before.

The tasks of the random holdout play along: of each it is noted what would have become of it, were it not held out. So
it is known what share of all that was confirmed so far is right. Pure functions of what was read; the tests are
`trainer.evaluation.sure`'s.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from contract.scores.acquisition import margin
from contract.scores.holdout import is_held_out
from contract.scores.keyed_uniforms import keyed_uniforms
from contract.scores.sure import Shadow, Sure, percent_below
from contract.tasks import labels_in
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.evaluation.holdout_predictions import HoldoutPrediction
from trainer.evaluation.sure import (
    ERROR_RATE,
    Evidence,
    Sample,
    find_margin,
    images_needed,
    lower_bound,
    min_images,
)
from trainer.labels.annotations import LeftOut, Task, aggregate, confirmed_groups, is_confirmed
from trainer.ordering.duplicates import PredictedLabels, find_representatives
from trainer.ranking.predictions import to_candidates
from trainer.scoring.scores import Score

_MOSTLY: Final = 0.5
"""Share of a group from which on what is left of it was passed over, and has not only not been reached yet."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What annotators have said so far."""

    by_people: Mapping[int, frozenset[str]]
    """Labels that somebody chose, by task."""
    confirmed: Mapping[tuple[str, int], int]
    """How many tasks were confirmed in bulk, by the ranking that offered them and the label's index."""

    @classmethod
    def read(cls, tasks: Iterable[Task], control: str, labels: Collection[str], *, multiple: bool) -> Self:
        """Read annotated tasks, as Label Studio gives them."""
        by_people, confirmed = dict[int, frozenset[str]](), Counter[tuple[str, int]]()
        for task in tasks:
            confirmed.update(confirmed_groups(task))
            try:
                chosen = aggregate(task, control, labels, multiple=multiple)
            except LeftOut:
                continue
            if not is_confirmed(task):
                by_people[int(task["id"])] = chosen
        return cls(by_people, confirmed)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for, and of which project."""

    precision: float
    project: int
    holdout_share: float
    random_labels: int
    """How many of the holdout were labelled when the version was trained."""
    labels: tuple[str, ...]
    multiple: bool

    def held_out(self, tasks: Iterable[int]) -> frozenset[int]:
        """Return those that are of the random holdout."""
        found = np.array(sorted(tasks), np.int64)
        return frozenset(found[is_held_out(self.project, found, self.holdout_share)].tolist())

    def read(self, scores: Sequence[Score]) -> list[HoldoutPrediction]:
        """Return what is predicted, in the labelling config's words; nothing where no label is."""
        if not scores:
            return []
        mean = np.stack([score.probabilities for score in scores]).astype(np.float64)  # (n, C)
        return [
            HoldoutPrediction(
                score.task, lead, frozenset(label for each in score.result for label in labels_in(each.get("value")))
            )
            for score, lead in zip(scores, margin(mean, multiple=self.multiple).tolist(), strict=True)
        ]

    def group(self, predicted: frozenset[str]) -> int | None:
        """Return the index of a prediction's first label; None where there is none to confirm."""
        return min((index for index, label in enumerate(self.labels) if label in predicted), default=None)


@dataclass(frozen=True, slots=True)
class Found:
    """What may be confirmed, and why, by task."""

    sure: Sure
    reasons: Mapping[int, str]


def tasks_to_score(labelled: Labelled, witnesses: Sequence[HoldoutPrediction], asked: Asked) -> list[int]:
    """Return the labelled tasks whose embeddings are needed: all, where near-duplicates of them may count."""
    return sorted(labelled.by_people) if len(witnesses) >= _least_copies(asked) else []


def find_sure(
    pool: Sequence[Score],
    witnesses: Sequence[HoldoutPrediction],
    labelled: Labelled,
    asked: Asked,
    *,
    name: str,
    scored: Sequence[Score] = (),
    former: Sure | None = None,
) -> Found:
    """Say which tasks of a pool may be confirmed, as a ranking by this name.

    Args:
        pool: scores of the unlabelled tasks.
        witnesses: what is said of labelled tasks of the random holdout by a network that has not seen them.
        labelled: what annotators have said.
        asked: what is asked for.
        name: of the ranking.
        scored: scores of `tasks_to_score`.
        former: what was offered last.
    """
    (shadows, passed_over), truth = _look_back(pool, labelled, former), labelled.by_people
    drawn = asked.held_out(truth)
    shadowed = {shadow.task for shadow in shadows}
    fresh = [each for each in witnesses if each.task in drawn and each.task not in shadowed]
    predicted = asked.read(pool)
    copies = _find_copies(pool, scored, [*predicted, *fresh], truth=truth, asked=asked)
    copies, of_copies = _judge_copies(copies, fresh, truth, asked)
    sample = _sample([each for each in fresh if each.task not in copies], shadows, truth)
    evidence = find_margin(sample, asked.precision, error_rate=ERROR_RATE / 2 if copies else ERROR_RATE)
    wanted, so_far = 0, max(len(drawn), asked.random_labels)
    if evidence is None and of_copies is None:
        # Before any is a witness, as many as it takes for some to be, and for those to do if none is wrong.
        least = max(LEAST_IMAGES, min_images(0, asked.precision))
        wanted = images_needed(sample, asked.precision) if fresh else max(1, least - so_far)
    both = [each for each in (evidence, of_copies) if each]
    sure = Sure(
        name,
        asked.precision,
        least_margin=evidence.least_margin if evidence else None,
        images=sum(each.images for each in both),
        wrong=sum(each.wrong for each in both),
        low=min((each.low for each in both), default=None),
        near_duplicates=of_copies is not None,
        wanted=wanted,
        shadows=shadows,
        passed_over=passed_over,
    )
    found = _offer(sure, [*predicted, *fresh], asked, copies=copies if of_copies else {})
    left = len(asked.held_out(score.task for score in pool))
    return replace(found, sure=replace(found.sure, sentence=say(found.sure, so_far=so_far, left=left)))


def find_later(scores: Sequence[Score], asked: Asked, sure: Sure) -> Found:
    """Say which tasks may be confirmed that came after a ranking: by the margin that it found."""
    return _offer(sure, asked.read(scores), asked, copies={})


def say(sure: Sure, *, so_far: int, left: int) -> str:
    """Say what may be confirmed, or what that would take: so many random labels there are, so many are left to make."""
    if sure.low is not None:
        count = sum(sure.offered.values())
        return (
            f"{count:,} labels may be confirmed in bulk: of {sure.images} random images like them {sure.wrong} would "
            f"be wrong, so at least {100 * sure.low:.1f} % are right"
        )
    sentence = (
        f"no label may be confirmed in bulk yet: about {sure.wanted} more random labels would do ({so_far} so far)"
    )
    if sure.wanted <= left:
        return sentence
    return f"{sentence}, which is more than the random holdout has left ({left}); a larger --holdout-share would do"


def _sample(
    witnesses: Sequence[HoldoutPrediction], shadows: Sequence[Shadow], truth: Mapping[int, frozenset[str]]
) -> Sample:
    margins = np.array([each.margin for each in witnesses], np.float64)
    right = np.array([each.labels == truth[each.task] for each in witnesses], np.bool_)
    before = [frozenset(each.predicted) == truth[each.task] for each in shadows if each.task in truth]
    return Sample(margins, right, len(before), before.count(False))


# ---- what may be confirmed now


def _offer(sure: Sure, predicted: Sequence[HoldoutPrediction], asked: Asked, *, copies: Mapping[int, str]) -> Found:
    """Offer what is far enough from the next label, or a copy; of the random holdout, note it only."""
    reasons, tasks, offered, shadows = dict[int, str](), dict(sure.tasks), Counter(sure.offered), [*sure.shadows]
    out, noted = asked.held_out(each.task for each in predicted), {shadow.task for shadow in sure.shadows}
    by_margin = f"at least {percent_below(sure.low or sure.precision)} % of such labels are right"
    for each in predicted:
        enough = sure.least_margin is not None and each.margin >= sure.least_margin
        reason, group = copies.get(each.task, by_margin if enough else None), asked.group(each.labels)
        if reason is None or group is None or each.task in noted or each.task in sure.passed_over:
            continue
        if each.task in out:
            shadows.append(Shadow(each.task, sure.ranking, group, tuple(sorted(each.labels)), confirmed=False))
        else:
            reasons[each.task], tasks[each.task] = reason, group
            offered[", ".join(sorted(each.labels))] += 1
    return Found(replace(sure, offered=dict(offered), tasks=tasks, shadows=tuple(shadows)), reasons)


# ---- near-duplicates of what people labelled


def _least_copies(asked: Asked) -> int:
    """They are tested beside margins: each of the two may err half as often."""
    return min_images(0, asked.precision, error_rate=ERROR_RATE / 2)


def _judge_copies(
    copies: Mapping[int, str], witnesses: Sequence[HoldoutPrediction], truth: Mapping[int, frozenset[str]], asked: Asked
) -> tuple[Mapping[int, str], Evidence | None]:
    """Judge near-duplicates; none are told apart from others where the holdout has too few of them to pass."""
    copied = [each for each in witnesses if each.task in copies]
    if len(copied) < _least_copies(asked):
        return {}, None
    wrong = sum(each.labels != truth[each.task] for each in copied)
    low = lower_bound(len(copied), wrong, error_rate=ERROR_RATE / 2)
    return copies, Evidence(0.0, len(copied), wrong, low) if low >= asked.precision else None


def _find_copies(
    pool: Sequence[Score],
    scored: Sequence[Score],
    predicted: Sequence[HoldoutPrediction],
    *,
    truth: Mapping[int, frozenset[str]],
    asked: Asked,
) -> Mapping[int, str]:
    """Return those that nearly duplicate a labelled image outside of the holdout, and are predicted what it is: why."""
    held_out = asked.held_out(truth)
    first = sorted(scored, key=lambda score: score.task in held_out)
    leaders = len(first) - sum(score.task in held_out for score in first)
    if not leaders:
        return {}
    both = [*first, *pool]
    candidates = to_candidates(both, multiple=asked.multiple)
    stands = find_representatives(candidates.embeddings, np.arange(len(both)), PredictedLabels.of(candidates)).tolist()
    claimed = {score.task: both[leader].task for score, leader in zip(both, stands, strict=True) if leader < leaders}
    return {
        each.task: f"nearly duplicates task {claimed[each.task]}, which is labelled so"
        for each in predicted
        if each.task in claimed and each.labels == truth[claimed[each.task]]
    }


# ---- what came of the ranking before


def _look_back(
    pool: Sequence[Score], labelled: Labelled, sure: Sure | None
) -> tuple[tuple[Shadow, ...], tuple[int, ...]]:
    """Settle what was offered last: what of the holdout would have been confirmed, and the tasks passed over.

    Groups of which enough was confirmed are done with.
    """
    if sure is None:
        return (), ()
    sizes, waiting = Counter(sure.tasks.values()), {score.task for score in pool}
    shares = {group: labelled.confirmed.get((sure.ranking, group), 0) / size for group, size in sizes.items()}
    done = {group for group, share in shares.items() if share >= _MOSTLY}
    unticked = {task for task, group in sure.tasks.items() if group in done and task in waiting}
    chance = keyed_uniforms(f"confirmed/{sure.ranking}", np.array([each.task for each in sure.shadows], np.int64))
    shadows = tuple(
        replace(shadow, confirmed=True)
        for shadow, drawn in zip(sure.shadows, chance.tolist(), strict=True)
        if shadow.confirmed or shadow.label in done or drawn < shares.get(shadow.label, 0.0)
    )
    return shadows, tuple(sorted({*sure.passed_over, *unticked} & waiting))
