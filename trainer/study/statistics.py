"""Statistics of a study: areas under curves, paired differences with confidence intervals, labels saved.

Strategies are compared in pairs of runs with equal seeds, since a seed's random initial labels affect both alike.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from trainer.study.options import RANDOM
from trainer.study.records import Study

Floats = npt.NDArray[np.float64]

Measure = Literal["accuracy", "balanced_accuracy", "macro_f1", "minority_f1", "nll", "ece"]
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)
LOWER_IS_BETTER: Final[frozenset[Measure]] = frozenset({"nll", "ece"})
RATIO_MEASURES: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1")
"""Measures with label ratios."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over seeds of the difference of two strategies' areas, and its 95 % interval; a single seed has none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True, slots=True)
class LabelRatio:
    """Labels a strategy needs to reach the final level of a reference, over all labels of the reference.

    With a 95 % interval. The ratio of random to itself is 1, or less if its mean curve reached the level earlier; it
    has no interval.
    """

    ratio: float | None
    """None if the strategy never reaches the level: the ratio is above `most`."""
    low: float | None
    """None beyond `most` or for a single seed; so is `high`."""
    high: float | None
    seeds: int
    most: float
    """All labels of the strategy over those of the reference."""
    has_interval: bool = True


class Curve(NamedTuple):
    """Mean over seeds by number of labels, all (R,)."""

    labels: Floats
    mean: Floats
    error: Floats
    """Standard error of the mean; 0 for a single seed."""


def labels_of(study: Study) -> Floats:
    """Return the number of labels in each round, (R,), the same in all runs."""
    run = next(iter(study.runs.values()))[0]
    return np.array([each.labels for each in run], np.float64)


def values_of(study: Study, strategy: str, name: str) -> Floats:
    """Return a field of a strategy's rounds, by seed and round: (S, R)."""
    return np.array([[getattr(each, name) for each in run] for run in study.runs[strategy]], np.float64)


def areas(labels: Floats, values: Floats) -> Floats:
    """Return the areas under curves divided by the range of labels: (R,) and (S, R) to (S,)."""
    if len(labels) == 1:
        return values[:, 0]
    return np.asarray(np.trapezoid(values, labels, axis=1) / (labels[-1] - labels[0]))


def compare(study: Study, strategy: str, reference: str, measure: Measure) -> Difference | None:
    """Return the area of a strategy minus that of a reference, or None if one of them was not studied.

    The interval is Student's for the mean of paired differences; a bootstrap's is too narrow with few seeds.
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
    """Return the labels a strategy needs for random's final mean as a share of random's labels, or None as `compare`.

    Initial labels count. The ratio is read from the isotonic regression of the mean over seeds, with linear
    interpolation between rounds. The interval contains the numbers of labels at which Student's interval of the mean of
    paired differences to random's final value includes zero.
    """
    if RANDOM not in study.runs:
        return None
    labels, ends = labels_of(study), values_of(study, RANDOM, measure)[:, -1:]
    above = (values_of(study, strategy, measure) - ends) * (-1 if measure in LOWER_IS_BETTER else 1)  # (S, R)
    return _ratio_to_reach_zero(labels, above, of=float(labels[-1]), exact=strategy == RANDOM)


def reference_ratio(study: Study, strategy: str, measure: Measure) -> LabelRatio | None:
    """Return the `label_ratio` with the study's reference in place of random; the reference's mean counts as exact."""
    reference = study.reference
    if reference is None or measure not in reference.levels:
        return None
    above = values_of(study, strategy, measure) - reference.levels[measure]  # (S, R)
    return _ratio_to_reach_zero(labels_of(study), above, of=float(reference.labels[-1]))


def _ratio_to_reach_zero(labels: Floats, above: Floats, *, of: float, exact: bool = False) -> LabelRatio:
    """Return the labels at which the mean of curves (S, R) reaches zero, over `of`; without an interval if `exact`."""
    mean, seeds, highest = above.mean(axis=0), len(above), float(labels[-1]) / of
    ratio = share_to_reach_zero(labels, IsotonicRegression().fit_transform(labels, mean), of=of)
    if seeds == 1 or exact:
        return LabelRatio(ratio, None, None, seeds, highest, has_interval=False)
    margin = _margin(above)
    stays = np.minimum.accumulate((mean - margin)[::-1])[::-1]  # the minimum of this and all later rounds
    low, high = share_to_reach_zero(labels, mean + margin, of=of), share_to_reach_zero(labels, stays, of=of)
    if ratio is not None:  # where the mean falls, the isotonic curve may reach zero outside of the interval
        low, high = min(ratio, low or ratio), None if high is None else max(ratio, high)
    return LabelRatio(ratio, low, high, seeds, highest)


def share_to_reach_zero(labels: Floats, curve: Floats, *, of: float) -> float | None:
    """Return the labels at which a linearly interpolated curve, (R,), first reaches zero, over `of`; None if never."""
    reached = curve >= 0
    first = int(reached.argmax())
    if not reached[first]:
        return None
    ends = [max(first - 1, 0), first]
    return float(np.interp(0.0, curve[ends], labels[ends])) / of


def _margin(values: Floats) -> Floats:
    """Return half the width of Student's interval of the mean over S > 1 seeds: (S, R) to (R,)."""
    margin: Floats = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)
    return margin


def mean_curve(study: Study, strategy: str, measure: Measure) -> Curve:
    """Return a strategy's curve of a measure."""
    return _curve(labels_of(study), values_of(study, strategy, measure))


def minority_share(study: Study, strategy: str) -> Curve:
    """Return a strategy's curve of the share of minority classes among the labels."""
    labels = labels_of(study)
    return _curve(labels, _minority_labels(study, strategy) / labels)


def _curve(labels: Floats, values: Floats) -> Curve:
    error = stats.sem(values, axis=0) if len(values) > 1 else np.zeros(len(labels))
    return Curve(labels, values.mean(axis=0), error)


def _minority_labels(study: Study, strategy: str) -> Floats:
    """Return the number of labelled images of minority classes, (S, R)."""
    counts = np.array([[each.labels_by_class for each in run] for run in study.runs[strategy]], np.float64)
    return np.asarray(counts[:, :, list(study.minority)].sum(axis=2))


def summarise(study: Study) -> dict[str, dict[str, Any]]:
    """Return the summary of each strategy, with the keys of summary.json.

    aulc_M                     mean of the normalised areas under the curves of a measure M
    aulc_M_vs_random           a `Difference` of areas; None, as below, if random or the reference was not studied
    M_final                    mean after the last round
    label_ratio_M_vs_random    a `LabelRatio`, for `RATIO_MEASURES`, as is `label_ratio_M_vs_reference`
    choose_s, score_s          mean seconds for selection and for predictions, of all rounds but the last
    minority_labels            mean number of labelled images of minority classes after the last round
    """
    return {strategy: _summarise(study, strategy) for strategy in study.runs}


def _summarise(study: Study, strategy: str) -> dict[str, Any]:
    labels = labels_of(study)
    values = {measure: values_of(study, strategy, measure) for measure in MEASURES}
    minority = {each: float(_minority_labels(study, each)[:, -1].mean()) for each in {strategy, RANDOM} & {*study.runs}}
    seconds = {name: values_of(study, strategy, name)[:, :-1] for name in ("choose_s", "score_s")}
    return {
        "seeds": len(study.runs[strategy]),
        **{f"aulc_{measure}": float(areas(labels, curves).mean()) for measure, curves in values.items()},
        **{f"aulc_{measure}_vs_random": compare(study, strategy, RANDOM, measure) for measure in MEASURES},
        **{f"{measure}_final": float(curves[:, -1].mean()) for measure, curves in values.items()},
        **{f"label_ratio_{measure}_vs_random": label_ratio(study, strategy, measure) for measure in RATIO_MEASURES},
        **{
            f"label_ratio_{measure}_vs_reference": reference_ratio(study, strategy, measure)
            for measure in RATIO_MEASURES
        },
        **{name: float(each.mean()) if each.size else 0.0 for name, each in seconds.items()},
        "minority_labels": minority[strategy],
        "minority_labels_random": minority.get(RANDOM),
    }
