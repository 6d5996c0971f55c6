import logging
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
from trainer.evaluation.holdout import as_decisions
from trainer.model.validation import predict

IMAGES, CLASSES = coloured_images(np.random.default_rng(0), 40)
TASKS = list(range(101, 141))
SAID = np.random.default_rng(1).integers(0, 3, len(IMAGES))
"""What the new version says."""


def trained(labels, *, share=0.1, sample="audit"):
    return TrainingRecord(images=labels, validation=sample, audit_share=share)


def publish(repository, seed, labels, *, answers=None, **training):
    with repository.stage(datetime.now(UTC)) as staged:
        manifest = stage_files(staged, lively_network(seed), IMAGES[:4])
        if answers is not None:
            save_predictions(answers, staged.path)
        return staged.publish(replace(manifest, training=trained(labels, **training))).manifest


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def asked(monkeypatch):
    """How many images each version was asked about."""
    counts = {}

    def note(version, images, *, passes):
        counts[version.name] = counts.get(version.name, 0) + len(images)
        return predict(version, images, passes=passes)

    monkeypatch.setattr(comparison, "predict", note)
    return counts


def make_common_images(count=40):
    true, said = (as_decisions(each[:count], 3) for each in (CLASSES, SAID))
    return CommonImages(TASKS[:count], IMAGES[:count], true=true, decided=said)


def measure(repository, before, *, count=40, labels=300, **training):
    """Draw the curve up for a new version."""
    now = replace(before[-1], version="20991231T000000000Z-0a1b2c", training=trained(labels, **training))
    return compare_versions(repository, now, before, make_common_images(count))


def macro_f1_of(repository, manifest):
    means = predict(repository.open(manifest.version), IMAGES, passes=manifest.passes)
    return f1_score(CLASSES, means.argmax(axis=1), average="macro")


def test_all_versions_are_measured_on_the_same_images(repository):
    """Whatever they were measured on when they were new: as scikit-learn does of what they predict now."""
    before = [publish(repository, seed, labels) for seed, labels in ((1, 100), (2, 200))]
    curve, answers = measure(repository, before)
    assert curve.images == 40
    assert [mark.labels for mark in curve.versions] == [100, 200, 300]
    expected = [*(macro_f1_of(repository, each) for each in before), f1_score(CLASSES, SAID, average="macro")]
    assert [mark.macro_f1 for mark in curve.versions] == pytest.approx(expected)
    assert all(mark.low <= mark.macro_f1 <= mark.high for mark in curve.versions)
    assert {version: sorted(said) for version, said in answers.items()} == dict.fromkeys(
        [each.version for each in before] + ["20991231T000000000Z-0a1b2c"], TASKS
    )


def test_what_a_version_was_asked_before_it_is_not_asked_again(repository, asked):
    """Only about images that have been labelled since; and the curve is the same as if it had been."""
    first = publish(repository, 1, 100)
    _, answers = measure(repository, [first], count=30)
    assert asked == {first.version: 30}
    second = publish(repository, 2, 200, answers={first.version: answers[first.version]})
    curve, _ = measure(repository, [first, second])
    assert asked == {first.version: 40, second.version: 40}
    assert [mark.macro_f1 for mark in curve.versions[:2]] == pytest.approx(
        [macro_f1_of(repository, each) for each in (first, second)]
    )


@pytest.mark.parametrize(
    "different", [{"share": 0.2}, {"share": None}, {"sample": "split"}], ids=["share", "unknown", "split"]
)
def test_a_version_that_may_have_trained_on_the_images_is_not_measured_on_them(repository, asked, different):
    """One that held out another slice, or part of each class, has seen some of them."""
    before = [publish(repository, 1, 100, **different), publish(repository, 2, 200)]
    curve, _ = measure(repository, before)
    assert [mark.labels for mark in curve.versions] == [200, 300]
    assert asked.keys() == {before[1].version}


def test_a_version_that_fails_costs_its_point_alone(repository, caplog):
    """With a warning that says why."""
    before = [publish(repository, seed, 100 * seed) for seed in (1, 2)]
    path = repository.folder / before[0].version / "model.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    with caplog.at_level(logging.WARNING):
        curve, answers = measure(repository, before)
    assert [mark.labels for mark in curve.versions] == [200, 300]
    assert before[0].version not in answers
    assert "not on the curve" in caplog.text


def test_the_oldest_are_left_out_where_all_would_take_too_long(repository, asked, monkeypatch):
    """No round costs more than so many predictions."""
    monkeypatch.setattr(comparison, "_MOST_PREDICTED", 80)
    before = [publish(repository, seed, 100 * seed) for seed in (1, 2, 3)]
    curve, _ = measure(repository, before, labels=400)
    assert [mark.labels for mark in curve.versions] == [200, 300, 400]
    assert sum(asked.values()) == 80


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"x": 3}', '{"%s": {"101": [7]}}', '{"%s": {"101": [1]}}'])
def test_answers_that_were_edited_are_not_believed(repository, asked, kept):
    """The version is asked again."""
    first = publish(repository, 1, 100)
    second = publish(repository, 2, 200, answers={first.version: {task: [0] for task in TASKS}})
    (repository.folder / second.version / PREDICTIONS_FILE).write_text(kept.replace("%s", first.version))
    measure(repository, [first, second])
    assert asked[first.version] == 40
