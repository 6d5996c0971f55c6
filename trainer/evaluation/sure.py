"""The margin threshold for confirming predictions in bulk, by a test that controls their precision.

The test sample are labelled images of the random holdout: drawn at random from the pool and not trained on. Thresholds
are tested from the largest margin down, in steps fixed before any label is seen: the sample sizes that allow one more
wrong label. The first failure ends the search (fixed-sequence testing: Angelopoulos et al. 2021, Learn then Test, arXiv
2110.01052), so its error rate is that of a single test. Each test is exact: the lower bound of the interval of Clopper
and Pearson (1934) must reach the wanted precision.

Images confirmed under earlier versions stay in the sample, with their confirmed labels. They have left the pool and are
easy: with today's predictions they would make the remaining images look easier than they are.
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
"""Probability of accepting a margin whose precision is too low: one tail of a 95 % interval. Successive versions are
tested on mostly the same images: over ten of a project the error rate is about 0.05."""
_FIRST_STEP: Final = 1 / 3
"""Most that the first step may cover, as a share of the sample: in a larger step more labels may be wrong, so a single
one does not end the search. The steps depend only on the sample size, never on labels."""
_MOST_GROWTH: Final = 1000.0
_HALVINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Sample:
    """N labelled images of the random holdout, none trained on, with the margins of their predictions."""

    margins: Floats
    """(N,)"""
    right: Bools
    """(N,): whether the prediction equals the label."""
    confirmed: int = 0
    """Further images that would have been confirmed under earlier versions if they were not held out."""
    confirmed_wrong: int = 0
    """How many of these with a wrong label."""

    @property
    def images(self) -> int:
        """Number of images, with those confirmed before."""
        return len(self.margins) + self.confirmed


@dataclass(frozen=True, slots=True)
class Evidence:
    """An accepted threshold, with the number of images at or above it and confirmed before, and of wrong labels."""

    least_margin: float
    images: int
    wrong: int
    low: float
    """Lower confidence bound of the precision."""


def lower_bound(images: int, wrong: int, *, error_rate: float = ERROR_RATE) -> float:
    """Return the one-sided lower bound of Clopper and Pearson for the share of right labels."""
    if not 0 <= wrong <= images:
        raise ValueError(f"expected at least 0 and at most {images} wrong of {images} images, got {wrong}")
    # scipy.stats.beta.ppf computes the same 50 times slower, and importing it takes half the start of a ranking.
    return float(special.betaincinv(images - wrong, wrong + 1, error_rate)) if wrong < images else 0.0


def min_images(wrong: int, precision: float, *, error_rate: float = ERROR_RATE) -> int:
    """Return the fewest images with which `lower_bound` reaches a precision in (0, 1) despite `wrong` labels."""
    reach = partial(lower_bound, wrong=wrong, error_rate=error_rate)
    most = 2 * wrong + 2
    while reach(most) < precision:
        most *= 2
    return wrong + bisect_left(range(wrong, most), precision, key=reach)


def find_margin(sample: Sample, precision: float, *, error_rate: float = ERROR_RATE) -> Evidence | None:
    """Return the lowest threshold with this precision; with probability `error_rate` its true precision is lower."""
    order = np.argsort(-sample.margins, kind="stable")
    margins, wrong = sample.margins[order], np.cumsum(~sample.right[order])
    evidence = None
    for step in steps(sample.images, precision, error_rate=error_rate):
        if step <= sample.confirmed:
            continue
        least = float(margins[step - sample.confirmed - 1])
        count = int(np.searchsorted(-margins, -least, side="right"))  # ties included
        images, errors = sample.confirmed + count, sample.confirmed_wrong + int(wrong[count - 1])
        low = lower_bound(images, errors, error_rate=error_rate)
        if low < precision:
            break
        evidence = Evidence(least, images, errors, low)
    return evidence


@lru_cache(maxsize=16)
def steps(images: int, precision: float, *, error_rate: float = ERROR_RATE) -> tuple[int, ...]:
    """Return the number of images of each step, ascending; each step allows one more wrong label."""
    sizes = [min_images(0, precision, error_rate=error_rate)]
    while sizes[-1] <= images:
        sizes.append(min_images(len(sizes), precision, error_rate=error_rate))
    small = [step for step in sizes if step <= _FIRST_STEP * images]
    return tuple(step for step in sizes[max(0, len(small) - 1) :] if step <= images)


def images_needed(sample: Sample, precision: float) -> int:
    """Estimate how many more images `find_margin` needs to succeed, at least 1.

    Assumes that further images have the same margins and errors as the sample.
    """
    least = min_images(0, precision)
    order = np.argsort(-sample.margins, kind="stable")
    counts = sample.confirmed + np.arange(1.0, len(order) + 1)
    wrong = sample.confirmed_wrong + np.cumsum(~sample.right[order])
    growth = float(_growth(counts, wrong, precision).min(initial=least))
    return max(1, least - sample.images, math.ceil((growth - 1) * sample.images))


def _growth(
    images: npt.NDArray[np.floating], wrong: npt.NDArray[np.int64], precision: float
) -> npt.NDArray[np.floating]:
    """Return the factors by which samples (n,) must grow to pass with the same share of errors, by bisection."""
    below, above = np.ones_like(images), np.full_like(images, _MOST_GROWTH)
    for _ in range(_HALVINGS):
        middle = np.sqrt(below * above)
        low = special.betaincinv(middle * (images - wrong), middle * wrong + 1, ERROR_RATE)
        passes = (wrong < images) & (low >= precision)
        below, above = np.where(passes, below, middle), np.where(passes, middle, above)
    return above
