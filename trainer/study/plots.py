"""Plots of a study: a few strategies in colour before the others in grey, as nobody tells a dozen colours apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from trainer.report.plots import ACCENT, FAULT, TEXT, new_plots, save_png, to_svg
from trainer.study.options import RANDOM
from trainer.study.records import Study
from trainer.study.statistics import MEASURES, Curve, Difference, Measure, mean_curve, minority_share

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

_BEHIND: Final = "#bcc6ce"
"""Of the strategies that are not named."""
_RIVALS: Final = ("#c2570c", "#4053b4", "#a0306f", "#8a5200", "#3f7fb0", "#17703f", "#6d5ba8")
_KNOWN: Final = ("baal-bald", "bald", "margin", "badge", "balanced-bald-margin", "balanced-cover", "batch-bald")
"""Whom to show first where not all can be; of the first two, which both are plain BALD, only one."""
_FEW: Final = 4
"""Strategies that may all have a colour on one plot."""
MOST: Final = 7
"""Strategies in curves.png."""


@dataclass(frozen=True, slots=True)
class Line:
    """How a strategy is drawn."""

    strategy: str
    colour: str
    width: float
    dashed: bool


def choose_lines(strategies: Sequence[str], default: str | None, *, most: int = 3) -> tuple[Line, ...]:
    """Return the strategies that are drawn in colour: the default, random, plain BALD and, if more may be, others."""
    plain = [name for name in _KNOWN[:2] if name in strategies][:1]
    order = [default or RANDOM, RANDOM, *plain, *_KNOWN[2:], *strategies]
    named = list(dict.fromkeys(name for name in order if name in strategies))
    shown = named if len(named) <= _FEW else named[:most]
    colours = {RANDOM: TEXT, default: ACCENT}
    rivals = dict(zip((name for name in shown if name not in colours), _RIVALS, strict=False))
    return tuple(
        Line(name, (colours | rivals)[name], 2.4 if name == default else 1.6, dashed=name == RANDOM) for name in shown
    )


def draw_measures(
    study: Study, lines: Sequence[Line], *, measures: Sequence[Measure] = MEASURES, by: str = "strategy"
) -> list[Markup]:
    """Return a plot of each measure over labels, by strategy or by what else the study's runs are told apart."""
    levels = {} if study.reference is None else study.reference.levels
    return [
        _draw_curves(
            _curves(study, measure),
            lines,
            title=TITLES[measure],
            level=("the reference", levels[measure]) if measure in levels else None,
            by=by,
        )
        for measure in measures
    ]


def draw_minority_share(study: Study, lines: Sequence[Line]) -> Markup:
    """Return a plot of how much of what is labelled is of minority classes, and how much of the pool is."""
    curves = {name: minority_share(study, name) for name in study.runs}
    pool = sum(study.pool_by_class[index] for index in study.minority) / max(1, sum(study.pool_by_class))
    return _draw_curves(curves, lines, title="Share of minority images among the labels", level=("the pool", pool))


def _curves(study: Study, measure: Measure) -> dict[str, Curve]:
    return {name: mean_curve(study, name, measure) for name in study.runs}


def _draw_curves(
    curves: Mapping[str, Curve],
    lines: Sequence[Line],
    *,
    title: str,
    level: tuple[str, float] | None,
    by: str = "strategy",
) -> Markup:
    """Draw curves over labels, those without a line in grey, and a level with its name."""
    figure, (axes,) = new_plots(4.4, 2.9)
    named = {line.strategy for line in lines}
    for name, curve in curves.items():
        if name not in named:
            axes.plot(curve.labels, curve.mean, color=_BEHIND, linewidth=0.9, zorder=2)
    _draw_lines(axes, curves, lines)
    if level is not None:
        words, height = level
        axes.axhline(height, color=TEXT, linewidth=0.9, linestyle=":")
        axes.annotate(words, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=TEXT)
    axes.set_title(title, loc="left")
    axes.set_xlabel("labels")
    return to_svg(figure, title=f"{title} over labels, by {by}")


def _draw_lines(axes: "Axes", curves: Mapping[str, Curve], lines: Sequence[Line]) -> None:
    """Draw mean and standard error, the first strategy on top."""
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


def draw_each(study: Study, strategies: Sequence[str], measure: Measure, default: str | None) -> list[Markup]:
    """Return one small plot a strategy, of one measure on equal axes, each with random behind it."""
    curves = _curves(study, measure)
    heights = [height for curve in curves.values() for height in (curve.mean - curve.error, curve.mean + curve.error)]
    low, high = min(map(float, map(min, heights))), max(map(float, map(max, heights)))
    margin = 0.05 * (high - low) or 0.05
    plots = []
    for name in strategies:
        figure, (axes,) = new_plots(2.5, 1.9)
        own = Line(name, ACCENT if name == default else _RIVALS[1], 2.0, dashed=False)
        random = [Line(RANDOM, TEXT, 1.2, dashed=True)] if RANDOM in curves and name != RANDOM else []
        _draw_lines(axes, curves, [own, *random])
        axes.set_ylim(low - margin, high + margin)
        axes.set_title(name, loc="left")
        plots.append(to_svg(figure, title=f"{TITLES[measure]} of {name} over labels"))
    return plots


def draw_differences(differences: Mapping[str, Difference], *, title: str) -> Markup:
    """Return a plot of a difference for each strategy, the first on top, with its interval around it."""
    figure, (axes,) = new_plots(4.6, 0.6 + 0.22 * len(differences))
    for place, each in enumerate(differences.values()):
        colour = {1: ACCENT, -1: FAULT, 0: TEXT}[each.sign]
        if each.low is not None and each.high is not None:
            axes.plot([each.low, each.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([each.mean], [place], color=colour, marker="o", markersize=5)
    axes.axvline(0, color=TEXT, linewidth=0.9)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_ylim(len(differences) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    axes.set_title(title, loc="left")
    return to_svg(figure, title=title)


def save_curves(study: Study, path: Path, default: str | None) -> None:
    """Write macro-F1 and minority F1 side by side, of the strategies that people ask about first."""
    lines = choose_lines([*study.runs], default, most=MOST)
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
