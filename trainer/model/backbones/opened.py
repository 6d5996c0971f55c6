"""What any backbone is once it is open: a fixed function from pixels to features, and where its weights came from."""

from dataclasses import dataclass

from onnx import ModelProto
from torch import nn

from contract.versions.manifest import InputSpec
from trainer.model.weights import Provenance

IMAGENET_SIZE = 224
"""Pixels a side that most networks were trained on."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A backbone: images uint8 (N, H, W, 3) RGB to features float32 (N, F), normalisation and pooling inside.

    Exactly one of `module` and `graph` is set.
    """

    name: str
    """Without folders: the networks' name, or the file's."""
    module: nn.Module | None
    """In evaluation mode, without Dropout, on the CPU."""
    graph: ModelProto | None
    """Input `images`, output `features` rounded to what float16 holds, opset `OPSET`, weights inside, no Dropout."""
    features: int
    """F: of one image."""
    channels: int
    """D: features are (D, cells) with the channel slowest; D = F where there is no map."""
    image_size: int
    """H and W."""
    mean: tuple[float, ...]
    """That normalisation subtracts from each channel, of values from 0 to 1."""
    deviation: tuple[float, ...]
    """That it divides them by then."""
    provenance: Provenance
    """Of the weights up to the features."""
    last_stage: int | None = None
    """How many of the features, the last ones, are of the last stage; None for all."""

    @property
    def spec(self) -> InputSpec:
        """Of the images."""
        return InputSpec(self.image_size, self.image_size)
