"""The plots of a report. None holds a label: what people call their classes may be in any script."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from trainer.report.calibration import Bin
from trainer.report.figures import Histogram
from trainer.report.plots import ACCENT, FAULT, TEXT, new_plots, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 5.2, 3.4
"""Inches."""
_SQUARE: Final = 4.2
_LEAST_DOT, _DOT = 12, 160
"""Areas of dots, in square points: of none and of all predictions."""


def draw_reliability(before: Sequence[Bin], after: Sequence[Bin], *, multiple: bool) -> Markup:
    """Draw accuracy over confidence, as it is and tempered; a dot's area says how many predictions it stands for."""
    figure, (plot,) = new_plots(_WIDTH, _SQUARE)
    plot.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle="--", label="as sure as right")
    _draw_bins(plot, before, colour=FAULT, label="as it is")
    _draw_bins(plot, after, colour=ACCENT, label="tempered")
    names = ("probability of a label", "share of the images it holds of") if multiple else ("confidence", "share right")
    plot.set(xlabel=names[0], ylabel=names[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    plot.legend(loc="upper left")
    return to_svg(figure, title="Share of predictions that are right over their confidence, before and after tempering")


def _draw_bins(plot: "Axes", bins: Sequence[Bin], *, colour: str, label: str) -> None:
    confidence, accuracy = [each.confidence for each in bins], [each.accuracy for each in bins]
    total = sum(each.count for each in bins)
    areas = [_LEAST_DOT + _DOT * each.count / total for each in bins]
    plot.plot(confidence, accuracy, color=colour, linewidth=1.4, label=label)
    plot.scatter(confidence, accuracy, s=areas, color=colour, alpha=0.6, linewidths=0)


def draw_histogram(histogram: Histogram) -> Markup:
    """Draw how BALD is spread over right predictions and over wrong ones."""
    figure, (plot,) = new_plots(_WIDTH, _HEIGHT)
    lefts = histogram.edges[:-1]
    width = histogram.edges[1] - histogram.edges[0]
    plot.bar(lefts, histogram.right, width, align="edge", color=ACCENT, label="right")
    plot.bar(lefts, histogram.wrong, width, align="edge", bottom=histogram.right, color=FAULT, label="wrong")
    plot.set(xlabel="BALD, nats", ylabel="images", axisbelow=True)
    plot.locator_params(axis="y", integer=True)
    plot.legend(loc="upper right")
    return to_svg(figure, title="Number of images over BALD, right and wrong predictions stacked")
