import pytest

from bench.harness.hosts import host
from contract.label_studio import RetryPolicy
from tests.trainer.watching.watched import TwoProjects, WatchedStudio, run_watch, stop
from trainer.watching.processes import Supervisor

LAST_POLL = 60


@pytest.fixture
def _short_delays(monkeypatch):
    monkeypatch.setattr("contract.label_studio.RETRY_POLICY", RetryPolicy(total_s=0.0))
    monkeypatch.setattr("trainer.watching.watcher._MAX_POLL_S", 0.1)


@pytest.fixture
def studio(tmp_path, monkeypatch, _short_delays):
    """A watched project; the watch ends at the 60th poll at the latest."""
    studio = WatchedStudio(tmp_path / "models")
    monkeypatch.setattr(Supervisor, "run", lambda _, command, options: studio.execute(command, options))
    monkeypatch.setattr(
        Supervisor, "prepare", lambda _, command: studio.prepared.append((command, len(studio.commands)))
    )
    studio.events[LAST_POLL] = stop
    with host() as server:
        server.default = studio.answer
        studio.url, studio.stopping, studio.requests = server.url, server.stopping, server.requests
        yield studio


@pytest.fixture
def trained(studio, caplog):
    """A watched project after a round with 30 labels."""
    studio.label(30)
    run_watch(studio, caplog, rounds=1)
    return studio


@pytest.fixture
def two_projects(tmp_path, monkeypatch, _short_delays):
    """Return a function that creates two watched projects with their expected models."""
    monkeypatch.setattr(Supervisor, "prepare", lambda *_: None)
    with host() as server:

        def create(model_5="project-5", model_7="project-7"):
            studios = TwoProjects(tmp_path / "models", model_5, model_7)
            monkeypatch.setattr(Supervisor, "run", lambda _, command, options: studios.execute(command, options))
            for studio in studios.projects.values():
                studio.events[LAST_POLL] = stop
            server.default, studios.url = studios.answer, server.url
            return studios

        yield create
