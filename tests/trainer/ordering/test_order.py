import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.scores.acquisition import label_studio_score
from contract.scores.holdout import holdout_order, is_held_out
from tests.trainer.candidates import make_candidates, make_passes
from trainer.ordering.order import arrange, interleave, places_before_holdout
from trainer.ordering.reasons import UNTICKED
from trainer.ordering.strategies import STRATEGIES

OPTIONS = {"strategy": "balanced-bald-margin", "project": 3, "name": "v1", "holdout_share": 0.1, "batch_size": 20}


def arranged(candidates, *, passes=None, **options):
    options = {**OPTIONS, "labels_by_class": [7] * candidates.probabilities.shape[1], **options}
    return arrange(candidates, passes=None if passes is None else lambda indices: passes[indices], **options)


def sharpen(passes, rng, *, multiple):
    """Return probabilities (N, T, C) sharpened slightly, by a random amount per image."""
    by = 1 + 0.02 * rng.random((len(passes), 1, 1))
    powers = passes.astype(np.float64) ** by
    others = powers + (1.0 - passes) ** by if multiple else powers.sum(axis=2, keepdims=True)
    return (powers / others).astype(np.float32)


def pool(images, *, seed=0, classes=4, copies=1, multiple=False):
    """Return candidates with `copies` near-copies of each image, and their passes."""
    rng = np.random.default_rng(seed)
    passes = make_passes(rng, images=-(-images // copies), classes=classes, multiple=multiple)
    passes = sharpen(passes.repeat(copies, axis=0)[:images], rng, multiple=multiple)
    directions = rng.normal(size=(-(-images // copies), 256)).repeat(copies, axis=0)[:images]
    embeddings = directions + 0.2 * rng.normal(size=directions.shape)
    return make_candidates(passes, rng, embeddings=embeddings, multiple=multiple), passes


def agreement(candidates):
    """Return the scores that a server returns."""
    classes = candidates.probabilities.shape[1]
    return label_studio_score(candidates.bald.astype(np.float64), classes, multiple=candidates.multiple)


@st.composite
def pools(draw):
    """Pools of 0 to 80 images, with or without copies, multiple labels and equal scores; and a strategy."""
    images = draw(st.integers(0, 80))
    candidates, passes = pool(
        images,
        seed=draw(st.integers(0, 2**32 - 1)),
        classes=draw(st.integers(2, 5)),
        copies=draw(st.integers(1, 5)),
        multiple=draw(st.booleans()),
    )
    equal = draw(st.sampled_from([None, 0.0, 0.25, 10.0]))
    if equal is not None:
        candidates.bald[draw(st.integers(0, images)) :] = equal
    names = [name for name in STRATEGIES if not (candidates.multiple and name == "batch-bald")]
    return candidates, passes, draw(st.sampled_from(names))


@pytest.mark.slow
@given(pools(), st.floats(0, 0.9), st.booleans(), st.integers(0, 100))
@settings(max_examples=60)
def test_arrangement_is_consistent(given_pool, share, duplicates, batch_size):
    candidates, passes, strategy = given_pool
    arrangement = arranged(
        candidates, passes=passes, strategy=strategy, holdout_share=share, duplicates=duplicates, batch_size=batch_size
    )
    count = len(candidates.task_ids)
    np.testing.assert_array_equal(np.sort(arrangement.order), np.arange(count))
    scores = arrangement.scores[arrangement.order]
    assert (np.diff(scores) > 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores, np.sort(agreement(candidates)), atol=1e-6)
    assert len(arrangement.reasons) == count
    assert all(arrangement.reasons)


def test_unticked_tasks_come_first():
    candidates, _ = pool(40)
    plain = arranged(candidates, holdout_share=0.1)
    unticked = candidates.task_ids[plain.order[[30, 12, 7]]]
    arrangement = arranged(candidates, holdout_share=0.1, unticked=[*unticked.tolist(), 10**9])
    queue = [place for place in plain.order if not plain.held_out[place]]
    first = [place for place in queue if candidates.task_ids[place] in unticked]
    assert [place for place in arrangement.order if not arrangement.held_out[place]] == [
        *first,
        *(place for place in queue if place not in first),
    ]
    assert {arrangement.reasons[place] for place in first} == {UNTICKED}
    assert UNTICKED not in {arrangement.reasons[place] for place in queue if place not in first}


@pytest.mark.slow
@given(pools(), st.floats(0, 0.9), st.integers(0, 7))
@settings(max_examples=40)
def test_random_holdout_has_fixed_places(given_pool, share, labels):
    """In random order; below five labels per class it has none.

    Holdout images have no representative, and late ones represent none.
    """
    candidates, passes, strategy = given_pool
    classes = candidates.probabilities.shape[1]
    arrangement = arranged(
        candidates, passes=passes, strategy=strategy, holdout_share=share, labels_by_class=[labels] * classes
    )
    start = places_before_holdout(len(candidates.task_ids), labels=labels * classes, classes=classes)
    np.testing.assert_array_equal(arrangement.held_out, is_held_out(3, candidates.task_ids, share))
    places = np.flatnonzero(arrangement.held_out[arrangement.order])
    drawn = holdout_order(3, candidates.task_ids[arrangement.order[places]])
    assert (np.diff(drawn) > 0).all()
    expected = interleave(
        np.ones(arrangement.held_out.sum(), int), np.zeros((~arrangement.held_out).sum(), int), share, start=start
    )
    np.testing.assert_array_equal(places, np.flatnonzero(expected))
    own = np.arange(len(arrangement.order))
    np.testing.assert_array_equal(arrangement.representative[arrangement.held_out], own[arrangement.held_out])
    later = arrangement.order[places[math.ceil(max(0, OPTIONS["batch_size"] - start) * share) :]]
    assert not np.isin(arrangement.representative[~arrangement.held_out], later).any()


@pytest.mark.slow
@given(pools(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_arrangement_is_independent_of_input_order(given_pool, random):
    candidates, passes, strategy = given_pool
    shuffle = np.array(random.sample(range(len(candidates.task_ids)), len(candidates.task_ids)), np.int64)
    shuffled = candidates.take(shuffle)
    one = arranged(candidates, passes=passes, strategy=strategy)
    other = arranged(shuffled, passes=passes[shuffle], strategy=strategy)
    np.testing.assert_array_equal(candidates.task_ids[one.order], shuffled.task_ids[other.order])
    np.testing.assert_array_equal(one.scores[shuffle], other.scores)
    assert [one.reasons[i] for i in shuffle] == list(other.reasons)
    tasks = candidates.task_ids[one.representative][shuffle]
    np.testing.assert_array_equal(tasks, shuffled.task_ids[other.representative])


@pytest.mark.parametrize("strategy", ["bald", "balanced-cover"])
def test_near_duplicates_come_behind_all_others(strategy):
    candidates, _ = pool(200, copies=4)
    arrangement = arranged(candidates, strategy=strategy, holdout_share=0)
    claimed = arrangement.representative != np.arange(200)
    assert claimed.sum() == 150
    assert not claimed[arrangement.order[:50]].any()
    np.testing.assert_array_equal(arrangement.representative // 4, np.arange(200) // 4)
    for index in np.flatnonzero(claimed):
        assert (
            arrangement.reasons[index]
            == f"near-duplicate of task {candidates.task_ids[arrangement.representative[index]]}"
        )
    if strategy == "bald":
        assert (candidates.bald <= candidates.bald[arrangement.representative]).all()
        for part in (arrangement.order[:50], arrangement.order[50:]):
            assert (np.diff(candidates.bald[part]) <= 0).all()


def test_near_duplicates_can_be_kept_in_place():
    candidates, _ = pool(200, copies=4)
    arrangement = arranged(candidates, strategy="bald", holdout_share=0, duplicates=False)
    np.testing.assert_array_equal(arrangement.order, np.lexsort((candidates.task_ids, -candidates.bald)))
    np.testing.assert_array_equal(arrangement.representative, np.arange(200))
    np.testing.assert_allclose(arrangement.scores, agreement(candidates), atol=1e-6)


def test_near_duplicates_of_early_holdout_images_move_back():
    """Those of later ones do not: held-out images must not keep all similar images from training."""
    candidates, _ = pool(200, copies=2)
    arrangement = arranged(candidates, holdout_share=0.3)
    holdout = arrangement.order[arrangement.held_out[arrangement.order]]
    early = holdout[: math.ceil(0.3 * OPTIONS["batch_size"])]
    twins = np.arange(200) ^ 1
    moved_back = arrangement.representative != np.arange(200)
    alone = np.setdiff1d(
        np.flatnonzero(arrangement.held_out), twins[arrangement.held_out]
    )  # whose twins are not held out
    assert np.isin(alone, early).any()
    np.testing.assert_array_equal(moved_back[twins[alone]], np.isin(alone, early))
    np.testing.assert_array_equal(
        arrangement.representative[twins[np.intersect1d(alone, early)]], np.intersect1d(alone, early)
    )
    neither = ~arrangement.held_out & ~arrangement.held_out[twins]
    assert moved_back[neither].sum() == neither.sum() / 2


def test_reasons_name_the_rare_class():
    candidates, _ = pool(300, classes=3)
    arrangement = arranged(candidates, holdout_share=0.0, labels_by_class=[90, 80, 2], labels=("car", "van", "bike"))
    assert any("bike has few labels" in reason for reason in arrangement.reasons)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "best"}, ConfigError, r"must be one of .*balanced-cover, .*'best'"),
        ({"holdout_share": 1.0}, ConfigError, "below 1"),
        ({"strategy": "batch-bald"}, ValueError, "needs the passes"),
    ],
)
def test_rejects_invalid_options(options, error, message):
    candidates, _ = pool(10)
    with pytest.raises(error, match=message):
        arranged(candidates, **options)


@pytest.mark.parametrize(
    ("labels", "classes", "images", "places"),
    [
        (0, 6, 5000, 30),
        (29, 6, 5000, 1),
        (30, 6, 5000, 0),
        (1000, 6, 5000, 0),
        (0, 1000, 5000, 500),
        (480, 1000, 5000, 20),
        (0, 1000, 600, 120),
        (100, 1000, 500, 20),
    ],
)
def test_holdout_waits_while_labels_are_few(labels, classes, images, places):
    """Up to five labels per class, at most 500, and at most a fifth of the images."""
    assert places_before_holdout(images, labels=labels, classes=classes) == places


@given(st.integers(0, 60), st.integers(0, 200), st.floats(0.01, 0.99), st.integers(0, 30))
def test_interleave_spaces_the_holdout_evenly(slice_size, other_size, share, start):
    merged = interleave(1000 + np.arange(slice_size), np.arange(other_size), share, start=start)
    np.testing.assert_array_equal(merged[merged >= 1000], 1000 + np.arange(slice_size))
    np.testing.assert_array_equal(merged[merged < 1000], np.arange(other_size))
    while_others_last = np.flatnonzero(merged < 1000).max(initial=-1) + 1
    last = np.flatnonzero(merged >= 1000).max(initial=-1) + 1
    places = np.arange(1, len(merged) + 1)
    seen, even = np.cumsum(merged >= 1000), share * np.maximum(places - start, 0)
    assert not (seen[:start] > 0)[:while_others_last].any()
    assert (seen <= even + 1)[:while_others_last].all()
    assert (seen >= even - 1)[: min(while_others_last, last)].all()
