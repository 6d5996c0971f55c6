"""What a ranking shows in tabs of the Data Manager, beside the order that it gives.

Tabs are made when the project goes by the ranking, and no ranking fails for them.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from contract.errors import LabelnextError
from contract.scores.holdout import is_held_out, share_of
from contract.scores.sure import Sure
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.ranking.context import RankingContext
from trainer.ranking.predictions import Plan
from trainer.ranking.reconcile import Wanted
from trainer.tabs import tabs
from trainer.tabs.doubts import Doubt, find_doubts, just_after, note_listed, read_suspects
from trainer.tabs.keeping import keep_tabs, remove_tabs
from trainer.tabs.tabs import Tab

_log = logging.getLogger(__name__)

_SKIPPED_ARE_DONE: Final = "IGNORE_SKIPPED"


class RankingTabs:
    """The tabs of one ranking, by its name."""

    def __init__(self, context: RankingContext, name: str) -> None:
        self._context = context
        self._name = name
        self._project = context.options.project
        self._doubts: list[Doubt] = []
        self.settled: Collection[int] = ()
        """Labelled tasks that are not to be looked at any more, after `find_doubted`."""

    def find_doubted(self) -> dict[int, Wanted]:
        """Return predictions of labelled tasks that are to be looked at again, as these are now."""
        context = self._context
        version = context.version if context.options.tabs else None
        suspects = read_suspects(context.repository, version.manifest, self._project) if version else []
        self._doubts = find_doubts(
            context.client,
            suspects,
            control=context.control,
            marker=tabs.doubt_marker(self._name),
            listed=context.tab_record.listed,
        )
        doubted = {doubt.task: Wanted(doubt.score, doubt.result) for doubt in self._doubts}
        former = {suspect.task for suspect in suspects} | context.tab_record.listed.keys()
        self.settled = former - doubted.keys() - context.data.keys()
        return doubted

    def mark(self, plan: Plan) -> Plan:
        """Mark the tasks whose predicted labels may be confirmed, for the tabs to find them."""
        if not self._context.options.tabs:
            return plan
        marked = tabs.mark_sure(plan.items, plan.name, labels=self._context.control.labels, groups=self._groups)
        return replace(plan, items=tuple(marked))

    @property
    def _groups(self) -> dict[str, str]:
        """What the tabs of this ranking look for that are there already, and their labels."""
        return {
            marker: label
            for marker, label in self._context.tab_record.sure.items()
            if marker.startswith(f"{self._name}/")
        }

    def keep(self, plan: Plan, offered: Sure | None) -> None:
        """Have the project show the tabs, or none where none are asked for.

        Args:
            plan: what was imported now.
            offered: what the ranking offers to be confirmed, and what it would take to offer something.
        """
        context = self._context
        try:
            if not context.options.tabs:
                remove_tabs(context.client, context.repository, self._context.tab_record)
                return
            sure = {**self._groups, **tabs.find_groups(plan.items, self._name)}
            listed = note_listed(context.tab_record.listed, self._doubts, unlabelled=context.data)
            record = replace(context.tab_record, listed=listed, sure=sure)
            wanted = self._choose(sure, offered)
            shown = keep_tabs(context.client, context.repository, record=record, wanted=wanted)
        except (LabelnextError, OSError) as err:
            _log.warning("the project's tabs may be those of an earlier ranking; the next one mends them: %s", err)
        else:
            _log.info("tabs: %s", ", ".join(shown) or "none, for none would hold a task")

    def _choose(self, sure: Mapping[str, str], offered: Sure | None) -> list[Tab]:
        """Return the tabs that hold a task, from what the ranking knows: Label Studio would have to search all of them.

        Args:
            sure: what those look for whose labels may be confirmed, and the label of each.
            offered: what may be confirmed.
        """
        unlabelled, chosen = self._context.data, list[Tab]()
        if unlabelled:
            skipped_are_done = self._context.project.skip_queue == _SKIPPED_ARE_DONE
            chosen.append(tabs.label_next(skipped_are_done=skipped_are_done))
        if offered:
            left = {label for task, label in offered.tasks.items() if task in unlabelled}
            there = tabs.with_a_task(sure, self._name, left)
            chosen += [tabs.sure(marker, label, offered.low) for marker, label in sure.items() if marker in there]
        if changed_before := just_after(self._doubts):
            chosen.append(tabs.look_again(tabs.doubt_marker(self._name), changed_before))
        lacking = bool(offered and offered.wanted) or self._too_few_held_out
        share = self._context.options.holdout_share
        if lacking and is_held_out(self._project, np.array([*unlabelled], np.int64), share).any():
            chosen.append(tabs.random_holdout())
        return chosen

    @property
    def _too_few_held_out(self) -> bool:
        """Whether too little of the random holdout is labelled to advise by."""
        version = self._context.version
        if version is None or not self._context.options.holdout_share or not share_of(version.manifest):
            return False
        return (version.manifest.training.audit_images or 0) < LEAST_IMAGES
