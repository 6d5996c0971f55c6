"""One ranking of a project's unlabelled tasks, from their scores to the order in which Label Studio serves them.

Owns the order of the steps, and that each may be the last: whoever runs it again goes on where it was. What is to be
imported is on disk before anything is; the project's model version changes only when all is imported; what it showed
before goes only when nothing shows it any more.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

import numpy as np

from contract.errors import FetchError
from contract.files import explaining
from contract.images.fetch import Fetcher
from contract.label_studio import Unreachable
from contract.scores.ranking import Ranking, load_rankings, save_ranking
from contract.tasks import find_reference
from trainer import labelstudio
from trainer.labelstudio.tasks import count_unlabelled
from trainer.locks import lock_model
from trainer.ranking import thumbnails
from trainer.ranking.context import RankingContext
from trainer.ranking.names import next_name, own_names, round_of
from trainer.ranking.options import RankOptions
from trainer.ranking.planning import COLD_START, plan_all, plan_later
from trainer.ranking.predictions import Plan, load_plan, save_plan
from trainer.ranking.reconcile import Wanted, reconcile
from trainer.ranking.releasing import remember
from trainer.ranking.tabs import RankingTabs
from trainer.scoring.retries import is_small_part
from trainer.settings import Environment
from trainer.stages import CLEAR, collect_stages, stage

_log = logging.getLogger(__name__)

_FEW_STRAYS: Final = 100
"""Predictions of a version that Label Studio has fetched by itself and that are removed one by one, 0.16 s each."""
_SHOWN_DRY: Final = 10
_COUNTED: Final = ("tasks", "audit", "imported", "removed")
"""What adds up where a run first brings an earlier one to its end."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a ranking came to: its last line."""

    ranking: str | None
    """What its predictions are stamped with; None after a dry run."""
    version: str | None
    """None before there is one."""
    project: int
    strategy: str
    tasks: int
    """How many were placed in this run; 0 where all were before."""
    waiting: int
    """How many wait in their order to be labelled, those that were placed before included."""
    audit: int
    near_duplicates: int
    failed: int
    kept: int
    """How many of those that failed keep the place that they had before."""
    imported: int
    removed: int
    """Predictions of earlier rankings."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: tasks, labels, swap, score, arrange, import and switch, at whose end the project sorts by the
    ranking; tabs, which show it; and clear: the record is written, and what the ranking replaces is removed."""
    seconds: float = 0.0

    def describe(self) -> str:
        """Return it as one line for people."""
        if not self.tasks:
            there = f"{self.waiting} tasks wait in their order" if self.waiting else "no task is left to label"
            return f"project {self.project}: nothing new to rank, {there}; {self.failed} images cannot be scored"
        kept = f", of which {self.kept} keep their places" if self.kept else ""
        return (
            f"{'ranked' if self.ranking else 'would rank'} {self.tasks} tasks of project {self.project} by "
            f"{self.strategy} ({self.audit} by chance, {self.near_duplicates} near-duplicates, {self.failed} not "
            f"scored{kept}) as {self.ranking or 'a dry run'}; {self.seconds:.0f} s"
        )


def rank(options: RankOptions, environment: Environment) -> Summary:
    """Rank the unlabelled tasks of a project, and have Label Studio serve them in that order.

    Raises:
        LabelnextError: if a step fails; the project then sorts as before, and the next call goes on from there.
    """
    started = time.monotonic()
    busy = f"project {options.project} is being ranked by another process; wait for it to end"
    with (
        lock_model(environment.repository(), work=f".rank.{options.project}", refusal=busy),
        Fetcher(environment.fetch_settings()) as fetcher,
        collect_stages() as stages,
    ):
        first = RankingContext(options, environment, fetcher)
        begun = _Ranking(first).finish()
        if begun and begun.ranking != first.base and begun.strategy == options.strategy:
            options = replace(options, force=False)  # it is what was asked for
        summary = _Ranking(RankingContext(options, environment, fetcher)).run()
    if begun:
        both = {each: getattr(begun, each) + getattr(summary, each) for each in _COUNTED}
        summary = replace(begun, **both, waiting=summary.waiting, failed=summary.failed)
    return replace(summary, stages=stages, seconds=round(time.monotonic() - started, 2))


class _Ranking:
    """One run, with all that its steps share."""

    def __init__(self, context: RankingContext) -> None:
        self._context = context
        self._options = context.options
        self._client = context.client
        self._repository = context.repository
        self._plan_path = context.cache_folder / "plan.json"
        self._counts = labelstudio.count_predictions(context.client)
        """Of predictions by the name they are stamped with, at the start."""

    def finish(self) -> Summary | None:
        """Go on with the plan of a run that was killed, if there is one and it is not another version's."""
        plan = load_plan(self._plan_path)
        if plan is None or round_of(plan.name, self._context.base) is None or self._options.dry_run:
            return None
        _log.info("going on with %s, which was begun before", plan.name)
        return self._put(plan, None)

    def run(self) -> Summary:
        """Rank what is not ranked yet: tasks that came after a ranking by this version, or all."""
        former = self._find_former()
        if former is None or self._options.force:
            former, plan = None, self._plan_all()
        else:
            if former.strategy not in {self._options.strategy, COLD_START}:
                _log.info("ranked by %s before; --force ranks anew by %s", former.strategy, self._options.strategy)
            plan = plan_later(self._context, former)
            found = len({item.task for item in plan.items}.intersection(former.unscored))
            if not is_small_part(found, former.tasks):
                _log.info("%d images that could not be scored now can be; all are ranked anew", found)
                former, plan = None, self._plan_all()
        if self._options.dry_run:
            for item in plan.items[:_SHOWN_DRY]:
                _log.info("  task %d, score %.6f: %s", item.task, item.score, item.reason)
            _log.info("--dry-run: nothing was imported")
            return replace(self._summarise(plan, imported=0, removed=0), ranking=None)
        if former is None and plan.items:
            with stage("arrange"):
                save_plan(self._plan_path, plan)
        return self._put(plan, former)

    def _find_former(self) -> Ranking | None:
        """The ranking by this version that the project has, if it is whole."""
        record = self._record_of_last
        if record is None or round_of(record.name, self._context.base) is None:
            return None
        return record if self._counts.get(record.name) else None

    @cached_property
    def _record_of_last(self) -> Ranking | None:
        """The record of the project's last ranking, by whichever version."""
        records = load_rankings(self._repository)
        return next((record for record in records if record.project == self._options.project), None)

    def _plan_all(self) -> Plan:
        name, last = self._choose_name(), self._record_of_last
        # What the project goes by, or went by before somebody chose another backend's scores.
        former = [*self._own([self._context.project.model_version]), *([last.name] if last else [])]
        shown = next((each for each in former if each != name and self._counts.get(each)), None)
        return plan_all(self._context, name, shown, former=last)

    def _own(self, names: Iterable[str]) -> list[str]:
        """Those names that are of this model; of a version whose folder was deleted the last ranking's record tells."""
        last = self._record_of_last
        return own_names(self._repository, names, gone=[last.version] if last and last.version else [])

    def _choose_name(self) -> str:
        """The version's own, unless it was ranked by already: on purpose, or by Label Studio fetching predictions."""
        base = self._context.base
        names = {name for name in self._counts if round_of(name, base) is not None}
        anew = self._options.force or self._find_former() is not None
        if not anew and names <= {base} and self._counts.get(base, 0) <= _FEW_STRAYS:
            return base
        return next_name(base, names)

    # ---- what is changed in Label Studio

    def _put(self, plan: Plan, former: Ranking | None) -> Summary:
        """Import what is planned, switch to it, show it in tabs, and clear away what it replaces."""
        tabs = RankingTabs(self._context, plan.name)
        with stage("import"):
            imported, removed = self._import(plan, tabs), 0
        if there := labelstudio.count_predictions(self._client).get(plan.name):
            with stage("switch"):
                self._switch(plan.name)
        with stage("tabs"):
            tabs.keep(plan, plan.sure or (former.sure if former else None))
        if there:
            with stage(CLEAR):
                if former is None or plan.items:
                    self._record(plan, former)
                removed = self._remove_superseded(plan.name)
        shutil.rmtree(self._context.cache_folder, ignore_errors=True)
        return self._summarise(plan, imported=imported, removed=removed)

    def _import(self, plan: Plan, tabs: RankingTabs) -> int:
        unlabelled = set(self._context.data)
        if count_unlabelled(self._client) != len(unlabelled):
            unlabelled = self._find_unlabelled()
        doubted = tabs.find_doubted()
        places = {item.task: Wanted(item.score, item.result) for item in plan.items if item.task in unlabelled}
        return reconcile(
            self._client,
            name=plan.name,
            wanted={**doubted, **places},
            unwanted=tabs.settled,
            note=self._context.cache_folder / "import.json",
            find_there=lambda: self._find_unlabelled() | tabs.find_doubted().keys(),
        )

    def _find_unlabelled(self) -> set[int]:
        return {task.id for task in self._context.list_tasks()}

    def _switch(self, name: str) -> None:
        sampling = None if self._options.keep_sampling else labelstudio.UNCERTAINTY_SAMPLING
        now = labelstudio.read_project(self._client)
        if now.model_version != name or sampling not in {None, now.sampling}:
            remember(self._repository, now)
            labelstudio.switch_model_version(self._client, name, sampling=sampling)

    def _remove_superseded(self, current: str) -> int:
        counts = labelstudio.count_predictions(self._client)
        removed = 0
        for name in self._own(name for name in counts if name != current):
            _log.info("removing %d predictions of %s", counts[name], name)
            try:
                labelstudio.delete_predictions(self._client, name)
            except Unreachable as err:
                _log.warning("they may be there still, which does no harm; the next ranking removes them: %s", err)
                break
            removed += counts[name]
        return removed

    # ---- what is told of it

    def _record(self, plan: Plan, former: Ranking | None) -> None:
        """Keep what is to be shown of a ranking: of a new one, or of one to which tasks were added."""
        if former:
            tasks, audit, sure = former.tasks + len(plan.items), former.audit + plan.held_out, plan.sure or former.sure
            record = replace(former, tasks=tasks, audit=audit, sure=sure)
        else:
            record = self._describe(plan)
        record = replace(record, failed=len(plan.unscored), unscored=plan.unscored)
        remedy = "give the trainer the folder to write, then rank again"
        place = self._repository.location
        with explaining("the ranking's record", self._repository.root, place=place, remedy=remedy):
            save_ranking(self._repository, record)

    def _describe(self, plan: Plan) -> Ranking:
        balds = [item.bald for item in plan.items if item.bald is not None]
        max_megapixels = self._context.environment.max_megapixels
        shown = thumbnails.show(plan.items, self._fetch_image, max_megapixels=max_megapixels)
        return Ranking(
            name=plan.name,
            version=self._version,
            project=self._options.project,
            title=self._context.project.title,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            strategy=plan.strategy,
            tasks=len(plan.scored),
            audit=plan.held_out,
            near_duplicates=plan.near_duplicates,
            failed=len(plan.unscored),
            mean_bald=float(np.mean(balds)) if balds else None,
            sure=plan.sure,
            first=shown["first"],
            most_uncertain=shown["most_uncertain"],
            most_confident=shown["most_confident"],
        )

    def _fetch_image(self, task: int) -> bytes:
        reference = find_reference(self._context.data.get(task, {}), self._context.control.value_key)
        if reference is None:
            raise FetchError(f"task {task} is gone or has no image")
        return self._context.fetcher.fetch(reference, task_id=task, project_id=self._options.project)

    @property
    def _version(self) -> str | None:
        return self._context.version.name if self._context.version else None

    def _summarise(self, plan: Plan, *, imported: int, removed: int) -> Summary:
        return Summary(
            ranking=plan.name,
            version=self._version,
            project=self._options.project,
            strategy=plan.strategy,
            tasks=len(plan.scored),
            waiting=len(self._context.tasks) - len(plan.unscored) + plan.kept,
            audit=plan.held_out,
            near_duplicates=plan.near_duplicates,
            failed=len(plan.unscored),
            kept=plan.kept,
            imported=imported,
            removed=removed,
        )
