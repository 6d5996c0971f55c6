import numpy as np
import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from tests.trainer.small import small_network
from trainer.model import bayes
from trainer.model.bayes import activate_dropout

PASSES = 2000


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_sampled_passes_are_distributed_like_a_loop_over_the_head(multiple, monkeypatch):
    monkeypatch.setattr(bayes, "_BATCH_ROWS", 2)
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


@pytest.mark.parametrize("dropout", [nn.Dropout1d(), nn.Dropout2d(), nn.AlphaDropout(), nn.Dropout(0.0)])
def test_rejects_missing_inactive_and_unsupported_dropout(dropout):
    with pytest.raises(TrainingError, match=r"with 0 < p < 1, got 1 \("):
        activate_dropout(nn.Sequential(nn.Dropout(0.5), dropout))
    with pytest.raises(TrainingError, match="has no Dropout"):
        activate_dropout(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(("units", "threads"), [(10, 1), (2000, 3)], ids=["small", "large"])
def test_small_modules_run_in_one_thread(units, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with bayes.one_thread_if_small(nn.Linear(1000, units)):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
