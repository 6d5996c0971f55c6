"""The tabs of a ranking in the Data Manager, updated after the switch to it; failures are only logged."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from contract.errors import LabelnextError
from contract.scores.holdout import holdout_share, is_held_out
from contract.scores.sure import MARK, Sure, common_mark, mark
from contract.tasks import labels_in
from trainer.evaluation.advice import MIN_IMAGES
from trainer.ranking.context import RankingContext
from trainer.ranking.predictions import Plan, PlannedPrediction
from trainer.ranking.reconcile import DesiredPrediction
from trainer.tabs import tabs
from trainer.tabs.label_issues import (
    ReviewTask,
    find_review_tasks,
    read_label_issues,
    time_after_changes,
    update_listed,
)
from trainer.tabs.sync import remove_tabs, sync_tabs
from trainer.tabs.tabs import Tab

_log = logging.getLogger(__name__)

MAX_SURE_TABS: Final = 8
"""Maximum number of labels with a separate tab, those with most tasks; the others share one."""
OTHER_LABELS: Final = "other labels"
_SKIPPED_ARE_DONE: Final = "IGNORE_SKIPPED"


class RankingTabs:
    """The tabs of a ranking."""

    def __init__(self, context: RankingContext, name: str) -> None:
        self._context = context
        self._name = name
        self._marker = f"{name}/again."
        """Mark in the predictions of labelled tasks to be reviewed."""
        self._review_tasks: list[ReviewTask] = []
        self.resolved: Collection[int] = ()
        """Labelled tasks that need no review any more, after `find_review_predictions`."""

    def find_review_predictions(self) -> dict[int, DesiredPrediction]:
        """Return the predictions of labelled tasks to be reviewed, by their current labels.

        Raises:
            ConfigError: if Label Studio does not answer.
            OSError: if the record of the project's tabs cannot be read.
        """
        context, listed = self._context, self._context.tab_record.listed
        version = context.version if context.options.tabs else None
        issues = read_label_issues(context.repository, version.manifest, context.options.project) if version else []
        self._review_tasks = find_review_tasks(
            context.client, issues, control=context.control, marker=self._marker, listed=listed
        )
        to_review = {each.task: DesiredPrediction(each.score, each.result) for each in self._review_tasks}
        self.resolved = ({issue.task for issue in issues} | listed.keys()) - to_review.keys() - context.data.keys()
        return to_review

    def sync(self, plan: Plan, offered: Sure | None) -> None:
        """Update the project's tabs for an imported plan and its offers, or remove them if not requested."""
        context, record = self._context, self._context.tab_record
        try:
            if not context.options.tabs:
                remove_tabs(context.client, context.repository, record)
                return
            sure = {**context.sure_marks(self._name), **find_marks(plan.items, self._name)}
            listed = update_listed(record.listed, self._review_tasks, unlabelled=context.data)
            record = replace(record, listed=listed, sure=sure)
            titles = sync_tabs(
                context.client, context.repository, record=record, definitions=self._choose(sure, offered)
            )
        except (LabelnextError, OSError) as err:
            _log.warning("cannot update the project's tabs; the next ranking tries again: %s", err)
        else:
            _log.info("tabs: %s", ", ".join(titles) or "none, because all would be empty")

    def _choose(self, sure: Mapping[str, str], offered: Sure | None) -> list[Tab]:
        """Return the tabs that are not empty, by the ranking's own data, because searches in Label Studio are slow.

        `sure` are the labels of the tabs *Sure*, by mark.
        """
        context, options, chosen = self._context, self._context.options, list[Tab]()
        if context.data:
            chosen.append(tabs.label_next(skipped_are_done=context.project.skip_queue == _SKIPPED_ARE_DONE))
        if offered:
            left = {label for task, label in offered.tasks.items() if task in context.data}
            existing = marks_with_tasks(sure, self._name, left)
            chosen += [tabs.sure(marker, label, offered.low) for marker, label in sure.items() if marker in existing]
        if changed_before := time_after_changes(self._review_tasks):
            chosen.append(tabs.look_again(self._marker, changed_before))
        held_out = is_held_out(options.project, np.array([*context.data], np.int64), options.holdout_share)
        if held_out.any() and ((offered and offered.wanted) or self._too_few_held_out):
            chosen.append(tabs.random_holdout())
        return chosen

    @property
    def _too_few_held_out(self) -> bool:
        """Whether too little of the random holdout is labelled for measurements."""
        manifest = self._context.version.manifest if self._context.version else None
        return bool(manifest and holdout_share(manifest) and (manifest.training.audit_images or 0) < MIN_IMAGES)


# ---- marks for bulk confirmation


def mark_sure(
    items: Sequence[PlannedPrediction],
    reasons: Mapping[int, str],
    ranking: str,
    *,
    labels: Sequence[str],
    known_marks: Mapping[str, str],
) -> tuple[PlannedPrediction, ...]:
    """Return the predictions of a ranking, with marks on those that are offered for bulk confirmation.

    Args:
        items: predictions of the ranking.
        reasons: the reasons of the offers by task.
        ranking: the name of the ranking.
        labels: the labels of the labelling config.
        known_marks: the labels of existing tabs by mark.
    """
    offered = {item.task: label for item in items if item.task in reasons and (label := _first_label(item)) in labels}
    counts, known = Counter(offered.values()), set(known_marks.values())
    new = [label for label, _ in counts.most_common() if label not in known]
    own = known | set(new[: max(0, MAX_SURE_TABS - len(known - {OTHER_LABELS}))])
    marks = {label: mark(ranking, labels.index(label), other=label not in own) for label in counts}

    def add_mark(item: PlannedPrediction) -> PlannedPrediction:
        reason, own_mark = reasons[item.task], marks[offered[item.task]]
        result = [{**region, "meta": {"sure": reason, **region["meta"], MARK: own_mark}} for region in item.result]
        return replace(item, result=result)

    return tuple(add_mark(item) if item.task in offered else item for item in items)


def find_marks(items: Iterable[PlannedPrediction], ranking: str) -> dict[str, str]:
    """Return the labels of the tabs for marked predictions, by the mark for which each tab filters."""
    others, labels = common_mark(ranking), dict[str, str]()
    for item in items:
        for marker in {region["meta"][MARK] for region in item.result if MARK in region["meta"]}:
            is_other = marker.startswith(others)
            labels[others if is_other else marker] = OTHER_LABELS if is_other else _first_label(item)
    return labels


def marks_with_tasks(known_marks: Collection[str], ranking: str, labels: Collection[int]) -> set[str]:
    """Return the marks of `known_marks` that predictions with these labels, by index, have."""
    own = {mark(ranking, label) for label in labels}
    others = {common_mark(ranking)} if own - {*known_marks} else set()
    return (own | others) & {*known_marks}


def _first_label(item: PlannedPrediction) -> str:
    """Return the first label of a prediction, or an empty text."""
    return next((label for region in item.result for label in labels_in(region.get("value"))), "")
