"""What rankings are tried on."""

from types import SimpleNamespace

import pytest

from contract.versions.repository import Repository
from tests.trainer.ranking.rig import TASKS, Rig, picture
from tests.trainer.scorer import scorer
from tests.trainer.studio import studio
from tests.versions import publish
from trainer.ranking import reconcile


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Thirty unlabelled pictures, and one prediction of somebody else's."""
    monkeypatch.setattr(reconcile, "_SETTLE_S", 0.1)
    monkeypatch.setattr(reconcile, "_POLL_S", 0.01)
    repository = Repository(tmp_path / "models")
    version = publish(repository, b"one").name
    with studio() as state, scorer(version) as server:
        for number in range(TASKS):
            state.add_task(**picture(number))
        state.predict(3, "yolo")
        yield Rig(tmp_path, state, server, repository)


@pytest.fixture
def hasty(monkeypatch):
    """Waiting before asking again takes no time; how long it was is returned."""
    pauses = []
    waiting = {"monotonic": lambda: float(sum(pauses)), "sleep": pauses.append}
    monkeypatch.setattr("contract.label_studio.time", SimpleNamespace(**waiting))
    monkeypatch.setattr("trainer.scoring.retries.time", SimpleNamespace(**waiting))
    return pauses
