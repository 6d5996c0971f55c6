"""Ranks a project's unlabelled tasks: scores, orders, imports predictions, and switches the project to them.

A ranking can be interrupted at any step, and the next run continues it: the plan is saved before the first import, the
project's model version is switched after the last one, and old predictions are deleted only after the switch.
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
from trainer.ranking.reconcile import DesiredPrediction, reconcile
from trainer.ranking.releasing import save_original
from trainer.ranking.tabs import RankingTabs
from trainer.scoring.retries import is_small_part
from trainer.settings import Environment
from trainer.stages import CLEAR, collect_stages, stage

_log = logging.getLogger(__name__)

_MAX_STRAYS: Final = 100
"""Maximum number of predictions fetched by Label Studio itself that are deleted one by one, in 0.16 s each."""
_DRY_RUN_TASKS: Final = 10
"""Number of tasks shown by a dry run."""
_SUMMED_FIELDS: Final = ("tasks", "audit", "imported", "removed")
"""Fields that are added up if a run first completes an interrupted one."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a ranking, printed as the last line."""

    ranking: str | None
    """The name of the ranking; None after a dry run."""
    version: str | None
    """None for a cold start."""
    project: int
    strategy: str
    tasks: int
    """Number of tasks placed by this run."""
    waiting: int
    """Number of all tasks with a place, also from earlier runs."""
    audit: int
    """Number of placed tasks in the random holdout."""
    near_duplicates: int
    failed: int
    kept: int
    """How many of the failed tasks keep their former places."""
    imported: int
    removed: int
    """Number of deleted predictions of earlier rankings."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: tasks, labels, swap, score, arrange, import and switch, after which the project is sorted by
    the ranking; tabs; and clear, which writes the record and deletes the replaced ranking."""
    seconds: float = 0.0

    def describe(self) -> str:
        """Return the summary as one line of text."""
        if not self.tasks:
            waiting = f"{self.waiting} tasks wait in their order" if self.waiting else "no task is left to label"
            return f"project {self.project}: nothing new to rank, {waiting}; {self.failed} images cannot be scored"
        kept = f", of which {self.kept} keep their places" if self.kept else ""
        return (
            f"{'ranked' if self.ranking else 'would rank'} {self.tasks} tasks of project {self.project} by "
            f"{self.strategy} ({self.audit} in the random holdout, {self.near_duplicates} near-duplicates, "
            f"{self.failed} not scored{kept}) as {self.ranking or 'a dry run'}; {self.seconds:.0f} s"
        )


def rank(options: RankOptions, environment: Environment) -> Summary:
    """Rank the unlabelled tasks of a project, so that Label Studio serves them in this order.

    Raises:
        LabelnextError: if a step fails; the project is then sorted as before, and the next call continues.
        OSError: if the repository cannot be read or written.
    """
    started = time.monotonic()
    refusal = f"project {options.project} is being ranked by another process; wait for it to end"
    with (
        lock_model(environment.repository(), work=f".rank.{options.project}", refusal=refusal),
        Fetcher(environment.fetch_settings()) as fetcher,
        collect_stages() as stages,
    ):
        first = RankingContext(options, environment, fetcher)
        resumed = _Ranking(first).resume()
        if resumed and resumed.ranking != first.base and resumed.strategy == options.strategy:
            options = replace(options, force=False)  # the completed ranking is the requested one
        summary = _Ranking(RankingContext(options, environment, fetcher)).run()
    if resumed:
        sums = {name: getattr(resumed, name) + getattr(summary, name) for name in _SUMMED_FIELDS}
        summary = replace(resumed, **sums, waiting=summary.waiting, failed=summary.failed)
    return replace(summary, stages=stages, seconds=round(time.monotonic() - started, 2))


class _Ranking:
    """A run, with the values that its steps share."""

    def __init__(self, context: RankingContext) -> None:
        self._context = context
        self._options = context.options
        self._client = context.client
        self._repository = context.repository
        self._plan_path = context.cache_folder / "plan.json"
        self._counts = labelstudio.count_predictions(context.client)
        """Number of predictions by model version at the start."""

    def resume(self) -> Summary | None:
        """Complete the plan of an interrupted run, if there is one of this version."""
        plan = load_plan(self._plan_path)
        if plan is None or round_of(plan.name, self._context.base) is None or self._options.dry_run:
            return None
        _log.info("resuming the interrupted ranking %s", plan.name)
        return self._apply(plan, None)

    def run(self) -> Summary:
        """Rank the tasks that were added after the last ranking by this version, or all tasks."""
        former = self._find_current_ranking()
        if former is None or self._options.force:
            former, plan = None, self._plan_all()
        else:
            if former.strategy not in {self._options.strategy, COLD_START}:
                _log.info("ranked by %s before; use --force to rank by %s", former.strategy, self._options.strategy)
            plan = plan_later(self._context, former)
            recovered = len({item.task for item in plan.items}.intersection(former.unscored))
            if not is_small_part(recovered, former.tasks):
                _log.info("%d images could be scored that failed before; ranking all tasks again", recovered)
                former, plan = None, self._plan_all()
        if self._options.dry_run:
            for item in plan.items[:_DRY_RUN_TASKS]:
                _log.info("  task %d, score %.6f: %s", item.task, item.score, item.reason)
            _log.info("--dry-run: nothing was imported")
            return replace(self._summarise(plan, imported=0, removed=0), ranking=None)
        if former is None and plan.items:
            with stage("arrange"):
                save_plan(self._plan_path, plan)
        return self._apply(plan, former)

    def _find_current_ranking(self) -> Ranking | None:
        """Return the project's complete ranking by this version, if there is one."""
        record = self._last_ranking
        if record is None or round_of(record.name, self._context.base) is None:
            return None
        return record if self._counts.get(record.name) else None

    @cached_property
    def _last_ranking(self) -> Ranking | None:
        """The record of the project's last ranking, by any version."""
        records = load_rankings(self._repository)
        return next((record for record in records if record.project == self._options.project), None)

    def _plan_all(self) -> Plan:
        name, last = self._choose_name(), self._last_ranking
        # The ranking that the project is sorted by, or was before a user chose another backend's predictions.
        former = [*self._own_names([self._context.project.model_version]), *([last.name] if last else [])]
        replaced = next((each for each in former if each != name and self._counts.get(each)), None)
        return plan_all(self._context, name, replaced, former=last)

    def _own_names(self, names: Iterable[str]) -> list[str]:
        """Return the names that belong to this model, including a deleted version that made the last ranking."""
        last = self._last_ranking
        return own_names(self._repository, names, gone=[last.version] if last and last.version else [])

    def _choose_name(self) -> str:
        """Return the version's name, or the next free one if a ranking or many fetched predictions have it."""
        base = self._context.base
        names = {name for name in self._counts if round_of(name, base) is not None}
        is_repeated = self._options.force or self._find_current_ranking() is not None
        if not is_repeated and names <= {base} and self._counts.get(base, 0) <= _MAX_STRAYS:
            return base
        return next_name(base, names)

    # ---- changes in Label Studio

    def _apply(self, plan: Plan, former: Ranking | None) -> Summary:
        """Import a plan, switch the project to it, update tabs, and delete the replaced ranking."""
        tabs = RankingTabs(self._context, plan.name)
        with stage("import"):
            imported, removed = self._import(plan, tabs), 0
        if count := labelstudio.count_predictions(self._client).get(plan.name):
            with stage("switch"):
                self._switch(plan.name)
        with stage("tabs"):
            tabs.sync(plan, plan.sure or (former.sure if former else None))
        if count:
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
        to_review = tabs.find_review_predictions()
        places = {
            item.task: DesiredPrediction(item.score, item.result) for item in plan.items if item.task in unlabelled
        }
        return reconcile(
            self._client,
            name=plan.name,
            desired={**to_review, **places},
            without=tabs.resolved,
            journal=self._context.cache_folder / "import.json",
            find_open_tasks=lambda: self._find_unlabelled() | tabs.find_review_predictions().keys(),
        )

    def _find_unlabelled(self) -> set[int]:
        return {task.id for task in self._context.list_tasks()}

    def _switch(self, name: str) -> None:
        sampling = None if self._options.keep_sampling else labelstudio.UNCERTAINTY_SAMPLING
        now = labelstudio.read_project(self._client)
        if now.model_version != name or sampling not in {None, now.sampling}:
            save_original(self._repository, now)
            labelstudio.switch_model_version(self._client, name, sampling=sampling)

    def _remove_superseded(self, current: str) -> int:
        counts = labelstudio.count_predictions(self._client)
        removed = 0
        for name in self._own_names(name for name in counts if name != current):
            _log.info("removing %d predictions of %s", counts[name], name)
            try:
                labelstudio.delete_predictions(self._client, name)
            except Unreachable as err:
                _log.warning("cannot remove them now; the next ranking tries again: %s", err)
                break
            removed += counts[name]
        return removed

    # ---- record and summary

    def _record(self, plan: Plan, former: Ranking | None) -> None:
        """Save the record of a new ranking, or update that of the former one."""
        if former:
            tasks, audit, sure = former.tasks + len(plan.items), former.audit + plan.held_out, plan.sure or former.sure
            record = replace(former, tasks=tasks, audit=audit, sure=sure)
        else:
            record = self._describe(plan)
        record = replace(record, failed=len(plan.unscored), unscored=plan.unscored)
        remedy = "give the trainer write access to the folder, then rank again"
        place = self._repository.location
        with explaining("the ranking's record", self._repository.root, place=place, remedy=remedy):
            save_ranking(self._repository, record)

    def _describe(self, plan: Plan) -> Ranking:
        balds = [item.bald for item in plan.items if item.bald is not None]
        max_megapixels = self._context.environment.max_megapixels
        images = thumbnails.make_thumbnails(plan.items, self._fetch_image, max_megapixels=max_megapixels)
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
            first=images["first"],
            most_uncertain=images["most_uncertain"],
            most_confident=images["most_confident"],
        )

    def _fetch_image(self, task: int) -> bytes:
        reference = find_reference(self._context.data.get(task, {}), self._context.control.value_key)
        if reference is None:
            raise FetchError(f"task {task} was deleted or has no image")
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
