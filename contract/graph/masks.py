"""The dropout masks of a version: equal in every process, and balanced over the passes.

The bits come from Philox (Salmon et al. 2011, doi 10.1145/2063384.2063405), keyed by version, site and pass, and are
compared as integers, so that masks are the same on every machine and with every release of numpy.

Balanced means that each unit is kept in (1 - p) T of the T passes, with unbiased random rounding. Within a pass units
are still dropped independently with probability p; only passes depend on each other, and terms that are linear in the
masks cancel in the mean. T such passes rank images as well as more than T independent ones, at no cost
(docs/decisions/0006-balanced-masks.md).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import LoweringError
from contract.versions.manifest import DropoutSite

Masks = Mapping[str, npt.NDArray[np.float32]]

MAX_MASK_BYTES: Final = 2**30
"""Size of all masks of a version; 20 passes of a VGG-16 take 0.7 MB."""

_BITS = 2.0**64


def mask_name(site: int) -> str:
    """Return the graph input for the masks of a Dropout site."""
    return f"mask_{site}"


def draw_masks(version: str, sites: Sequence[DropoutSite], passes: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the masks of a version for T passes: input name to float32 (T, *features), each 0 or 1 / (1 - p).

    Raises:
        LoweringError: if they would exceed `MAX_MASK_BYTES`.
    """
    needed = 4 * passes * sum(math.prod(site.features) for site in sites)
    if needed > MAX_MASK_BYTES:
        raise LoweringError(
            f"{passes} passes over {len(sites)} Dropout sites need {needed} bytes of masks, at most {MAX_MASK_BYTES} "
            "are allowed; use fewer passes, or Dropout on smaller features"
        )
    masks = {}
    for i, site in enumerate(sites):
        units = math.prod(site.features)
        bits = np.stack([_philox(version, i, t).random_raw(units) for t in range(passes)])  # (T, units)
        kept = _balance(bits, _philox(version, i, passes).random_raw(units), site.probability)
        scale = np.float32(1.0 / (1.0 - site.probability))
        masks[mask_name(i)] = np.where(kept, scale, np.float32(0)).reshape(passes, *site.features)
    return masks


def _philox(version: str, site: int, index: int) -> np.random.Philox:
    digest = hashlib.sha256(f"{version}/{site}/{index}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def _balance(
    bits: npt.NDArray[np.uint64], rounding: npt.NDArray[np.uint64], probability: float
) -> npt.NDArray[np.bool_]:
    """Keep each unit in the passes with its highest bits: (T, units) and (units,) to (T, units)."""
    passes = len(bits)
    whole, fraction = divmod((1 - probability) * passes, 1)
    counts = int(whole) + (rounding < np.uint64(fraction * _BITS))  # (units,): passes that keep the unit
    rising = np.sort(bits.T, axis=1)  # (units, T)
    threshold = rising[np.arange(len(counts)), np.minimum(passes - counts, passes - 1)]
    kept: npt.NDArray[np.bool_] = (bits >= threshold) & (counts > 0)
    return kept
