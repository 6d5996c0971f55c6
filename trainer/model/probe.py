"""The probe's numbers: what torch with baal computes on a few images, for engines to be held against."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from contract.graph.masks import Masks, draw_masks, mask_name
from contract.graph.probe import Probe
from contract.versions.manifest import DropoutSite
from trainer.model.bayes import ActiveDropout, probabilities_of, sample_passes
from trainer.model.threads import few_threads

PROBE_IMAGES = 16
_REFERENCE_PASSES = 500
"""Enough to tell a Dropout that drops too little from chance."""


def compute_probe(
    head: nn.Sequential,
    images: npt.NDArray[np.uint8],
    features: npt.NDArray[np.float32],
    *,
    version: str,
    sites: tuple[DropoutSite, ...],
    passes: int,
    multiple: bool = False,
) -> Probe:
    """Compute both references on the CPU: free-running passes and passes under masks.

    Args:
        head: left there, and in evaluation mode.
        images: (N, H, W, 3).
        features: of the images by the backbone in float32, (N, F).
        version: its name, which decides the masks.
        sites: the head's Dropouts.
        passes: T.
        multiple: whether several labels may hold of an image.
    """
    head.cpu().eval()
    rows = torch.from_numpy(features)
    free = sample_passes(
        head, rows, passes=_REFERENCE_PASSES, device=torch.device("cpu"), multiple=multiple
    )  # (N, R, C)
    return Probe(
        images=images,
        features=features,
        passes=_REFERENCE_PASSES,
        mean=free.mean(axis=1),
        variance=free.var(axis=1, ddof=1),
        masked_probabilities=masked_passes(head, rows, draw_masks(version, sites, passes), multiple=multiple),
    )


def masked_passes(
    head: nn.Sequential, features: Tensor, masks: Masks, *, multiple: bool = False
) -> npt.NDArray[np.float32]:
    """Run a head once per mask, each Dropout replaced by its product with the mask: features (N, F) to (N, T, C)."""
    passes = len(masks[mask_name(0)])
    with torch.no_grad(), few_threads(head):
        logits = [_masked_pass(head, features, masks, index) for index in range(passes)]
    return probabilities_of(torch.stack(logits, dim=2), multiple=multiple).numpy().transpose(0, 2, 1)  # (N, T, C)


def _masked_pass(head: nn.Sequential, features: Tensor, masks: Masks, index: int) -> Tensor:
    rows, site = features, 0
    for module in head:
        if isinstance(module, ActiveDropout):
            rows = rows * torch.from_numpy(masks[mask_name(site)][index])
            site += 1
        else:
            rows = module(rows)
    return rows
