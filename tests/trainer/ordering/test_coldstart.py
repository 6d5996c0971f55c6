import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances

from contract.scores.holdout import is_held_out
from trainer.ordering.coldstart import arrange, cover


def clusters(rng, sizes, *, spread=0.2, size=16):
    """Return embeddings of clusters of the given sizes, and their cluster indices."""
    centres = rng.normal(size=(len(sizes), size))
    members = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centres[members] + spread * rng.normal(size=(len(members), size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), members


def test_each_cluster_gets_one_of_the_first_places():
    """The largest cluster first."""
    embeddings, members = clusters(np.random.default_rng(0), [200, 100, 50, 25])
    first = cover(embeddings, batch_size=4, seed=0)[:4]
    np.testing.assert_array_equal(members[first], np.arange(4))


def test_chooses_typical_images():
    embeddings, members = clusters(np.random.default_rng(0), [100, 100, 100])
    for index in cover(embeddings, batch_size=3, seed=0)[:3]:
        others = embeddings[members == members[index]]
        distances = pairwise_distances(others).mean(axis=1)
        assert pairwise_distances(embeddings[[index]], others).mean() <= np.quantile(distances, 0.1)


@given(st.integers(0, 60), st.integers(0, 80), st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=40)
def test_order_is_a_permutation(images, batch_size, before_holdout, seed):
    """It is deterministic."""
    embeddings = np.random.default_rng(seed).normal(size=(images, 8)).astype(np.float32)
    options = {"project": seed, "holdout_share": 0.1, "before_holdout": before_holdout, "batch_size": batch_size}
    arrangement, again = (arrange(np.arange(images), embeddings, **options) for _ in range(2))
    np.testing.assert_array_equal(np.sort(arrangement.order), np.arange(images))
    np.testing.assert_array_equal(arrangement.order, again.order)
    assert ((arrangement.scores >= 0) & (arrangement.scores <= 1)).all()


def test_equal_images_form_one_cluster():
    embeddings = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    order = cover(embeddings, batch_size=10, seed=0)
    assert sorted(order[:3] // 20) == [0, 1, 2]
    np.testing.assert_array_equal(np.sort(order), np.arange(60))


def test_arrangement_covers_the_pool_and_has_a_random_holdout():
    """The holdout has its places, scores are evenly spaced, and the order of the tasks does not matter."""
    embeddings, members = clusters(np.random.default_rng(0), [80, 60, 40, 20])
    task_ids = np.random.default_rng(1).permutation(1000)[:200]
    options = {"project": 3, "holdout_share": 0.1, "before_holdout": 20, "batch_size": 4}
    arrangement = arrange(task_ids, embeddings, **options)
    np.testing.assert_array_equal(arrangement.held_out, is_held_out(3, task_ids, 0.1))
    assert np.flatnonzero(arrangement.held_out[arrangement.order])[:3].tolist() == [25, 35, 45]
    assert set(members[arrangement.order[:4]]) == {0, 1, 2, 3}
    assert {arrangement.reasons[i] for i in arrangement.order[:4]} == {"covers an unlabelled part of the pool"}
    assert {arrangement.reasons[i] for i in arrangement.order[4:25]} == {"chosen at random"}
    assert {arrangement.reasons[i] for i in np.flatnonzero(arrangement.held_out)} == {"random holdout"}
    np.testing.assert_allclose(arrangement.scores[arrangement.order], (np.arange(200) + 0.5) / 200)
    np.testing.assert_array_equal(arrangement.representative, np.arange(200))
    shuffle = np.random.default_rng(2).permutation(200)
    other = arrange(task_ids[shuffle], embeddings[shuffle], **options)
    np.testing.assert_array_equal(task_ids[arrangement.order], task_ids[shuffle][other.order])
    np.testing.assert_array_equal(arrangement.scores[shuffle], other.scores)


def test_rejects_repeated_tasks_and_non_finite_embeddings():
    ones = np.ones((3, 8), np.float32)
    options = {"project": 3, "holdout_share": 0.1, "before_holdout": 0, "batch_size": 2}
    with pytest.raises(ValueError, match="task 1 occurs 2 times"):
        arrange(np.array([0, 1, 1]), ones, **options)
    with pytest.raises(ValueError, match="the embedding of task 0 is not finite"):
        arrange(np.arange(3), ones * np.array([[np.nan], [1], [1]], np.float32), **options)
