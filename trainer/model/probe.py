"""The probe's numbers: what torch with baal computes on a few images, for engines to be held against."""

from itertools import count

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
    """Compute both references on the CPU, where the head is left: free-running passes and T under the version's masks.

    Images are (N, H, W, 3), features those of the backbone in float32, (N, F).
    """
    head.cpu().eval()
    rows = torch.from_numpy(features)
    cpu = torch.device("cpu")
    free = sample_passes(head, rows, passes=_REFERENCE_PASSES, device=cpu, multiple=multiple)  # (N, R, C)
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
    logits = []
    with torch.no_grad(), few_threads(head):
        for index in range(len(masks[mask_name(0)])):
            rows, sites = features, count()
            for layer in head:
                drops = isinstance(layer, ActiveDropout)
                rows = rows * torch.from_numpy(masks[mask_name(next(sites))][index]) if drops else layer(rows)
            logits.append(rows)
    return probabilities_of(torch.stack(logits, dim=2), multiple=multiple).numpy().transpose(0, 2, 1)  # (N, T, C)
