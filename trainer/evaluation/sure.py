"""From which margin on labels may be confirmed in bulk: so that enough of them are right, which is tested, not hoped.

Evidence are images of the random holdout that people labelled: none of them was trained on, and chance drew each from
the pool. Margins are gone through from the surest down, in steps that were fixed before any label is looked at: those
at which one more label may be wrong. The first step that fails ends it (fixed-sequence testing: Angelopoulos et al.
2021, Learn then Test, arXiv 2110.01052), so that the whole search errs as rarely as one test does. Each test is exact:
the lower end of the interval of Clopper and Pearson (1934) must reach the precision that is asked for.

What was confirmed under earlier versions stays in the sample, with the label that it was confirmed with. The easy
images are gone from the pool by then; measured on all of the holdout they would vouch for those that are left.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ERROR_RATE: Final = 0.025
"""How often a margin may be accepted whose labels are right less often than is asked for: the lower half of what an
interval of 95 % leaves out. Versions are tested one after the other, mostly on the same images: over ten of a project
it comes to about 0.05."""
_FIRST_STEP: Final = 1 / 3
"""Share of the sample that the first step covers at most: the more images it is about, the more of them may be wrong,
and the less does a single one end the search. By their number alone, so that no label has a say."""
_MOST_GROWTH: Final = 1000.0
_HALVINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Sample:
    """N images of the random holdout that people labelled, none trained on, and what a version says of each."""

    margins: Floats
    """(N,)"""
    right: Bools
    """(N,): whether what is predicted is what people said."""
    confirmed: int = 0
    """Further images that would have been confirmed under earlier versions, were they not held out."""
    confirmed_wrong: int = 0
    """How many of these with a wrong label."""

    @property
    def images(self) -> int:
        """All images."""
        return len(self.margins) + self.confirmed


@dataclass(frozen=True, slots=True)
class Evidence:
    """A margin that was accepted, and what for: images from it on, and confirmed before, so many of them wrong."""

    least_margin: float
    images: int
    wrong: int
    low: float
    """The lower end of the interval of the share that is right."""


def lower_bound(images: int, wrong: int, *, error_rate: float = ERROR_RATE) -> float:
    """Return the lower end of the one-sided interval of Clopper and Pearson of the share of images that is right."""
    if not 0 <= wrong <= images:
        raise ValueError(f"expected at least 0 and at most {images} wrong of {images} images, got {wrong}")
    # As scipy.stats.beta.ppf has it, which takes fifty times as long, and to import half the start of a ranking.
    return float(special.betaincinv(images - wrong, wrong + 1, error_rate)) if wrong < images else 0.0


def min_images(wrong: int, precision: float, *, error_rate: float = ERROR_RATE) -> int:
    """Return the fewest images of which so many may be wrong for `lower_bound` to reach a precision in (0, 1)."""
    reach = partial(lower_bound, wrong=wrong, error_rate=error_rate)
    most = 2 * wrong + 2
    while reach(most) < precision:
        most *= 2
    return wrong + bisect_left(range(wrong, most), precision, key=reach)


def find_margin(sample: Sample, precision: float, *, error_rate: float = ERROR_RATE) -> Evidence | None:
    """Return the lowest margin from which on `precision` of the labels are right, but as often as `error_rate` says."""
    falling = np.argsort(-sample.margins, kind="stable")
    margins, wrong = sample.margins[falling], np.cumsum(~sample.right[falling])
    found = None
    for step in steps(sample.images, precision, error_rate=error_rate):
        if step <= sample.confirmed:
            continue
        least = float(margins[step - sample.confirmed - 1])
        count = int(np.searchsorted(-margins, -least, side="right"))  # those of the same margin belong to it
        images, errors = sample.confirmed + count, sample.confirmed_wrong + int(wrong[count - 1])
        low = lower_bound(images, errors, error_rate=error_rate)
        if low < precision:
            break
        found = Evidence(least, images, errors, low)
    return found


@lru_cache(maxsize=16)
def steps(images: int, precision: float, *, error_rate: float = ERROR_RATE) -> tuple[int, ...]:
    """Return how many of a sample's images each step is about, rising: at each one more wrong label may be."""
    found = [min_images(0, precision, error_rate=error_rate)]
    while found[-1] <= images:
        found.append(min_images(len(found), precision, error_rate=error_rate))
    small = [step for step in found if step <= _FIRST_STEP * images]
    return tuple(step for step in found[max(0, len(small) - 1) :] if step <= images)


def images_needed(sample: Sample, precision: float) -> int:
    """Return how many more images would probably do, should further ones be right as often as those so far are.

    That is the fewest with which some margin would pass if as large a share of them came to lie beyond it, and as large
    a share of these was wrong. At least 1.
    """
    least = min_images(0, precision)
    falling = np.argsort(-sample.margins, kind="stable")
    counts = sample.confirmed + np.arange(1.0, len(falling) + 1)
    wrong = sample.confirmed_wrong + np.cumsum(~sample.right[falling])
    growth = float(_growth(counts, wrong, precision).min(initial=least))
    return max(1, least - sample.images, math.ceil((growth - 1) * sample.images))


def _growth(
    images: npt.NDArray[np.floating], wrong: npt.NDArray[np.int64], precision: float
) -> npt.NDArray[np.floating]:
    """Return by what samples (n,) must be multiplied for so large a share of wrong labels to pass: by bisection."""
    below, above = np.ones_like(images), np.full_like(images, _MOST_GROWTH)
    for _ in range(_HALVINGS):
        middle = np.sqrt(below * above)
        low = special.betaincinv(middle * (images - wrong), middle * wrong + 1, ERROR_RATE)
        passes = (wrong < images) & (low >= precision)
        below, above = np.where(passes, below, middle), np.where(passes, middle, above)
    return above
