"""The margin threshold for confirming predictions in bulk, by a test that controls their precision.

The test sample consists of labelled images of the random holdout, which were drawn at random from the pool and not
trained on. Thresholds are tested from the largest margin down, in steps that do not depend on labels: the sample sizes
that allow one more wrong label. The first failure ends the search (fixed-sequence testing: Angelopoulos et al. 2021,
Learn then Test, arXiv 2110.01052), so the error rate is that of a single test. Each test is exact: the lower bound of
the interval of Clopper and Pearson (1934) must reach the required precision.

Images confirmed under earlier versions stay in the sample, with the labels confirmed then. They are easy and have left
the pool: with the new version's predictions they would make the remaining images look easier than they are.
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
"""Probability of accepting a margin whose precision is too low: one tail of a 95 % interval. Over ten versions of a
project, which are tested on mostly the same images, it is about 0.05."""
_FIRST_STEP: Final = 1 / 3
"""Maximum size of the first step, as a share of the sample. A larger first step allows more errors, so that one does
not end the search."""
_MAX_GROWTH: Final = 1000.0
_BISECTIONS: Final = 30


@dataclass(frozen=True, slots=True)
class Sample:
    """N labelled images of the random holdout, not trained on, with the margins of their predictions."""

    margins: Floats
    """(N,)"""
    right: Bools
    """(N,): whether the prediction equals the label."""
    confirmed: int = 0
    """Number of further images that earlier versions would have confirmed if they were not held out."""
    confirmed_wrong: int = 0
    """Number of these with a wrong label."""

    @property
    def images(self) -> int:
        """Number of images, including those confirmed before."""
        return len(self.margins) + self.confirmed


@dataclass(frozen=True, slots=True)
class Evidence:
    """An accepted threshold."""

    least_margin: float
    images: int
    """Number of images at or above the threshold, or confirmed before."""
    wrong: int
    """Number of these with a wrong label."""
    low: float
    """Lower confidence bound of the precision."""


def lower_bound(images: int, wrong: int, *, error_rate: float = ERROR_RATE) -> float:
    """Return Clopper and Pearson's one-sided lower bound for the share of right labels.

    Raises ValueError unless 0 <= `wrong` <= `images`.
    """
    if not 0 <= wrong <= images:
        raise ValueError(f"expected at least 0 and at most {images} wrong of {images} images, got {wrong}")
    # scipy.stats.beta.ppf gives the same result 50 times slower, and its import takes half of a ranking's start-up.
    return float(special.betaincinv(images - wrong, wrong + 1, error_rate)) if wrong < images else 0.0


def min_images(wrong: int, precision: float, *, error_rate: float = ERROR_RATE) -> int:
    """Return the smallest sample in which `lower_bound` reaches a precision in (0, 1) despite `wrong` labels."""
    bound = partial(lower_bound, wrong=wrong, error_rate=error_rate)
    stop = 2 * wrong + 2
    while bound(stop) < precision:
        stop *= 2
    return wrong + bisect_left(range(wrong, stop), precision, key=bound)


def find_margin(sample: Sample, precision: float, *, error_rate: float = ERROR_RATE) -> Evidence | None:
    """Return the lowest threshold that is shown to have this precision, or None.

    With probability `error_rate` at most, the true precision above the threshold is lower.
    """
    order = np.argsort(-sample.margins, kind="stable")
    margins, wrong = sample.margins[order], np.cumsum(~sample.right[order])
    evidence = None
    for step in steps(sample.images, precision, error_rate=error_rate):
        if step <= sample.confirmed:
            continue
        threshold = float(margins[step - sample.confirmed - 1])
        count = int(np.searchsorted(-margins, -threshold, side="right"))  # ties included
        images, errors = sample.confirmed + count, sample.confirmed_wrong + int(wrong[count - 1])
        low = lower_bound(images, errors, error_rate=error_rate)
        if low < precision:
            break
        evidence = Evidence(threshold, images, errors, low)
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
    minimum = min_images(0, precision)
    order = np.argsort(-sample.margins, kind="stable")
    counts = sample.confirmed + np.arange(1.0, len(order) + 1)
    wrong = sample.confirmed_wrong + np.cumsum(~sample.right[order])
    growth = float(_growth(counts, wrong, precision).min(initial=minimum))
    return max(1, minimum - sample.images, math.ceil((growth - 1) * sample.images))


def _growth(
    images: npt.NDArray[np.floating], wrong: npt.NDArray[np.int64], precision: float
) -> npt.NDArray[np.floating]:
    """Return the factors by which samples (n,) must grow to pass with the same share of errors, by bisection."""
    below, above = np.ones_like(images), np.full_like(images, _MAX_GROWTH)
    for _ in range(_BISECTIONS):
        middle = np.sqrt(below * above)
        low = special.betaincinv(middle * (images - wrong), middle * wrong + 1, ERROR_RATE)
        passes = (wrong < images) & (low >= precision)
        below, above = np.where(passes, below, middle), np.where(passes, middle, above)
    return above
