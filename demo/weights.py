"""What the demo's network starts from, and why: what is asked for, else what nobody has to wait for.

The weights of EfficientNet-Lite0 are installed with the trainer; VGG-16's are half a gigabyte to download.
"""

from dataclasses import dataclass
from pathlib import Path

# With weights the backbone is good as it is, and labels teach the head.
_VGG = ("--backbone", "vgg16", "--image-size", "96", "--train", "classifier")
# Its few images are not worth finding out whether 8-bit integers would do as well, which takes longer than they do.
_LITE0 = ("--backbone", "efficientnet_lite0", "--train", "classifier", "--precision", "fp32")
# Without, a smaller network learns everything from few and small images; batch normalisation makes that possible.
_FROM_SCRATCH = ("--backbone", "vgg11_bn", "--image-size", "32", "--train", "all", "--epochs", "14")


@dataclass(frozen=True, slots=True)
class Start:
    """Options for the trainer, and what to tell people about them."""

    options: tuple[str, ...]
    explanation: str


def choose_start(weights: str | None, backbone: str | None = None) -> Start:
    """Return how to train with what a person asks for, and with what is installed where they ask for nothing.

    Weights are "imagenet", "none" or a file. A backbone is one of the trainer's, and trained as the trainer would.

    Raises:
        FileNotFoundError: `weights` or `backbone` names a file that is not there.
    """
    source = _absolute(weights) if weights else "imagenet"
    named = ("--weights", source)
    if backbone is not None:
        name = _absolute(backbone) if backbone.endswith(".onnx") else backbone
        return Start(("--backbone", name, *(named if weights else ())), f"{name}, as asked")
    if weights == "none":
        return Start(
            (*named, *_FROM_SCRATCH), "a VGG-11 that starts from nothing, as asked, and learns from the labels alone"
        )
    if weights is None:
        return Start((*named, *_LITE0), "an EfficientNet-Lite0 made on ImageNet, whose head learns")
    return Start((*named, *_VGG), f"a VGG-16 that starts from {source}, whose head learns")


def _absolute(name: str) -> str:
    return name if name in ("imagenet", "none") else str(Path(name).resolve(strict=True))
