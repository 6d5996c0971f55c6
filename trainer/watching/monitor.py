"""What is seen of a project in Label Studio from one look to the next: its state, its config, and changes of labels.

Has its webhooks carry the secret, too, for whoever adds one tells nobody.
"""

import logging
from dataclasses import replace

from contract.errors import ConfigError
from contract.labelconfig import ChoicesControl, parse_label_config
from trainer import labelstudio
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import count_labels_since
from trainer.labelstudio.webhooks import set_webhook_token
from trainer.settings import Environment
from trainer.watching.rounds import Changes, Trained, WatchOptions

_log = logging.getLogger(__name__)


class Monitor:
    """Looks at one project; connects when needed, and again after a failure."""

    def __init__(self, project: int, options: WatchOptions, environment: Environment) -> None:
        self._project = project
        self._enough = options.enough or 1
        """After so many new labels it does not matter how many were changed beside them."""
        self._server = options.server or environment.server
        self._environment = environment
        self._client: ProjectClient | None = None
        self._config = ""
        self._last_fault = ""
        self._counted: tuple[labelstudio.ProjectStatus, str] | None = None
        """The state whose changes were looked into, and the version it was compared with."""
        self._changes = Changes()
        self.controls: tuple[ChoicesControl, ...] = ()

    def look(self, trained: Trained | None) -> tuple[labelstudio.ProjectStatus, Changes]:
        """Ask for the project's state, for its labelling config where that has changed, and for what labels have.

        If nothing that the newest version was trained on has changed, the state says so, whatever was opened since.
        Raises ConfigError if Label Studio cannot be asked, or the config classifies no image.
        """
        client = self._client or labelstudio.connect(*self._environment.label_studio(), self._project)
        self._client = None  # kept only if it works
        state = labelstudio.read_status(client)
        if state.label_config != self._config:
            self.controls = parse_label_config(labelstudio.read_project(client).label_config)
            self._config = state.label_config
        changes = self._count_changes(client, state, trained)
        if trained and not changes.total:
            state = replace(state, newest_updated_at=trained.updated_at)
        if self._environment.webhook_secret:
            self._give_secret(client, self._environment.webhook_secret)
        self._client = client
        return state, changes

    def _count_changes(
        self, client: ProjectClient, state: labelstudio.ProjectStatus, trained: Trained | None
    ) -> Changes:
        """Count what has changed since; where counters do not tell, Label Studio is asked once for each state."""
        growth = state.total_annotations - (trained.annotations if trained else 0)
        if trained is None or growth >= self._enough or state.newest_updated_at <= trained.updated_at:
            return Changes.count(growth)
        if self._counted != (state, trained.version):
            made, edited = count_labels_since(client, trained.updated_at, until=state.newest_updated_at)
            self._changes = Changes.count(growth, made=made, edited=edited)
            self._counted = (state, trained.version)
        return self._changes

    def _give_secret(self, client: ProjectClient, secret: str) -> None:
        """Have webhooks carry the secret, whenever they were made; where that fails, only hints are lost."""
        fault = ""
        try:
            set_webhook_token(client, [self._server], secret)
        except ConfigError as err:
            fault = str(err)
            if fault != self._last_fault:
                _log.warning("the webhooks of the project cannot be given the secret: %s", fault)
        self._last_fault = fault
