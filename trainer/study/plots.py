"""Plots of a study: a few strategies in colour, the others in grey, since a dozen colours are indistinguishable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from trainer.report.plots import ACCENT, TEXT, new_plots, save_png, to_svg
from trainer.study.options import RANDOM
from trainer.study.records import Study
from trainer.study.statistics import MEASURES, Curve, Measure, mean_curve, minority_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES: Final[Mapping[Measure, str]] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "minority_f1": "Minority F1",
    "nll": "NLL in nats, lower is better",
    "ece": "ECE, lower is better",
}

_GREY: Final = "#bcc6ce"
"""Colour of strategies that are not highlighted."""
_COLOURS: Final = ("#c2570c", "#4053b4", "#a0306f", "#8a5200", "#3f7fb0", "#17703f", "#6d5ba8")
_PREFERRED: Final = ("baal-bald", "bald", "margin", "badge", "balanced-bald-margin", "balanced-cover", "batch-bald")
"""Strategies to colour first; only one of the first two, since both are plain BALD."""
_FEW_LINES: Final = 4
"""Up to this number of strategies, all are coloured."""
MAX_LINES: Final = 7
"""Maximum number of coloured strategies in curves.png."""


@dataclass(frozen=True, slots=True)
class Line:
    """Line style of a strategy."""

    strategy: str
    colour: str
    width: float
    dashed: bool


def choose_lines(strategies: Sequence[str], default: str | None, *, limit: int = 3) -> tuple[Line, ...]:
    """Return the lines of the coloured strategies: the default, random, plain BALD, then others up to `limit`."""
    plain = [name for name in _PREFERRED[:2] if name in strategies][:1]
    order = [default or RANDOM, RANDOM, *plain, *_PREFERRED[2:], *strategies]
    named = list(dict.fromkeys(name for name in order if name in strategies))
    shown = named if len(named) <= _FEW_LINES else named[:limit]
    colours = {RANDOM: TEXT, default: ACCENT}
    others = dict(zip((name for name in shown if name not in colours), _COLOURS, strict=False))
    return tuple(
        Line(name, (colours | others)[name], 2.4 if name == default else 1.6, dashed=name == RANDOM) for name in shown
    )


def draw_measures(study: Study, lines: Sequence[Line], *, measures: Sequence[Measure] = MEASURES) -> list[Markup]:
    """Return a plot of each measure over labels."""
    levels = {} if study.reference is None else study.reference.levels
    return [
        _draw_curves(
            _curves(study, measure),
            lines,
            title=TITLES[measure],
            level=("the reference", levels[measure]) if measure in levels else None,
        )
        for measure in measures
    ]


def draw_minority_share(study: Study, lines: Sequence[Line]) -> Markup:
    """Return a plot of the share of minority classes among the labels, with their share of the pool."""
    curves = {name: minority_share(study, name) for name in study.runs}
    pool = sum(study.pool_by_class[index] for index in study.minority) / max(1, sum(study.pool_by_class))
    return _draw_curves(curves, lines, title="Share of minority images among the labels", level=("the pool", pool))


def _curves(study: Study, measure: Measure) -> dict[str, Curve]:
    return {name: mean_curve(study, name, measure) for name in study.runs}


def _draw_curves(
    curves: Mapping[str, Curve], lines: Sequence[Line], *, title: str, level: tuple[str, float] | None
) -> Markup:
    """Plot curves over labels, those without a line in grey, and optionally a named level."""
    figure, (axes,) = new_plots(4.4, 2.9)
    named = {line.strategy for line in lines}
    for name, curve in curves.items():
        if name not in named:
            axes.plot(curve.labels, curve.mean, color=_GREY, linewidth=0.9, zorder=2)
    _draw_lines(axes, curves, lines)
    if level is not None:
        name, height = level
        axes.axhline(height, color=TEXT, linewidth=0.9, linestyle=":")
        axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=TEXT)
    axes.set_title(title, loc="left")
    axes.set_xlabel("labels")
    return to_svg(figure, title=f"{title} over labels")


def _draw_lines(axes: "Axes", curves: Mapping[str, Curve], lines: Sequence[Line]) -> None:
    """Plot means with standard errors, the first line on top."""
    for depth, line in enumerate(reversed(lines)):
        curve = curves[line.strategy]
        band = (curve.mean - curve.error, curve.mean + curve.error)
        axes.fill_between(curve.labels, *band, color=line.colour, alpha=0.15, linewidth=0, zorder=3)
        axes.plot(
            curve.labels,
            curve.mean,
            color=line.colour,
            linewidth=line.width,
            linestyle=(0, (4, 2)) if line.dashed else "-",
            marker="o",
            markersize=2.5 if len(curve.labels) > 1 else 5,
            label=line.strategy,
            zorder=4 + depth,
        )


def draw_by_strategy(study: Study, strategies: Sequence[str], measure: Measure, default: str | None) -> list[Markup]:
    """Return a small plot of a measure for each strategy, with equal axes and the curve of random."""
    curves = _curves(study, measure)
    heights = [height for curve in curves.values() for height in (curve.mean - curve.error, curve.mean + curve.error)]
    low, high = min(map(float, map(min, heights))), max(map(float, map(max, heights)))
    margin = 0.05 * (high - low) or 0.05
    plots = []
    for name in strategies:
        figure, (axes,) = new_plots(2.5, 1.9)
        line = Line(name, ACCENT if name == default else _COLOURS[1], 2.0, dashed=False)
        random = [Line(RANDOM, TEXT, 1.2, dashed=True)] if RANDOM in curves and name != RANDOM else []
        _draw_lines(axes, curves, [line, *random])
        axes.set_ylim(low - margin, high + margin)
        axes.set_title(name, loc="left")
        plots.append(to_svg(figure, title=f"{TITLES[measure]} of {name} over labels"))
    return plots


def save_curves(study: Study, path: Path, default: str | None) -> None:
    """Save plots of macro-F1 and minority F1 side by side, with the coloured strategies."""
    lines = choose_lines([*study.runs], default, limit=MAX_LINES)
    figure, plots = new_plots(9, 4.2, columns=2)
    measures: tuple[Measure, ...] = ("macro_f1", "minority_f1")
    for axes, measure in zip(plots, measures, strict=True):
        _draw_lines(axes, _curves(study, measure), lines)
        axes.set_title(TITLES[measure], loc="left")
        axes.set_xlabel("labels")
    handles = dict(zip(*reversed(plots[0].get_legend_handles_labels()), strict=True))
    names = [line.strategy for line in lines]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=min(4, len(names)))
    save_png(figure, path)
