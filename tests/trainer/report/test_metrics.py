import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from trainer.evaluation.holdout import to_label_matrix
from trainer.report import metrics

LABELS = ("a", "b", "c", "d")
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def label_matrices(pairs):
    return tuple(to_label_matrix(np.array(column), len(LABELS)) for column in zip(*pairs, strict=True))


@given(PAIRS)
def test_precision_recall_and_f1_equal_scikit_learn(pairs):
    """Undefined ones are None."""
    true, predicted = label_matrices(pairs)
    expected = precision_recall_fscore_support(true, predicted, zero_division=np.nan)
    result = metrics.by_class(LABELS, labelled=true, trained_on=true, true=true, predicted=predicted)
    for name, reference in zip(("precision", "recall", "f1", "validated"), expected, strict=True):
        assert [np.nan if each[name] is None else each[name] for each in result] == pytest.approx(
            reference, nan_ok=True
        )


def test_counts_images_by_class():
    labelled, trained_on, true, predicted = (
        to_label_matrix(np.array(each), 4) for each in ([0, 0, 0, 1, 1], [0, 0, 1], [0, 1], [1, 1])
    )
    result = metrics.by_class(LABELS, labelled=labelled, trained_on=trained_on, true=true, predicted=predicted)
    assert [*result[0].values()] == ["a", 3, 2, 1, 0, 0, None, 0.0, 0.0]
    assert [*result[1].values()] == ["b", 2, 1, 1, 2, 1, 0.5, 1.0, 2 / 3]


def test_most_frequent_confusions_come_first():
    assert metrics.confusions(LABELS, *label_matrices([(0, 0), (1, 2), (2, 1), (2, 1), (0, 3)])) == [
        {"true": true, "predicted": predicted, "images": images}
        for true, predicted, images in (("c", "b", 2), ("a", "d", 1), ("b", "c", 1))
    ]


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60))
def test_histogram_counts_every_image_once(images):
    bald, right = np.array([each for each, _ in images]), np.array([each for _, each in images], bool)
    result = metrics.histogram(bald, right)
    assert (sum(result["right"]), sum(result["wrong"])) == (right.sum(), (~right).sum())
    assert len(result["edges"]) == len(result["right"]) + 1 == len(result["wrong"]) + 1
    assert result["edges"][0] == 0
    assert result["edges"][-1] >= bald.max(initial=0)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=40))
def test_extremes_are_disjoint_and_sorted(values):
    """At most twelve each, by descending BALD and by descending probability."""
    bald, certainty = np.array(values).reshape(-1, 2).T
    most, certain = metrics.extremes(bald, certainty)
    assert len(most) == min(12, (len(values) + 1) // 2)
    assert len(certain) == min(12, len(values) // 2)
    assert len({*most.tolist(), *certain.tolist()}) == len(most) + len(certain)
    assert bald[most].tolist() == sorted(bald, reverse=True)[: len(most)]
    others = np.setdiff1d(np.arange(len(values)), most)
    assert certainty[certain].tolist() == sorted(certainty[others], reverse=True)[: len(certain)]
