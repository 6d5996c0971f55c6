"""Whether to go on labelling: what the figures of successive versions say, in a sentence.

Owns the learning curve and the rule by which labelling may stop. Nothing stops it alone: macro-F1 has to be flat, the
last versions have to agree on their predictions, and the uncertainty has to be low or no longer falling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from contract.errors import name_some
from contract.versions.results import Advice

LEAST_IMAGES: Final = 30
"""Random images below which macro-F1 says too little."""
LEAST_VERSIONS: Final = 3
LEAST_KAPPA: Final = 0.95
"""Cohen's, between the predictions of successive versions, from which they count as agreeing."""
FLAT: Final = 0.01
"""Macro-F1 that is not worth its labels."""
_WORTHWHILE = 0.02
"""Macro-F1 for which people are told how many labels it takes."""
_LOW_BALD = 0.05
"""Share of the greatest BALD below which the mean counts as low."""
_FALLING = 0.95
"""Mean BALD over that of the first of the recent versions, below which it counts as falling."""
_AHEAD = 0.25
"""Share of the labels so far that the curve is asked about, and that recent versions cover, at least: a few labels
change little wherever the model stands."""
_CURVE = 0.5
"""Share of the labels so far from which on versions tell where the curve goes; those before tell where it came from."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a version came to on the random sample."""

    labels: int
    """Labelled images in all."""
    images: int
    """Those of them that are of the random sample."""
    macro_f1: float
    low: float
    """Of the 95 % interval of `macro_f1`."""
    high: float
    mean_bald: float
    """In nats."""
    kappa: float | None
    """Cohen's, of the predictions with those of the version before; None where they could not be compared."""

    def __str__(self) -> str:
        return f"{self.macro_f1:.2f}, {self.low:.2f} to {self.high:.2f}, on {self.images} random images"


def advise(versions: Sequence[CurvePoint], *, images: int, greatest_bald: float, unseen: Sequence[str] = ()) -> Advice:
    """Say whether more labels are worth their while.

    Versions are of equal classes, oldest first, up to the one that was just trained; there are none where that was not
    measured on the random sample. Of this so many images are labelled, and it holds none of the `unseen` labels.
    `greatest_bald` is what BALD can reach, in nats.
    """
    if images < LEAST_IMAGES:
        return Advice(f"too early to say: {images} of {LEAST_IMAGES} random images are labelled")
    if not versions:
        return Advice(f"too early to say: the {images} random images that are labelled do not cover two classes")
    steps = _by_labels(versions)
    now = steps[-1]
    if len(steps) < LEAST_VERSIONS:
        few = f"{len(steps)} version{'s' if len(steps) > 1 else ''} so far"
        return Advice(f"too early to say: {few}, {LEAST_VERSIONS} are needed (macro-F1 {now})")
    slope = fit_slope(_since(steps, _CURVE * now.labels))
    ahead = max(now.labels - steps[-2].labels, math.ceil(_AHEAD * now.labels))
    gain, labels = _gain(slope, now, ahead), _rounded(ahead)
    if gain >= FLAT:
        return _go_on(slope, now, ahead)
    recent = _since(steps, now.labels / (1 + _AHEAD))
    if doubts := _doubts(recent, greatest_bald):
        promise = f"{labels} more labels promise less than {FLAT} macro-F1 (now {now})"
        return Advice(f"go on: {promise}, but {' and '.join(doubts)}", gain=gain, labels=labels)
    sentence = (
        f"stop: macro-F1 is {now.macro_f1:.2f} ({now.low:.2f} to {now.high:.2f}) and has stood there for "
        f"{_stood(steps)} versions, which agree on their predictions (kappa {_agreement(recent):.2f}); {labels} more "
        f"labels would gain less than {FLAT}"
    )
    if unseen:
        sentence += f"; untested, for want of a random image: {name_some(unseen, most=_NAMED)}"
    return Advice(sentence, stop=True, gain=gain, labels=labels)


def fit_slope(versions: Sequence[CurvePoint]) -> float:
    """Return the slope, from 0, of the learning curve `limit - slope / sqrt(labels)` of macro-F1.

    Fitted by least squares, each version weighted by its random images. Of the curves that two coefficients give,
    1/sqrt(n) foretold the next quarter of labels best on simulated rounds: log n goes on rising where nothing is left
    to gain, 1/n stops too soon. No curve promises that labels do harm.
    """
    weights = np.array([version.images for version in versions], np.float64)  # the variance falls with their number
    regressor = -1 / np.sqrt(np.array([version.labels for version in versions], np.float64))
    macro_f1 = np.array([version.macro_f1 for version in versions])
    centred = regressor - np.average(regressor, weights=weights)
    slope = (weights * centred * macro_f1).sum() / (weights * centred**2).sum()
    return max(0.0, float(slope))


def _gain(slope: float, now: CurvePoint, labels: int) -> float:
    expected = slope * (1 / math.sqrt(now.labels) - 1 / math.sqrt(now.labels + labels))
    return min(expected, 1 - now.macro_f1)


def _go_on(slope: float, now: CurvePoint, ahead: int) -> Advice:
    """Name a gain that is worth while, but no more labels than there are already: no curve is good for longer."""
    left = 1 / math.sqrt(now.labels) - _WORTHWHILE / slope
    worthwhile = left**-2 - now.labels if left > 0 else math.inf
    labels = _rounded(round(min(max(ahead, worthwhile), max(ahead, now.labels))))
    gain = _gain(slope, now, labels)
    return Advice(f"label about {labels} more to gain about {gain:.2f} macro-F1 (now {now})", gain=gain, labels=labels)


def _by_labels(versions: Sequence[CurvePoint]) -> list[CurvePoint]:
    """One version for each number of labels in a row, the newest.

    Trained again on the same images, a version agrees with the one before whatever the model has learnt, so of their
    agreements the least counts.
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
    """The last versions, down to that many labels; never fewer than any judgement needs."""
    return [step for step in steps[:-LEAST_VERSIONS] if step.labels >= labels] + list(steps[-LEAST_VERSIONS:])


def _doubts(recent: Sequence[CurvePoint], greatest_bald: float) -> list[str]:
    """What speaks against stopping though the curve is flat."""
    doubts = []
    if _stood(recent) < len(recent):
        found = [version.macro_f1 for version in recent]
        doubts.append(f"it has moved between {min(found):.2f} and {max(found):.2f}")
    agreement = _agreement(recent)
    if math.isnan(agreement):
        doubts.append("the last versions could not be compared")
    elif agreement < LEAST_KAPPA:
        doubts.append(f"the last versions disagree on their predictions (kappa {agreement:.2f}, not {LEAST_KAPPA})")
    first, last = recent[0].mean_bald, recent[-1].mean_bald
    if last > _LOW_BALD * greatest_bald and last < _FALLING * first:
        doubts.append(f"uncertainty is still falling (mean BALD from {first:.3f} to {last:.3f} nats)")
    return doubts


def _stood(steps: Sequence[CurvePoint]) -> int:
    """For how many versions macro-F1 has been where the last one's interval is."""
    now = steps[-1]
    inside = [now.low <= step.macro_f1 <= now.high for step in reversed(steps)]
    return [*inside, False].index(False)


def _agreement(recent: Sequence[CurvePoint]) -> float:
    """The least kappa between one recent version and the next; NaN if one is not known."""
    return float(np.min([math.nan if version.kappa is None else version.kappa for version in recent[1:]]))


def _rounded(labels: int) -> int:
    """To two digits, as far as an estimate can be trusted, and never below 1."""
    return max(1, int(float(f"{labels:.1e}")))
