import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances

from contract.scores.acquisition import softmax
from trainer.ordering.badge import draw, logit_gradients
from trainer.ordering.directions import squared_lengths, to_directions


def factors(images, *, classes=4, numbers=6, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = softmax(3 * rng.normal(size=(images, classes))).astype(np.float32)
    pool = rng.random((images, numbers), np.float32)
    return logit_gradients(probabilities, multiple=False), to_directions(pool, pool)


def test_gradient_embedding_is_the_gradient_of_the_last_layer():
    import torch

    rng = np.random.default_rng(0)
    hidden, layer = torch.tensor(rng.normal(size=5)), torch.nn.Linear(5, 3, dtype=torch.float64)
    logits = layer(hidden)
    torch.nn.functional.cross_entropy(logits, logits.argmax()).backward()
    probabilities = logits.softmax(0).detach().numpy()[None].astype(np.float32)
    expected = np.outer(logit_gradients(probabilities, multiple=False)[0], hidden.numpy())
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, atol=1e-6)


def test_logit_gradients_of_multiple_labels():
    gradients = logit_gradients(np.array([[0.7, 0.5, 0.2]], np.float32), multiple=True)
    np.testing.assert_allclose(gradients, [[-0.3, -0.5, 0.2]], atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=40)
def test_draw_equals_k_means_pp_on_outer_products(seed, images, count):
    """The longest comes first, and there are no duplicates."""
    first, second = factors(images, seed=seed)
    outer = np.einsum("ic,ie->ice", first, second).reshape(images, -1).astype(np.float64)
    between = pairwise_distances(outer) ** 2
    chosen = draw(first, second, count=count, purpose="x")
    assert len(chosen) == len(set(chosen.tolist())) <= min(count, images)
    if not len(chosen):
        assert not count or not squared_lengths(outer.astype(np.float32)).any()
        return
    assert (outer**2).sum(axis=1)[chosen[0]] == pytest.approx((outer**2).sum(axis=1).max())
    for place in range(1, len(chosen)):
        assert between[chosen[place], chosen[:place]].min() > 1e-9


def test_draw_probability_is_proportional_to_squared_distance():
    """Images at distances 1, 2 and 3 from the first one are drawn with probabilities 1/14, 4/14 and 9/14."""
    first, second = np.array([[10], [9], [8], [7]], np.float32), np.ones((4, 1), np.float32)
    seconds = [draw(first, second, count=2, purpose=str(number))[1] for number in range(3000)]
    shares = np.bincount(seconds, minlength=4) / 3000
    np.testing.assert_allclose(shares, [0, 1 / 14, 4 / 14, 9 / 14], atol=0.03)
