import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import auc

from tests.trainer.study.studies import make_study
from trainer.study.statistics import (
    LOWER_IS_BETTER,
    MEASURES,
    LeftOut,
    area,
    compare,
    complete_chains,
    label_ratio,
    labels_to_reach,
    left_out,
    mean_curve,
    minority_share,
    summarise,
    to_json,
)

heights = st.floats(0, 1, allow_subnormal=False)
curves = st.lists(st.tuples(st.integers(1, 500), heights), min_size=2, max_size=12)


def put(study, measure, values):
    """Return a study whose chains have these values of a measure, by strategy and seed."""
    return replace(
        study,
        rounds=tuple(
            replace(each, **{measure: float(values[each.strategy][each.seed][each.round])}) for each in study.rounds
        ),
    )


def study_of(values, measure="minority_f1", **arguments):
    """Return a study of curves of one measure: strategy to (S, R)."""
    seeds, rounds = np.shape(next(iter(values.values())))
    return put(make_study(strategies=list(values), seeds=seeds, rounds=rounds, **arguments), measure, values)


@given(curves)
def test_the_area_is_that_of_the_trapezoids(points):
    """scikit-learn has the same, before the division by the range."""
    steps, values = zip(*points, strict=True)
    labels = np.cumsum(steps)
    assert area(labels, values) == pytest.approx(auc(labels, values) / (labels[-1] - labels[0]))


@given(curves, heights, st.floats(0.1, 100))
def test_the_area_is_a_mean_height(points, constant, scale):
    """That of a constant is the constant, it lies between the extremes, and other units of labels change nothing."""
    steps, values = zip(*points, strict=True)
    labels = np.cumsum(steps)
    assert area(labels, [constant] * len(labels)) == pytest.approx(constant)
    assert min(values) - 1e-12 <= area(labels, values) <= max(values) + 1e-12
    assert area(scale * labels, values) == pytest.approx(area(labels, values))


def test_the_area_of_a_point_is_its_height():
    """A study of the initial set alone has figures too."""
    assert area([100], [0.4]) == 0.4


@pytest.mark.parametrize(("labels", "values"), [([], []), ([1, 2], [0.1]), ([2, 1], [0.1, 0.2]), ([[1]], [[0.1]])])
def test_the_area_wants_a_curve(labels, values):
    """What is none is refused, with what came."""
    with pytest.raises(ValueError, match=r"labels (and values must be of one length|must not fall)"):
        area(labels, values)


@given(curves, heights)
def test_a_target_is_reached_where_a_fine_grid_first_is_there(points, target):
    """Interpolated at many points, the curve is below the target before and not below it at that number of labels."""
    steps, values = zip(*points, strict=True)
    labels = np.cumsum(steps).astype(float)
    found = labels_to_reach(labels, np.array([values]), np.array([target]))[0]
    grid = np.linspace(labels[0], labels[-1], num=2001)
    if math.isinf(found):
        assert max(values) < target
    else:
        assert np.interp(found, labels, values) >= target - 1e-9
        assert (np.interp(grid[grid < found - 1e-6], labels, values) <= target + 1e-9).all()


def test_a_target_is_reached_on_the_line_between_two_rounds():
    """Halfway up from 100 to 200 labels is 150; the initial set counts, and what never comes is infinite."""
    labels = np.array([100.0, 200.0, 400.0])
    values = np.array([[0.0, 0.5, 0.7], [0.3, 0.1, 0.5], [0.0, 0.1, 0.2], [0.0, 0.25, 0.0]])
    found = labels_to_reach(labels, values, np.array([0.25, 0.3, 0.25, 0.25]))
    assert found.tolist() == [150.0, 100.0, math.inf, 200.0]


def test_the_interval_is_that_of_every_resample():
    """Of three seeds there are 27, which a nested loop finds too."""
    values = np.random.default_rng(0).random((2, 3, 4))
    study = study_of({"random": values[0], "margin": values[1]})
    labels = [each.labels for each in study.chain("random", 0)]
    differences = [area(labels, ours) - area(labels, theirs) for theirs, ours in zip(*values, strict=True)]
    means = [np.mean(each) for each in itertools.product(differences, repeat=3)]
    found = compare(study, "margin", "random", "minority_f1")
    assert found.seeds == 3
    assert found.mean == pytest.approx(np.mean(differences))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


@pytest.mark.parametrize("seeds", [5, 12])
def test_the_interval_is_that_of_scipy(seeds):
    """Its percentile bootstrap of the differences draws, ours has all of five seeds: they differ by the draw."""
    rng = np.random.default_rng(1)
    shared = rng.normal(0.5, 0.1, (seeds, 1))
    study = study_of(
        {"random": shared + rng.normal(0, 0.02, (seeds, 3)), "bald": shared + rng.normal(0, 0.02, (seeds, 3))}
    )
    found = compare(study, "bald", "random", "minority_f1")
    chains = complete_chains(study)
    labels = mean_curve(chains["random"], "minority_f1").labels
    differences = [
        area(labels, [each.minority_f1 for each in chains["bald"][seed]])
        - area(labels, [each.minority_f1 for each in chains["random"][seed]])
        for seed in range(seeds)
    ]
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=50_000, rng=0)
    spread = np.std(differences)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * spread)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * spread)
    assert found == compare(study, "bald", "random", "minority_f1")


def test_what_seeds_share_does_not_widen_the_interval():
    """A seed that is easy for both strategies is so in both terms of its difference."""
    shared = np.array([[0.1], [0.5], [0.9]]) * np.ones((3, 4))
    found = compare(study_of({"random": shared, "margin": shared + 0.05}), "margin", "random", "minority_f1")
    assert (found.low, found.mean, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.sign == 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from(MEASURES))
def test_a_difference_turned_round_changes_its_sign(seed, seeds, measure):
    """And nothing else: the interval of one is that of the other, mirrored."""
    values = np.random.default_rng(seed).random((2, seeds, 3))
    study = study_of({"bald": values[0], "margin": values[1]}, measure)
    there, back = (compare(study, *pair, measure) for pair in (("bald", "margin"), ("margin", "bald")))
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.low <= there.mean <= there.high
    assert there.sign == -back.sign


def test_a_single_seed_has_no_interval():
    """Nor can it tell a difference from chance."""
    study = make_study(strategies=["random", "margin"], seeds=1)
    found = compare(study, "margin", "random", "macro_f1")
    assert (found.low, found.high, found.seeds, found.sign) == (None, None, 1, 0)
    ratio = label_ratio(study, "margin", "macro_f1")
    assert 0 < ratio.ratio < 1
    assert (ratio.low, ratio.high) == (None, None)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.sampled_from(MEASURES))
def test_random_needs_all_of_randoms_labels(seed, seeds, rounds, measure):
    """Its ratio to itself is 1 whatever its curve, and so are both ends of the interval."""
    found = label_ratio(
        study_of({"random": np.random.default_rng(seed).random((seeds, rounds))}, measure), "random", measure
    )
    assert found.ratio == 1
    assert (found.low, found.high) == ((None, None) if seeds == 1 else (1, 1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from(MEASURES))
def test_who_is_never_worse_needs_no_more_labels(seed, seeds, measure):
    """A curve that dominates random's has a ratio of at most 1, over all of its interval."""
    rng = np.random.default_rng(seed)
    values = rng.random((seeds, 5))
    better = values + rng.random((seeds, 5)) * (-1 if measure in LOWER_IS_BETTER else 1)
    found = label_ratio(study_of({"random": values, "margin": better}, measure), "margin", measure)
    assert found.ratio <= 1
    assert seeds == 1 or found.low <= found.high <= 1


def test_the_ratio_is_that_of_two_crossings():
    """Random ends at 0.4 with 500 labels; the other is there halfway between its second and third round."""
    values = {"random": [[0.0, 0.1, 0.2, 0.3, 0.4]] * 2, "margin": [[0.0, 0.3, 0.5, 0.6, 0.7]] * 2}
    found = label_ratio(study_of(values), "margin", "minority_f1")
    assert found.ratio == pytest.approx(250 / 500)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_where_random_was_as_high_before_its_end_it_is_held_against_that():
    """A peak of random's is no merit of the others: those that go along with it need as many labels."""
    values = {"random": [[0.0, 0.2, 0.5, 0.4, 0.3]], "same": [[0.0, 0.2, 0.5, 0.4, 0.3]]}
    study = study_of(values)
    assert label_ratio(study, "same", "minority_f1").ratio == 1


def test_the_interval_of_the_ratio_takes_both_curves_from_a_resample():
    """As does a loop over all resamples of four seeds; an end that is never reached is None."""
    rng = np.random.default_rng(3)
    values = {"random": np.sort(rng.random((4, 4)), axis=1), "margin": np.sort(rng.random((4, 4)), axis=1)}
    study = study_of(values)
    labels = np.array([each.labels for each in study.chain("random", 0)], float)
    ratios = []
    for seeds in itertools.product(range(4), repeat=4):
        random, ours = (values[name][list(seeds)].mean(axis=0) for name in values)
        needed = [labels_to_reach(labels, each[None], random[-1:])[0] for each in (ours, random)]
        ratios.append(needed[0] / needed[1])
    expected = [each if math.isfinite(each) else None for each in np.sort(ratios)[[6, 249]]]
    found = label_ratio(study, "margin", "minority_f1")
    assert [found.low, found.high] == pytest.approx(expected)


def test_who_never_gets_there_has_no_ratio():
    """None says so, at either end of the interval as well."""
    study = study_of({"random": [[0.1, 0.5]] * 3, "margin": [[0.1, 0.4]] * 3})
    found = label_ratio(study, "margin", "minority_f1")
    assert (found.ratio, found.low, found.high) == (None, None, None)


def test_what_is_not_a_number_is_reached_by_nobody():
    """A model that diverged leaves its study without a ratio in NLL, and without a warning."""
    study = study_of({"random": [[1.0, np.nan]] * 2, "margin": [[1.0, 0.5]] * 2}, "nll")
    found = label_ratio(study, "margin", "nll")
    assert (found.ratio, found.low, found.high) == (None, None, None)


def test_a_difference_that_chance_explains_has_no_sign():
    """However large its mean is."""
    values = {"random": np.zeros((3, 2)), "margin": np.array([[0.9], [0.9], [-0.9]]) * np.ones((3, 2))}
    found = compare(study_of(values), "margin", "random", "minority_f1")
    assert found.mean == pytest.approx(0.3)
    assert found.sign == 0


def test_chains_that_have_not_ended_do_not_count():
    """Nor do those that random has and another strategy has not; pairs are of the seeds that both have."""
    study = make_study(strategies=["random", "margin", "bald"], seeds=4, rounds=5)
    lost = {("margin", 2, 4), ("random", 0, 4)}
    rounds = tuple(
        each
        for each in study.rounds
        if (each.strategy, each.seed, each.round) not in lost and (each.strategy, each.seed) != ("bald", 3)
    )
    cut = replace(study, rounds=rounds)
    assert left_out(cut) == (LeftOut("random", 0, 4), LeftOut("margin", 2, 4), LeftOut("bald", 3, 0))
    assert {name: list(chains) for name, chains in complete_chains(cut).items()} == {
        "random": [1, 2, 3],
        "margin": [0, 1, 3],
        "bald": [0, 1, 2],
    }
    assert compare(cut, "margin", "random", "nll").seeds == 2
    assert label_ratio(cut, "bald", "macro_f1").seeds == 2
    kept = replace(study, rounds=tuple(each for each in study.rounds if each.seed in {1, 3}))
    assert compare(cut, "margin", "random", "nll") == compare(kept, "margin", "random", "nll")


def test_a_round_that_is_missing_in_the_middle_breaks_a_chain():
    """Its end alone does not make it whole."""
    study = make_study(strategies=["random", "margin"], seeds=2, rounds=5)
    holed = replace(
        study, rounds=tuple(each for each in study.rounds if (each.strategy, each.seed, each.round) != ("margin", 1, 2))
    )
    assert left_out(holed) == (LeftOut("margin", 1, 4),)


def test_the_order_of_rounds_changes_no_figure():
    """Chains that run side by side end in any order."""
    study = make_study(strategies=["random", "margin"], seeds=3, rounds=4)
    turned = replace(study, rounds=study.rounds[::-1])
    assert {each.strategy: each for each in summarise(study)} == {each.strategy: each for each in summarise(turned)}


def test_without_random_there_is_nothing_to_compare_with():
    """All else is there; what random would be needed for is None."""
    (found,) = summarise(make_study(strategies=["margin"], seeds=3))
    assert found.differences["accuracy"] is None
    assert found.label_ratios["minority_f1"] is None
    assert found.minority_labels_random is None
    assert found.areas["accuracy"] > 0


def test_a_study_without_a_round_is_refused():
    """The message says which study that is."""
    with pytest.raises(ValueError, match="cifar10-lt holds no round"):
        summarise(replace(make_study(seeds=1), rounds=()))


def test_the_summary_is_of_means_over_seeds():
    """In the order of the strategies, each figure as numpy has it from the rounds."""
    study = make_study(seeds=3, rounds=4)
    summaries = summarise(study)
    assert [each.strategy for each in summaries] == list(study.strategies)
    found = next(each for each in summaries if each.strategy == "margin")
    ends = [each for each in study.rounds if each.strategy == "margin" and each.round == 3]
    random = [each for each in study.rounds if each.strategy == "random" and each.round == 3]
    assert found.final["ece"] == pytest.approx(np.mean([each.ece for each in ends]))
    assert found.minority_labels == pytest.approx(np.mean([sum(each.labels_by_class[-3:]) for each in ends]))
    assert found.minority_labels_random == pytest.approx(np.mean([sum(each.labels_by_class[-3:]) for each in random]))
    assert found.differences["nll"] == compare(study, "margin", "random", "nll")


def test_seconds_are_of_the_rounds_that_choose():
    """The last round chooses nothing, and does not make the others look faster."""
    (found,) = summarise(make_study(strategies=["margin"], seeds=2, rounds=4))
    assert found.choose_s == pytest.approx(0.18)
    assert found.score_s == pytest.approx(9.05)
    (alone,) = summarise(make_study(strategies=["margin"], seeds=2, rounds=1))
    assert (alone.choose_s, alone.score_s) == (0, 0)


def test_the_summaries_are_json():
    """With the figures that are asked for first by name, and None for what is not a number."""
    study = make_study(strategies=["random", "margin"], seeds=2, rounds=3)
    broken = replace(
        study, rounds=tuple(replace(each, nll=math.nan if each.strategy == "margin" else 1.0) for each in study.rounds)
    )
    document = json.loads(json.dumps(to_json(summarise(broken)), allow_nan=False))
    assert document["random"]["label_ratio_vs_random"] == document["random"]["label_ratio_macro_f1"] == 1
    assert document["margin"]["aulc_nll"] is None
    assert document["margin"]["aulc_nll_vs_random"]["mean"] is None
    found = summarise(study)[1]
    assert document["margin"]["aulc_macro_f1"] == found.areas["macro_f1"]
    assert document["margin"]["minority_f1_final"] == found.final["minority_f1"]
    assert document["margin"]["label_ratio_vs_random"] == found.label_ratios["minority_f1"].ratio
    assert document["margin"]["aulc_minority_f1_vs_random"]["seeds"] == 2


def test_the_mean_curve_is_of_the_chains_values():
    """With scipy's standard error; a single chain has none."""
    chains = complete_chains(make_study(strategies=["bald"], seeds=4, rounds=3))["bald"]
    found = mean_curve(chains, "macro_f1")
    values = [[each.macro_f1 for each in chain] for chain in chains.values()]
    assert found.labels.tolist() == [100, 200, 300]
    np.testing.assert_allclose(found.mean, np.mean(values, axis=0))
    np.testing.assert_allclose(found.error, stats.sem(values, axis=0))
    assert not mean_curve({0: chains[0]}, "macro_f1").error.any()


def test_chains_with_other_labels_meet_on_a_common_grid():
    """A mean of lines is exact at the labels of all of them."""
    study = make_study(strategies=["bald"], seeds=2, rounds=3)
    given = {0: (100, 200, 300), 1: (100, 250, 320)}
    study = replace(study, rounds=tuple(replace(each, labels=given[each.seed][each.round]) for each in study.rounds))
    found = mean_curve(complete_chains(study)["bald"], "accuracy")
    first, second = ([each.accuracy for each in study.chain("bald", seed)] for seed in (0, 1))
    assert found.labels.tolist() == [100, 200, 250, 300]
    expected = [np.interp(found.labels, given[seed], each) for seed, each in enumerate((first, second))]
    np.testing.assert_allclose(found.mean, np.mean(expected, axis=0))


def test_the_minority_share_is_of_all_labels():
    """Counted from the classes of the labels."""
    study = make_study(strategies=["labelnext"], seeds=1, rounds=3)
    found = minority_share(complete_chains(study)["labelnext"], study.minority)
    expected = [sum(each.labels_by_class[-3:]) / each.labels for each in study.rounds]
    np.testing.assert_allclose(found.mean, expected)
