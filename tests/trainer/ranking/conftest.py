from types import SimpleNamespace

import pytest

from contract.versions.repository import Repository
from tests.trainer.ranking.project import TASKS, ServedProject, image_data
from tests.trainer.scorer import scorer
from tests.trainer.studio import studio as fake_label_studio
from tests.versions import publish
from trainer.ranking import reconcile


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Thirty unlabelled images, and a prediction by another model."""
    monkeypatch.setattr(reconcile, "_SETTLE_S", 0.1)
    monkeypatch.setattr(reconcile, "_POLL_S", 0.01)
    repository = Repository(tmp_path / "models")
    version = publish(repository, b"one").name
    with fake_label_studio() as studio, scorer(version) as server:
        for number in range(TASKS):
            studio.add_task(**image_data(number))
        studio.predict(3, "yolo")
        yield ServedProject(tmp_path, studio, server, repository)


@pytest.fixture
def _fake_clock(monkeypatch):
    """Pauses before retries only advance a fake clock."""
    pauses = []
    clock = SimpleNamespace(monotonic=lambda: float(sum(pauses)), sleep=pauses.append)
    monkeypatch.setattr("contract.label_studio.time", clock)
    monkeypatch.setattr("trainer.scoring.retries.time", clock)
