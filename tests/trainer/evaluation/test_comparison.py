import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from sklearn.metrics import f1_score

from contract.versions.repository import Repository
from contract.versions.results import TrainingRecord
from tests.trainer.small import coloured_images, lively_network, stage_files
from trainer.evaluation import comparison
from trainer.evaluation.comparison import PREDICTIONS_FILE, CommonImages, compare_versions, save_predictions
from trainer.evaluation.holdout import to_label_matrix
from trainer.model.graphs.validation import predict

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, CLASSES = coloured_images(np.random.default_rng(0), 40)
TASKS = list(range(101, 141))
NEW = "20991231T000000000Z-0a1b2c"
NEW_PREDICTIONS = np.random.default_rng(1).integers(0, 3, len(IMAGES))
PREDICTIONS_OF_ALL = json.dumps({"%s": {task: [0] for task in TASKS}})
"""Stored predictions; %s stands for the version."""


def training_record(labels, *, share=0.1, sample="audit", refitted=False):
    return TrainingRecord(images=labels, validation=sample, audit_share=share, refitted=refitted)


def publish(repository, seed, labels, *, predictions=None):
    with repository.stage(datetime.now(UTC)) as staged:
        manifest = stage_files(staged, lively_network(seed), IMAGES[:4])
        if predictions is not None:
            (staged.path / PREDICTIONS_FILE).write_text(predictions)
        return staged.publish(replace(manifest, training=training_record(labels))).manifest


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository with two versions, trained on 100 and 200 labels."""
    repository = Repository(tmp_path_factory.mktemp("published") / "models")
    for seed in (1, 2):
        publish(repository, seed, 100 * seed)
    return repository


@pytest.fixture
def repository(published, tmp_path):
    shutil.copytree(published.root, tmp_path / "models")
    return Repository(tmp_path / "models")


@pytest.fixture
def before(repository):
    return [repository.read_manifest(name) for name in repository.history()]


@pytest.fixture
def predicted_images(monkeypatch):
    """Number of images that each version has predicted."""
    counts = {}

    def count(version, images, *, passes, known):
        counts[version.name] = counts.get(version.name, 0) + len(images)
        return predict(version, images, passes=passes, known=known)

    monkeypatch.setattr(comparison, "predict", count)
    return counts


def compare(repository, before, *, count=40):
    """Compare a new version, trained on 300 labels, with the earlier ones."""
    now = replace(before[-1], version=NEW, training=training_record(300))
    true, predicted = (to_label_matrix(each[:count], 3) for each in (CLASSES, NEW_PREDICTIONS))
    return compare_versions(repository, now, before, CommonImages(TASKS[:count], IMAGES[:count], {}, true, predicted))


def label_counts(curve):
    return [each.labels for each in curve.versions]


def test_measures_all_versions_on_the_same_images(repository, before):
    curve, predictions = compare(repository, before)
    assert (curve.images, label_counts(curve)) == (40, [100, 200, 300])
    earlier = [predict(repository.open(each.version), IMAGES, passes=200).argmax(axis=1) for each in before]
    expected = [f1_score(CLASSES, each, average="macro") for each in (*earlier, NEW_PREDICTIONS)]
    assert [each.macro_f1 for each in curve.versions] == pytest.approx(expected)
    assert all(each.low <= each.macro_f1 <= each.high for each in curve.versions)
    assert {version: sorted(by_task) for version, by_task in predictions.items()} == dict.fromkeys(
        [*(each.version for each in before), NEW], TASKS
    )


def test_reuses_stored_predictions(repository, before, predicted_images, tmp_path):
    _, predictions = compare(repository, before, count=30)
    assert predicted_images == {each.version: 30 for each in before}
    save_predictions(predictions, tmp_path)
    new = publish(repository, 3, 250, predictions=(tmp_path / PREDICTIONS_FILE).read_text())
    curve, _ = compare(repository, [*before, new])
    assert predicted_images == {**{each.version: 40 for each in before}, new.version: 40}
    assert curve.versions[:2] == compare(repository, before)[0].versions[:2]


@pytest.mark.parametrize(
    "holdout", [{"share": 0.2}, {"share": None}, {"sample": "split"}], ids=["share", "unknown", "split"]
)
def test_leaves_out_versions_with_another_holdout(repository, before, predicted_images, holdout):
    """They may have been trained on some of the images."""
    curve, _ = compare(repository, [replace(before[0], training=training_record(100, **holdout)), before[1]])
    assert label_counts(curve) == [200, 300]
    assert predicted_images.keys() == {before[1].version}


def test_measures_refitted_versions_only_by_stored_predictions(repository, before, predicted_images):
    refitted = [replace(each, training=training_record(100, refitted=True)) for each in before]
    assert label_counts(compare(repository, refitted)[0]) == [300]
    assert not predicted_images
    stored = {refitted[0].version: {task: [0] for task in TASKS[:30]}}
    new = publish(repository, 3, 250, predictions=json.dumps(stored))
    curve, predictions = compare(repository, [*refitted, new])
    assert label_counts(curve) == [100, 250, 300]
    assert predicted_images == {refitted[0].version: 10, new.version: 40}
    assert all(predictions[refitted[0].version][task] == [0] for task in TASKS[:30])


def test_leaves_out_versions_that_cannot_be_run(repository, before, caplog):
    path = repository.folder / before[0].version / "model.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    curve, predictions = compare(repository, before)
    assert label_counts(curve) == [200, 300]
    assert before[0].version not in predictions
    assert "is missing in the learning curve" in caplog.text


def test_leaves_out_the_oldest_versions_above_the_limit(repository, before, predicted_images, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_PREDICTIONS", 79)
    assert label_counts(compare(repository, before)[0]) == [200, 300]
    assert sum(predicted_images.values()) == 40


@pytest.mark.parametrize("stored", ["", "[]", '{"x": 3}', '{"%s": {"101": [7]}}'])
def test_ignores_malformed_stored_predictions(repository, before, predicted_images, stored):
    new = publish(repository, 3, 250, predictions=stored.replace("%s", before[0].version))
    compare(repository, [before[0], new])
    assert predicted_images[before[0].version] == 40


def test_ignores_modified_stored_predictions(repository, before, predicted_images):
    new = publish(repository, 3, 250, predictions=PREDICTIONS_OF_ALL.replace("%s", before[0].version))
    compare(repository, [before[0], new])
    assert before[0].version not in predicted_images
    with (repository.folder / new.version / PREDICTIONS_FILE).open("a") as file:
        file.write(" ")
    compare(repository, [before[0], new])
    assert predicted_images[before[0].version] == 40
