import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.ordering.covering import choose, draw, neighbour_distances


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(vector, others):
    return min((1 - float(vector @ other) for other in others), default=2.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 5), st.integers(0, 35))
@settings(max_examples=60)
def test_choose_maximises_squared_distance_over_neighbour_distance(seed, images, known, count):
    """The distance to the nearest labelled or chosen image, checked by brute force."""
    rng = np.random.default_rng(seed)
    vectors, labelled = unit(rng.normal(size=(images, 4))), unit(rng.normal(size=(known, 4)))
    neighbours = rng.random(images) + 0.1
    chosen = choose(vectors, labelled, neighbours, count=count).tolist()
    assert len(set(chosen)) == len(chosen) == min(count, images)
    before = [*labelled]
    for place, index in enumerate(chosen):
        values = {i: nearest(vectors[i], before) ** 2 / neighbours[i] for i in set(range(images)) - set(chosen[:place])}
        assert values[index] >= max(values.values()) * (1 - 1e-4)
        before.append(vectors[index])


def test_copies_of_labelled_images_are_not_chosen():
    """They have distance 0."""
    vectors = unit(np.random.default_rng(0).normal(size=(20, 8)))
    copies = vectors.repeat(3, axis=0)
    ones = np.ones(60)
    for chosen in (choose(copies, vectors[:5], ones, count=60), draw(ones, copies, vectors[:5], count=60, purpose="x")):
        assert sorted(set((chosen // 3).tolist()) - set(range(5))) == list(range(5, 20))
        assert len(chosen) < 25  # rounding may leave a copy at a distance


def test_draw_probability_depends_on_weight_and_distance():
    """Distances 1, 0.5 and 0.5 with weights 1, 1 and 2 give probabilities 16/19, 1/19 and 2/19."""
    half = [0.5, np.sqrt(0.75), 0]
    vectors = np.array([[0, 0, 1], half, half], np.float32)
    labelled = np.array([[1, 0, 0]], np.float32)
    weights = np.array([1.0, 1.0, 2.0])
    drawn = [draw(weights, vectors, labelled, count=1, purpose=str(number))[0] for number in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, [16 / 19, 1 / 19, 2 / 19], atol=0.02)


def test_clusters_come_before_outliers():
    rng = np.random.default_rng(0)
    crowd, group = (rng.normal(centre, 0.2, (20, 4)) for centre in ([5, 0, 0, 0], [0, 5, 0, 0]))
    vectors = unit(np.concatenate([crowd, group, [[0, 0, 5, 0]]]))
    chosen = choose(vectors, vectors[:1], neighbour_distances(vectors), count=2)
    assert 20 <= chosen[0] < 40
    assert choose(vectors, vectors[:1], np.ones(41), count=2).tolist() != chosen.tolist()


def test_neighbour_distance_is_the_mean_of_the_nearest_ten():
    """The mean includes the image itself; it is above 0 for copies, and uses fewer neighbours in a small pool."""
    vectors = unit(np.random.default_rng(0).normal(size=(60, 8)))
    distances = np.sort(1 - vectors @ vectors.T, axis=1)
    np.testing.assert_allclose(neighbour_distances(vectors), distances[:, :11].mean(axis=1), atol=1e-5)
    assert (neighbour_distances(np.ones((20, 1), np.float32)) > 0).all()
    np.testing.assert_allclose(
        neighbour_distances(vectors[:3]), 1 - (vectors[:3] @ vectors[:3].T).mean(axis=1), atol=1e-5
    )


def test_accepts_an_empty_pool():
    vectors, weights = np.empty((0, 4), np.float32), np.empty(0)
    assert not len(choose(vectors, vectors, neighbour_distances(vectors), count=3))
    assert not len(draw(weights, vectors, vectors, count=3, purpose="x"))
