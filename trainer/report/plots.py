"""Plots as SVG that stands inside a page: one look for all of them, and the same file for the same figures.

The one place that imports matplotlib. Text stays text, in the page's own font, and there is no background, so that a
plot takes on the card it stands on.
"""

import io
from pathlib import Path
from typing import Any, Final

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
_DOTS_PER_INCH: Final = 160
"""Of PNG files."""

matplotlib.rcParams.update(_STYLE)  # for good, since titles and legends take their look when callers make them


def new_plots(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches and its plots, row by row, in the house style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def to_svg(figure: Figure, *, title: str) -> Markup:
    """Return a figure as an <svg> element, which `title` describes to those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = buffer.getvalue().partition("<svg ")[2]
    return Markup('<svg role="img" aria-label="{}" ').format(title) + Markup(element)  # noqa: S704  # matplotlib escapes


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure on white, for pages that take no SVG."""
    figure.savefig(path, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None}, transparent=False)
