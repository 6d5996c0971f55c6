"""Plans of rankings: scores and orders the unlabelled tasks of a project, without changes to Label Studio."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from contract.features.store import FeatureStore
from contract.scores.embedding import embed
from contract.scores.ranking import Ranking
from contract.scores.sure import Sure
from contract.tasks import find_reference
from contract.versions.manifest import InputSpec, Manifest
from contract.versions.results import ProjectState
from trainer import labelstudio
from trainer.evaluation.holdout_predictions import read_holdout_predictions
from trainer.features import open_store
from trainer.labels.checks import describe_unlabelled
from trainer.labelstudio.tasks import PoolTask
from trainer.ordering import coldstart, strategies
from trainer.ordering.order import Arrangement, arrange, places_before_holdout
from trainer.ordering.strategies import UNLABELLED, LabelledImages
from trainer.ranking.bulk_confirmation import (
    Criteria,
    Offers,
    find_later_offers,
    find_offers,
    tasks_to_score,
)
from trainer.ranking.context import RankingContext
from trainer.ranking.given_labels import GivenLabels
from trainer.ranking.predictions import Plan, keep_places, place, place_later, to_candidates
from trainer.ranking.tabs import mark_sure
from trainer.scoring.pool import Embed, collect_scores, embed_tasks, group_failures
from trainer.scoring.retries import SMALL_PART, is_small_part, retry
from trainer.scoring.scores import Failure, Score
from trainer.scoring.server import ScoreRequest, Server
from trainer.settings import Training
from trainer.stages import stage
from trainer.subsampling import evenly_spaced

_log = logging.getLogger(__name__)

COLD_START: Final = "cold-start"
"""The strategy before there is a version."""

_MAX_LABELLED: Final = 4000
"""Maximum number of labelled images given to the strategy."""


def plan_all(context: RankingContext, name: str, replaced: str | None, *, former: Ranking | None = None) -> Plan:
    """Score and order the whole pool.

    Tasks that cannot be scored now keep their places in the replaced ranking.

    Args:
        context: the project and version.
        name: the name of the new ranking.
        replaced: the name of the ranking that is replaced, if any.
        former: the record of the last ranking, for the results of its offers for bulk confirmation.

    Raises:
        ConfigError: if too few tasks can be scored to replace a ranking.
        LabelnextError: if scores or images cannot be fetched.
    """
    if not context.tasks:
        return Plan(name, context.options.strategy)
    if context.version is None:
        plan, failures = _plan_cold_start(context, context.tasks, name, before_holdout=_places_before_holdout(context))
    else:
        planner = _VersionPlanner(context, context.version.manifest)
        plan, failures = planner.plan_all(name, former.sure if former else None)
    if failures and replaced:
        unscored = former.unscored if former and former.name == replaced else ()
        plan = _keep_places(context, plan, replaced, failures, unscored=unscored)
    if not plan.items:
        raise ConfigError(
            f"none of {len(context.tasks)} images can be scored ({group_failures(failures)}); make the images "
            "accessible to server and trainer, then rank again"
        )
    return plan


def plan_later(context: RankingContext, former: Ranking) -> Plan:
    """Score and place the tasks that were added after a ranking, or could not be scored for it; all others stay.

    Raises:
        LabelnextError: if scores or images cannot be fetched.
    """
    stored = labelstudio.list_predictions(context.client, former.name)
    ranked = {each.task: each.score for each in stored if each.task not in context.tab_record.listed}
    unscored = set(former.unscored)
    later = [task for task in context.tasks if task.id not in ranked or task.id in unscored]
    if not later:
        return Plan(former.name, former.strategy)
    _log.info("%d tasks are not ranked by %s yet", len(later), former.name)
    if context.version is None:
        share = len(later) / len(ranked.keys() | {task.id for task in later})  # the same share of these places
        plan, _ = _plan_cold_start(
            context, later, former.name, before_holdout=round(share * _places_before_holdout(context))
        )
    else:
        placed = {task: score for task, score in ranked.items() if score is not None}
        plan = _VersionPlanner(context, context.version.manifest).plan_later(later, placed, former)
    return replace(plan, kept=sum(task in ranked for task in plan.unscored))


def _keep_places(
    context: RankingContext, plan: Plan, replaced: str, failures: Sequence[Failure], *, unscored: Sequence[int]
) -> Plan:
    """Add the tasks that keep their places; raise ConfigError if too many formerly scored tasks failed."""
    options, unlabelled = context.options, context.data.keys()
    predictions = labelstudio.list_predictions(context.client, replaced, results_of=plan.unscored)
    stored = [each for each in predictions if each.task not in context.tab_record.listed]
    scored_before = {each.task for each in stored} & unlabelled - set(unscored)
    lost = [failure for failure in failures if failure.task in scored_before]
    if not is_small_part(len(lost), len(scored_before)) and not options.incomplete:
        raise ConfigError(
            f"only {len(scored_before) - len(lost)} of {len(scored_before)} tasks that {replaced} ranks can be scored "
            f"now ({group_failures(lost)}); nothing was changed; rank again when the images are available, or with "
            f"--incomplete if more than {SMALL_PART:.0%} of them are lost"
        )
    return keep_places(plan, stored, unlabelled, project=options.project, holdout_share=options.holdout_share)


# ---- by a version


class _VersionPlanner:
    """Plans rankings by a version's predictions."""

    def __init__(self, context: RankingContext, manifest: Manifest) -> None:
        options, version = context.options, manifest.version
        self._context = context
        self._manifest = manifest
        self._request = ScoreRequest(options.project, context.project.label_config, version, embeddings=True)
        self._criteria = Criteria(
            options.sure,
            options.project,
            options.holdout_share,
            manifest.training.audit_images or 0,
            context.control.labels,
            manifest.multiple,
        )

    def plan_all(self, name: str, former: Sure | None) -> tuple[Plan, list[Failure]]:
        """Score and order all tasks."""
        options, manifest = self._context.options, self._manifest
        strategies.check(options.strategy, multiple=manifest.multiple)
        with stage("labels"):
            labels_by_class = self._count_labels()
        for sentence in describe_unlabelled(manifest.labels, labels_by_class):
            _log.info("%s", sentence)
        scores, failures = self._score(self._context.tasks)
        if not scores:
            return Plan.of_failures(name, options.strategy, failures), failures
        offers = self._find_offers(scores, name, former) if options.sure else None
        unticked = offers.sure.passed_over if offers else ()
        arrangement = self._arrange(scores, name, labels_by_class=labels_by_class, unticked=unticked)
        plan = place(Plan.of_failures(name, options.strategy, failures), scores, arrangement)
        if offers:
            _log.info("%s", offers.sure.sentence)
            plan = self._add_offers(plan, offers)
        return plan, failures

    def _arrange(
        self, scores: Sequence[Score], name: str, *, labels_by_class: Sequence[int], unticked: Collection[int]
    ) -> Arrangement:
        """Order all tasks; those that were unticked in earlier offers come first."""
        options, manifest = self._context.options, self._manifest
        labelled = self._read_labelled() if options.strategy == strategies.COVER else UNLABELLED
        _log.info("arranging %d images by %s", len(scores), options.strategy)
        with stage("arrange"):
            return arrange(
                to_candidates(scores, multiple=manifest.multiple),
                strategy=options.strategy,
                project=options.project,
                name=name,
                labels_by_class=labels_by_class,
                holdout_share=options.holdout_share,
                batch_size=options.batch_size,
                labelled=labelled,
                duplicates=not options.keep_duplicates,
                passes=lambda indices: self._passes([scores[index] for index in indices]),
                labels=manifest.labels,
                unticked=unticked,
            )

    def plan_later(self, later: Sequence[PoolTask], ranked: Mapping[int, float], former: Ranking) -> Plan:
        """Score tasks, and place them among the tasks of a ranking by their scores."""
        options = self._context.options
        scores, failures = self._score(later)
        items = place_later(
            scores,
            ranked,
            unscored=set(former.unscored),
            project=options.project,
            holdout_share=options.holdout_share,
            multiple=self._manifest.multiple,
        )
        plan = replace(Plan.of_failures(former.name, former.strategy, failures), items=items)
        if options.sure and former.sure:
            return self._add_offers(plan, find_later_offers(scores, self._criteria, former.sure))
        return plan

    def _count_labels(self) -> Sequence[int]:
        """Return the number of labels per class, from the version's record if no label has changed since: (C,).

        The record excludes unreadable images.
        """
        context, manifest, record = self._context, self._manifest, self._manifest.training
        state = labelstudio.read_status(context.client)
        current = ProjectState(context.options.project, state.total_annotations, state.newest_updated_at)
        if record.project == current and record.images_by_class and set(manifest.labels) <= set(context.control.labels):
            return [record.images_by_class.get(label, 0) for label in manifest.labels]
        return self._labelled.count_by_class(context.control, manifest)

    @cached_property
    def _labelled(self) -> GivenLabels:
        control = self._context.control
        with stage("labels"):
            tasks = self._context.annotated
            return GivenLabels.read(tasks, control.from_name, control.labels, multiple=self._manifest.multiple)

    def _read_labelled(self) -> LabelledImages:
        """Return labelled images, a part if there are many, with their class indices; -1 without a single label."""
        by_people, labels = self._labelled.by_people, self._context.control.labels
        annotated = self._context.annotated
        tasks = [task for task in annotated if not all(each["was_cancelled"] for each in task["annotations"])]
        sample = tasks[evenly_spaced(len(tasks), max_count=_MAX_LABELLED)]
        scores, _ = self._score([PoolTask(task["id"], task["data"]) for task in sample])
        if not scores:
            return UNLABELLED
        single = {} if self._manifest.multiple else {task: labels.index(one) for task, (one,) in by_people.items()}
        numbers = np.array([single.get(score.task, -1) for score in scores], np.int64)
        return LabelledImages(np.stack([score.embedding for score in scores]), numbers)

    def _find_offers(self, scores: Sequence[Score], name: str, former: Sure | None) -> Offers:
        """Find offers for bulk confirmation, which may require scores of labelled tasks."""
        context, criteria = self._context, self._criteria
        with stage("labels"):
            holdout_predictions = read_holdout_predictions(context.repository, self._manifest)
        labelled = self._labelled if holdout_predictions or (former and former.tasks) else GivenLabels({}, {})
        data = {each["id"]: each["data"] for each in context.annotated} if labelled.by_people else {}
        scored, _ = self._score(
            [PoolTask(task, data[task]) for task in tasks_to_score(labelled, holdout_predictions, criteria)]
        )
        with stage("arrange"):
            return find_offers(scores, holdout_predictions, labelled, criteria, name=name, scored=scored, former=former)

    def _add_offers(self, plan: Plan, offers: Offers) -> Plan:
        """Add the offered tasks to a plan, marked so that tabs find them."""
        if self._context.options.tabs:
            known, labels = self._context.sure_marks(plan.name), self._context.control.labels
            plan = replace(
                plan, items=mark_sure(plan.items, offers.reasons, plan.name, labels=labels, known_marks=known)
            )
        return replace(plan, sure=offers.sure)

    # ---- the server

    @cached_property
    def _server(self) -> Server:
        options, environment = self._context.options, self._context.environment
        server = Server(options.server or environment.server, environment.basic_auth)
        with stage("swap"):
            server.wait_for(self._manifest.version)
        _log.info("scored by %s", server.url)
        return server

    def _score(self, tasks: Sequence[PoolTask]) -> tuple[list[Score], list[Failure]]:
        server, context, request = self._server, self._context, self._request

        def score_tasks(missing: Sequence[PoolTask]) -> Iterator[list[Score | Failure]]:
            return server.score(missing, request, outdated=lambda: context.repository.current() != request.version)

        with stage("score"):
            return collect_scores([self._image_only(task) for task in tasks], context.scores(), score_tasks, "scored")

    def _passes(self, scores: Sequence[Score]) -> npt.NDArray[np.float32]:
        """Return the passes of n scored images: float32 (n, T, C)."""
        tasks = [self._image_only(PoolTask(each.task, self._context.data[each.task])) for each in scores]
        request = replace(self._request, embeddings=False, passes=True)
        passes = {
            answer.task: answer.passes
            for answers in retry(lambda missing: self._server.score(missing, request), tasks, len(tasks))
            for answer in answers
            if isinstance(answer, Score) and answer.passes is not None
        }
        missing = [task.id for task in tasks if task.id not in passes]
        if missing:
            raise ConfigError(
                f"{len(missing)} images can no longer be fetched, such as that of task {missing[0]}; rank again"
            )
        return np.stack([passes[task.id] for task in tasks])  # (n, T, C)

    def _image_only(self, task: PoolTask) -> PoolTask:
        """Return the task with its image reference only, under the control's key; servers accept a path as a key."""
        key = self._context.control.value_key
        reference = find_reference(task.data, key)
        return PoolTask(task.id, {} if reference is None else {key: reference})


# ---- before there is a version


def _places_before_holdout(context: RankingContext) -> int:
    labels = labelstudio.read_status(context.client).total_annotations
    return places_before_holdout(len(context.tasks), labels=labels, classes=len(context.control.labels))


def _plan_cold_start(
    context: RankingContext, tasks: Sequence[PoolTask], name: str, *, before_holdout: int
) -> tuple[Plan, list[Failure]]:
    options = context.options
    if options.strategy != strategies.DEFAULT_STRATEGY:
        _log.warning("--strategy has no effect before the first version")
    with stage("score"), open_store(context.environment) as store:
        spec, embed_images = _open_backbone(context, store)
        scores, failures = embed_tasks(
            tasks,
            context.scores(),
            context.fetcher,
            key=context.control.value_key,
            project=options.project,
            embed=embed_images,
            store=store,
            spec=spec,
            max_megapixels=context.environment.max_megapixels,
        )
    plan = Plan.of_failures(name, COLD_START, failures)
    if not scores:
        return plan, failures
    with stage("arrange"):
        arrangement = coldstart.arrange(
            np.array([score.task for score in scores], np.int64),
            np.stack([score.embedding for score in scores]),  # (N, E)
            project=options.project,
            holdout_share=options.holdout_share,
            before_holdout=before_holdout,
            batch_size=options.batch_size,
        )
    return place(plan, scores, arrangement), failures


def _open_backbone(context: RankingContext, store: FeatureStore) -> tuple[InputSpec, Embed]:
    """Return the network's input format and its embedding function, in 8-bit integers if these are accurate enough.

    Imports torch, which other rankings do not need.
    """
    from trainer.model.build import open_frozen_for
    from trainer.model.graphs.int8 import choose_precision

    options = context.options
    training = Training(weights=options.weights, backbone=options.backbone, image_size=options.image_size)
    exact = open_frozen_for(training, cache=context.environment.cache_dir)

    def embed_images(images: npt.NDArray[np.uint8], digests: Sequence[bytes]) -> npt.NDArray[np.float32]:
        backbone = choose_precision(exact, images, repository=context.repository)
        return embed(backbone.compute_cached(images, digests, store), last=exact.last_stage)

    return exact.spec, embed_images
