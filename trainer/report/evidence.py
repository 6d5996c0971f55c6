"""What a report is made of: everything that a run knows of the version it is about to publish."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.versions.manifest import Manifest
from trainer.evaluation.holdout import HeldOut
from trainer.labels.dataset import Pixels


@dataclass(frozen=True, slots=True)
class Evidence:
    """A version, the N images it was trained and measured on, and what it says of the V it was measured on."""

    manifest: Manifest
    """Complete but for the digests of the report's own files."""
    earlier: Sequence[Manifest]
    """Of versions of the same kind, oldest first."""
    origin: str
    """Where the labels come from, for people."""
    pixels: Pixels
    parts: HeldOut
    probabilities: npt.NDArray[np.float32]
    """Mean over the passes, not tempered: shape (V, C)."""
    bald: npt.NDArray[np.floating]
    """In nats, shape (V,)."""
    embeddings: npt.NDArray[np.float32] | None
    """Of what the frozen part of the network makes of each image, shape (N, E); rows of images that neither train nor
    validate mean nothing. None where no part was frozen."""
