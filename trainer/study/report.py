"""The report of a study: an HTML page, its figures as CSV and JSON, and a plot for READMEs.

Equal studies give equal files, byte for byte. Studies of several backbones on the same images, strategies and seeds
share a report: a seed's random labels do not depend on the backbone, so that backbones are compared in pairs.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer.report.html import render
from trainer.study import plots
from trainer.study.options import PRODUCT, RANDOM
from trainer.study.records import Round, Study
from trainer.study.statistics import Difference, Measure, compare, labels_of, summarise

_CLASS_FIELDS: Final = ("labels_by_class", "f1")
"""Fields of a round with a value for each class: columns of classes.csv instead of rounds.csv."""
_SEPARATE_SETTINGS: Final = ("command", "date", "machine")
"""Settings that the page does not show in the table of settings."""
_MAX_CLASSES: Final = 20
"""Maximum number of rows of a table; of more classes it shows the rarest and the largest."""
_TABLE_MEASURES: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1", "accuracy")


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write report.html, rounds.csv, classes.csv, curves.png and summary.json; return the content of summary.json."""
    figures, name = summarise(study), study.settings.get("default")
    default = name if name in study.runs else None
    _write_files({"": study}, folder, page=_render(study, figures, default), curves=study, default=default)
    return _write_summary(figures, folder)


def write_comparison(studies: Mapping[str, Study], folder: Path, *, title: str) -> dict[str, Any]:
    """Write the same files for studies by backbone name; subfolders of these names have their reports."""
    reference, first = next(iter(studies.items()))
    strategies = choose_strategies([*first.runs])
    page, curves = _render_comparison(studies, strategies, title=title), _by_backbone(studies, strategies[-1])
    _write_files(studies, folder, page=page, curves=curves, default=reference)
    return _write_summary({name: summarise(study) for name, study in studies.items()}, folder)


def _write_summary(figures: dict[str, Any], folder: Path) -> dict[str, Any]:
    document = json.dumps(figures, ensure_ascii=False, allow_nan=False, indent=2, default=asdict)
    (folder / "summary.json").write_text(document + "\n", encoding="utf-8")
    return dict(json.loads(document))


def _write_files(studies: Mapping[str, Study], folder: Path, *, page: str, curves: Study, default: str | None) -> None:
    """Write all files but the summary; tables of several studies begin with a column for the backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = [
        (backbone, study.classes, each)
        for backbone, study in studies.items()
        for runs in study.runs.values()
        for run in runs
        for each in run
    ]
    names = [field.name for field in fields(Round) if field.name not in _CLASS_FIELDS]
    by_round = ([backbone, *(getattr(each, name) for name in names)] for backbone, _, each in rounds)
    by_class = (
        [backbone, each.strategy, each.seed, each.round, each.labels, name, labels, f1]
        for backbone, classes, each in rounds
        for name, labels, f1 in zip(classes, each.labels_by_class, each.f1, strict=True)
    )
    class_columns = ["strategy", "seed", "round", "labels", "class", "labels_of_class", "f1"]
    first = 0 if len(studies) > 1 else 1
    for file, header, rows in (("rounds.csv", names, by_round), ("classes.csv", class_columns, by_class)):
        with (folder / file).open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(row[first:] for row in [["backbone", *header], *rows])
    plots.save_curves(curves, folder / "curves.png", default)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _render(study: Study, figures: Mapping[str, dict[str, Any]], default: str | None) -> str:
    ranked = dict(sorted(figures.items(), key=lambda each: -each[1]["aulc_minority_f1"]))
    lines = plots.choose_lines([*study.runs], default)
    return render(
        "study.html",
        study=study,
        random=RANDOM,
        compared=_TABLE_MEASURES,
        titles=plots.TITLES,
        default=default,
        labels=labels_of(study).astype(int).tolist(),
        seeds=len(next(iter(study.runs.values()))),
        summaries=ranked,
        rare=[study.classes[index] for index in study.minority],
        rivals=_compare_with_rivals(study, ranked, default) if default else {},
        lines=lines,
        has_grey_lines=len(ranked) > len(lines),
        measures=plots.draw_measures(study, lines),
        each=plots.draw_by_strategy(study, [*ranked], "minority_f1", default),
        minority_share=plots.draw_minority_share(study, lines),
        shown=_choose_classes(study),
        labels_by_class=_final_by_class(study, ranked, "labels_by_class"),
        f1_by_class=_final_by_class(study, ranked, "f1"),
        hidden_classes=max(0, len(study.classes) - _MAX_CLASSES),
        settings=_format_settings(study.settings),
    )


def _compare_with_rivals(study: Study, strategies: Iterable[str], default: str) -> dict[str, list[Difference | None]]:
    """Return the default's area minus that of each other strategy, for each measure in tables."""
    return {
        rival: [compare(study, default, rival, measure) for measure in _TABLE_MEASURES]
        for rival in strategies
        if rival != default
    }


def _choose_classes(study: Study) -> list[int]:
    """Return the classes shown in tables, the rarest first; of many classes the rarest and the largest."""
    order: list[int] = np.argsort(study.pool_by_class, kind="stable").tolist()
    return order if len(order) <= _MAX_CLASSES else order[: _MAX_CLASSES // 2] + order[-_MAX_CLASSES // 2 :]


def _final_by_class(study: Study, strategies: Iterable[str], name: str) -> list[list[float]]:
    """Return a field of the last round as means over seeds: a row for each class, a column for each strategy."""
    last = [[getattr(run[-1], name) for run in study.runs[strategy]] for strategy in strategies]  # (strategies, S, C)
    means: list[list[float]] = np.mean(last, axis=1).T.tolist()
    return means


def _format_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: _format(value) for name, value in settings.items() if name not in _SEPARATE_SETTINGS}


def _format(value: Any) -> str:
    """Return text unchanged, a sequence with commas, any other value as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(_format, value))
    return json.dumps(value, ensure_ascii=False)


# ---- several backbones


def choose_strategies(studied: Sequence[str]) -> list[str]:
    """Return the strategies to compare backbones with: random and the default, or else the first studied."""
    return [each for each in (RANDOM, PRODUCT) if each in studied] or [*studied[:1]]


def _by_backbone(studies: Mapping[str, Study], strategy: str) -> Study:
    """Return the runs of one strategy as a study with backbones in place of strategies."""
    return replace(next(iter(studies.values())), runs={name: study.runs[strategy] for name, study in studies.items()})


def _render_comparison(studies: Mapping[str, Study], strategies: Sequence[str], *, title: str) -> str:
    names, (first, *others) = [*studies], studies.values()
    lines = plots.choose_lines(names, names[0], limit=plots.MAX_LINES)
    common = {
        name: value
        for name, value in first.settings.items()
        if all(study.settings.get(name) == value for study in others)
    }
    return render(
        "backbones.html",
        title=title,
        study=first,
        sizes={name: study.settings.get("image_size") for name, study in studies.items()},
        labels=labels_of(first).astype(int).tolist(),
        seeds=len(next(iter(first.runs.values()))),
        reference=names[0],
        comparisons=[_compare_backbones(studies, each, lines) for each in strategies],
        lines=lines,
        has_grey_lines=len(names) > len(lines),
        titles=plots.TITLES,
        compared=_TABLE_MEASURES,
        settings=_format_settings(common),
    )


def _compare_backbones(studies: Mapping[str, Study], strategy: str, lines: Sequence[plots.Line]) -> dict[str, Any]:
    """Return the page's comparison of the backbones with one strategy, the largest area under macro-F1 first.

    A row has a backbone's name, its summary, and its macro-F1 area minus that of the reference, the first backbone.
    """
    study, reference = _by_backbone(studies, strategy), next(iter(studies))
    ranked = sorted(summarise(study).items(), key=lambda each: -each[1]["aulc_macro_f1"])
    return {
        "strategy": strategy,
        "rows": [(name, summary, compare(study, name, reference, "macro_f1")) for name, summary in ranked],
        "measures": plots.draw_measures(study, lines, measures=_TABLE_MEASURES),
    }
