"""What a ranking shows in tabs of the Data Manager, beside the order that it gives.

Tabs are made when the project goes by the ranking, and no ranking fails for them.
"""

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
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.ranking.context import RankingContext
from trainer.ranking.predictions import Plan, Planned
from trainer.ranking.reconcile import Wanted
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

MOST_SURE_TABS: Final = 8
"""Labels with a tab of their own, those of most tasks; the others share one."""
OTHER_LABELS: Final = "other labels"
_SKIPPED_ARE_DONE: Final = "IGNORE_SKIPPED"


class RankingTabs:
    """The tabs of one ranking, by its name."""

    def __init__(self, context: RankingContext, name: str) -> None:
        self._context = context
        self._name = name
        self._marker = f"{name}/again."
        """Stands in predictions of labelled tasks that are to be looked at again."""
        self._review_tasks: list[ReviewTask] = []
        self.settled: Collection[int] = ()
        """Labelled tasks that are not to be looked at any more, after `find_doubted`."""

    def find_doubted(self) -> dict[int, Wanted]:
        """Return predictions of labelled tasks that are to be looked at again, as these are now."""
        context, listed = self._context, self._context.tab_record.listed
        version = context.version if context.options.tabs else None
        issues = read_label_issues(context.repository, version.manifest, context.options.project) if version else []
        self._review_tasks = find_review_tasks(
            context.client, issues, control=context.control, marker=self._marker, listed=listed
        )
        doubted = {each.task: Wanted(each.score, each.result) for each in self._review_tasks}
        self.settled = ({issue.task for issue in issues} | listed.keys()) - doubted.keys() - context.data.keys()
        return doubted

    def keep(self, plan: Plan, offered: Sure | None) -> None:
        """Have the project show the tabs of what was imported and is offered, or none where none are asked for."""
        context, record = self._context, self._context.tab_record
        try:
            if not context.options.tabs:
                remove_tabs(context.client, context.repository, record)
                return
            sure = {**context.groups(self._name), **find_groups(plan.items, self._name)}
            listed = update_listed(record.listed, self._review_tasks, unlabelled=context.data)
            record, wanted = replace(record, listed=listed, sure=sure), self._choose(sure, offered)
            shown = sync_tabs(context.client, context.repository, record=record, wanted=wanted)
        except (LabelnextError, OSError) as err:
            _log.warning("the project's tabs may be those of an earlier ranking; the next one mends them: %s", err)
        else:
            _log.info("tabs: %s", ", ".join(shown) or "none, for none would hold a task")

    def _choose(self, sure: Mapping[str, str], offered: Sure | None) -> list[Tab]:
        """Return the tabs that hold a task, from what the ranking knows: Label Studio would have to search all of them.

        `sure` is what those look for whose labels may be confirmed, and the label of each.
        """
        context, options, chosen = self._context, self._context.options, list[Tab]()
        if context.data:
            chosen.append(tabs.label_next(skipped_are_done=context.project.skip_queue == _SKIPPED_ARE_DONE))
        if offered:
            left = {label for task, label in offered.tasks.items() if task in context.data}
            there = groups_with_a_task(sure, self._name, left)
            chosen += [tabs.sure(marker, label, offered.low) for marker, label in sure.items() if marker in there]
        if changed_before := time_after_changes(self._review_tasks):
            chosen.append(tabs.look_again(self._marker, changed_before))
        held_out = is_held_out(options.project, np.array([*context.data], np.int64), options.holdout_share)
        if held_out.any() and ((offered and offered.wanted) or self._too_few_held_out):
            chosen.append(tabs.random_holdout())
        return chosen

    @property
    def _too_few_held_out(self) -> bool:
        """Whether too little of the random holdout is labelled to advise by."""
        manifest = self._context.version.manifest if self._context.version else None
        return bool(manifest and holdout_share(manifest) and (manifest.training.audit_images or 0) < LEAST_IMAGES)


# ---- marks of predictions that may be confirmed


def mark_sure(
    items: Sequence[Planned],
    reasons: Mapping[int, str],
    ranking: str,
    *,
    labels: Sequence[str],
    groups: Mapping[str, str],
) -> tuple[Planned, ...]:
    """Return predictions of a ranking, marked where there is a reason for which the task's label may be confirmed.

    The labels are the labelling config's; `groups` is what tabs look for that are there already, and their labels.
    """
    found = {item.task: label for item in items if item.task in reasons and (label := _label_of(item)) in labels}
    counts, known = Counter(found.values()), set(groups.values())
    new = [label for label, _ in counts.most_common() if label not in known]
    own = known | set(new[: max(0, MOST_SURE_TABS - len(known - {OTHER_LABELS}))])
    marks = {label: mark(ranking, labels.index(label), other=label not in own) for label in counts}

    def marked(item: Planned) -> Planned:
        why, marker = reasons[item.task], marks[found[item.task]]
        result = [{**region, "meta": {"sure": why, **region["meta"], MARK: marker}} for region in item.result]
        return replace(item, result=result)

    return tuple(marked(item) if item.task in found else item for item in items)


def find_groups(items: Iterable[Planned], ranking: str) -> dict[str, str]:
    """Return what tabs are to look for among predictions of a ranking that were marked, and the labels of each."""
    others, found = common_mark(ranking), dict[str, str]()
    for item in items:
        for marker in {region["meta"][MARK] for region in item.result if MARK in region["meta"]}:
            is_other = marker.startswith(others)
            found[others if is_other else marker] = OTHER_LABELS if is_other else _label_of(item)
    return found


def groups_with_a_task(groups: Collection[str], ranking: str, labels: Collection[int]) -> set[str]:
    """Return what of that which tabs look for is on tasks of these labels, by their indices."""
    own = {mark(ranking, label) for label in labels}
    others = {common_mark(ranking)} if own - {*groups} else set()
    return (own | others) & {*groups}


def _label_of(item: Planned) -> str:
    """The first of its labels."""
    return next((label for region in item.result for label in labels_in(region.get("value"))), "")
