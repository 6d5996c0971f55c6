"""The report of a study: one page to read, the figures behind it as CSV and JSON, and a picture for READMEs.

The same study gives the same files, byte for byte. Studies of several backbones on the same images, with the same
strategies and seeds, have such a report together: a seed's random labels are the same whatever the backbone is, so that
backbones, too, are compared by pairs.
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

_SEQUENCES: Final = ("labels_by_class", "f1")
"""Of a round: what has a value for each class, and a row of classes.csv instead of a column of rounds.csv."""

_PLACED: Final = ("command", "date", "machine")
"""Settings that have a place of their own on the page."""

_CLASSES: Final = 20
"""Rows of a table; of more classes it shows the rarest and the largest."""

_COMPARED: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1", "accuracy")
"""Measures in tables."""


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write report.html, rounds.csv, classes.csv, summary.json and curves.png; return what summary.json holds."""
    figures, name = summarise(study), study.settings.get("default")
    default = name if name in study.runs else None
    _write_files({"": study}, folder, page=_render(study, figures, default), curves=study, default=default)
    return _write_summary(figures, folder)


def write_comparison(studies: Mapping[str, Study], folder: Path, *, title: str) -> dict[str, Any]:
    """Do as `write` does, of studies by their backbones' names, which folders below with their own reports have too."""
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
    """Write all but the summary; the tables of several studies begin with the backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = [
        (backbone, study.classes, each)
        for backbone, study in studies.items()
        for runs in study.runs.values()
        for run in runs
        for each in run
    ]
    names = [field.name for field in fields(Round) if field.name not in _SEQUENCES]
    by_round = ([backbone, *(getattr(each, name) for name in names)] for backbone, _, each in rounds)
    by_class = (
        [backbone, each.strategy, each.seed, each.round, each.labels, name, labels, f1]
        for backbone, classes, each in rounds
        for name, labels, f1 in zip(classes, each.labels_by_class, each.f1, strict=True)
    )
    of_class = ["strategy", "seed", "round", "labels", "class", "labels_of_class", "f1"]
    left_out = 0 if len(studies) > 1 else 1
    for file, header, rows in (("rounds.csv", names, by_round), ("classes.csv", of_class, by_class)):
        with (folder / file).open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(row[left_out:] for row in [["backbone", *header], *rows])
    plots.save_curves(curves, folder / "curves.png", default)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _render(study: Study, figures: Mapping[str, dict[str, Any]], default: str | None) -> str:
    ranked = dict(sorted(figures.items(), key=lambda each: -each[1]["aulc_minority_f1"]))
    lines = plots.choose_lines([*study.runs], default)
    against_random = {
        strategy: difference
        for strategy, found in ranked.items()
        if strategy != RANDOM and (difference := found["aulc_minority_f1_vs_random"])
    }
    return render(
        "study.html",
        study=study,
        random=RANDOM,
        compared=_COMPARED,
        titles=plots.TITLES,
        default=default,
        labels=labels_of(study).astype(int).tolist(),
        seeds=len(next(iter(study.runs.values()))),
        summaries=ranked,
        rare=[study.classes[index] for index in study.minority],
        differences=against_random
        and plots.draw_differences(against_random, title="Minority-F1 area less that of random"),
        duels=_duels(study, ranked, default) if default else {},
        lines=lines,
        unnamed=len(ranked) > len(lines),
        measures=plots.draw_measures(study, lines),
        each=plots.draw_each(study, [*ranked], "minority_f1", default),
        minority_share=plots.draw_minority_share(study, lines),
        shown=_choose_classes(study),
        labels_by_class=_by_class(study, ranked, "labels_by_class"),
        f1_by_class=_by_class(study, ranked, "f1"),
        classes_left=max(0, len(study.classes) - _CLASSES),
        agreement=sorted(study.agreement, key=lambda each: (each.passes, each.seed)),
        settings=_show_settings(study.settings),
    )


def _duels(study: Study, rivals: Iterable[str], default: str) -> dict[str, list[Difference | None]]:
    """The default's areas less each rival's."""
    return {
        rival: [compare(study, default, rival, measure) for measure in _COMPARED]
        for rival in rivals
        if rival != default
    }


def _choose_classes(study: Study) -> list[int]:
    """The classes that tables show, the rarest first; of many the rarest and the largest."""
    order: list[int] = np.argsort(study.pool_by_class, kind="stable").tolist()
    return order if len(order) <= _CLASSES else order[: _CLASSES // 2] + order[-_CLASSES // 2 :]


def _by_class(study: Study, strategies: Iterable[str], name: str) -> list[list[float]]:
    """What strategies come to after the last round, as means over seeds: a row for each class."""
    last = [[getattr(run[-1], name) for run in study.runs[strategy]] for strategy in strategies]  # (strategies, S, C)
    means: list[list[float]] = np.mean(last, axis=1).T.tolist()
    return means


def _show_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that have no place of their own on the page."""
    return {name: _show(value) for name, value in settings.items() if name not in _PLACED}


def _show(value: Any) -> str:
    """A setting as people write it: a list by commas, all else but text as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(_show, value))
    return json.dumps(value, ensure_ascii=False)


# ---- several backbones


def choose_strategies(studied: Sequence[str]) -> list[str]:
    """Return those that backbones are compared under: random and the default, or what there is in their place."""
    return [each for each in (RANDOM, PRODUCT) if each in studied] or [*studied[:1]]


def _by_backbone(studies: Mapping[str, Study], strategy: str) -> Study:
    """The runs of one strategy as a study in which backbones stand where strategies do."""
    return replace(next(iter(studies.values())), runs={name: study.runs[strategy] for name, study in studies.items()})


def _render_comparison(studies: Mapping[str, Study], strategies: Sequence[str], *, title: str) -> str:
    names, (first, *others) = [*studies], studies.values()
    lines = plots.choose_lines(names, names[0], most=plots.MOST)
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
        comparisons=[_compare(studies, each, lines) for each in strategies],
        lines=lines,
        unnamed=len(names) > len(lines),
        titles=plots.TITLES,
        compared=_COMPARED,
        settings=_show_settings(common),
    )


def _compare(studies: Mapping[str, Study], strategy: str, lines: Sequence[plots.Line]) -> dict[str, Any]:
    """What the page shows of the backbones under one strategy, those with the largest area under macro-F1 first.

    A row is what a backbone, in the place of a strategy, came to, and its macro-F1 area less the first named's.
    """
    study, reference = _by_backbone(studies, strategy), next(iter(studies))
    ranked = sorted(summarise(study).items(), key=lambda each: -each[1]["aulc_macro_f1"])
    return {
        "strategy": strategy,
        "rows": [(name, found, compare(study, name, reference, "macro_f1")) for name, found in ranked],
        "measures": plots.draw_measures(study, lines, measures=_COMPARED, by="backbone"),
    }
