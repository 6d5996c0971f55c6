from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from contract.versions.repository import Repository
from contract.versions.results import Advice, ComparedVersion, Comparison, Metrics, ProjectState, TrainingRecord
from tests import versions
from tests.versions import manifest
from trainer.evaluation.comparison import describe_advice, earlier_versions, find_agreement, kappa


def version(name, labels=("a", "b", "c")):
    return replace(manifest(name), labels=labels)


BEFORE = [version(f"2026010{day}T000000000Z-0a1b2c") for day in (1, 2, 3)]
NOW = version("20991231T000000000Z-0a1b2c")


def predict(classes):
    return {task: [int(each)] for task, each in enumerate(classes, start=101)}


def test_agreement_is_cohens_kappa_with_the_previous_version():
    classes = np.random.default_rng(0).integers(0, 3, (3, 40))
    classes[1:, :25] = classes[0, :25]
    names = (BEFORE[0].version, BEFORE[1].version, NOW.version)
    predictions = {name: predict(each) for name, each in zip(names, classes, strict=True)}
    expected = cohen_kappa_score(classes[1], classes[2])
    assert find_agreement(predictions, BEFORE, NOW) == pytest.approx(expected)
    assert 0.3 < expected < 0.9
    first, second = np.random.default_rng(0).random((2, 30, 4)) < 0.4  # several labels per image
    assert kappa(first, second) == pytest.approx(cohen_kappa_score(first.ravel(), second.ravel()))
    assert kappa(np.zeros((5, 3), bool), np.zeros((5, 3), bool)) == 1


def test_compares_predictions_by_task():
    predictions = {BEFORE[2].version: {103: [2], 102: [1], 101: [0], 104: [1]}, NOW.version: {101: [0], 103: [2]}}
    assert find_agreement(predictions, BEFORE, NOW) == 1
    assert find_agreement(predictions, BEFORE[:2], NOW) is None
    assert find_agreement(predictions, [], NOW) is None


def training(labels, *, project=3):
    return TrainingRecord(
        images=labels,
        audit_images=64,
        validation="audit",
        project=ProjectState(project, labels, ""),
        part="classifier",
        advice=Advice("go on", kappa=0.97),
    )


METRICS = Metrics(macro_f1=0.83, macro_f1_interval=(0.78, 0.88), mean_bald=0.02)


def publish(repository, images, **fields):
    versions.publish(repository, b"x", **{"metrics": METRICS, "training": training(images), **fields})


def advise_on(repository, *, kappa=0.97, unseen=()):
    """Return the advice for a new version if all comparable versions have the same macro-F1."""
    now = replace(manifest("20991231T000000000Z-0a1b2c"), metrics=METRICS, training=training(2000))
    before = earlier_versions(repository, now)
    compared = [ComparedVersion(each.version, each.training.images, 0.83, 0.78, 0.88) for each in (*before, now)]
    return describe_advice(before, now, Comparison(64, tuple(compared)), kappa=kappa, unseen=unseen)


def test_advice_uses_earlier_versions(tmp_path):
    """Agreement is read from the manifests, macro-F1 is that on the common images."""
    repository = Repository(tmp_path)
    for labels, macro_f1 in ((1600, 0.51), (1800, 0.79)):
        publish(repository, labels, metrics=replace(METRICS, macro_f1=macro_f1, macro_f1_interval=(0.0, 1.0)))
    advice = advise_on(repository, unseen=["cow"])
    assert (advice.stop, advice.kappa) == (True, 0.97)
    assert advice.sentence.startswith("stop: macro-F1 is 0.83 (0.78 to 0.88) and has been stable for 3 versions")
    assert advice.sentence.endswith("cow")
    assert not advise_on(repository, kappa=0.6).stop


def test_ignores_unreadable_and_incomparable_versions(tmp_path):
    repository = Repository(tmp_path)
    publish(repository, 1600)
    for fields in (
        {"training": training(1800, project=4)},
        {"training": TrainingRecord()},
        {"metrics": Metrics()},
        {"labels": ("cat", "dog", "cow")},
        {"backbone": replace(manifest("20991231T000000000Z-0a1b2c").backbone, name="vgg11")},
        {},
    ):
        publish(repository, 1800, **fields)
    (repository.folder / repository.current() / "manifest.json").write_text("{")
    assert "2 versions so far" in advise_on(repository).sentence
