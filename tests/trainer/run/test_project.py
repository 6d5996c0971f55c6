"""Runs on a Label Studio project: random holdout, comparison of versions, pseudo-labels."""

from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from contract.images.download import Validators
from contract.scores.holdout import is_held_out
from contract.versions.results import ProjectState
from tests.trainer.run.training import TRAINING
from tests.trainer.small import COLOURS, coloured_images
from tests.trainer.studio import TOKEN, studio
from tests.trainer.studio_project import label_config
from trainer.features import open_store
from trainer.labelstudio import connect
from trainer.labelstudio.task_lists import cache_folder, list_unlabelled
from trainer.model import build
from trainer.model.fit import fit
from trainer.run import run
from trainer.settings import Source

pytestmark = pytest.mark.slow  # trains or exports networks


@pytest.fixture
def project():
    """A project with 33 labelled tasks in the random holdout, and 39 others."""
    numbers = np.arange(1, 601)
    held_out = is_held_out(5, numbers, 0.1)
    labelled = np.sort(np.concatenate([numbers[held_out][:33], numbers[~held_out][:39]]))
    images, targets = coloured_images(np.random.default_rng(7), len(labelled))
    with studio(tasks=labelled.max()) as each:
        each.project["label_config"] = label_config(*COLOURS)
        for task, image, target in zip(labelled.tolist(), images, targets, strict=True):
            file = BytesIO()
            Image.fromarray(image).save(file, "PNG")
            each.tasks[task]["data"] = {"image": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}
            each.annotate(task, list(COLOURS)[target])
        yield each


@pytest.fixture
def environment(environment, project):
    return replace(environment, label_studio_url=project.url, label_studio_token=TOKEN)


def train(environment, **options):
    """Train on the project, and return the version's manifest."""
    return run(Source(project=5), replace(TRAINING, precision="fp32", **options), environment).manifest


@pytest.mark.parametrize("part", ["classifier", "all"])
def test_evaluates_on_the_random_holdout(project, environment, part):
    manifest = train(environment, epochs=20, part=part)
    training, metrics = manifest.training, manifest.metrics
    assert (training.validation, training.audit_share) == ("audit", 0.1)
    assert training.audit_images == training.validation_images == metrics.images == 33
    assert training.project == ProjectState(5, 72, max(task["updated_at"] for task in project.tasks.values()))
    low, high = metrics.macro_f1_interval
    assert 0 <= low <= metrics.macro_f1 <= high <= 1
    assert 0 < metrics.mean_bald < np.log(3)
    assert training.advice.sentence.startswith("too early to say: 1 version so far, 3 are needed (macro-F1 ")


@pytest.mark.parametrize("part", ["classifier", "all"])
def test_compares_versions_on_the_random_holdout(environment, part):
    first, same = (train(environment, epochs=20, part=part) for _ in range(2))
    other = train(environment, seed=1, epochs=1, learning_rate=1e-5, part=part)
    kappas = [manifest.training.advice.kappa for manifest in (first, same, other)]
    assert kappas[0] is None
    assert kappas[1] > 0.5
    assert kappas[2] < kappas[1] - 0.3
    curve = other.training.curve
    assert curve.images == 33
    assert [each.version for each in curve.versions] == [each.version for each in (first, same, other)]
    assert [each.macro_f1 for each in curve.versions] == pytest.approx(
        [each.metrics.macro_f1 for each in (first, same, other)],  # no new labels
        abs=0.1,  # 200 passes instead of 20
    )
    assert "answers.json" in other.files


def test_does_not_compare_versions_on_copies_of_training_images(project, environment):
    """An earlier version may have been trained on the image, as that of another task."""
    labelled = np.array([task for task in project.tasks if project.count_annotations(task)[0]])
    held_out = is_held_out(5, labelled, 0.1)
    project.tasks[labelled[held_out][0]]["data"] = project.tasks[labelled[~held_out][0]]["data"]
    training = train(environment, part="classifier").training
    assert (training.validation_images, training.curve.images) == (33, 32)


def test_evaluates_on_a_share_of_each_class_without_random_holdout(environment):
    training = train(environment, part="classifier", holdout_share=0.0).training
    assert (training.validation, training.audit_images, training.advice) == ("split", 0, None)


@pytest.fixture
def fits(monkeypatch):
    """The features of each call of `fit`, and how many of them have labels; the others have pseudo-labels."""
    calls = []

    def record(module, inputs, targets, *, sample_weights=None, **options):
        labelled = len(targets) if sample_weights is None else int((sample_weights == 1).sum())
        calls.append((inputs.numpy(), labelled))
        return fit(module, inputs, targets, sample_weights=sample_weights, **options)

    monkeypatch.setattr("trainer.model.fit_head.fit", record)
    return calls


def rows(features):
    return {row.tobytes() for row in features}


@pytest.fixture
def cached_features(project, environment):
    """Features of random images in the feature store, as those of all unlabelled tasks."""
    tasks = list_unlabelled(connect(project.url, TOKEN, 5), cache_folder(environment, 5))
    images, _ = coloured_images(np.random.default_rng(8), len(tasks))
    backbone = build.open_frozen_for(replace(TRAINING, part="classifier"), cache=environment.cache_dir)
    digests = [sha256(str(task.id).encode()).digest() for task in tasks]
    with open_store(environment) as store:
        features = backbone.compute_cached(images, digests, store)
        for task, digest in zip(tasks, digests, strict=True):
            store.put_download(task.data["image"], Validators("", None, None), digest, at=0)
    return rows(features)


def test_trains_on_unlabelled_images_with_cached_features(environment, cached_features, fits, caplog):
    """For the evaluation, held-out images are treated like unlabelled ones, so that its metrics apply to those."""
    caplog.set_level("INFO", "trainer")
    train(environment, part="classifier", epochs=20)
    assert [labelled for _, labelled in fits] == [39, 39, 72, 72]
    training_part, all_labelled = rows(fits[0][0]), rows(fits[2][0])
    for_evaluation, for_publication = (rows(features[labelled:]) for features, labelled in (fits[1], fits[3]))
    held_out = for_evaluation - cached_features
    assert held_out
    assert held_out <= all_labelled - training_part
    assert len(for_evaluation & cached_features) > len(training_part)
    assert for_publication <= cached_features
    assert len(for_publication) > len(all_labelled)
    count = len(cached_features)
    assert f"features of {count} of {count} unlabelled images are cached" in caplog.text


def test_trains_only_on_labelled_images_without_cached_features(project, environment, fits):
    list_unlabelled(connect(project.url, TOKEN, 5), cache_folder(environment, 5))
    train(environment, part="classifier", epochs=20)
    assert [len(features) for features, _ in fits] == [39, 72]


@pytest.mark.usefixtures("cached_features")
def test_trains_only_on_labelled_images_without_pseudo_labels(environment, fits):
    train(environment, part="classifier", epochs=20, pseudo_labels=False)
    assert [len(features) for features, _ in fits] == [39, 72]
