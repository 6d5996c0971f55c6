"""The network in torch, for training all of it: a backbone that ends in a rounding, and a head."""

from typing import cast

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.settings import Device


class Round(nn.Module):
    """Rounds features to what float16 holds, so that they can be kept in it and are the same afterwards.

    While the backbone is trained nothing is rounded, for gradients would be.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the rounded features, float32."""
        return features if self.training else features.half().float()


class Network(nn.Module):
    """uint8 (N, H, W, 3) RGB images of one size to logits (N, C) of one stochastic pass."""

    def __init__(self, backbone: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.backbone = nn.Sequential(backbone, Round())
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of one stochastic pass."""
        return cast(Tensor, self.head(self.backbone(images)))


def choose_device(device: Device) -> torch.device:
    """Return the device to train on; `auto` is a GPU where there is one, and `cuda` without one a ConfigError."""
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return torch.device("cuda" if found and device != "cpu" else "cpu")
