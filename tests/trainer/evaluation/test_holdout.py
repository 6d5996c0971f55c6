import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from contract.scores.holdout import is_held_out
from trainer.evaluation.advice import MIN_IMAGES
from trainer.evaluation.holdout import hold_out, macro_f1_interval, to_label_matrix
from trainer.labels.dataset import Pixels

PROJECT, SHARE = 3, 0.1


def pixels(targets, *, task_ids=None, groups=None):
    count = len(targets)
    return Pixels(
        images=np.zeros((count, 1, 1, 3), np.uint8),
        targets=np.asarray(targets),
        digests=tuple(row.to_bytes(32) for row in range(count)),
        groups=np.arange(count) if groups is None else groups,
        task_ids=np.arange(count) if task_ids is None else task_ids,
        references=(),
        unreadable=(),
    )


def split_holdout(pixels, *, project=PROJECT, share=SHARE):
    return hold_out(pixels, project=project, share=share, fraction=0.2, seed=0)


def test_validates_on_a_large_enough_random_holdout():
    parts = split_holdout(pixels(np.arange(600) % 3))
    audit = is_held_out(PROJECT, np.arange(600), SHARE)
    assert (parts.sample, parts.audit_images) == ("audit", audit.sum())
    np.testing.assert_array_equal(parts.validation, np.flatnonzero(audit))
    np.testing.assert_array_equal(parts.train, np.flatnonzero(~audit))
    several = (np.random.default_rng(0).random((600, 4)) < 0.3).astype(np.uint8)
    assert split_holdout(pixels(several)).sample == "audit"
    assert split_holdout(pixels(several[:60])).sample == "split"


def half_held_out(count, targets, **fields):
    """Return pixels of `count` tasks of the random holdout, followed by as many others."""
    numbers = np.arange(100 * count)
    audit = is_held_out(PROJECT, numbers, SHARE)
    return pixels(targets, task_ids=np.concatenate([numbers[audit][:count], numbers[~audit][:count]]), **fields)


@pytest.mark.parametrize(("count", "sample"), [(MIN_IMAGES - 1, "split"), (MIN_IMAGES, "audit")])
def test_random_holdout_needs_thirty_images(count, sample):
    parts = split_holdout(half_held_out(count, np.arange(2 * count) % 2))
    assert (parts.sample, parts.audit_images) == (sample, count)
    assert len(parts.train) + len(parts.validation) == 2 * count


@pytest.mark.parametrize("uniform", ["audit", "others"])
def test_both_parts_need_two_classes(uniform):
    classes = [np.zeros(40, int) if uniform == part else np.arange(40) % 2 for part in ("audit", "others")]
    parts = split_holdout(half_held_out(40, np.concatenate(classes)))
    assert (parts.sample, parts.audit_images) == ("split", 40)


def test_does_not_train_on_copies_of_holdout_images():
    groups = np.arange(80)
    groups[50] = 7
    parts = split_holdout(half_held_out(40, np.arange(80) % 2, groups=groups))
    assert parts.validation.tolist() == [*range(40)]
    assert parts.train.tolist() == [*range(40, 50), *range(51, 80)]


@pytest.mark.parametrize("arguments", [{"project": None}, {"share": 0.0}])
def test_holds_out_a_share_of_each_class_without_random_holdout(arguments):
    parts = split_holdout(pixels(np.arange(600) % 3), **arguments)
    assert (parts.sample, parts.audit_images, len(parts.validation)) == ("split", 0, 120)


def f1_by_class(confusion):
    """Return the F1 of each class from a confusion matrix (C, C)."""
    return 2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1))


@pytest.mark.parametrize("images", [30, 100])
@pytest.mark.parametrize(
    ("class_shares", "accuracy"),
    [
        ([0.5, 0.5], 0.9),
        ([0.73, 0.22, 0.05], 0.9),
        ([1 / 6] * 6, 0.97),
        ([0.3, 0.25, 0.15, 0.1, 0.08, 0.05, 0.03, 0.02, 0.01, 0.01], 0.7),
    ],
)
def test_interval_covers_the_true_value_in_95_percent_of_samples(images, class_shares, accuracy):
    """Also with few images, and with rare errors or classes; the true macro-F1 is over the classes in the sample.

    Of 400 samples 380 are expected, and fewer than 369 have a probability of 1 %. A percentile bootstrap of 30 images
    covers about 295 if errors are rare.
    """
    rng = np.random.default_rng(0)
    classes, class_shares = len(class_shares), np.array(class_shares)
    confusion = np.outer(class_shares, class_shares) * (1 - accuracy)
    confusion[np.diag_indices(classes)] = 0
    confusion[np.diag_indices(classes)] = class_shares - confusion.sum(axis=1)
    covered = 0
    for _ in range(400):
        true, predicted = np.divmod(rng.choice(classes**2, images, p=confusion.ravel()), classes)
        low, high = macro_f1_interval(to_label_matrix(predicted, classes), to_label_matrix(true, classes))
        covered += low <= f1_by_class(confusion)[np.union1d(true, predicted)].mean() <= high
    assert covered >= 369


@pytest.mark.parametrize("wrong", [0, 10, 60])
def test_interval_equals_scipys_wilson_interval_for_balanced_classes(wrong):
    """With two balanced classes and equal errors, macro-F1 is the accuracy."""
    true = np.arange(400) % 2
    predicted = np.where(np.arange(400) < wrong, 1 - true, true)
    expected = stats.binomtest(400 - wrong, 400).proportion_ci(method="wilson")
    assert macro_f1_interval(to_label_matrix(predicted, 2), to_label_matrix(true, 2)) == pytest.approx(
        expected, abs=1e-3
    )


@given(images=st.integers(1, 60), classes=st.integers(2, 5), accuracy=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_interval_is_within_0_and_1_and_contains_macro_f1(images, classes, accuracy, seed):
    rng = np.random.default_rng(seed)
    true = to_label_matrix(rng.integers(0, classes, images), classes)
    predicted = np.where(rng.random(images)[:, None] < accuracy, true, np.roll(true, 1, axis=1))
    low, high = macro_f1_interval(predicted, true)
    f1 = f1_score(true, predicted, average=None, zero_division=np.nan)
    assert 0 <= low <= np.nanmean(f1) <= high <= 1
    assert low < high


def test_no_interval_without_images():
    assert macro_f1_interval(np.empty((0, 3), bool), np.empty((0, 3), bool)) is None
    assert macro_f1_interval(np.zeros((5, 3), bool), np.zeros((5, 3), bool)) is None
