"""What a study says in numbers: areas under curves, differences by seed with their intervals, labels saved.

Strategies are compared by pairs of chains with equal seeds, since a seed's initial set moves all of its chains alike.
Only complete chains count, those with as many rounds as the longest of the study: a curve that ends early has another
area for no better reason. Knows neither files nor pages.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from trainer.study.options import RANDOM
from trainer.study.records import Round, Study

Floats = npt.NDArray[np.float64]
Chains = Mapping[int, tuple[Round, ...]]
"""Complete chains of a strategy, by seed in rising order."""

Measure = Literal["accuracy", "balanced_accuracy", "macro_f1", "minority_f1", "nll", "ece"]
MEASURES: Final[tuple[Measure, ...]] = ("accuracy", "balanced_accuracy", "macro_f1", "minority_f1", "nll", "ece")
LOWER_IS_BETTER: Final[frozenset[Measure]] = frozenset({"nll", "ece"})
TARGETS: Final[tuple[Measure, ...]] = ("macro_f1", "minority_f1")
"""Measures of which is asked how many labels it takes to come as far as random."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of two strategies' areas over the seeds that both have, and its 95 % interval."""

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
    """Labels a strategy needs to come as far as random does in the end, over random's labels, and its 95 % interval.

    Random's own is 1, or less where its mean curve was as high before; it has no interval.
    """

    ratio: float | None
    """None where the strategy never comes as far, which makes it more than 1."""
    low: float | None
    """None where the interval begins beyond the labels that the strategy had, and for a single seed."""
    high: float | None
    """None where the interval ends beyond them, and for a single seed."""
    seeds: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean of a measure over seeds, by labels."""

    labels: Floats
    """(G,)"""
    mean: Floats
    """(G,)"""
    error: Floats
    """(G,): the standard error of the mean; 0 for a single seed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a strategy came to over its complete chains."""

    strategy: str
    seeds: int
    areas: Mapping[Measure, float]
    """Mean of the normalised areas."""
    differences: Mapping[Measure, Difference | None]
    """Of areas, to random; None where the two have no seed in common."""
    final: Mapping[Measure, float]
    """Mean after the last round."""
    label_ratios: Mapping[Measure, LabelRatio | None]
    """For random's final value of the measures in `TARGETS`; None where the two have no seed in common."""
    choose_s: float
    """Mean seconds a round spends on choosing, of those after which something is chosen."""
    score_s: float
    """Likewise of the passes over the pool."""
    minority_labels: float
    """Mean number of images of minority classes that are labelled after the last round."""
    minority_labels_random: float | None
    """How many random has, on the seeds that both have; None where there are none."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A chain that does not count."""

    strategy: str
    seed: int
    rounds: int
    """How many of its rounds there are; 0 where it was never begun."""


def rounds_of(study: Study) -> int:
    """Return the rounds of a complete chain, the initial set's included.

    Raises:
        ValueError: if the study holds no round.
    """
    if not study.rounds:
        raise ValueError(f"the study {study.name} holds no round: let at least one end")
    return 1 + max(each.round for each in study.rounds)


def complete_chains(study: Study) -> Mapping[str, Chains]:
    """Return the complete chains of each strategy, in the order of the strategies; of some there may be none.

    Raises:
        ValueError: if the study holds no round.
    """
    rounds = rounds_of(study)
    chains = {
        strategy: {seed: tuple(found[index] for index in sorted(found)) for seed, found in sorted(by_seed.items())}
        for strategy, by_seed in _by_round(study).items()
    }
    return {
        strategy: {seed: chain for seed, chain in by_seed.items() if len(chain) == rounds}
        for strategy, by_seed in chains.items()
    }


def left_out(study: Study) -> tuple[LeftOut, ...]:
    """Return the chains that do not count, those included that other strategies have and one lacks altogether."""
    complete, chains = complete_chains(study), _by_round(study)
    seeds = sorted({each.seed for each in study.rounds})
    return tuple(
        LeftOut(strategy, seed, len(chains[strategy].get(seed, {})))
        for strategy in chains
        for seed in seeds
        if seed not in complete[strategy]
    )


def _by_round(study: Study) -> Mapping[str, Mapping[int, Mapping[int, Round]]]:
    """Rounds by strategy, seed and number."""
    found: dict[str, dict[int, dict[int, Round]]] = {}
    for each in study.rounds:
        found.setdefault(each.strategy, {}).setdefault(each.seed, {})[each.round] = each
    return found


def area(labels: npt.ArrayLike, values: npt.ArrayLike) -> float:
    """Return the area under a curve over its range of labels, which is the mean height: labels and values (R,).

    Raises:
        ValueError: if the two are not of one length, are empty, or labels fall.
    """
    at, height = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    if at.ndim != 1 or at.shape != height.shape or not len(at):
        raise ValueError(
            f"labels and values must be of one length of at least 1, got shapes {at.shape}, {height.shape}"
        )
    if (np.diff(at) < 0).any():
        raise ValueError(f"labels must not fall, got {at.tolist()}")
    if at[0] == at[-1]:
        return float(height.mean())
    return float(np.trapezoid(height, at) / (at[-1] - at[0]))


def compare(study: Study, strategy: str, reference: str, measure: Measure) -> Difference | None:
    """Return the difference of the areas of two strategies, the first less the second, or None without common seeds.

    The interval is Student's, of the mean of paired differences. Of few seeds a bootstrap's is too narrow.

    Raises:
        ValueError: if the study holds no round.
    """
    pair = _paired(study, strategy, reference)
    if not pair[0]:
        return None
    ours, theirs = (_areas(chains, measure) for chains in pair)
    differences = ours - theirs  # (S,)
    mean, seeds = float(differences.mean()), len(differences)
    if seeds == 1:
        return Difference(mean, None, None, seeds)
    (margin,) = _margin(differences[:, None])
    return Difference(mean, float(mean - margin), float(mean + margin), seeds)


def label_ratio(study: Study, strategy: str, measure: Measure) -> LabelRatio | None:
    """Return how many labels a strategy needs for random's final mean, as a share of random's, or None as `compare`.

    Mean curves are straight between rounds, and the initial set counts. The interval is of the numbers of labels at
    which the strategy is neither surely below random's end nor surely above it, by Student's interval of the mean of
    paired differences at each round.

    Raises:
        ValueError: if the study holds no round.
    """
    ours, theirs = _paired(study, strategy, RANDOM)
    if not ours:
        return None
    ends = np.array([_values(chain, measure)[-1] for chain in theirs.values()])  # (S,)
    labels, values = _grid(ours, measure)
    above = (values - ends[:, None]) * (-1 if measure in LOWER_IS_BETTER else 1)  # (S, G)
    mean, seeds, all_of_random = above.mean(axis=0), len(ours), _grid(theirs, measure)[0][-1]
    ratio = _known(labels_to_reach(labels, mean) / all_of_random)
    if seeds == 1 or strategy == RANDOM:
        return LabelRatio(ratio, None, None, seeds)
    margin = _margin(above)
    stays = np.minimum.accumulate((mean - margin)[::-1])[::-1]  # the least from there on
    low, high = (_known(labels_to_reach(labels, curve) / all_of_random) for curve in (mean + margin, stays))
    return LabelRatio(ratio, low, high, seeds)


def labels_to_reach(labels: Floats, curve: Floats, target: float = 0.0) -> float:
    """Return at how many labels a curve first comes to its target, straight between points; infinity where never.

    Args:
        labels: (G,), rising.
        curve: (G,).
        target: in the curve's unit.
    """
    reached = curve >= target
    first = int(reached.argmax())
    if not reached[first]:
        return math.inf
    before = max(first - 1, 0)
    return float(np.interp(target, curve[[before, first]], labels[[before, first]]))


def mean_curve(chains: Chains, measure: Measure) -> Curve:
    """Return the mean of a measure over chains, at the labels that any of them has."""
    labels, values = _grid(chains, measure)
    return Curve(labels, values.mean(axis=0), _standard_error(values))


def minority_share(chains: Chains, minority: Iterable[int]) -> Curve:
    """Return which share of the labelled images is of minority classes, as a mean over chains."""
    rare = list(minority)
    labels, values = _interpolated(
        [
            (_labels(chain), np.array([_count(each, rare) / max(1, sum(each.labels_by_class)) for each in chain]))
            for chain in chains.values()
        ]
    )
    return Curve(labels, values.mean(axis=0), _standard_error(values))


def summarise(study: Study) -> tuple[Summary, ...]:
    """Return what each strategy with a complete chain came to, in the order of the strategies.

    Raises:
        ValueError: if the study holds no round.
    """
    return tuple(_summary(study, strategy, chains) for strategy, chains in complete_chains(study).items() if chains)


def _summary(study: Study, strategy: str, chains: Chains) -> Summary:
    choosing = [each for chain in chains.values() for each in chain[:-1]]
    random = _paired(study, strategy, RANDOM)[1]
    return Summary(
        strategy=strategy,
        seeds=len(chains),
        areas={measure: float(_areas(chains, measure).mean()) for measure in MEASURES},
        differences={measure: compare(study, strategy, RANDOM, measure) for measure in MEASURES},
        final={measure: _final(chains, measure) for measure in MEASURES},
        label_ratios={measure: label_ratio(study, strategy, measure) for measure in TARGETS},
        choose_s=_mean([each.choose_s for each in choosing]) or 0.0,
        score_s=_mean([each.score_s for each in choosing]) or 0.0,
        minority_labels=_mean([_count(chain[-1], study.minority) for chain in chains.values()]) or 0.0,
        minority_labels_random=_mean([_count(chain[-1], study.minority) for chain in random.values()]),
    )


def to_json(summaries: Iterable[Summary]) -> dict[str, dict[str, Any]]:
    """Return the summaries as a JSON object, by strategy; what is not defined is None, never NaN."""
    return {each.strategy: _document(each) for each in summaries}


def _document(summary: Summary) -> dict[str, Any]:
    ratios = summary.label_ratios
    return {
        "seeds": summary.seeds,
        **{f"aulc_{measure}": _known(value) for measure, value in summary.areas.items()},
        **{f"aulc_{measure}_vs_random": _fields(each) for measure, each in summary.differences.items()},
        **{f"{measure}_final": _known(value) for measure, value in summary.final.items()},
        "label_ratio_vs_random": getattr(ratios["minority_f1"], "ratio", None),
        "label_ratio_macro_f1": getattr(ratios["macro_f1"], "ratio", None),
        **{f"label_ratio_{measure}_interval": _ends(each) for measure, each in ratios.items()},
        "choose_s": summary.choose_s,
        "score_s": summary.score_s,
        "minority_labels": summary.minority_labels,
        "minority_labels_random": summary.minority_labels_random,
    }


def _fields(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {name: value if value is None else _known(value) for name, value in asdict(difference).items()}


def _ends(ratio: LabelRatio | None) -> tuple[float | None, float | None] | None:
    return None if ratio is None or ratio.seeds == 1 else (ratio.low, ratio.high)


def _paired(study: Study, strategy: str, reference: str) -> tuple[Chains, Chains]:
    """The complete chains of two strategies, of the seeds that both have."""
    chains = complete_chains(study)
    ours, theirs = (chains.get(name, {}) for name in (strategy, reference))
    common = [seed for seed in ours if seed in theirs]
    return {seed: ours[seed] for seed in common}, {seed: theirs[seed] for seed in common}


def _areas(chains: Chains, measure: Measure) -> Floats:
    """Normalised areas of the chains, (S,)."""
    return np.array([area(_labels(chain), _values(chain, measure)) for chain in chains.values()])


def _final(chains: Chains, measure: Measure) -> float:
    return float(np.mean([getattr(chain[-1], measure) for chain in chains.values()]))


def _grid(chains: Chains, measure: Measure) -> tuple[Floats, Floats]:
    return _interpolated([(_labels(chain), _values(chain, measure)) for chain in chains.values()])


def _interpolated(curves: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Bring curves to the labels that any has, from where all begin to where the first ends: (G,) and (S, G)."""
    begin, end = max(labels[0] for labels, _ in curves), min(labels[-1] for labels, _ in curves)
    every: Floats = np.unique(np.concatenate([labels for labels, _ in curves]))
    grid = every[(every >= begin) & (every <= end)]
    return grid, np.stack([np.interp(grid, labels, values) for labels, values in curves])


def _labels(chain: tuple[Round, ...]) -> Floats:
    return np.array([each.labels for each in chain], np.float64)


def _values(chain: tuple[Round, ...], measure: Measure) -> Floats:
    return np.array([getattr(each, measure) for each in chain], np.float64)


def _count(each: Round, classes: Iterable[int]) -> int:
    return sum(each.labels_by_class[index] for index in classes)


def _margin(values: Floats) -> Floats:
    """Half the width of Student's interval of the mean over the first axis, of at least two: (S, G) to (G,)."""
    margin: Floats = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * _standard_error(values)
    return margin


def _standard_error(values: Floats) -> Floats:
    """Of the mean over the first axis: (S, G) to (G,)."""
    seeds, points = values.shape
    if seeds == 1:
        return np.zeros(points)
    error: Floats = values.std(axis=0, ddof=1) / math.sqrt(seeds)
    return error


def _mean(values: list[float] | list[int]) -> float | None:
    return float(np.mean(values)) if values else None


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
