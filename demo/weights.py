"""Which weights the demo's network starts from, and why: what is asked for, else ImageNet's where they can be had.

Knows where torchvision keeps and fetches its weights; fetches nothing itself.
"""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from pathlib import Path

_REACHABLE_WITHIN_S = 5.0

# With weights the convolutions are good as they are, and labels teach the linear layers.
_PRETRAINED = ("--backbone", "vgg16", "--image-size", "96", "--train", "classifier", "--epochs", "20")
# Without, a smaller network learns everything from few and small images; batch normalisation makes that possible.
_FROM_SCRATCH = ("--backbone", "vgg11_bn", "--image-size", "32", "--train", "all", "--epochs", "14")


@dataclass(frozen=True, slots=True)
class Start:
    """Options for the trainer, and what to tell people about them."""

    options: tuple[str, ...]
    explanation: str


def choose_start(weights: str | None) -> Start:
    """Return how to train with `weights`: "imagenet", "none", a file, or None for the best that can be had.

    Raises:
        FileNotFoundError: `weights` names a file that is not there.
    """
    if weights == "none":
        return Start(("--weights", "none", *_FROM_SCRATCH), "none, as asked: a VGG-11 learns from the labels alone")
    if weights not in (None, "imagenet"):
        path = Path(weights).resolve(strict=True)
        return Start(("--weights", str(path), *_PRETRAINED), f"{path}: a VGG-16 whose linear layers learn")
    if weights == "imagenet" or _imagenet_can_be_had():
        return Start(("--weights", "imagenet", *_PRETRAINED), "ImageNet: a VGG-16 whose linear layers learn")
    return Start(
        ("--weights", "none", *_FROM_SCRATCH),
        "none, since torchvision's ImageNet weights cannot be fetched here: a VGG-11 learns from the labels alone "
        "(WEIGHTS=file starts from a VGG-16's)",
    )


def _imagenet_can_be_had() -> bool:
    from torch import hub
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    if (Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).exists():
        return True
    try:
        # As torch fetches them, so that proxies count alike.
        with urllib.request.urlopen(  # noqa: S310  # the address is torchvision's
            urllib.request.Request(url, method="HEAD"),  # noqa: S310  # as above
            timeout=_REACHABLE_WITHIN_S,
        ) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
