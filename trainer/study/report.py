"""The report of a study: one page to read, the figures behind it as CSV and JSON, and a picture for READMEs.

The same study gives the same files, byte for byte.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer.report.html import render
from trainer.study import plots
from trainer.study.options import RANDOM
from trainer.study.records import PassAgreement, Round, Study
from trainer.study.statistics import Difference, Measure, Summary, compare, labels_of, summarise, to_json

_SEQUENCES: Final = ("labels_by_class", "f1")
"""Of a round: what has a value for each class, and a row of classes.csv instead of a column of rounds.csv."""

_PLACED: Final = ("command", "date", "machine")
"""Settings that have a place of their own on the page."""

_CLASSES: Final = 20
"""Rows of a table; of more classes it shows the rarest and the largest."""

_COMPARED: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1", "accuracy")


def write(study: Study, folder: Path) -> None:
    """Write report.html, rounds.csv, classes.csv, summary.json and curves.png into a folder, which is made if need be.

    Raises:
        OSError: if a file cannot be written.
    """
    summaries = summarise(study)
    folder.mkdir(parents=True, exist_ok=True)
    write_tables({"": study}, folder)
    write_json(to_json(summaries), folder / "summary.json")
    plots.save_curves(study, folder / "curves.png", _default(study))
    (folder / "report.html").write_text(render_page(study, summaries), encoding="utf-8")


def write_tables(studies: Mapping[str, Study], folder: Path) -> None:
    """Write rounds.csv and classes.csv; those of several studies, which differ in backbones, begin with its name."""
    several = len(studies) > 1
    rounds = [
        ([backbone] if several else [], study.classes, each)
        for backbone, study in studies.items()
        for runs in study.runs.values()
        for run in runs
        for each in run
    ]
    first = ["backbone"] if several else []
    names = [field.name for field in fields(Round) if field.name not in _SEQUENCES]
    rows = ([*backbone, *(getattr(each, name) for name in names)] for backbone, _, each in rounds)
    _write_csv(folder / "rounds.csv", [*first, *names], rows)
    by_class = (
        [*backbone, each.strategy, each.seed, each.round, each.labels, name, labels, f1]
        for backbone, classes, each in rounds
        for name, labels, f1 in zip(classes, each.labels_by_class, each.f1, strict=True)
    )
    header = [*first, "strategy", "seed", "round", "labels", "class", "labels_of_class", "f1"]
    _write_csv(folder / "classes.csv", header, by_class)


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def render_page(study: Study, summaries: Sequence[Summary]) -> str:
    """Return the page of a study, given what `summarise` says of it."""
    default = _default(study)
    ranked = sorted(summaries, key=lambda each: -each.areas["minority_f1"])
    names = [each.strategy for each in ranked]
    lines = plots.choose_lines([*study.runs], default)
    against_random = {
        each.strategy: difference
        for each in ranked
        if each.strategy != RANDOM and (difference := each.differences["minority_f1"])
    }
    return render(
        "study.html",
        study=study,
        random=RANDOM,
        compared=_COMPARED,
        titles=plots.TITLES,
        default=default,
        labels=labels_of(study).astype(int).tolist(),
        seeds=summaries[0].seeds,
        summaries=ranked,
        rare=[study.classes[index] for index in study.minority],
        differences=against_random
        and plots.draw_differences(against_random, title="Minority-F1 area less that of random"),
        duels=_duels(study, names, default),
        lines=lines,
        unnamed=len(summaries) > len(lines),
        measures=plots.draw_measures(study, lines),
        each=plots.draw_each(study, names, "minority_f1", default),
        minority_share=plots.draw_minority_share(study, lines),
        shown=_choose_classes(study),
        labels_by_class=_by_class(study, names, "labels_by_class"),
        f1_by_class=_by_class(study, names, "f1"),
        classes_left=max(0, len(study.classes) - _CLASSES),
        agreement=sorted(study.agreement, key=lambda each: (each.passes, each.seed)),
        mean_agreement=_mean_agreement(study.agreement),
        settings=shown_settings(study.settings),
    )


def _default(study: Study) -> str | None:
    """The product's own strategy, if it was studied."""
    name = study.settings.get("default")
    return name if name in study.runs else None


def _duels(study: Study, rivals: Iterable[str], default: str | None) -> dict[str, dict[Measure, Difference | None]]:
    """The default's areas less each rival's."""
    if default is None:
        return {}
    return {
        rival: {measure: compare(study, default, rival, measure) for measure in _COMPARED}
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


def _mean_agreement(agreement: Sequence[PassAgreement]) -> dict[int, Mapping[str, float]]:
    """Means over the seeds, by passes."""
    return {
        passes: {
            name: float(np.mean([getattr(each, name) for each in agreement if each.passes == passes]))
            for name in ("spearman", "top100")
        }
        for passes in sorted({each.passes for each in agreement})
    }


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that have no place of their own on the page, as people write them."""
    return {name: _shown(value) for name, value in settings.items() if name not in _PLACED}


def _shown(value: Any) -> str:
    """A setting as people write it: a list by commas, all else but text as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(_shown, value))
    return json.dumps(value, ensure_ascii=False)
