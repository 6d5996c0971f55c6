"""What a study says in numbers: areas under curves, differences by seed with their intervals, labels saved.

Strategies are compared by pairs of runs with equal seeds: those that begin with a seed's random labels are moved alike
by these. Knows neither files nor pages.
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
TARGETS: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1")
"""Measures of which is asked how many labels it takes to come as far as random."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of two strategies' areas over the seeds, and its 95 % interval, which a single seed has not."""

    mean: float
    low: float | None
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
    """None where the interval begins beyond the labels that the strategy had, and for a single seed; so is `high`."""
    high: float | None
    seeds: int
    most: float
    """All labels that the strategy had, over those of the others."""
    has_interval: bool = True


class Curve(NamedTuple):
    """Mean over seeds, by labels, (R,) each."""

    labels: Floats
    mean: Floats
    error: Floats
    """The standard error of the mean; 0 for a single seed."""


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
    """Return what `label_ratio` does, for the reference in random's place; its mean is taken without an interval."""
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
    """Return at which share of a number of labels a curve, (R,), first comes to zero, straight between points."""
    reached = curve >= 0
    first = int(reached.argmax())
    if not reached[first]:
        return None
    ends = [max(first - 1, 0), first]
    return float(np.interp(0.0, curve[ends], labels[ends])) / of


def _margin(values: Floats) -> Floats:
    """Half the width of Student's interval of the mean over the first axis, of at least two: (S, R) to (R,)."""
    margin: Floats = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)
    return margin


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


def summarise(study: Study) -> dict[str, dict[str, Any]]:
    """Return what each strategy came to, under the names of summary.json.

    aulc_M                     mean of the normalised areas under the curves of a measure M
    aulc_M_vs_random           a `Difference` of areas; like all that follows None where that was not studied
    M_final                    mean after the last round
    label_ratio_M_vs_random    a `LabelRatio`, for measures in `TARGETS`, as is `label_ratio_M_vs_reference`
    choose_s, score_s          mean seconds of a round after which something is chosen, for choosing and for passes
    minority_labels            mean number of images of minority classes that are labelled in the end
    """
    return {strategy: _summarise(study, strategy) for strategy in study.runs}


def _summarise(study: Study, strategy: str) -> dict[str, Any]:
    labels = labels_of(study)
    values = {measure: values_of(study, strategy, measure) for measure in MEASURES}
    minority = {each: float(_minority_labels(study, each)[:, -1].mean()) for each in {strategy, RANDOM} & {*study.runs}}
    seconds = {name: values_of(study, strategy, name)[:, :-1] for name in ("choose_s", "score_s")}
    return {
        "seeds": len(study.runs[strategy]),
        **{f"aulc_{measure}": float(areas(labels, found).mean()) for measure, found in values.items()},
        **{f"aulc_{measure}_vs_random": compare(study, strategy, RANDOM, measure) for measure in MEASURES},
        **{f"{measure}_final": float(found[:, -1].mean()) for measure, found in values.items()},
        **{f"label_ratio_{measure}_vs_random": label_ratio(study, strategy, measure) for measure in TARGETS},
        **{f"label_ratio_{measure}_vs_reference": reference_ratio(study, strategy, measure) for measure in TARGETS},
        **{name: float(found.mean()) if found.size else 0.0 for name, found in seconds.items()},
        "minority_labels": minority[strategy],
        "minority_labels_random": minority.get(RANDOM),
    }
