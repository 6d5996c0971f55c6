from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import isotonic_regression
from sklearn.metrics import auc

from tests.trainer.study.studies import change, make_study
from trainer.study.records import Reference
from trainer.study.statistics import (
    LOWER_IS_BETTER,
    MEASURES,
    areas,
    compare,
    label_ratio,
    labels_of,
    mean_curve,
    minority_share,
    reference_ratio,
    share_to_reach_zero,
    summarise,
    values_of,
)

heights = st.floats(0, 1, allow_subnormal=False)
curves = st.lists(st.tuples(st.integers(1, 500), heights), min_size=1, max_size=12)


def study_of(values, measure="minority_f1"):
    """Return a study with the given curves of a measure, (S, R), by strategy."""
    seeds, rounds = np.shape(next(iter(values.values())))
    study = make_study(strategies=list(values), seeds=seeds, rounds=rounds)
    return change(study, **{measure: lambda each: float(values[each.strategy][each.seed][each.round])})


@given(curves, heights)
def test_area_is_normalised_by_the_range_of_labels(points, constant):
    steps, values = zip(*points, strict=True)
    labels = np.cumsum(steps)
    expected = auc(labels, values) / (labels[-1] - labels[0]) if len(labels) > 1 else values[0]
    result = areas(labels, np.array([values, [constant] * len(labels)], float))
    assert result.tolist() == pytest.approx([expected, constant])


@given(curves, heights)
def test_share_to_reach_zero_is_the_first_crossing(points, target):
    """The interpolated curve is below the target before this number of labels."""
    steps, values = zip(*points, strict=True)
    labels = np.cumsum(steps).astype(float)
    result = share_to_reach_zero(labels, np.array(values) - target, of=1.0)
    grid = np.linspace(labels[0], labels[-1], num=2001)
    if result is None:
        assert max(values) < target
    else:
        assert np.interp(result, labels, values) >= target - 1e-9
        assert (np.interp(grid[grid < result - 1e-6], labels, values) <= target + 1e-9).all()


@pytest.mark.parametrize("seeds", [2, 5, 12])
def test_difference_interval_equals_the_paired_t_test(seeds):
    rng = np.random.default_rng(1)
    shared = rng.normal(0.5, 0.1, (seeds, 1))
    values = {name: shared + rng.normal(0, 0.02, (seeds, 3)) for name in ("random", "bald")}
    result = compare(study_of(values), "bald", "random", "minority_f1")
    ours, theirs = (areas(np.array([100, 200, 300]), values[name]) for name in ("bald", "random"))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert result.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.seeds == seeds


LABELS = 100.0 * np.arange(1, 10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.sampled_from(MEASURES))
def test_ratio_of_random_is_at_most_1(seed, seeds, rounds, measure):
    """Where its isotonic curve first reaches its final value; there is no interval."""
    values = np.random.default_rng(seed).random((seeds, rounds))
    result = label_ratio(study_of({"random": values}, measure), "random", measure)
    mean = values.mean(axis=0) * (-1 if measure in LOWER_IS_BETTER else 1)
    fitted = isotonic_regression(mean).x
    assert result.ratio == pytest.approx(share_to_reach_zero(LABELS[:rounds], fitted - mean[-1], of=LABELS[rounds - 1]))
    assert result.ratio <= 1
    assert (result.low, result.high) == (None, None)


def test_ratio_interval_is_where_the_paired_t_test_includes_zero():
    """On a fine grid of labels, with scipy's intervals interpolated between rounds."""
    rng = np.random.default_rng(3)
    values = {name: np.sort(rng.normal(np.linspace(0, top, 6), 0.1, (4, 6)), axis=1) for name, top in FINAL.items()}
    tests = [stats.ttest_rel(each, values["random"][:, -1]).confidence_interval(0.95) for each in values["margin"].T]
    grid = np.linspace(100, 600, 50_001)
    low, high = (np.interp(grid, LABELS[:6], [getattr(each, end) for each in tests]) for end in ("low", "high"))
    result = label_ratio(study_of(values), "margin", "minority_f1")
    assert result.low * 600 == pytest.approx(grid[high >= 0][0], abs=0.1)
    assert result.high * 600 == pytest.approx(grid[low < 0][-1], abs=0.1)


FINAL = {"random": 0.5, "margin": 1.5}
"""Final values of the curves."""


def test_ratio_interval_ends_at_the_last_uncertain_round():
    """It has no end if the final round is uncertain."""
    random = [[0.0, 0.1, 0.2, 0.3]] * 3
    certain, uncertain = [[0.9, 0.9, 0.9]], [[0.2, 0.9, 0.4]]
    ours = np.concatenate([[[0.0] * 3], certain, uncertain, certain]).T
    result = label_ratio(study_of({"random": random, "margin": ours}), "margin", "minority_f1")
    assert result.low < result.ratio < 0.5
    assert 0.75 < result.high < 1
    ours = np.concatenate([[[0.0] * 3], certain, certain, uncertain]).T
    assert label_ratio(study_of({"random": random, "margin": ours}), "margin", "minority_f1").high is None


def test_ratio_ignores_peaks():
    """The isotonic regression of 0, .6, 0, .6 is 0, .3, .3, .6; the interval includes the ratio read from it."""
    values = {"random": [[0.45] * 4] * 2, "margin": [[0.0, 0.6, 0.0, 0.6]] * 2}
    result = label_ratio(study_of(values), "margin", "minority_f1")
    assert result.ratio == pytest.approx(350 / 400)
    assert result.low <= result.ratio <= result.high
    assert result.most == 1


def test_reference_ratio_is_a_share_of_the_reference_labels():
    """The reference's mean of 0.4 with 200 labels is reached with 300; the interval is that of a t-test."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, (6, 5))
    values = np.linspace(0, 0.8, 5) + noise - noise.mean(axis=0)
    curves = ((0.1, 0.3), (0.1, 0.5))
    reference = Reference(source="a study", labels=(50, 200), macro_f1=curves, minority_f1=curves, accuracy=curves)
    study = replace(study_of({"margin": values}, "macro_f1"), reference=reference)
    result = reference_ratio(study, "margin", "macro_f1")
    assert (result.ratio, result.most) == pytest.approx((300 / 200, 500 / 200))
    tests = [stats.ttest_1samp(each, 0.4).confidence_interval(0.95) for each in values.T]
    ends = [[getattr(each, end) for each in tests] for end in ("high", "low")]
    low, high = (np.interp(0.4, end, LABELS[:5]) / 200 for end in ends)
    assert (result.low, result.high) == pytest.approx((low, high))


def test_without_random_comparisons_are_none():
    result = summarise(make_study(strategies=["margin"], seeds=3))["margin"]
    assert {name for name, value in result.items() if value is None} == {
        "minority_labels_random",
        *(name for name in result if name.endswith(("_vs_random", "_vs_reference"))),
    }


def test_summary_has_means_over_seeds():
    study = make_study(seeds=3, rounds=4)
    result = summarise(study)
    assert [*result] == list(study.runs)
    ends, random = ([run[-1] for run in study.runs[name]] for name in ("margin", "random"))
    margin = result["margin"]
    assert margin["ece_final"] == pytest.approx(np.mean([each.ece for each in ends]))
    for name, rounds in (("minority_labels", ends), ("minority_labels_random", random)):
        assert margin[name] == pytest.approx(np.mean([sum(each.labels_by_class[-3:]) for each in rounds]))
    assert margin["aulc_nll_vs_random"] == compare(study, "margin", "random", "nll")
    labels, values = labels_of(study), values_of(study, "margin", "nll")
    assert margin["aulc_nll"] == pytest.approx(areas(labels, values).mean())


def test_seconds_exclude_the_last_round():
    """It selects nothing."""
    for rounds, seconds in ((4, (0.18, 9.05)), (1, (0, 0))):
        result = summarise(make_study(strategies=["margin"], seeds=2, rounds=rounds))["margin"]
        assert (result["choose_s"], result["score_s"]) == pytest.approx(seconds)


def test_curves_have_means_and_standard_errors():
    study = make_study(strategies=["bald"], seeds=4, rounds=3)
    result = mean_curve(study, "bald", "macro_f1")
    values = values_of(study, "bald", "macro_f1")
    assert values.tolist() == [[each.macro_f1 for each in run] for run in study.runs["bald"]]
    assert result.labels.tolist() == [100, 200, 300]
    np.testing.assert_allclose(result.mean, np.mean(values, axis=0))
    np.testing.assert_allclose(result.error, stats.sem(values, axis=0))
    assert not mean_curve(make_study(strategies=["bald"], seeds=1), "bald", "macro_f1").error.any()
    shares = [[sum(each.labels_by_class[-3:]) / each.labels for each in run] for run in study.runs["bald"]]
    np.testing.assert_allclose(minority_share(study, "bald").mean, np.mean(shares, axis=0))
