import numpy as np

from trainer.ordering.directions import to_directions


def test_directions_are_relative_to_the_mean():
    pool = np.array([[1, 0], [3, 0], [2, 0], [2, 4], [2, -4]], np.float32)
    np.testing.assert_allclose(to_directions(pool, pool), [[-1, 0], [1, 0], [0, 0], [0, 1], [0, -1]], atol=1e-6)
    other = np.array([[1, 1]], np.float32)
    np.testing.assert_allclose(to_directions(other, pool), [[-(0.5**0.5), 0.5**0.5]], atol=1e-6)
