"""The learning curve: how good versions are over the labels that they were made from; for pages and reports.

Across, places are percentages of the width, so that the drawing fills any screen with text of one size; down, they are
pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Final

from contract.versions.manifest import Manifest
from contract.versions.results import Comparison

HEIGHT: Final = 200
"""Of the plot, in pixels."""

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
"""What the drawing asks of the page's style sheet, which sets the colours."""

_LEFT, _RIGHT = 3.0, 97.0
_MOST_TICKS = 6
_LEAST_TENTHS = 2
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """A version on the curve, made from so many labels and measured on so many images, where that is known."""

    manifest: Manifest
    labels: int
    macro_f1: float
    interval: tuple[float, float] | None
    """In which macro-F1 lies."""
    images: int | None
    is_random: bool
    """Whether these are a random sample of the project."""
    is_joined: bool = False
    """Whether it was measured on the same images as all others of which this holds."""

    @property
    def version(self) -> str:
        """The version's name."""
        return self.manifest.version


def find_points(manifests: Sequence[Manifest]) -> list[Point]:
    """Return the versions that say how good they are, in their order.

    The newest that was measured beside others says what all of them came to on the same images.
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
    """Return those that a line joins, in order: nothing is said of what lies between others. Two at least, or none."""
    joined = [point for point in points if point.is_joined]
    return joined if len(joined) > 1 else []


@dataclass(frozen=True, slots=True)
class Scale:
    """Where figures lie on the plot, from the least labels at the left to the most at the right."""

    least: int
    most: int
    tenths: range
    """The ticks down, in tenths; the first and the last enclose what is drawn."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Scale":
        """Return the scale of at least one point."""
        labels = [point.labels for point in points]
        bounds = [value for point in points for value in (point.macro_f1, *(point.interval or ()))]
        return cls(min(labels), max(labels), _tenths(min(bounds), max(bounds)))

    def across(self, labels: int) -> float:
        """Return a place in per cent of the width."""
        if self.most == self.least:
            return (_LEFT + _RIGHT) / 2
        return round(_LEFT + (_RIGHT - _LEFT) * (labels - self.least) / (self.most - self.least), 2)

    def down(self, macro_f1: float) -> float:
        """Return a place in pixels."""
        bottom, top = self.tenths[0] / 10, self.tenths[-1] / 10
        return round(HEIGHT * (top - macro_f1) / (top - bottom), 1)

    def place(self, point: Point) -> tuple[float, float]:
        """Return where a point lies, across and down."""
        return self.across(point.labels), self.down(point.macro_f1)

    def label_ticks(self) -> Sequence[int]:
        """Return the ticks across: the fewest steps of 1, 2, 5, 10, 20... that leave room for their texts."""
        steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
        ranges = (range(-(-self.least // step) * step, self.most + 1, step) for step in steps)
        return next(ticks for ticks in ranges if len(ticks) <= _MOST_TICKS) or [self.least]


def _tenths(low: float, high: float) -> range:
    bottom = min(math.floor(low * 10), 10 - _LEAST_TENTHS)
    top = max(math.ceil(high * 10 - _ROUNDING), bottom + _LEAST_TENTHS)
    if top - bottom < _MOST_TICKS:
        return range(bottom, top + 1)
    return range(bottom - bottom % 2, top + top % 2 + 1, 2)


def draw(points: Sequence[Point], *, in_use: str | None) -> str:
    """Return at least one point as HTML that `STYLE` belongs to, whose text is numbers and names of versions."""
    scale = Scale.of(points)
    elements = "\n".join((*_draw_axes(scale), *_draw_points(points, scale, in_use)))
    return (
        f'<div class="learning-curve"><svg role="img" aria-label="Macro-F1 over labelled images">\n{elements}\n'
        "</svg></div>"
    )


def _draw_axes(scale: Scale) -> Iterator[str]:
    for tenth in scale.tenths:
        y = scale.down(tenth / 10)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        yield f'<text class="down" x="0" y="{y}" dx="-8" dy="4">{tenth / 10:.1f}</text>'
    for labels in scale.label_ticks():
        yield f'<text class="across" x="{scale.across(labels)}%" y="{HEIGHT + 22}">{labels:,}</text>'


def _draw_points(points: Sequence[Point], scale: Scale, in_use: str | None) -> Iterator[str]:
    line = find_line(points)
    marks = [(point, *scale.place(point), " apart" if line and not point.is_joined else "") for point in points]
    for point, x, _, apart in marks:
        if point.interval:
            low, high = map(scale.down, point.interval)
            yield f'<line class="bar{apart}" x1="{x}%" x2="{x}%" y1="{low}" y2="{high}"/>'
    for (x1, y1), (x2, y2) in pairwise(map(scale.place, line)):
        yield f'<line class="line" x1="{x1}%" y1="{y1}" x2="{x2}%" y2="{y2}"/>'
    for point, x, y, apart in marks:
        kind = "in-use" if point.version == in_use else "point"
        told = f"{point.version}: {point.macro_f1:.2f} on {point.labels:,} labels"
        yield f'<circle class="{kind}{apart}" cx="{x}%" cy="{y}" r="5"><title>{told}</title></circle>'
