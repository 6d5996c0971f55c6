import pytest
import torch
from torch import nn

from contract.errors import ConfigError
from trainer.model.build import build_head_for, choose_device, open_backbone_for
from trainer.settings import Training


def test_rejects_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")


@pytest.mark.slow
def test_vgg_head_fits_the_features_of_its_convolutions(tmp_path):
    training = Training(weights="none", image_size=32, backbone="vgg11", head="vgg")
    backbone = open_backbone_for(training, cache=tmp_path)
    head, _ = build_head_for(training, backbone, classes=3)
    layers = [layer.out_features for layer in head if isinstance(layer, nn.Linear)]
    assert (backbone.features, layers) == (512, [4096, 4096, 3])
