"""The learning curve of a model, macro-F1 by labels, as SVG for pages and reports.

Horizontal positions are in per cent of the width, so that the drawing fits any screen at one text size; vertical ones
are in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Final

from contract.versions.manifest import Manifest
from contract.versions.results import Comparison

HEIGHT: Final = 200
"""Height of the plot in pixels."""

STYLE: Final = """
.learning-curve { padding: 1rem 0 .25rem 2.25rem; }
.learning-curve svg { display: block; overflow: visible; width: 100%; height: 228px; }
.learning-curve text { font-size: 12px; fill: var(--quiet); }
.learning-curve .down { text-anchor: end; }
.learning-curve .across { text-anchor: middle; }
.learning-curve .grid { stroke: var(--line); }
.learning-curve .bar { stroke: var(--accent); stroke-opacity: .3; stroke-width: 7; stroke-linecap: round; }
.learning-curve .line { stroke: var(--accent); stroke-width: 2; }
.learning-curve .point { fill: var(--card); stroke: var(--accent); stroke-width: 2; }
.learning-curve .in-use { fill: var(--accent); stroke: var(--card); stroke-width: 2; }
.learning-curve .bar.apart { stroke: var(--line); stroke-opacity: 1; }
.learning-curve .point.apart { stroke: var(--quiet); }
.learning-curve .in-use.apart { fill: var(--quiet); }
"""
"""Style sheet of the drawing; the page sets the colours."""

_LEFT, _RIGHT = 3.0, 97.0
_MAX_TICKS = 6
_MIN_TENTHS = 2
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """A version on the learning curve."""

    manifest: Manifest
    labels: int
    macro_f1: float
    interval: tuple[float, float] | None
    """95 % interval of macro-F1."""
    images: int | None
    is_random: bool
    """Whether it was measured on a random sample of the project."""
    is_joined: bool = False
    """Whether it was measured on the same images as all other joined points."""

    @property
    def version(self) -> str:
        """The version's name."""
        return self.manifest.version


def find_points(manifests: Sequence[Manifest]) -> list[Point]:
    """Return a point for each version with metrics, in order.

    The newest version with a comparison provides the results of all compared versions, on the same images.
    """
    newest = next((each.training.curve for each in reversed(manifests) if each.training.curve), Comparison(0, ()))
    compared = {each.version: each for each in newest.versions}
    points: list[Point] = []
    for manifest in manifests:
        metrics, training = manifest.metrics, manifest.training
        if at := compared.get(manifest.version):
            spread = at.low, at.high
            points.append(Point(manifest, at.labels, at.macro_f1, spread, newest.images, True, is_joined=True))
        elif training.images is not None and metrics.macro_f1 is not None:
            interval, is_random = metrics.macro_f1_interval, training.is_on_random_sample
            points.append(Point(manifest, training.images, metrics.macro_f1, interval, metrics.images, is_random))
    return points


def find_line(points: Sequence[Point]) -> list[Point]:
    """Return the points to join by a line, those measured on the same images: at least two, or none."""
    joined = [point for point in points if point.is_joined]
    return joined if len(joined) > 1 else []


@dataclass(frozen=True, slots=True)
class Scale:
    """Axes of the plot."""

    min_labels: int
    max_labels: int
    tenths: range
    """Ticks of the vertical axis in tenths; the first and last enclose all values."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Scale":
        """Return the scale of at least one point."""
        labels = [point.labels for point in points]
        bounds = [value for point in points for value in (point.macro_f1, *(point.interval or ()))]
        return cls(min(labels), max(labels), _tenths(min(bounds), max(bounds)))

    def x(self, labels: int) -> float:
        """Return the horizontal position in per cent of the width."""
        if self.max_labels == self.min_labels:
            return (_LEFT + _RIGHT) / 2
        return round(_LEFT + (_RIGHT - _LEFT) * (labels - self.min_labels) / (self.max_labels - self.min_labels), 2)

    def y(self, macro_f1: float) -> float:
        """Return the vertical position in pixels."""
        bottom, top = self.tenths[0] / 10, self.tenths[-1] / 10
        return round(HEIGHT * (top - macro_f1) / (top - bottom), 1)

    def position(self, point: Point) -> tuple[float, float]:
        """Return the horizontal and vertical position of a point."""
        return self.x(point.labels), self.y(point.macro_f1)

    def label_ticks(self) -> Sequence[int]:
        """Return the ticks of the horizontal axis, in the smallest steps of 1, 2, 5, 10, 20, ... whose texts fit."""
        steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
        ranges = (range(-(-self.min_labels // step) * step, self.max_labels + 1, step) for step in steps)
        return next(ticks for ticks in ranges if len(ticks) <= _MAX_TICKS) or [self.min_labels]


def _tenths(low: float, high: float) -> range:
    bottom = min(math.floor(low * 10), 10 - _MIN_TENTHS)
    top = max(math.ceil(high * 10 - _ROUNDING), bottom + _MIN_TENTHS)
    if top - bottom < _MAX_TICKS:
        return range(bottom, top + 1)
    return range(bottom - bottom % 2, top + top % 2 + 1, 2)


def draw(points: Sequence[Point], *, in_use: str | None) -> str:
    """Return HTML for at least one point, to be used with `STYLE`; its text is numbers and names of versions."""
    scale = Scale.of(points)
    elements = "\n".join((*_draw_axes(scale), *_draw_points(points, scale, in_use)))
    return (
        f'<div class="learning-curve"><svg role="img" aria-label="Macro-F1 over labelled images">\n{elements}\n'
        "</svg></div>"
    )


def _draw_axes(scale: Scale) -> Iterator[str]:
    for tenth in scale.tenths:
        y = scale.y(tenth / 10)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        yield f'<text class="down" x="0" y="{y}" dx="-8" dy="4">{tenth / 10:.1f}</text>'
    for labels in scale.label_ticks():
        yield f'<text class="across" x="{scale.x(labels)}%" y="{HEIGHT + 22}">{labels:,}</text>'


def _draw_points(points: Sequence[Point], scale: Scale, in_use: str | None) -> Iterator[str]:
    line = find_line(points)
    marks = [(point, *scale.position(point), " apart" if line and not point.is_joined else "") for point in points]
    for point, x, _, apart in marks:
        if point.interval:
            low, high = map(scale.y, point.interval)
            yield f'<line class="bar{apart}" x1="{x}%" x2="{x}%" y1="{low}" y2="{high}"/>'
    for (x1, y1), (x2, y2) in pairwise(map(scale.position, line)):
        yield f'<line class="line" x1="{x1}%" y1="{y1}" x2="{x2}%" y2="{y2}"/>'
    for point, x, y, apart in marks:
        kind = "in-use" if point.version == in_use else "point"
        title = f"{point.version}: {point.macro_f1:.2f} on {point.labels:,} labels"
        yield f'<circle class="{kind}{apart}" cx="{x}%" cy="{y}" r="5"><title>{title}</title></circle>'
