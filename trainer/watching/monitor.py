"""Polls a project in Label Studio for its status, labelling config and changed labels.

It also sets the secret of the project's webhooks, which may be added at any time.
"""

import logging
from dataclasses import replace

from contract.errors import ConfigError
from contract.labelconfig import ChoicesControl, parse_label_config
from trainer import labelstudio
from trainer.labelstudio import ProjectStatus
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import count_labels_since
from trainer.labelstudio.webhooks import set_webhook_token
from trainer.settings import Environment
from trainer.watching.rounds import Changes, LastTraining, WatchOptions

_log = logging.getLogger(__name__)


class Monitor:
    """Polls one project; connects when needed, and again after an error."""

    def __init__(self, project: int, options: WatchOptions, environment: Environment) -> None:
        self._project = project
        self._threshold = options.label_threshold or 1
        self._server = options.server or environment.server
        self._environment = environment
        self._client: ProjectClient | None = None
        self._config_digest = ""
        self._last_webhook_error = ""
        self._counted: tuple[ProjectStatus, str] | None = None
        """The status and version for which `_changes` were counted."""
        self._changes = Changes()
        self.controls: tuple[ChoicesControl, ...] = ()
        """The controls of the labelling config at the last poll."""

    def poll(self, last: LastTraining | None) -> tuple[ProjectStatus, Changes]:
        """Return the project's status, and the changes of its labels since the last training.

        If no label has changed, the status equals that of the last training, even if tasks were opened since.
        Raises ConfigError if Label Studio cannot be reached, or the labelling config has no control for images.
        """
        client = self._client or labelstudio.connect(*self._environment.label_studio(), self._project)
        self._client = None  # reconnects after an error
        status = labelstudio.read_status(client)
        if status.label_config != self._config_digest:
            self.controls = parse_label_config(labelstudio.read_project(client).label_config)
            self._config_digest = status.label_config
        changes = self._count_changes(client, status, last)
        if last and not changes.total:
            status = replace(status, newest_updated_at=last.updated_at)
        if self._environment.webhook_secret:
            self._set_webhook_secret(client, self._environment.webhook_secret)
        self._client = client
        return status, changes

    def _count_changes(self, client: ProjectClient, status: ProjectStatus, last: LastTraining | None) -> Changes:
        """Count changed labels; annotations are listed, once per status, only if the total does not decide."""
        growth = status.total_annotations - (last.annotations if last else 0)
        if last is None or growth >= self._threshold or status.newest_updated_at <= last.updated_at:
            return Changes.from_counts(growth)
        if self._counted != (status, last.version):
            created, edited = count_labels_since(client, last.updated_at, until=status.newest_updated_at)
            self._changes = Changes.from_counts(growth, created=created, edited=edited)
            self._counted = (status, last.version)
        return self._changes

    def _set_webhook_secret(self, client: ProjectClient, secret: str) -> None:
        """Set the secret of the project's webhooks; an error is logged once, as polling does not need webhooks."""
        error = ""
        try:
            set_webhook_token(client, [self._server], secret)
        except ConfigError as err:
            error = str(err)
            if error != self._last_webhook_error:
                _log.warning("cannot set the secret of the webhooks of project %d: %s", self._project, error)
        self._last_webhook_error = error
