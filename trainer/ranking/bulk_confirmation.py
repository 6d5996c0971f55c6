"""Bulk confirmation: finds the tasks whose predicted labels may be confirmed, from scores, labels and earlier offers.

"Shadows" are tasks of the random holdout that would have been offered outside of it. Their labels show the share of
right labels among all confirmed ones. The statistical tests are in `trainer.evaluation.sure`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from contract.scores.acquisition import margin
from contract.scores.holdout import is_held_out
from contract.scores.keyed_uniforms import keyed_uniforms
from contract.scores.sure import Shadow, Sure, percent_below
from contract.tasks import labels_in
from trainer.evaluation.advice import MIN_IMAGES
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
from trainer.ordering.duplicates import PredictedLabels, find_representatives
from trainer.ranking.given_labels import GivenLabels
from trainer.ranking.predictions import to_candidates
from trainer.scoring.scores import Score

_REVIEWED_SHARE: Final = 0.5
"""If at least this share of a tab's tasks was confirmed, its other tasks were rejected, rather than not reached."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """The required precision, and the project's random holdout and labels."""

    precision: float
    project: int
    holdout_share: float
    random_labels: int
    """Number of labelled holdout images at training."""
    labels: tuple[str, ...]
    multiple: bool

    def held_out(self, tasks: Iterable[int]) -> frozenset[int]:
        """Return the tasks that are in the random holdout; raises ConfigError if its share is not in [0, 1)."""
        numbers = np.array(sorted(tasks), np.int64)
        return frozenset(numbers[is_held_out(self.project, numbers, self.holdout_share)].tolist())

    def to_predictions(self, scores: Sequence[Score]) -> list[HoldoutPrediction]:
        """Return the predicted labels and margins of scores."""
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
        """Return the index of a prediction's first label in the labelling config; None without labels."""
        return min((index for index, label in enumerate(self.labels) if label in predicted), default=None)


@dataclass(frozen=True, slots=True)
class Offers:
    """Offers for bulk confirmation, and the reasons by task."""

    sure: Sure
    reasons: Mapping[int, str]


def tasks_to_score(
    given: GivenLabels, holdout_predictions: Sequence[HoldoutPrediction], criteria: Criteria
) -> list[int]:
    """Return the labelled tasks whose embeddings are needed: all, if their near-duplicates may be tested."""
    return sorted(given.by_people) if len(holdout_predictions) >= _min_copies(criteria) else []


def find_offers(
    pool: Sequence[Score],
    holdout_predictions: Sequence[HoldoutPrediction],
    given: GivenLabels,
    criteria: Criteria,
    *,
    name: str,
    scored: Sequence[Score] = (),
    former: Sure | None = None,
) -> Offers:
    """Return the tasks of a pool whose predicted labels may be confirmed in bulk.

    Args:
        pool: scores of the unlabelled tasks.
        holdout_predictions: predictions for labelled tasks of the random holdout by a network trained without them.
        given: the labels of the project.
        criteria: precision and project.
        name: the name of the ranking.
        scored: scores of `tasks_to_score`.
        former: the offers of the last ranking.
    """
    (shadows, passed_over), truth = _review_offers(pool, given, former), given.by_people
    holdout = criteria.held_out(truth)
    shadowed = {shadow.task for shadow in shadows}
    fresh = [each for each in holdout_predictions if each.task in holdout and each.task not in shadowed]
    predicted = criteria.to_predictions(pool)
    copies = _find_copies(pool, scored, [*predicted, *fresh], truth=truth, criteria=criteria)
    copies, copies_evidence = _test_copies(copies, fresh, truth, criteria)
    sample = _sample([each for each in fresh if each.task not in copies], shadows, truth)
    evidence = find_margin(sample, criteria.precision, error_rate=ERROR_RATE / 2 if copies else ERROR_RATE)
    wanted, labelled = 0, max(len(holdout), criteria.random_labels)
    if evidence is None and copies_evidence is None:
        # Without holdout predictions: enough labels to measure on the holdout, and to pass the test without an error.
        required = max(MIN_IMAGES, min_images(0, criteria.precision))
        wanted = images_needed(sample, criteria.precision) if fresh else max(1, required - labelled)
    tests = [each for each in (evidence, copies_evidence) if each]
    sure = Sure(
        name,
        criteria.precision,
        least_margin=evidence.least_margin if evidence else None,
        images=sum(each.images for each in tests),
        wrong=sum(each.wrong for each in tests),
        low=min((each.low for each in tests), default=None),
        near_duplicates=copies_evidence is not None,
        wanted=wanted,
        shadows=shadows,
        passed_over=passed_over,
    )
    offers = _offer(sure, [*predicted, *fresh], criteria, copies=copies if copies_evidence else {})
    unlabelled = len(criteria.held_out(score.task for score in pool))
    sentence = describe(offers.sure, labelled=labelled, unlabelled=unlabelled)
    return replace(offers, sure=replace(offers.sure, sentence=sentence))


def find_later_offers(scores: Sequence[Score], criteria: Criteria, sure: Sure) -> Offers:
    """Return the tasks added after a ranking that may be confirmed, by the ranking's margin."""
    return _offer(sure, criteria.to_predictions(scores), criteria, copies={})


def describe(sure: Sure, *, labelled: int, unlabelled: int) -> str:
    """Describe the offers, or the missing random labels, for a holdout with these numbers of tasks."""
    if sure.low is not None:
        count = sum(sure.offered.values())
        return (
            f"{count:,} labels may be confirmed in bulk: of {sure.images} random images like them {sure.wrong} would "
            f"be wrong, so at least {100 * sure.low:.1f} % are right"
        )
    sentence = (
        f"no label may be confirmed in bulk yet: about {sure.wanted} more random labels are needed ({labelled} so far)"
    )
    if sure.wanted <= unlabelled:
        return sentence
    return f"{sentence}, more than the random holdout has left ({unlabelled}); raise --holdout-share"


def _sample(
    holdout_predictions: Sequence[HoldoutPrediction], shadows: Sequence[Shadow], truth: Mapping[int, frozenset[str]]
) -> Sample:
    margins = np.array([each.margin for each in holdout_predictions], np.float64)
    right = np.array([each.labels == truth[each.task] for each in holdout_predictions], np.bool_)
    before = [frozenset(each.predicted) == truth[each.task] for each in shadows if each.task in truth]
    return Sample(margins, right, len(before), before.count(False))


# ---- offers


def _offer(
    sure: Sure, predicted: Sequence[HoldoutPrediction], criteria: Criteria, *, copies: Mapping[int, str]
) -> Offers:
    """Offer predictions with a sufficient margin, and copies; record a shadow for those of the random holdout."""
    reasons, tasks, offered, shadows = dict[int, str](), dict(sure.tasks), Counter(sure.offered), [*sure.shadows]
    held_out, shadowed = criteria.held_out(each.task for each in predicted), {shadow.task for shadow in sure.shadows}
    by_margin = f"at least {percent_below(sure.low or sure.precision)} % of such labels are right"
    for each in predicted:
        enough = sure.least_margin is not None and each.margin >= sure.least_margin
        reason, group = copies.get(each.task, by_margin if enough else None), criteria.group(each.labels)
        if reason is None or group is None or each.task in shadowed or each.task in sure.passed_over:
            continue
        if each.task in held_out:
            shadows.append(Shadow(each.task, sure.ranking, group, tuple(sorted(each.labels)), confirmed=False))
        else:
            reasons[each.task], tasks[each.task] = reason, group
            offered[", ".join(sorted(each.labels))] += 1
    return Offers(replace(sure, offered=dict(offered), tasks=tasks, shadows=tuple(shadows)), reasons)


# ---- near-duplicates of labelled images


def _min_copies(criteria: Criteria) -> int:
    """Return the minimum sample for the test of copies, at half the error rate because margins are tested, too."""
    return min_images(0, criteria.precision, error_rate=ERROR_RATE / 2)


def _test_copies(
    copies: Mapping[int, str],
    holdout_predictions: Sequence[HoldoutPrediction],
    truth: Mapping[int, frozenset[str]],
    criteria: Criteria,
) -> tuple[Mapping[int, str], Evidence | None]:
    """Test the precision of copies; return no copies if the holdout has too few of them for the test."""
    copied = [each for each in holdout_predictions if each.task in copies]
    if len(copied) < _min_copies(criteria):
        return {}, None
    wrong = sum(each.labels != truth[each.task] for each in copied)
    low = lower_bound(len(copied), wrong, error_rate=ERROR_RATE / 2)
    return copies, Evidence(0.0, len(copied), wrong, low) if low >= criteria.precision else None


def _find_copies(
    pool: Sequence[Score],
    scored: Sequence[Score],
    predicted: Sequence[HoldoutPrediction],
    *,
    truth: Mapping[int, frozenset[str]],
    criteria: Criteria,
) -> Mapping[int, str]:
    """Return reasons by task for near-duplicates of labelled images outside the holdout, if the labels agree."""
    held_out = criteria.held_out(truth)
    labelled = sorted(scored, key=lambda score: score.task in held_out)
    leaders = sum(score.task not in held_out for score in labelled)
    if not leaders:
        return {}
    images = [*labelled, *pool]
    candidates = to_candidates(images, multiple=criteria.multiple)
    representatives = find_representatives(
        candidates.embeddings, np.arange(len(images)), PredictedLabels.of(candidates)
    ).tolist()
    leader_tasks = {
        score.task: images[leader].task
        for score, leader in zip(images, representatives, strict=True)
        if leader < leaders
    }
    return {
        each.task: f"near-duplicate of task {leader_tasks[each.task]}, which has this label"
        for each in predicted
        if each.task in leader_tasks and each.labels == truth[leader_tasks[each.task]]
    }


# ---- results of earlier offers


def _review_offers(
    pool: Sequence[Score], given: GivenLabels, sure: Sure | None
) -> tuple[tuple[Shadow, ...], tuple[int, ...]]:
    """Return the shadows that count as confirmed, and the offered tasks that a person rejected.

    Of each group the same share of shadows counts as of offered tasks; all do once the group was reviewed.
    """
    if sure is None:
        return (), ()
    sizes, unlabelled = Counter(sure.tasks.values()), {score.task for score in pool}
    shares = {group: given.confirmed.get((sure.ranking, group), 0) / size for group, size in sizes.items()}
    reviewed = {group for group, share in shares.items() if share >= _REVIEWED_SHARE}
    rejected = {task for task, group in sure.tasks.items() if group in reviewed and task in unlabelled}
    draws = keyed_uniforms(f"confirmed/{sure.ranking}", np.array([each.task for each in sure.shadows], np.int64))
    shadows = tuple(
        replace(shadow, confirmed=True)
        for shadow, draw in zip(sure.shadows, draws.tolist(), strict=True)
        if shadow.confirmed or shadow.label in reviewed or draw < shares.get(shadow.label, 0.0)
    )
    return shadows, tuple(sorted({*sure.passed_over, *rejected} & unlabelled))
