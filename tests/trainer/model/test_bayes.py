import numpy as np
import pytest
import torch

from tests.trainer.small import small_network
from trainer.model import bayes

PASSES = 2000


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_passes_are_those_of_a_loop_over_the_head(multiple, monkeypatch):
    """In mean and deviation, image by image, however many a forward takes; of several labels they are sigmoids."""
    monkeypatch.setattr(bayes, "_ROWS_A_FORWARD", 2)
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(5, 64) * 3
    passes = bayes.sample_passes(
        network.head.train(), features, passes=PASSES, device=torch.device("cpu"), multiple=multiple
    )
    with torch.no_grad():
        logits = torch.stack([network.head(features) for _ in range(PASSES)], dim=1)
    expected = (logits.sigmoid() if multiple else logits.softmax(dim=2)).numpy()
    assert (passes.shape, passes.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(passes.mean(axis=1), expected.mean(axis=1), atol=0.03)
    np.testing.assert_allclose(passes.std(axis=1), expected.std(axis=1), atol=0.03)
    assert np.ptp(expected.mean(axis=1), axis=0).max() > 0.1
    assert passes.std(axis=1).min() > 0.01
