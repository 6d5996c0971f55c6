import numpy as np
import pytest
import torch

from contract.errors import ConfigError
from trainer.model.network import Round, choose_device


def test_features_are_rounded_to_float16_but_for_training():
    """Numpy's float16 is the reference; gradients are to flow through what is trained."""
    features = torch.randn(3, 50) * 100
    rounding = Round()
    np.testing.assert_array_equal(rounding.eval()(features), features.numpy().astype(np.float16).astype(np.float32))
    torch.testing.assert_close(rounding.train()(features), features, rtol=0, atol=0)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")
