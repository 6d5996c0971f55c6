import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as reference_matrix
from sklearn.metrics import precision_recall_fscore_support

from trainer.evaluation.holdout import as_decisions
from trainer.report import metrics

LABELS = ("a", "b", "c", "d")
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def decisions(pairs):
    return tuple(as_decisions(np.array(column), len(LABELS)) for column in zip(*pairs, strict=True))


def describe(true, predicted):
    return metrics.by_class(LABELS, labelled=true, trained_on=true, true=true, predicted=predicted)


@given(PAIRS)
def test_the_confusion_matrix_is_that_of_scikit_learn(pairs):
    true, predicted = decisions(pairs)
    expected = reference_matrix(*zip(*pairs, strict=True), labels=range(len(LABELS)))
    np.testing.assert_array_equal(metrics.confusion_matrix(true, predicted), expected)


@given(PAIRS)
def test_precision_recall_and_f1_are_those_of_scikit_learn(pairs):
    """Where it has to make one up, ours is None."""
    true, predicted = decisions(pairs)
    expected = precision_recall_fscore_support(true, predicted, zero_division=np.nan)
    for each, precision, recall, f1, support in zip(describe(true, predicted), *expected, strict=True):
        assert each.validated == support
        for found, reference in ((each.precision, precision), (each.recall, recall), (each.f1, f1)):
            assert (found is None) == np.isnan(reference)
            assert found is None or found == pytest.approx(reference)


def test_a_class_counts_where_its_images_went():
    labelled, trained_on, true, predicted = (
        as_decisions(np.array(each), 4) for each in ([0, 0, 0, 1, 1], [0, 0, 1], [0, 1], [1, 1])
    )
    found = metrics.by_class(LABELS, labelled=labelled, trained_on=trained_on, true=true, predicted=predicted)
    assert found[0] == metrics.ClassMetrics("a", 3, 2, 1, 0, 0, precision=None, recall=0.0, f1=0.0)
    assert found[1] == metrics.ClassMetrics("b", 2, 1, 1, 2, 1, precision=0.5, recall=1.0, f1=2 / 3)


def test_the_weakest_class_and_what_is_confused_most_come_first():
    """Classes without a figure come last; of equally weak ones, the one with more images says more."""
    true, predicted = decisions([(0, 0), (1, 2), (2, 1), (2, 1), (2, 1)])
    assert [each.label for each in metrics.weakest_first(describe(true, predicted))] == ["c", "b", "a", "d"]
    true, predicted = decisions([(0, 0), (1, 2), (2, 1), (2, 1), (0, 3)])
    first, *others = metrics.confusions(metrics.confusion_matrix(true, predicted))
    assert first == (2, 1, 2)
    assert {*others} == {(1, 2, 1), (0, 3, 1)}


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60))
def test_every_image_is_in_the_histogram_once(images):
    bald, right = np.array([each for each, _ in images]), np.array([each for _, each in images], bool)
    found = metrics.histogram(bald, right)
    assert (sum(found.right), sum(found.wrong)) == (right.sum(), (~right).sum())
    assert len(found.edges) == len(found.right) + 1 == len(found.wrong) + 1
    assert found.edges[0] == 0
    assert found.edges[-1] >= bald.max(initial=0)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=40))
def test_no_image_is_both_uncertain_and_certain(values):
    """At most twelve of either, by falling BALD and by falling probability: agreement at 27 % is not certain."""
    bald, certainty = np.array(values).reshape(-1, 2).T
    most, certain = metrics.extremes(bald, certainty)
    assert len(most) == min(12, (len(values) + 1) // 2)
    assert len(certain) == min(12, len(values) // 2)
    assert len({*most.tolist(), *certain.tolist()}) == len(most) + len(certain)
    assert bald[most].tolist() == sorted(bald, reverse=True)[: len(most)]
    others = np.setdiff1d(np.arange(len(values)), most)
    assert certainty[certain].tolist() == sorted(certainty[others], reverse=True)[: len(certain)]
