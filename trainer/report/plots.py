"""Plots as inline SVG, in one style and reproducible byte for byte.

Text stays text in the page's font, and the background is transparent. Plots of a version's report contain no class
names, which may be in any script.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report.calibration import Bin
from trainer.report.metrics import Histogram

TEXT: Final = "#56626e"
GRID: Final = "#dbe1e6"
ACCENT: Final = "#0f7173"
FAULT: Final = "#b3261e"
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlecolor": "#17212b",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "labelnext",
    "xtick.color": TEXT,
    "xtick.labelcolor": TEXT,
    "ytick.color": TEXT,
    "ytick.labelcolor": TEXT,
}
_PNG_DPI: Final = 160
_MIN_DOT, _DOT = 12, 160
"""Areas of dots, in square points: minimum, and addition for all predictions."""

matplotlib.rcParams.update(_STYLE)  # globally, since titles and legends take their style when callers create them


def new_plots(width: float, height: float, *, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches and its axes, from left to right."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False).flat)


def to_svg(figure: Figure, *, title: str) -> Markup:
    """Return a figure as an <svg> element; `title` is its accessible name."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = buffer.getvalue().partition("<svg ")[2]
    return Markup('<svg role="img" aria-label="{}" ').format(title) + Markup(element)  # noqa: S704  # matplotlib escapes


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as PNG on white."""
    figure.savefig(path, format="png", dpi=_PNG_DPI, metadata={"Software": None}, transparent=False)


def draw_reliability(before: Sequence[Bin], after: Sequence[Bin], *, multiple: bool) -> Markup:
    """Plot accuracy over confidence, before and after tempering; a dot's area shows the number of predictions."""
    figure, (plot,) = new_plots(5.2, 4.2)
    plot.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle="--", label="perfectly calibrated")
    for bins, colour, label in ((before, FAULT, "untempered"), (after, ACCENT, "tempered")):
        confidence, accuracy = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
        total = sum(each["count"] for each in bins)
        areas = [_MIN_DOT + _DOT * each["count"] / total for each in bins]
        plot.plot(confidence, accuracy, color=colour, linewidth=1.4, label=label)
        plot.scatter(confidence, accuracy, s=areas, color=colour, alpha=0.6, linewidths=0)
    names = ("probability of a label", "share of images with it") if multiple else ("confidence", "accuracy")
    plot.set(xlabel=names[0], ylabel=names[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    plot.legend(loc="upper left")
    return to_svg(figure, title="Accuracy over confidence, before and after tempering")


def draw_histogram(histogram: Histogram) -> Markup:
    """Plot the histograms of BALD of right and wrong predictions, stacked."""
    figure, (plot,) = new_plots(5.2, 3.4)
    edges, right, wrong = histogram["edges"], histogram["right"], histogram["wrong"]
    width = edges[1] - edges[0]
    plot.bar(edges[:-1], right, width, align="edge", color=ACCENT, label="right")
    plot.bar(edges[:-1], wrong, width, align="edge", bottom=right, color=FAULT, label="wrong")
    plot.set(xlabel="BALD, nats", ylabel="images", axisbelow=True)
    plot.locator_params(axis="y", integer=True)
    plot.legend(loc="upper right")
    return to_svg(figure, title="Number of images over BALD, right and wrong predictions stacked")
