"""What studies of several backbones come to side by side: one page, and the figures behind it as CSV and JSON.

Each backbone has been studied on the same images, with the same strategies and seeds; a seed's random labels are the
same whatever the backbone is, so that backbones, too, are compared by pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from trainer.report.html import render
from trainer.study import plots
from trainer.study.options import PRODUCT, RANDOM
from trainer.study.records import Study
from trainer.study.report import shown_settings, write_json, write_tables
from trainer.study.statistics import Difference, Measure, Summary, compare, labels_of, summarise, to_json

MEASURES: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1", "accuracy")
"""Those that are compared; the backbones' own reports have the others."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The backbones under one strategy, those with the largest area under macro-F1 first."""

    strategy: str
    rows: tuple[tuple[Summary, Difference | None], ...]
    """What each came to, with its name in the place of a strategy's, and its macro-F1 area less the first named's."""
    measures: Sequence[Markup]
    """Plots over labels."""


def write(studies: Mapping[str, Study], folder: Path, *, title: str) -> dict[str, Any]:
    """Write report.html, rounds.csv, classes.csv, summary.json and curves.png; return what summary.json holds.

    Args:
        studies: of each backbone, by its name, which is also that of a folder in `folder` with its own report.
        folder: is there.
        title: of the images.

    Raises:
        OSError: if a file cannot be written.
    """
    write_tables(studies, folder)
    figures = {name: to_json(summarise(study)) for name, study in studies.items()}
    write_json(figures, folder / "summary.json")
    strategies = choose_strategies([*next(iter(studies.values())).runs])
    plots.save_curves(by_backbone(studies, strategies[-1]), folder / "curves.png", next(iter(studies)))
    (folder / "report.html").write_text(_render(studies, strategies, title=title), encoding="utf-8")
    return figures


def choose_strategies(studied: Sequence[str]) -> list[str]:
    """Return those that backbones are compared under: random and the default, or what there is in their place."""
    return [each for each in (RANDOM, PRODUCT) if each in studied] or [*studied[:1]]


def by_backbone(studies: Mapping[str, Study], strategy: str) -> Study:
    """Return the runs of one strategy as a study in which backbones stand where strategies do."""
    return replace(next(iter(studies.values())), runs={name: study.runs[strategy] for name, study in studies.items()})


def _render(studies: Mapping[str, Study], strategies: Sequence[str], *, title: str) -> str:
    names, first = [*studies], next(iter(studies.values()))
    lines = plots.choose_lines(names, names[0], most=plots.MOST)
    return render(
        "backbones.html",
        title=title,
        study=first,
        sizes={name: study.settings.get("image_size") for name, study in studies.items()},
        labels=labels_of(first).astype(int).tolist(),
        seeds=len(next(iter(first.runs.values()))),
        reference=names[0],
        comparisons=[_compare(studies, each, lines) for each in strategies],
        lines=lines,
        unnamed=len(names) > len(lines),
        titles=plots.TITLES,
        compared=MEASURES,
        settings=shown_settings(_common(studies)),
    )


def _compare(studies: Mapping[str, Study], strategy: str, lines: Sequence[plots.Line]) -> Comparison:
    study, reference = by_backbone(studies, strategy), next(iter(studies))
    ranked = sorted(summarise(study), key=lambda each: -each.areas["macro_f1"])
    rows = ((each, compare(study, each.strategy, reference, "macro_f1")) for each in ranked)
    return Comparison(strategy, tuple(rows), plots.draw_measures(study, lines, measures=MEASURES, by="backbone"))


def _common(studies: Mapping[str, Study]) -> dict[str, Any]:
    """The settings in which no backbone differs from another."""
    first, *others = (study.settings for study in studies.values())
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}
