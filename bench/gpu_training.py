"""What `bench.gpu` measures of training: an epoch of all of VGG-16 in torch."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.frame import Row
from bench.gpu_parts import Setting
from bench.noise import coloured_noise
from server.settings import Device
from trainer.model.backbones import Opened
from trainer.model.build import build_head_of, open_backbone_of, sample_features
from trainer.model.fit import fit
from trainer.model.head import measure
from trainer.model.network import Network
from trainer.model.recipe import choose_recipe
from trainer.settings import Training

CLASSES = 10
_DIFFERENT = 32
"""Images of noise, which are repeated: how long an epoch takes does not depend on them."""
RATE = 1e-3
"""Too low to diverge in an epoch."""


def measure_training(setting: Setting) -> Row:
    """Time an epoch of VGG-16, all of it, behind one on a batch that warms up."""
    device = torch.device(setting.device.value)
    training = Training(weights="none", image_size=setting.sizes.image_size, epochs=1, learning_rate=RATE)
    torch.manual_seed(training.seed)
    opened = open_backbone_of(training, cache=Path())
    assert isinstance(opened, Opened)
    assert opened.module is not None
    head, _ = build_head_of(training, opened, classes=CLASSES)
    network = Network(opened.module, head).to(device)
    images = draw_images(setting.sizes.images, setting.sizes.image_size)
    targets = np.arange(len(images)) % CLASSES
    recipe = choose_recipe(training, "all", len(images))
    measure(head, sample_features(network.backbone, images, device=device))
    for count in (recipe.batch_images, len(images)):
        started = time.perf_counter()
        fitted = fit(
            network,
            torch.from_numpy(images[:count]),
            targets[:count],
            classes=CLASSES,
            recipe=recipe,
            device=device,
        )
        seconds = time.perf_counter() - started
    return {
        "images": len(images),
        "batch_images": recipe.batch_images,
        "attempts": fitted.attempts,
        "epoch_s": seconds / fitted.attempts,
        "images_per_s": len(images) * fitted.attempts / seconds,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if setting.device is Device.CUDA else None,
    }


def draw_images(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return so many images, uint8 (N, size, size, 3), the classes of which differ in colour."""
    different = coloured_noise(min(count, _DIFFERENT), size=size)
    tints = np.random.default_rng(0).integers(-60, 61, (CLASSES, 3)).astype(np.int16)
    images = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        images[number] = (different[number % len(different)] + tints[number % CLASSES]).clip(0, 255)
    return images
