"""Features: what is computed once per image, by the part of the network that is not trained."""

import math
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainer.model.network import Network
from trainer.progress_bar import Bar
from trainer.settings import Part

_IMAGES_A_FORWARD = 32


def prepare(
    network: Network, images: npt.NDArray[np.uint8], *, part: Part, device: torch.device
) -> tuple[nn.Module, Tensor]:
    """Return what is to be trained for a part, and its inputs for images uint8 (N, H, W, 3).

    What lies before it is computed here, once, and stays as it is.
    """
    pixels = torch.from_numpy(images)
    if part == "all":
        if network.standardise:
            network.standardise.measure(_sample_features(network.backbone, pixels, device=device))
        return network, pixels
    features = compute_features(network.backbone, pixels, device=device, title="features")
    return prepare_frozen(network, features, part=part, image_size=images.shape[1], device=device)


def prepare_frozen(
    network: Network, features: Tensor, *, part: Part, image_size: int, device: torch.device
) -> tuple[nn.Module, Tensor]:
    """Do as `prepare` does, from what the backbone computes on the images, float32 (N, F); it stays as it is."""
    if part == "classifier":
        if network.standardise:
            network.standardise.measure(features)
        return network.classifier, features
    if network.standardise:  # a backbone that is to survive retrains cannot depend on which images are labelled by now
        stand_in = torch.from_numpy(coloured_noise(_IMAGES_A_FORWARD, size=image_size))
        network.standardise.measure(compute_features(network.backbone, stand_in, device=device, title="scale"))
    return network.head, compute_features(network.neck, features, device=device, title="neck")


def coloured_noise(count: int, *, size: int) -> npt.NDArray[np.uint8]:
    """Return images, uint8 (count, size, size, 3), that are always the same and as rough at each scale as photos are.

    Noise whose amplitude falls as one over the frequency, after Field 1987 (doi 10.1364/JOSAA.4.002379): for measuring
    how large a network's features are without any image of a user's.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)  # (size, size // 2 + 1)
    white = rng.standard_normal((count, 3, size, size))
    planes = np.fft.irfft2(np.fft.rfft2(white) * falloff, s=(size, size))
    planes /= planes.std(axis=(2, 3), keepdims=True)
    return (128 + 50 * planes).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def compute_features(module: nn.Module, inputs: Tensor, *, device: torch.device, title: str) -> Tensor:
    """Return what a deterministic module computes on inputs (N, ...): (N, ...) on the CPU, with a bar."""
    module.eval()
    chunks = []
    with torch.no_grad(), Bar(total=len(inputs), desc=title, unit="image") as bar:
        for chunk in torch.split(inputs, _IMAGES_A_FORWARD):
            chunks.append(module(chunk.to(device)).cpu())
            bar.update(len(chunk))
    return torch.cat(chunks)


def _sample_features(backbone: nn.Module, pixels: Tensor, *, device: torch.device) -> Tensor:
    """Return the features of some images as training will meet them, under batch normalisation of their own."""
    backbone.train()
    every = math.ceil(len(pixels) / _IMAGES_A_FORWARD)
    with torch.no_grad():
        return cast(Tensor, backbone(pixels[::every].to(device)).cpu())
