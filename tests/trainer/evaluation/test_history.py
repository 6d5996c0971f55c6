import logging
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from contract.graph.lowering import load_graph, lower
from contract.versions.manifest import InputSpec
from contract.versions.repository import Repository
from contract.versions.results import Advice, Compared, Comparison, Metrics, ProjectState, TrainingRecord
from tests.trainer.small import coloured_images, lively_network, publish_small
from tests.versions import manifest, write_files
from trainer.evaluation.history import describe_advice, earlier, find_agreement, kappa
from trainer.model.sessions import open_session
from trainer.model.validation import predict

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 40)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository whose current version is a network that has learnt nothing."""
    repository = Repository(tmp_path_factory.mktemp("models"))
    publish_small(repository, lively_network(1), IMAGES[:4])
    return repository


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A version of other weights."""
    return publish_small(Repository(tmp_path_factory.mktemp("other")), lively_network(2), IMAGES[:4])


def described(version, /, **fields):
    """The same files with another manifest."""
    return replace(version, manifest=replace(version.manifest, **fields))


def test_a_version_agrees_with_itself_as_far_as_masks_let_it(published):
    """Kappa is all but 1: what is left is the draw."""
    version = published.open(published.current())
    assert find_agreement(published, version, IMAGES, known={}) == 1
    renamed = described(version, version="20991231T000000000Z-0a1b2c")
    assert find_agreement(published, renamed, IMAGES, known={}) > 0.9


def test_agreement_is_cohens_kappa(published, other):
    """As scikit-learn computes it."""
    version = published.open(published.current())
    predicted = [predict(each, IMAGES, passes=200).argmax(axis=1) for each in (version, other)]
    assert find_agreement(published, other, IMAGES, known={}) == pytest.approx(cohen_kappa_score(*predicted))


def test_features_that_are_known_stand_in_for_the_images(published, other):
    """Of the versions of that backbone, at the rows that are compared; those of another one compute their own."""
    version = published.open(published.current())
    expected = find_agreement(published, other, IMAGES, known={})
    features = {each.manifest.backbone.fingerprint: features_of(each) for each in (version, other)}
    black = np.zeros_like(IMAGES)
    assert find_agreement(published, other, black, known=features) == expected
    features.pop(other.manifest.backbone.fingerprint)
    predicted = [
        predict(version, IMAGES, passes=200).argmax(axis=1),
        predict(other, black, passes=200).argmax(axis=1),
    ]
    assert find_agreement(published, other, black, known=features) == pytest.approx(cohen_kappa_score(*predicted))


def features_of(version):
    """What a version's backbone gives of the images."""
    lowered = lower(load_graph(version.model_path, weights_bytes=version.weights_bytes), cut="features")
    session = open_session(lowered.backbone, version.path)
    return session.run(["features"], {"images": IMAGES})[0]


def test_labels_are_compared_by_name(published, other, monkeypatch):
    """Their order may have changed, and others have come."""
    classes = np.random.default_rng(0).integers(0, 3, len(IMAGES))
    names = np.array(other.manifest.labels)[classes]

    def predict_names(version, images, *, passes, known):
        return (np.array(version.manifest.labels) == names[:, None]).astype(np.float32)

    monkeypatch.setattr("trainer.evaluation.history.predict", predict_names)
    assert find_agreement(published, described(other, labels=("red", "cow", "blue", "green")), IMAGES, known={}) == 1


@pytest.mark.parametrize(
    "difference", [{"labels": ("x", "y", "z")}, {"multiple": True}, {"input": InputSpec(16, 16)}], ids=str
)
def test_versions_of_another_kind_are_not_compared(published, other, difference):
    """That is no error."""
    assert find_agreement(published, described(other, **difference), IMAGES, known={}) is None


def test_without_images_there_is_nothing_to_compare(published, other):
    """Nor without a version before."""
    assert find_agreement(published, other, IMAGES[:0], known={}) is None
    assert find_agreement(Repository(published.root / "none"), other, IMAGES, known={}) is None


def test_a_version_that_fails_costs_the_comparison_alone(tmp_path, other, caplog):
    """With a warning that says why."""
    repository = Repository(tmp_path)
    path = publish_small(repository, lively_network(1), IMAGES[:4]).path
    (path / "model.onnx").write_bytes(b"x" * (path / "model.onnx").stat().st_size)
    with caplog.at_level(logging.WARNING):
        assert find_agreement(repository, other, IMAGES, known={}) is None
    assert "could not be compared" in caplog.text


def test_of_many_images_some_are_compared(published, other, monkeypatch):
    """Spread over all of them."""
    asked = []

    def note(version, images, *, passes, known):
        asked.append(len(images))
        return np.eye(3)[[0] * len(images)]

    monkeypatch.setattr("trainer.evaluation.history.predict", note)
    assert find_agreement(published, other, np.zeros((2000, 32, 32, 3), np.uint8), known={}) == 1
    assert asked == [400, 400]


def test_of_several_labels_each_is_a_rating():
    """Kappa over all labels of all images."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30, 4)) < 0.4
    assert kappa(first, second) == pytest.approx(cohen_kappa_score(first.ravel(), second.ravel()))
    assert kappa(np.zeros((5, 3), bool), np.zeros((5, 3), bool)) == 1


def training(labels, *, kappa=0.97, project=3, sample="audit", images=64):
    return TrainingRecord(
        images=labels,
        audit_images=images,
        validation=sample,
        project=ProjectState(project, labels, ""),
        part="classifier",
        advice=Advice("go on", kappa=kappa),
    )


METRICS = Metrics(macro_f1=0.83, macro_f1_interval=(0.78, 0.88), mean_bald=0.02)


def publish(repository, labels, *, metrics=METRICS, fields=None, **settings):
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"x")
        described = replace(manifest(staged.version), metrics=metrics, training=training(labels, **settings))
        staged.publish(replace(described, **(fields or {})))


def advise_on(repository, labels=2000, *, kappa=0.97, unseen=(), macro_f1=0.83, measured=True, **settings):
    """Advise on a new version, all versions of its kind having been measured on the same images."""
    now = replace(manifest("20991231T000000000Z-0a1b2c"), metrics=METRICS, training=training(labels, **settings))
    before = earlier(repository, now)
    marks = [Compared(each.version, each.training.images, macro_f1, 0.78, 0.88) for each in (*before, now)]
    curve = Comparison(64, tuple(marks)) if measured else None
    return describe_advice(before, now, curve, kappa=kappa, unseen=unseen)


def test_advice_is_built_on_the_versions_before(tmp_path):
    """How they agree comes from their manifests; how good they are from the common images, not from each one's own."""
    repository = Repository(tmp_path)
    for labels, macro_f1 in ((1600, 0.51), (1800, 0.79)):
        publish(repository, labels, metrics=replace(METRICS, macro_f1=macro_f1, macro_f1_interval=(0.0, 1.0)))
    advice = advise_on(repository, unseen=["cow"])
    assert (advice.stop, advice.kappa) == (True, 0.97)
    assert advice.sentence.startswith("stop: macro-F1 is 0.83 (0.78 to 0.88) and has stood there for 3 versions")
    assert advice.sentence.endswith("cow")
    assert not advise_on(repository, kappa=0.6).stop


@pytest.mark.parametrize(
    "different",
    [
        {"project": 4},
        {"metrics": Metrics()},
        {"fields": {"labels": ("cat", "dog", "cow")}},
        {"fields": {"backbone": replace(manifest("20991231T000000000Z-0a1b2c").backbone, name="vgg11")}},
        {"fields": {"training": TrainingRecord()}},
    ],
)
def test_versions_that_cannot_be_compared_do_not_count(tmp_path, different):
    """Of other projects, classes or networks, or without figures."""
    repository = Repository(tmp_path)
    publish(repository, 1600)
    publish(repository, 1800, **different)
    assert "2 versions so far" in advise_on(repository).sentence


def test_a_version_that_cannot_be_read_does_not_count(tmp_path):
    """And does not hinder."""
    repository = Repository(tmp_path)
    publish(repository, 1600)
    (repository.folder / repository.current() / "manifest.json").write_text("{")
    assert "1 version so far" in advise_on(repository).sentence


def test_a_version_that_was_not_measured_on_the_random_sample_has_no_advice_yet(tmp_path):
    """The sentence says how many of its images there are."""
    advice = advise_on(Repository(tmp_path), measured=False, images=12)
    assert advice.sentence == "too early to say: 12 of 30 random images are labelled"
    assert "do not cover two classes" in advise_on(Repository(tmp_path), measured=False, images=40).sentence
