import numpy as np
import torch

from tests.trainer.small import small_network
from trainer.model.bayes import sample_passes

CPU = torch.device("cpu")


def test_passes_of_several_labels_are_sigmoids():
    """The mean of many passes of an image is that of a plain loop over the head."""
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(5, 32) * 3
    passes = sample_passes(network.head, features, passes=2000, device=CPU, multiple=True)
    with torch.no_grad():
        expected = torch.stack([network.head(features).sigmoid() for _ in range(2000)]).mean(dim=0)
    assert passes.shape == (5, 2000, 3)
    np.testing.assert_allclose(passes.mean(axis=1), expected.numpy(), atol=0.03)
    assert np.abs(passes.sum(axis=2) - 1).max() > 0.1


def test_passes_are_probabilities_that_differ_from_pass_to_pass():
    """Shape (N, T, C), every row a distribution, whatever the number of images a forward takes."""
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(70, 32) * 3
    passes = sample_passes(network.head, features, passes=20, device=CPU)
    assert passes.shape == (70, 20, 3)
    assert passes.dtype == np.float32
    np.testing.assert_allclose(passes.sum(axis=2), 1, rtol=1e-5)
    assert np.ptp(passes, axis=1).max() > 0.05


def test_passes_belong_to_their_images():
    """The mean of many passes of an image is that of a plain loop over the head."""
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(5, 32) * 3
    passes = sample_passes(network.head, features, passes=2000, device=CPU)
    with torch.no_grad():
        expected = torch.stack([network.head(features).softmax(dim=1) for _ in range(2000)]).mean(dim=0)
    np.testing.assert_allclose(passes.mean(axis=1), expected.numpy(), atol=0.03)
    assert np.abs(expected.numpy()[0] - expected.numpy()[1]).max() > 0.1
