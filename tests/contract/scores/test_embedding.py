import numpy as np
import pytest

from contract.scores.embedding import EMBEDDING_SIZE, embed


def test_embeddings_are_unit_vectors():
    features = np.random.default_rng(0).exponential(3.0, (5, 4096)).astype(np.float32)
    features[2] = 0
    lengths = np.linalg.norm(embed(features), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 0, 1, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width", [128, 25088])
def test_distances_are_preserved(width):
    """Squared distances between the directions of square roots, to 9 % typically."""
    rng = np.random.default_rng(1)
    features = np.maximum(rng.normal(size=(40, width)), 0).astype(np.float32)
    unit = np.sqrt(features) / np.linalg.norm(np.sqrt(features), axis=1, keepdims=True)
    embedded = embed(features)
    assert embedded.shape == (40, EMBEDDING_SIZE)
    pairs = np.triu_indices(40, 1)

    def squared(rows):
        return ((rows[pairs[0]] - rows[pairs[1]]) ** 2).sum(axis=1)

    ratio = squared(embedded) / squared(unit)
    assert np.std(ratio) < 0.15
    assert np.abs(ratio - 1).max() < 0.6


def test_signs_are_preserved_and_last_selects_features():
    """Opposite features have opposite embeddings; `last` selects the last features."""
    features = np.random.default_rng(3).normal(size=(4, 96)).astype(np.float32)
    np.testing.assert_allclose(embed(-features), -embed(features), atol=1e-6)
    np.testing.assert_array_equal(embed(features, last=32), embed(features[:, 64:]))


def test_embedding_does_not_depend_on_the_batch():
    features = np.random.default_rng(2).normal(size=(7, 512)).astype(np.float32)
    np.testing.assert_allclose(embed(features)[3:4], embed(features[3:4]), atol=1e-6)
    assert embed(features).dtype == np.float32
