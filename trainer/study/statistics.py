"""What a study says in numbers: areas under curves, differences by seed with their intervals, labels saved.

Strategies are compared by pairs of runs with equal seeds: those that begin with a seed's random labels are moved alike
by these. Knows neither files nor pages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from trainer.study.options import RANDOM
from trainer.study.records import Study

Floats = npt.NDArray[np.float64]

Measure = Literal["accuracy", "balanced_accuracy", "macro_f1", "minority_f1", "nll", "ece"]
MEASURES: Final[tuple[Measure, ...]] = ("accuracy", "balanced_accuracy", "macro_f1", "minority_f1", "nll", "ece")
LOWER_IS_BETTER: Final[frozenset[Measure]] = frozenset({"nll", "ece"})
TARGETS: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1")
"""Measures of which is asked how many labels it takes to come as far as random."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of two strategies' areas over the seeds, and its 95 % interval."""

    mean: float
    low: float | None
    """None for a single seed, as is `high`."""
    high: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True, slots=True)
class LabelRatio:
    """Labels a strategy needs to come as far as others do in the end, over their labels, and its 95 % interval.

    Random's own to random is 1, or less where its mean curve was as high before; it has no interval.
    """

    ratio: float | None
    """None where the strategy never comes as far, which makes it more than `most`."""
    low: float | None
    """None where the interval begins beyond the labels that the strategy had, and for a single seed."""
    high: float | None
    """None where the interval ends beyond them, and for a single seed."""
    seeds: int
    most: float
    """All labels that the strategy had, over those of the others."""
    has_interval: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean over seeds, by labels."""

    labels: Floats
    """(R,)"""
    mean: Floats
    """(R,)"""
    error: Floats
    """(R,): the standard error of the mean; 0 for a single seed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a strategy came to."""

    strategy: str
    seeds: int
    areas: Mapping[Measure, float]
    """Mean of the normalised areas."""
    differences: Mapping[Measure, Difference | None]
    """Of areas, to random; None where that was not studied."""
    final: Mapping[Measure, float]
    """Mean after the last round."""
    label_ratios: Mapping[Measure, LabelRatio | None]
    """For random's final value of the measures in `TARGETS`; None where that was not studied."""
    reference_ratios: Mapping[Measure, LabelRatio | None]
    """For the reference's; None where there is none."""
    choose_s: float
    """Mean seconds a round spends on choosing, of those after which something is chosen."""
    score_s: float
    """Likewise of the passes over the pool."""
    minority_labels: float
    """Mean number of images of minority classes that are labelled after the last round."""
    minority_labels_random: float | None
    """How many random has."""


def labels_of(study: Study) -> Floats:
    """Return how many labels there are in each round, (R,), the same in all runs."""
    run = next(iter(study.runs.values()))[0]
    return np.array([each.labels for each in run], np.float64)


def values_of(study: Study, strategy: str, name: str) -> Floats:
    """Return what a strategy's rounds have under a name: (S, R), by seed and round."""
    return np.array([[getattr(each, name) for each in run] for run in study.runs[strategy]], np.float64)


def areas(labels: Floats, values: Floats) -> Floats:
    """Return the areas under curves over their range of labels, which are mean heights: (R,) and (S, R) to (S,)."""
    if len(labels) == 1:
        return values[:, 0]
    return np.asarray(np.trapezoid(values, labels, axis=1) / (labels[-1] - labels[0]))


def compare(study: Study, strategy: str, reference: str, measure: Measure) -> Difference | None:
    """Return the difference of the areas of two strategies, the first less the second, or None if one was not studied.

    The interval is Student's, of the mean of paired differences. Of few seeds a bootstrap's is too narrow.
    """
    if not {strategy, reference} <= study.runs.keys():
        return None
    ours, theirs = (areas(labels_of(study), values_of(study, each, measure)) for each in (strategy, reference))
    differences = ours - theirs  # (S,)
    mean, seeds = float(differences.mean()), len(differences)
    if seeds == 1:
        return Difference(mean, None, None, seeds)
    (margin,) = _margin(differences[:, None])
    return Difference(mean, float(mean - margin), float(mean + margin), seeds)


def label_ratio(study: Study, strategy: str, measure: Measure) -> LabelRatio | None:
    """Return how many labels a strategy needs for random's final mean, as a share of random's, or None as `compare`.

    The initial set counts. The ratio is read from the monotone curve that is nearest to the mean over seeds (isotonic
    regression), straight between rounds. The interval is of the numbers of labels at which the strategy is neither
    surely below random's end nor surely above it, by Student's interval of the mean of paired differences at each
    round.
    """
    if RANDOM not in study.runs:
        return None
    labels, ends = labels_of(study), values_of(study, RANDOM, measure)[:, -1:]
    above = (values_of(study, strategy, measure) - ends) * (-1 if measure in LOWER_IS_BETTER else 1)  # (S, R)
    return _reach_zero(labels, above, of=float(labels[-1]), sure=strategy == RANDOM)


def reference_ratio(study: Study, strategy: str, measure: Measure) -> LabelRatio | None:
    """Return how many labels a strategy needs for the reference's final mean, as a share of the reference's.

    As `label_ratio`; the reference's mean is taken as it is, without an interval of its own. None without a reference.
    """
    reference = study.reference
    if reference is None or measure not in reference.levels:
        return None
    above = values_of(study, strategy, measure) - reference.levels[measure]  # (S, R)
    return _reach_zero(labels_of(study), above, of=float(reference.labels[-1]))


def _reach_zero(labels: Floats, above: Floats, *, of: float, sure: bool = False) -> LabelRatio:
    """When the mean of curves (S, R) comes to zero, as a share of a number of labels; `sure` has no interval."""
    mean, seeds, most = above.mean(axis=0), len(above), float(labels[-1]) / of
    ratio = share_to_reach(labels, IsotonicRegression().fit_transform(labels, mean), of=of)
    if seeds == 1 or sure:
        return LabelRatio(ratio, None, None, seeds, most, has_interval=False)
    margin = _margin(above)
    stays = np.minimum.accumulate((mean - margin)[::-1])[::-1]  # the least from there on
    low, high = share_to_reach(labels, mean + margin, of=of), share_to_reach(labels, stays, of=of)
    if ratio is not None:  # where the mean falls, the monotone curve may be there later, or earlier, than all of these
        low, high = min(ratio, low or ratio), None if high is None else max(ratio, high)
    return LabelRatio(ratio, low, high, seeds, most)


def share_to_reach(labels: Floats, curve: Floats, *, of: float) -> float | None:
    """Return at which share of a number of labels a curve first comes to zero, straight between points.

    None where never. `labels` (R,) rise, `curve` is (R,).
    """
    reached = curve >= 0
    first = int(reached.argmax())
    if not reached[first]:
        return None
    ends = [max(first - 1, 0), first]
    return float(np.interp(0.0, curve[ends], labels[ends])) / of


def mean_curve(study: Study, strategy: str, measure: Measure) -> Curve:
    """Return the mean of a measure over seeds."""
    return _curve(labels_of(study), values_of(study, strategy, measure))


def minority_share(study: Study, strategy: str) -> Curve:
    """Return which share of the labelled images is of minority classes, as a mean over seeds."""
    labels = labels_of(study)
    return _curve(labels, _minority_labels(study, strategy) / labels)


def _curve(labels: Floats, values: Floats) -> Curve:
    error = stats.sem(values, axis=0) if len(values) > 1 else np.zeros(len(labels))
    return Curve(labels, values.mean(axis=0), error)


def _minority_labels(study: Study, strategy: str) -> Floats:
    """How many images of minority classes are labelled, (S, R)."""
    counts = np.array([[each.labels_by_class for each in run] for run in study.runs[strategy]], np.float64)
    return np.asarray(counts[:, :, list(study.minority)].sum(axis=2))


def summarise(study: Study) -> tuple[Summary, ...]:
    """Return what each strategy came to, in the order of the strategies."""
    return tuple(_summary(study, strategy) for strategy in study.runs)


def _summary(study: Study, strategy: str) -> Summary:
    labels = labels_of(study)
    values = {measure: values_of(study, strategy, measure) for measure in MEASURES}
    minority = {each: float(_minority_labels(study, each)[:, -1].mean()) for each in {strategy, RANDOM} & {*study.runs}}
    seconds = {name: values_of(study, strategy, name)[:, :-1] for name in ("choose_s", "score_s")}
    return Summary(
        strategy=strategy,
        seeds=len(study.runs[strategy]),
        areas={measure: float(areas(labels, found).mean()) for measure, found in values.items()},
        differences={measure: compare(study, strategy, RANDOM, measure) for measure in MEASURES},
        final={measure: float(found[:, -1].mean()) for measure, found in values.items()},
        label_ratios={measure: label_ratio(study, strategy, measure) for measure in TARGETS},
        reference_ratios={measure: reference_ratio(study, strategy, measure) for measure in TARGETS},
        **{name: float(found.mean()) if found.size else 0.0 for name, found in seconds.items()},
        minority_labels=minority[strategy],
        minority_labels_random=minority.get(RANDOM),
    )


def to_json(summaries: Iterable[Summary]) -> dict[str, dict[str, Any]]:
    """Return the summaries as a JSON object, by strategy."""
    return {each.strategy: _document(each) for each in summaries}


def _document(summary: Summary) -> dict[str, Any]:
    ratios = {"random": summary.label_ratios, "reference": summary.reference_ratios}
    return {
        "seeds": summary.seeds,
        **{f"aulc_{measure}": value for measure, value in summary.areas.items()},
        **{f"aulc_{measure}_vs_random": each and asdict(each) for measure, each in summary.differences.items()},
        **{f"{measure}_final": value for measure, value in summary.final.items()},
        **{
            f"label_ratio_{measure}_vs_{other}": each and asdict(each)
            for other, of_measures in ratios.items()
            for measure, each in of_measures.items()
        },
        "choose_s": summary.choose_s,
        "score_s": summary.score_s,
        "minority_labels": summary.minority_labels,
        "minority_labels_random": summary.minority_labels_random,
    }


def _margin(values: Floats) -> Floats:
    """Half the width of Student's interval of the mean over the first axis, of at least two: (S, R) to (R,)."""
    margin: Floats = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)
    return margin
