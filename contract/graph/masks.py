"""The dropout masks of a version: the same in every process, and balanced over the passes.

The bits come straight from Philox (Salmon et al. 2011, doi 10.1145/2063384.2063405) under a key derived from version,
site and pass, and are compared as integers: the same masks on every machine and with every release of numpy.

Balanced means that each unit is on in (1 - p) T of the T passes, up to the rounding of that number, which is random and
unbiased. Every pass by itself then still drops each unit independently with probability p, as dropout does; only passes
among each other are dependent, and what is linear in the masks cancels in their mean. T such passes rank images as more
than T independent ones do, at no cost (docs/decisions/0006-balanced-masks.md).
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

MOST_MASK_BYTES: Final = 2**30
"""Of a version's masks together; 20 passes of a VGG-16 take 0.7 MB."""

_BITS = 2.0**64


def mask_name(site: int) -> str:
    """Return the name of the input that takes the masks of a Dropout site."""
    return f"mask_{site}"


def draw_masks(version: str, sites: Sequence[DropoutSite], passes: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the masks of a version for T passes: input name to float32 (T, *features), each 0 or 1 / (1 - p).

    Raises:
        LoweringError: if they would take more than `MOST_MASK_BYTES`.
    """
    needed = 4 * passes * sum(math.prod(site.features) for site in sites)
    if needed > MOST_MASK_BYTES:
        raise LoweringError(
            f"{passes} passes over {len(sites)} Dropout sites take {needed} bytes of masks, at most {MOST_MASK_BYTES} "
            "are drawn; take fewer passes, or drop features further down in the network"
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
    """Keep each unit in the passes of its highest bits: (T, units) and (units,) to (T, units)."""
    passes = len(bits)
    whole, rest = divmod((1 - probability) * passes, 1)
    counts = int(whole) + (rounding < np.uint64(rest * _BITS))  # (units,): in how many passes each is on
    rising = np.sort(bits.T, axis=1)  # (units, T)
    least = rising[np.arange(len(counts)), np.minimum(passes - counts, passes - 1)]
    kept: npt.NDArray[np.bool_] = (bits >= least) & (counts > 0)
    return kept
