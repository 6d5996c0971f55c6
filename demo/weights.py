"""What the demo's network starts from, and why: what is asked for, else weights of ImageNet's, which can always be had.

Knows where torchvision keeps and fetches its weights, and that those of EfficientNet-Lite0 are installed; fetches
nothing itself.
"""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from pathlib import Path

_REACHABLE_WITHIN_S = 5.0

# With weights the backbone is good as it is, and labels teach the head.
_VGG = ("--backbone", "vgg16", "--image-size", "96", "--train", "classifier")
_LITE0 = ("--backbone", "efficientnet_lite0", "--train", "classifier")
# Without, a smaller network learns everything from few and small images; batch normalisation makes that possible.
_FROM_SCRATCH = ("--backbone", "vgg11_bn", "--image-size", "32", "--train", "all", "--epochs", "14")


@dataclass(frozen=True, slots=True)
class Start:
    """Options for the trainer, and what to tell people about them."""

    options: tuple[str, ...]
    explanation: str


def choose_start(weights: str | None, backbone: str | None = None) -> Start:
    """Return how to train with what a person asks for, and with the best that can be had where they ask for nothing.

    Args:
        weights: "imagenet", "none", a file, or None.
        backbone: one of the trainer's, or None. It is trained as the trainer would.

    Raises:
        FileNotFoundError: `weights` or `backbone` names a file that is not there.
    """
    source = _absolute(weights) if weights else "imagenet"
    named = ("--weights", source)
    if backbone is not None:
        name = _absolute(backbone) if backbone.endswith(".onnx") else backbone
        return Start(("--backbone", name, *(named if weights else ())), f"{name}, as asked")
    if weights == "none":
        return Start((*named, *_FROM_SCRATCH), "none, as asked: a VGG-11 learns from the labels alone")
    if weights == "imagenet" or (weights is None and _vgg_can_be_had()):
        return Start((*named, *_VGG), "ImageNet: a VGG-16 whose head learns")
    if weights is not None:
        return Start((*named, *_VGG), f"{source}: a VGG-16 whose head learns")
    return Start(
        (*named, *_LITE0),
        "ImageNet: an EfficientNet-Lite0 whose head learns, since a VGG-16's weights cannot be fetched here "
        "(WEIGHTS=file starts from them)",
    )


def _absolute(name: str) -> str:
    return name if name in ("imagenet", "none") else str(Path(name).resolve(strict=True))


def _vgg_can_be_had() -> bool:
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
