import json
from functools import partial

import numpy as np
import pytest

from contract.versions.repository import Repository
from tests import versions
from tests.versions import manifest
from trainer.evaluation.holdout_predictions import (
    HOLDOUT_PREDICTIONS_FILE,
    read_holdout_predictions,
    save_holdout_predictions,
)

MEANS = np.array([[0.75, 0.25], [0.1, 0.9]], np.float32)


@pytest.fixture
def published(tmp_path):
    """A repository, and a function that publishes a version with holdout predictions."""
    repository = Repository(tmp_path / "models")

    def publish(means=MEANS, *, multiple=False):
        tasks, labels = range(7, 7 + len(means)), ("cat", "dog")
        write = partial(save_holdout_predictions, tasks=tasks, probabilities=means, labels=labels, multiple=multiple)
        return versions.publish(repository, b"one", write=write)

    return repository, publish


def test_reads_saved_predictions(published):
    repository, publish = published
    predictions = read_holdout_predictions(repository, publish().manifest)
    assert [(each.task, each.labels) for each in predictions] == [(7, {"cat"}), (8, {"dog"})]
    assert [each.margin for each in predictions] == pytest.approx([0.5, 0.8], abs=1e-6)
    multiple = publish(np.array([[0.9, 0.8], [0.2, 0.1]], np.float32), multiple=True)
    predictions = read_holdout_predictions(repository, multiple.manifest)
    assert [each.labels for each in predictions] == [{"cat", "dog"}, frozenset()]
    assert [each.margin for each in predictions] == pytest.approx([0.6, 0.6], abs=1e-6)  # of the least certain label


def test_ignores_modified_predictions(published, caplog):
    repository, publish = published
    version = publish()
    path = version.path / HOLDOUT_PREDICTIONS_FILE
    rows = json.loads(path.read_text())
    path.chmod(0o600)
    path.write_text(json.dumps([[task, 1.0, labels] for task, _, labels in rows]))
    assert read_holdout_predictions(repository, version.manifest) == []
    assert "was changed after it was published" in caplog.text
    assert read_holdout_predictions(repository, manifest("20260102T000000000Z-0a1b2c")) == []
