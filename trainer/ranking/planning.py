"""What is to be imported for a project: its unlabelled tasks, scored and put in order. Changes nothing anywhere."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, NothingPublished
from contract.images.fetch import Fetcher
from contract.label_studio import LabelStudioClient, Patience
from contract.labelconfig import ChoicesControl, parse_label_config
from contract.matching import choose_control, match_control
from contract.scores.ranking import Ranking
from contract.tasks import find_reference
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import Version
from trainer import labelstudio
from trainer.labelstudio import PoolTask, Project
from trainer.ordering import strategies
from trainer.ordering.order import arrange
from trainer.ranking.names import base_name
from trainer.ranking.options import RankOptions
from trainer.ranking.plan import Plan
from trainer.ranking.pool import Embed, count_labels, embed_tasks, group_failures, say_failures, score_tasks
from trainer.ranking.predictions import keep_places, place, place_later, to_candidates
from trainer.ranking.retries import FEW, are_few, ask_again
from trainer.ranking.scores import Failure, Score, ScoreLog, digest
from trainer.ranking.server import Question, Server
from trainer.settings import Environment

_log = logging.getLogger(__name__)

COLD_START: Final = "cold-start"
"""The strategy before there is a version."""

_PATIENCE: Final = Patience(longest_s=180.0, pause_s=1.0)
"""A ranking takes long, and outlasts a Label Studio that is being restarted."""


class Clock:
    """How long the parts of a ranking took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] = self.of(part) + time.monotonic() - started

    def of(self, part: str) -> float:
        """Return what a part has taken so far, in seconds."""
        return self._seconds.get(part, 0.0)


@dataclass(frozen=True, slots=True)
class Former:
    """The ranking that a project shows until another is whole."""

    name: str
    """What its predictions are stamped with."""
    unscored: tuple[int, ...]
    """Tasks that could not be scored for it already."""


class Place:
    """A project as one ranking finds it, and what it ranks with; read from Label Studio when it is needed, and once."""

    def __init__(
        self, options: RankOptions, environment: Environment, repository: Repository, *, fetcher: Fetcher, clock: Clock
    ) -> None:
        """Connect to Label Studio, and see that the version knows the project's labels before anything is changed.

        Raises:
            LabelMismatch: if it knows those of no control.
            ConfigError: if the labelling config has no control, or not the one that was asked for.
            LabelnextError: if Label Studio, the project or the current version cannot be read.
        """
        self.options = options
        self.environment = environment
        self.repository = repository
        self.fetcher = fetcher
        self.clock = clock
        url, token = environment.label_studio()
        self.client: LabelStudioClient = labelstudio.connect(url, token, _PATIENCE)
        self.project: Project = labelstudio.read_project(self.client, options.project)
        self.version = _current(repository)
        self.base = base_name(self.version.name if self.version else None, repository.model)
        """The name of the first ranking by the current version."""
        self.control: ChoicesControl = self._choose_control()
        """The `<Choices>` that the version answers for."""
        self.kept: Path = kept_folder(environment, options.project)
        """The folder for what outlives a run that is killed."""

    @cached_property
    def tasks(self) -> list[PoolTask]:
        """The unlabelled tasks."""
        tasks = list(labelstudio.unlabelled_tasks(self.client, self.options.project))
        _log.info("project %d (%s): %d unlabelled tasks", self.options.project, self.project.title, len(tasks))
        return tasks

    @cached_property
    def data(self) -> dict[int, Any]:
        """The unlabelled tasks' data, by their numbers."""
        return {task.id: task.data for task in self.tasks}

    def _choose_control(self) -> ChoicesControl:
        controls = parse_label_config(self.project.label_config, self.options.control)
        if self.version is None:
            return choose_control(controls, name=self.options.control, labels=())
        manifest = self.version.manifest
        name = manifest.control or self.options.control
        return match_control(controls, version=manifest.version, name=name, labels=manifest.labels)

    def scores(self) -> ScoreLog:
        """Scores on disk, by all that they hang on: which control, which key of a task's data, which network."""
        network = None if self.version else (self.options.weights, self.options.architecture, self.options.image_size)
        return ScoreLog(self.kept / f"{self.base}-{digest([self.project.label_config, network])}.scores")


def kept_folder(environment: Environment, project_id: int) -> Path:
    """Return the folder for what outlives a ranking of a project that is killed.

    Raises:
        ConfigError: if Label Studio's address or token is not set.
    """
    return environment.cache / "rank" / environment.model / f"{project_id}-{digest(environment.label_studio()[0])}"


def plan_all(where: Place, name: str, former: Former | None) -> Plan:
    """Score and arrange the whole pool, as a ranking of this name in the place of a former one.

    Tasks that cannot be scored now keep the place that they had.

    Raises:
        ConfigError: if too few of the tasks that are ranked can be scored to replace their ranking.
        LabelnextError: if the scores or the images cannot be had.
    """
    if not where.tasks:
        return Plan(name, where.options.strategy, near_duplicates=0, unscored=(), kept=0, items=())
    if where.version is None:
        plan, failures = _cover(where, where.tasks, name)
    else:
        plan, failures = _arrange(where, where.version, name)
    if failures and former:
        plan = _keep_places(where, plan, former, failures)
    if not plan.items:
        raise ConfigError(
            f"none of {len(where.tasks)} images can be scored ({group_failures(failures)}); have server and trainer "
            "reach the images, then rank again"
        )
    return plan


def plan_later(where: Place, former: Ranking) -> Plan:
    """Score and place the tasks that came after a ranking, or could not be scored for it; all others stay.

    Raises:
        LabelnextError: if the scores or the images cannot be had.
    """
    held = labelstudio.list_predictions(where.client, where.options.project, former.name)
    ranked = {each.task: each.score for each in held}
    unscored = set(former.unscored)
    later = [task for task in where.tasks if task.id not in ranked or task.id in unscored]
    nothing = Plan(former.name, former.strategy, near_duplicates=0, unscored=(), kept=0, items=())
    if not later:
        return nothing
    _log.info("%d of them are not ranked by %s yet", len(later), former.name)
    if where.version is None:
        covered, _ = _cover(where, later, former.name)
        return replace(covered, kept=sum(task in ranked for task in covered.unscored))
    manifest = where.version.manifest
    scores, failures = _score(where, later, manifest, _find_server(where, manifest.version))
    items = place_later(
        scores,
        [score for score in ranked.values() if score is not None],
        unscored=unscored,
        project=where.options.project,
        audit_share=where.options.holdout_share,
        multiple=manifest.multiple,
    )
    failed = _tasks_of(failures)
    return replace(nothing, unscored=failed, kept=sum(task in ranked for task in failed), items=items)


def _keep_places(where: Place, plan: Plan, former: Former, failures: Sequence[Failure]) -> Plan:
    """Add the tasks that keep their places; a ranking is not replaced by one of far fewer tasks."""
    project = where.options.project
    held = labelstudio.list_predictions(where.client, project, former.name, results_of=plan.unscored)
    ranked = {each.task for each in held} & where.data.keys()
    scored_before = ranked - set(former.unscored)
    lost = [failure for failure in failures if failure.task in scored_before]
    if not are_few(len(lost), len(scored_before)) and not where.options.incomplete:
        raise ConfigError(
            f"only {len(scored_before) - len(lost)} of {len(scored_before)} tasks that {former.name} ranks can be "
            f"scored now ({group_failures(lost)}), so it stays, and nothing was changed; rank again when the images "
            f"can be had, or with --incomplete where more than {FEW:.0%} of them are lost for good"
        )
    share = where.options.holdout_share
    return keep_places(plan, held, where.data.keys(), project=project, audit_share=share)


def _tasks_of(failures: Sequence[Failure]) -> tuple[int, ...]:
    return tuple(sorted(failure.task for failure in failures))


def _current(repository: Repository) -> Version | None:
    try:
        return repository.open(repository.current())
    except NothingPublished:
        return None


# ---- by a version


def _arrange(where: Place, version: Version, name: str) -> tuple[Plan, list[Failure]]:
    options, manifest = where.options, version.manifest
    strategies.check(options.strategy, multiple=manifest.multiple)
    labelled = labelstudio.annotated_tasks(where.client, options.project)
    labels_by_class = count_labels(labelled, where.control, manifest)
    server = _find_server(where, manifest.version)
    scores, failures = _score(where, where.tasks, manifest, server)
    unscored = _tasks_of(failures)
    if not scores:
        return Plan(name, options.strategy, near_duplicates=0, unscored=unscored, kept=0, items=()), failures
    _log.info("arranging %d images by %s", len(scores), options.strategy)
    with where.clock.measure("arrange"):
        arrangement = arrange(
            to_candidates(scores, multiple=manifest.multiple),
            strategy=options.strategy,
            project=options.project,
            name=name,
            labels_by_class=labels_by_class,
            audit_share=options.holdout_share,
            first=options.batch_size,
            duplicates=not options.keep_duplicates,
            passes=lambda indices: _ask_passes(where, [scores[index] for index in indices], manifest, server),
            labels=manifest.labels,
        )
    return place(scores, arrangement, name=name, strategy=options.strategy, unscored=unscored), failures


def _find_server(where: Place, version: str) -> Server:
    server = Server(where.options.server or where.environment.server, where.environment.basic_auth)
    server.wait_for(version)
    _log.info("scored by %s", server.url)
    return server


def _question(where: Place, manifest: Manifest) -> Question:
    return Question(where.options.project, where.project.label_config, manifest.version, embeddings=True)


def _score(
    where: Place, tasks: Sequence[PoolTask], manifest: Manifest, server: Server
) -> tuple[list[Score], list[Failure]]:
    with where.clock.measure("score"):
        scores, failures = score_tasks(
            [_only_image(task, where.control.value_key) for task in tasks],
            where.scores(),
            server,
            _question(where, manifest),
            outdated=lambda: where.repository.current() != manifest.version,
        )
    say_failures(failures, len(tasks))
    return scores, failures


def _only_image(task: PoolTask, key: str) -> PoolTask:
    """What else a task's data holds is no business of the server's, which takes a path for a key where it is one."""
    reference = find_reference(task.data, key)
    return PoolTask(task.id, {} if reference is None else {key: reference})


def _ask_passes(where: Place, scores: Sequence[Score], manifest: Manifest, server: Server) -> npt.NDArray[np.float32]:
    """The passes of n images that were scored before: float32 (n, T, C)."""
    tasks = [_only_image(PoolTask(each.task, where.data[each.task]), where.control.value_key) for each in scores]
    question = replace(_question(where, manifest), embeddings=False, passes=True)
    found = {
        answer.task: answer.passes
        for answers in ask_again(lambda missing: server.score(missing, question), tasks, len(tasks))
        for answer in answers
        if isinstance(answer, Score) and answer.passes is not None
    }
    missing = [task.id for task in tasks if task.id not in found]
    if missing:
        raise ConfigError(f"{len(missing)} images can no longer be had, task {missing[0]} among them; rank again")
    return np.stack([found[task.id] for task in tasks])  # (n, T, C)


# ---- before there is a version


def _cover(where: Place, tasks: Sequence[PoolTask], name: str) -> tuple[Plan, list[Failure]]:
    from trainer.ordering import coldstart

    options = where.options
    if options.strategy != strategies.DEFAULT_STRATEGY:
        _log.warning("there is no version yet to rank by: --strategy has to wait for one")
    with where.clock.measure("score"):
        scores, failures = embed_tasks(
            tasks,
            where.scores(),
            where.fetcher,
            key=where.control.value_key,
            project=options.project,
            embed=pretrained(options.weights, options.architecture),
            image_size=options.image_size,
            max_megapixels=where.environment.max_megapixels,
        )
    say_failures(failures, len(tasks))
    unscored = _tasks_of(failures)
    if not scores:
        return Plan(name, COLD_START, near_duplicates=0, unscored=unscored, kept=0, items=()), failures
    with where.clock.measure("arrange"):
        arrangement = coldstart.arrange(
            np.array([score.task for score in scores], np.int64),
            np.stack([score.embedding for score in scores]),  # (N, E)
            project=options.project,
            audit_share=options.holdout_share,
            first=options.batch_size,
        )
    return place(scores, arrangement, name=name, strategy=COLD_START, unscored=unscored), failures


def pretrained(weights: str, architecture: str) -> Embed:
    """Return what computes embeddings with convolutions that were trained elsewhere. Imports torch.

    Args:
        weights: `imagenet`, `none` or the path of a state dict.
        architecture: of the network that they are of.
    """
    from trainer.model.network import choose_device
    from trainer.ordering import coldstart

    start = weights if weights in ("imagenet", "none") else Path(weights)
    return coldstart.Convolutions(
        weights=start,  # type: ignore[arg-type]  # mypy does not narrow by `in`
        architecture=architecture,
        device=choose_device("auto"),
    ).embed
