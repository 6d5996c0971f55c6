"""The learning curve as a drawing: where its points, error bars and ticks lie.

Knows the geometry and neither the markup nor where the figures come from. Across, places are percentages of the width,
so that the drawing fills any screen with text of one size; down, they are pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

HEIGHT: Final = 200
"""Of the plot, in pixels."""

_LEFT, _RIGHT = 3.0, 97.0
_MOST_TICKS = 6
_LEAST_TENTHS = 2
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """A version on the curve."""

    version: str
    created_at: str
    labels: int
    """Labelled images that it was made from."""
    macro_f1: float
    interval: tuple[float, float] | None
    """In which macro-F1 lies, in [0, 1]; None where that is not known."""
    joined: bool = False
    """Whether it was measured on the same images as all others of which this holds."""
    images: int | None = None
    """How many it was measured on; None where that is not known."""
    random: bool = False
    """Whether these are a random sample of the project."""
    has_report: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A point as it is drawn."""

    point: Point
    x: float
    y: float
    low: float | None
    high: float | None
    """The ends of its error bar, in pixels; None where it has none."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis: across in per cent, down in pixels."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """All that is drawn."""

    marks: tuple[Mark, ...]
    line: tuple[Mark, ...]
    """Those that a line joins, in order: nothing is said of what lies between others. Two at least, or none."""
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]


def draw(points: Sequence[Point]) -> Curve:
    """Lay out at least one point; in order, for the line goes from each that is joined to the next."""
    counts = [point.labels for point in points]
    least, most = min(counts), max(counts)
    bounds = [value for point in points for value in (point.macro_f1, *(point.interval or ()))]
    tenths = _tenths(min(bounds), max(bounds))
    bottom, top = tenths[0] / 10, tenths[-1] / 10

    def across(labels: int) -> float:
        if most == least:
            return (_LEFT + _RIGHT) / 2
        return round(_LEFT + (_RIGHT - _LEFT) * (labels - least) / (most - least), 2)

    def down(value: float) -> float:
        return round(HEIGHT * (top - value) / (top - bottom), 1)

    def mark(point: Point) -> Mark:
        low, high = map(down, point.interval) if point.interval else (None, None)
        return Mark(point, x=across(point.labels), y=down(point.macro_f1), low=low, high=high)

    marks = tuple(mark(point) for point in points)
    joined = tuple(each for each in marks if each.point.joined)
    return Curve(
        marks,
        line=joined if len(joined) > 1 else (),
        across=tuple(Tick(across(labels), f"{labels:,}") for labels in _round_counts(least, most)),
        down=tuple(Tick(down(tenth / 10), f"{tenth / 10:.1f}") for tenth in tenths),
    )


def _tenths(low: float, high: float) -> range:
    """Return the ticks' places, in tenths, of which the first and the last enclose what is drawn."""
    bottom = min(math.floor(low * 10), 10 - _LEAST_TENTHS)
    top = max(math.ceil(high * 10 - _ROUNDING), bottom + _LEAST_TENTHS)
    if top - bottom < _MOST_TICKS:
        return range(bottom, top + 1)
    return range(bottom - bottom % 2, top + top % 2 + 1, 2)


def _round_counts(least: int, most: int) -> Sequence[int]:
    """Return the fewest steps of 1, 2, 5, 10, 20... from `least` to `most` that leave room for their texts."""
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    ranges = (range(-(-least // step) * step, most + 1, step) for step in steps)
    return next(ticks for ticks in ranges if len(ticks) <= _MOST_TICKS) or [least]
