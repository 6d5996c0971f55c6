"""Advice on whether to continue labelling, from the learning curve of successive versions.

Stopping is advised if macro-F1 is flat, the last versions agree on their predictions, and the uncertainty is low or no
longer falling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from contract.errors import name_some
from contract.versions.results import Advice

MIN_IMAGES: Final = 30
"""Minimum number of labelled holdout images; with fewer, macro-F1 is too uncertain."""
MIN_VERSIONS: Final = 3
MIN_KAPPA: Final = 0.95
"""Minimum of Cohen's kappa for successive versions to count as agreeing."""
FLAT: Final = 0.01
"""Gain in macro-F1 below which the curve counts as flat."""
_WORTHWHILE_GAIN = 0.02
"""Gain in macro-F1 for which the number of labels is estimated."""
_LOW_BALD = 0.05
"""Mean BALD below this share of its upper bound counts as low."""
_FALLING_RATIO = 0.95
"""Mean BALD below this ratio to that of the first recent version counts as falling."""
_MIN_EXTRAPOLATION = 0.25
"""Minimum extrapolation, and minimum span of the recent versions, as a share of the labels so far: a few labels change
little at any stage."""
_FITTED_SHARE = 0.5
"""Versions with less than this share of the labels so far are left out of the fit."""
_MAX_NAMES = 3


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Metrics of one version on the random holdout."""

    labels: int
    """Number of labelled images."""
    images: int
    """Number of labelled images in the random holdout."""
    macro_f1: float
    low: float
    high: float
    """Bounds of the 95 % interval of `macro_f1`."""
    mean_bald: float
    """In nats."""
    kappa: float | None
    """Cohen's kappa with the predictions of the previous version; None if they could not be compared."""

    def __str__(self) -> str:
        return f"{self.macro_f1:.2f}, {self.low:.2f} to {self.high:.2f}, on {self.images} random images"


def advise(versions: Sequence[CurvePoint], *, images: int, max_bald: float, unseen: Sequence[str] = ()) -> Advice:
    """Advise to stop labelling, or to label so many more images for some gain.

    Args:
        versions: versions with the same classes, oldest first, the new one last; empty if it was not measured on the
            random holdout.
        images: number of labelled images in the random holdout.
        max_bald: upper bound of BALD, in nats.
        unseen: labels without an image in the random holdout.
    """
    if images < MIN_IMAGES:
        return Advice(f"too early to say: {images} of {MIN_IMAGES} random images are labelled")
    if not versions:
        return Advice(f"too early to say: the {images} random images that are labelled do not cover two classes")
    steps = _by_labels(versions)
    now = steps[-1]
    if len(steps) < MIN_VERSIONS:
        versions_so_far = f"{len(steps)} version{'s' if len(steps) > 1 else ''} so far"
        return Advice(f"too early to say: {versions_so_far}, {MIN_VERSIONS} are needed (macro-F1 {now})")
    slope = fit_slope(_since(steps, _FITTED_SHARE * now.labels))
    ahead = max(now.labels - steps[-2].labels, math.ceil(_MIN_EXTRAPOLATION * now.labels))
    gain, labels = _expected_gain(slope, now, ahead), _round_to_two_digits(ahead)
    if gain >= FLAT:
        return _advise_more(slope, now, ahead)
    recent = _since(steps, now.labels / (1 + _MIN_EXTRAPOLATION))
    if reasons := _objections(recent, max_bald):
        flat = f"{labels} more labels would gain less than {FLAT} macro-F1 (now {now})"
        return Advice(f"continue: {flat}, but {' and '.join(reasons)}", gain=gain, labels=labels)
    sentence = (
        f"stop: macro-F1 is {now.macro_f1:.2f} ({now.low:.2f} to {now.high:.2f}) and has been stable for "
        f"{_stable_versions(steps)} versions, which agree on their predictions (kappa {_agreement(recent):.2f}); "
        f"{labels} more labels would gain less than {FLAT}"
    )
    if unseen:
        sentence += f"; not tested, since no random image has the label: {name_some(unseen, limit=_MAX_NAMES)}"
    return Advice(sentence, stop=True, gain=gain, labels=labels)


def fit_slope(versions: Sequence[CurvePoint]) -> float:
    """Return the slope, from 0, of the learning curve `limit - slope / sqrt(labels)` of macro-F1.

    Fitted by least squares, with the holdout images as weights. Of the curves with two coefficients, 1/sqrt(n)
    predicted the next quarter of labels best in simulated rounds: log n keeps rising after the plateau, 1/n flattens
    too early. A negative slope is set to 0.
    """
    weights = np.array([version.images for version in versions], np.float64)  # inverse to the variance
    regressor = -1 / np.sqrt(np.array([version.labels for version in versions], np.float64))
    macro_f1 = np.array([version.macro_f1 for version in versions])
    centred = regressor - np.average(regressor, weights=weights)
    slope = (weights * centred * macro_f1).sum() / (weights * centred**2).sum()
    return max(0.0, float(slope))


def _expected_gain(slope: float, now: CurvePoint, labels: int) -> float:
    expected = slope * (1 / math.sqrt(now.labels) - 1 / math.sqrt(now.labels + labels))
    return min(expected, 1 - now.macro_f1)


def _advise_more(slope: float, now: CurvePoint, ahead: int) -> Advice:
    """Advise the labels for a worthwhile gain, at most doubling them: extrapolating further is unreliable."""
    inverse_root = 1 / math.sqrt(now.labels) - _WORTHWHILE_GAIN / slope
    worthwhile = inverse_root**-2 - now.labels if inverse_root > 0 else math.inf
    labels = _round_to_two_digits(round(min(max(ahead, worthwhile), max(ahead, now.labels))))
    gain = _expected_gain(slope, now, labels)
    return Advice(f"label about {labels} more to gain about {gain:.2f} macro-F1 (now {now})", gain=gain, labels=labels)


def _by_labels(versions: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Merge successive versions with the same number of labels: the newest one, with the lowest kappa among them.

    A version retrained on the same images agrees with the previous one, whatever the model has learnt.
    """
    steps: list[CurvePoint] = []
    for version in versions:
        if steps and steps[-1].labels == version.labels:
            known = [kappa for kappa in (steps.pop().kappa, version.kappa) if kappa is not None]
            steps.append(replace(version, kappa=min(known, default=None)))
        else:
            steps.append(version)
    return steps


def _since(steps: Sequence[CurvePoint], labels: float) -> Sequence[CurvePoint]:
    """Return the last versions with at least so many labels, and at least the last MIN_VERSIONS."""
    return [step for step in steps[:-MIN_VERSIONS] if step.labels >= labels] + list(steps[-MIN_VERSIONS:])


def _objections(recent: Sequence[CurvePoint], max_bald: float) -> list[str]:
    """Return the reasons not to stop although the curve is flat."""
    reasons = []
    if _stable_versions(recent) < len(recent):
        macro_f1 = [version.macro_f1 for version in recent]
        reasons.append(f"it varied between {min(macro_f1):.2f} and {max(macro_f1):.2f}")
    agreement = _agreement(recent)
    if math.isnan(agreement):
        reasons.append("the last versions could not be compared")
    elif agreement < MIN_KAPPA:
        reasons.append(f"the last versions disagree on their predictions (kappa {agreement:.2f}, below {MIN_KAPPA})")
    first, last = recent[0].mean_bald, recent[-1].mean_bald
    if last > _LOW_BALD * max_bald and last < _FALLING_RATIO * first:
        reasons.append(f"uncertainty is still falling (mean BALD from {first:.3f} to {last:.3f} nats)")
    return reasons


def _stable_versions(steps: Sequence[CurvePoint]) -> int:
    """Return how many of the last versions have a macro-F1 in the interval of the newest."""
    now = steps[-1]
    inside = [now.low <= step.macro_f1 <= now.high for step in reversed(steps)]
    return [*inside, False].index(False)


def _agreement(recent: Sequence[CurvePoint]) -> float:
    """Return the lowest kappa between successive versions; NaN if one is unknown."""
    return float(np.min([math.nan if version.kappa is None else version.kappa for version in recent[1:]]))


def _round_to_two_digits(labels: int) -> int:
    """Round to two significant digits, but to at least 1."""
    return max(1, int(float(f"{labels:.1e}")))
