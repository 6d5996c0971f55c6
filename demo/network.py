"""The network of the demo, by default one whose weights need no download.

The weights of EfficientNet-Lite0 are installed with the trainer; those of VGG-16 are a download of half a gigabyte.
"""

from dataclasses import dataclass
from pathlib import Path

# With pretrained weights only the head is trained.
_VGG = ("--backbone", "vgg16", "--image-size", "96", "--train", "classifier")
# For a few hundred images, comparing int8 with fp32 takes longer than it saves.
_LITE0 = ("--backbone", "efficientnet_lite0", "--train", "classifier", "--precision", "fp32")
# Without weights, a smaller network with batch normalisation learns from few small images.
_FROM_SCRATCH = ("--backbone", "vgg11_bn", "--image-size", "32", "--train", "all", "--epochs", "14")


@dataclass(frozen=True, slots=True)
class Network:
    """Options for the trainer, and a description for the user."""

    options: tuple[str, ...]
    description: str


def choose_network(weights: str | None, backbone: str | None = None) -> Network:
    """Return the network for weights or a backbone; without either, the one that is installed.

    Weights are "imagenet", "none" or a file; a backbone is any backbone of the trainer.

    Raises:
        FileNotFoundError: `weights` or `backbone` names a file that does not exist.
    """
    source = _absolute(weights) if weights else "imagenet"
    named = ("--weights", source)
    if backbone is not None:
        name = _absolute(backbone) if backbone.endswith(".onnx") else backbone
        return Network(("--backbone", name, *(named if weights else ())), name)
    if weights == "none":
        return Network((*named, *_FROM_SCRATCH), "VGG-11 with random weights; all layers are trained")
    if weights is None:
        return Network((*named, *_LITE0), "EfficientNet-Lite0 with weights imagenet; only its head is trained")
    return Network((*named, *_VGG), f"VGG-16 with weights {source}; only its head is trained")


def _absolute(name: str) -> str:
    return name if name in ("imagenet", "none") else str(Path(name).resolve(strict=True))
