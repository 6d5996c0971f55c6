from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits

from trainer.model.fit_head import PSEUDO_LABEL_WEIGHT, PSEUDO_LABELS_PER_LABEL, choose_pseudo_labels, fit_head, predict
from trainer.model.head import build_head
from trainer.settings import Training

CPU = torch.device("cpu")
TRAINING = Training(weights="none", part="classifier", device="cpu", seed=3)


def clouds(count, *, seed=0):
    """Return two Gaussian clusters in 16 dimensions that hardly overlap: float32 (count, 16), and their classes."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    points = rng.normal(size=(count, 16)) + np.where(np.arange(16) < 8, targets[:, None], 0) * 1.3
    return points.astype(np.float32), targets


def fitted_head(features, targets, *, training=TRAINING, unlabelled=None):
    torch.manual_seed(training.seed)
    head = build_head(16, 16, classes=2, units=32)
    fitted = fit_head(head, features, targets, training, classes=2, device=CPU, unlabelled=unlabelled)
    return head, fitted


def weights_of(head):
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in head.parameters()])


@pytest.mark.slow
def test_pseudo_labels_improve_accuracy_on_digits():
    digits = load_digits()
    features, targets = digits.data.astype(np.float32), digits.target.astype(np.int64)
    gains = []
    for seed in range(3):
        train, unlabelled, test = np.split(np.random.default_rng(seed).permutation(len(features)), [30, 1000])
        accuracies = []
        for unlabelled_features in (None, features[unlabelled]):
            torch.manual_seed(0)
            head = build_head(64, 64, classes=10, units=64)
            options = {"classes": 10, "device": CPU, "unlabelled": unlabelled_features}
            fit_head(head, features[train], targets[train], TRAINING, **options)
            predicted = predict(head, features[test], device=CPU).argmax(axis=1)
            accuracies.append((predicted == targets[test]).mean())
        gains.append(accuracies[1] - accuracies[0])
    assert np.mean(gains) > 0


def test_fit_is_deterministic():
    (features, targets), (unlabelled, _) = clouds(12), clouds(60, seed=1)
    first, second = (fitted_head(features, targets, unlabelled=unlabelled)[0] for _ in range(2))
    np.testing.assert_array_equal(weights_of(first), weights_of(second))
    assert not np.array_equal(weights_of(first), weights_of(fitted_head(features, targets)[0]))


@pytest.mark.parametrize(
    ("options", "images", "multiple"),
    [({"pseudo_labels": False}, 60, False), ({"head": "vgg"}, 60, False), ({}, 0, False), ({}, 60, True)],
    ids=["option", "another head", "no images", "several labels"],
)
def test_ignores_unlabelled_images_without_pseudo_labels(options, images, multiple):
    (features, targets), (unlabelled, _) = clouds(12), clouds(60, seed=1)
    targets = np.eye(2, dtype=np.uint8)[targets] if multiple else targets
    training = replace(TRAINING, **options)
    head, _ = fitted_head(features, targets, training=training, unlabelled=unlabelled[:images])
    np.testing.assert_array_equal(weights_of(head), weights_of(fitted_head(features, targets)[0]))


def test_second_fit_has_labels_and_pseudo_labels_of_half_weight(monkeypatch):
    from trainer.model import fit_head as module

    calls, fit = [], module.fit

    def record(head, inputs, targets, *, sample_weights, **options):
        calls.append((inputs.numpy(), targets, sample_weights, weights_of(head), head[0].shift.numpy().copy()))
        return fit(head, inputs, targets, sample_weights=sample_weights, **options)

    monkeypatch.setattr(module, "fit", record)
    features, targets = clouds(12)
    unlabelled, _ = clouds(200, seed=1)
    _, fitted = fitted_head(features, targets, unlabelled=unlabelled)
    assert fitted.recipe.epochs == 150  # the minimum number of steps, with one batch per epoch
    (first, *_, first_weights, shift), (inputs, labels, sample_weights, weights, second_shift) = calls
    np.testing.assert_array_equal(inputs[:12], first)
    np.testing.assert_array_equal(labels[:12], targets)
    assert np.bincount(labels[12:], minlength=2).tolist() == [6 * PSEUDO_LABELS_PER_LABEL] * 2
    assert {row.tobytes() for row in inputs[12:]} <= {row.tobytes() for row in unlabelled}
    np.testing.assert_array_equal(sample_weights, [1] * 12 + [PSEUDO_LABEL_WEIGHT] * len(labels[12:]))
    np.testing.assert_array_equal(weights, first_weights)
    np.testing.assert_array_equal(shift, second_shift)
    np.testing.assert_allclose(shift, features.mean(axis=0), atol=1e-5)


def test_large_sets_have_half_the_epochs_with_pseudo_labels():
    features, targets = clouds(400)
    unlabelled, _ = clouds(4000, seed=1)
    epochs = [fitted_head(features, targets, unlabelled=each)[1].recipe.epochs for each in (None, unlabelled)]
    assert epochs == [22, 10]


def test_predictions_approximate_the_mean_over_many_passes():
    features, targets = clouds(40)
    head, _ = fitted_head(features, targets)
    points, _ = clouds(300, seed=4)
    predicted = predict(head, points, device=CPU)
    with torch.no_grad():
        passes = torch.stack([head(torch.from_numpy(points)).softmax(dim=1) for _ in range(400)])
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    assert (predicted.argmax(axis=1) == passes.mean(dim=0).argmax(dim=1).numpy()).mean() > 0.97


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 60), st.just(3)), elements=st.floats(0.01, 1)),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_chooses_the_most_confident_images_of_each_class(scores, labels_by_class):
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    rows, labels = choose_pseudo_labels(probabilities, np.array(labels_by_class))
    assert len({*rows.tolist()}) == len(rows) == len(labels)
    for label in range(3):
        predicted = np.flatnonzero(probabilities.argmax(axis=1) == label)
        chosen = rows[labels == label]
        assert len(chosen) == min(PSEUDO_LABELS_PER_LABEL * labels_by_class[label], len(predicted))
        assert set(chosen) <= set(predicted)
        others = np.setdiff1d(predicted, chosen)
        if len(others) and len(chosen):
            assert probabilities[others, label].max() <= probabilities[chosen, label].min()


def test_limits_the_total_number_of_pseudo_labels():
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), 20_000)
    _, labels = choose_pseudo_labels(probabilities, np.array([2000, 1500, 500]))
    assert np.bincount(labels).tolist() == [500, 375, 125]
