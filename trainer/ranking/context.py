"""The context of a ranking: project, version, options and clients."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from contract.errors import NothingPublished
from contract.images.fetch import Fetcher
from contract.label_studio import RetryPolicy
from contract.labelconfig import ChoicesControl, parse_label_config
from contract.matching import choose_control, match_control
from contract.versions.version import Version
from trainer import labelstudio
from trainer.labelstudio import task_lists
from trainer.labelstudio.task_lists import Task, list_annotated, list_unlabelled
from trainer.labelstudio.tasks import PoolTask
from trainer.ranking.names import base_name
from trainer.ranking.options import RankOptions
from trainer.scoring.scores import ScoreLog, digest
from trainer.settings import Environment
from trainer.stages import stage
from trainer.tabs.record import TabRecord, load_record

_log = logging.getLogger(__name__)

RETRY_POLICY: Final = RetryPolicy(total_s=180.0, pause_s=1.0)
"""Long enough for a restart of Label Studio."""


class RankingContext:
    """The project and version of a ranking. Tasks are read from Label Studio lazily, and once.

    Reading tasks raises ConfigError if Label Studio does not answer.
    """

    def __init__(self, options: RankOptions, environment: Environment, fetcher: Fetcher) -> None:
        """Connect to Label Studio, and check that the version has the project's labels.

        Raises:
            LabelMismatch: if no control has the version's labels.
            ConfigError: if the labelling config has no control, or not the requested one.
            LabelnextError: if Label Studio, the project or the current version cannot be read.
        """
        self.options = options
        self.environment = environment
        self.fetcher = fetcher
        self.repository = environment.repository()
        self.client = labelstudio.connect(*environment.label_studio(), options.project, RETRY_POLICY)
        self.project = labelstudio.read_project(self.client)
        self.version: Version | None
        try:
            self.version = self.repository.open(self.repository.current())
        except NothingPublished:
            self.version = None
        self.base = base_name(self.version.name if self.version else None, self.repository.model)
        """The name of the first ranking by the current version."""
        self.control = self._choose_control()
        """The `<Choices>` control for the version's predictions."""
        self._lists = task_lists.cache_folder(environment, options.project)
        self.cache_folder = cache_folder(environment, options.project)

    @cached_property
    def tasks(self) -> list[PoolTask]:
        """The unlabelled tasks."""
        with stage("tasks"):
            tasks = self.list_tasks()
        _log.info("project %d (%s): %d unlabelled tasks", self.options.project, self.project.title, len(tasks))
        return tasks

    @cached_property
    def data(self) -> dict[int, Any]:
        """The unlabelled tasks' data, by task number."""
        return {task.id: task.data for task in self.tasks}

    @cached_property
    def annotated(self) -> list[Task]:
        """The labelled or skipped tasks."""
        return list_annotated(self.client, self._lists)

    @cached_property
    def tab_record(self) -> TabRecord:
        """The record of the project's tabs; raises OSError if it exists but cannot be read."""
        return load_record(self.repository, self.options.project, self.project.created_at)

    def sure_marks(self, ranking: str) -> dict[str, str]:
        """Return the labels of a ranking's existing tabs *Sure*, by the mark for which a tab filters."""
        return {mark: label for mark, label in self.tab_record.sure.items() if mark.startswith(f"{ranking}/")}

    def list_tasks(self) -> list[PoolTask]:
        """Return the current unlabelled tasks."""
        return list_unlabelled(self.client, self._lists)

    def _choose_control(self) -> ChoicesControl:
        controls = parse_label_config(self.project.label_config, self.options.control)
        if self.version is None:
            return choose_control(controls, name=self.options.control, labels=())
        manifest = self.version.manifest
        name = manifest.control or self.options.control
        return match_control(controls, version=manifest.version, name=name, labels=manifest.labels)

    def scores(self) -> ScoreLog:
        """Return the log of scores for this version, labelling config and network."""
        network = None if self.version else (self.options.weights, self.options.backbone, self.options.image_size)
        return ScoreLog(self.cache_folder / f"{self.base}-{digest([self.project.label_config, network])}.scores")


def cache_folder(environment: Environment, project_id: int) -> Path:
    """Return the folder for files from which an interrupted ranking of a project continues.

    Raises ConfigError if Label Studio's address or token is not set.
    """
    return environment.cache / "rank" / environment.model / f"{project_id}-{digest(environment.label_studio()[0])}"
