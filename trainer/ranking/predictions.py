"""The predictions of a ranking, in the order in which their tasks should be labelled.

The plan is saved before the first import, so that an interrupted ranking continues with the same order, even if labels
have changed meanwhile.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from contract.files import explaining
from contract.scores.acquisition import label_studio_score
from contract.scores.holdout import holdout_order, is_held_out
from contract.scores.sure import MARK, Sure
from contract.versions.documents import Documents
from trainer.labelstudio import StoredPrediction
from trainer.ordering import reasons
from trainer.ordering.order import Arrangement
from trainer.ordering.strategies import Candidates
from trainer.scoring.scores import Failure, Score

ADDED_LATER: Final = "added after the ranking, placed by its own score"
SCORED_LATER: Final = "scored later than the others, placed by its own score"
KEPT: Final = "could not be scored, keeps its former place"

_PLACE_KEYS: Final = {"rank", "strategy", "reason", "sure", MARK}
"""Keys in `meta` for a task's place and tab."""


@dataclass(frozen=True, slots=True)
class PlannedPrediction:
    """The prediction of a task, and the reason for its place."""

    task: int
    score: float
    """In [0, 1]; the lowest comes first."""
    result: Sequence[Mapping[str, Any]]
    reason: str
    bald: float | None
    """In nats; None before there is a version."""
    held_out: bool
    """Whether it is in the random holdout."""
    kept: bool = False
    """Whether it could not be scored, and keeps its place in the former ranking."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The predictions of a ranking, in its order."""

    name: str
    """The ranking's name, the model version of its predictions."""
    strategy: str
    near_duplicates: int = 0
    unscored: tuple[int, ...] = ()
    """Tasks that could not be scored, including those that keep their places."""
    kept: int = 0
    """How many of these keep their places."""
    items: tuple[PlannedPrediction, ...] = ()
    sure: Sure | None = None
    """Offers for bulk confirmation; None if not requested."""

    @classmethod
    def of_failures(cls, name: str, strategy: str, failures: Iterable[Failure]) -> Self:
        """Return a plan without predictions."""
        return cls(name, strategy, unscored=tuple(sorted(failure.task for failure in failures)))

    @property
    def scored(self) -> tuple[PlannedPrediction, ...]:
        """The predictions that are placed by their own scores."""
        return tuple(item for item in self.items if not item.kept)

    @property
    def held_out(self) -> int:
        """How many of these are in the random holdout."""
        return sum(item.held_out for item in self.scored)


_PLAN: Final = TypeAdapter(Plan)


def save_plan(path: Path, plan: Plan) -> None:
    """Save a plan atomically; raises ConfigError if it cannot be written."""
    with explaining("a plan", path.parent, remedy="set LABELNEXT_CACHE to a folder with room"):
        Documents(path.parent).write(path.name, _PLAN.dump_json(plan))


def load_plan(path: Path) -> Plan | None:
    """Return a saved plan, or None if it is missing or invalid."""
    try:
        return _PLAN.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


# ---- from scores to predictions


def to_candidates(scores: Sequence[Score], *, multiple: bool) -> Candidates:
    """Return N scores as arrays.

    Raises ValueError if their shapes disagree, a task occurs twice, or a number is not finite.
    """
    return Candidates(
        task_ids=np.array([score.task for score in scores], np.int64),
        probabilities=np.stack([score.probabilities for score in scores]),  # (N, C)
        bald=np.array([score.bald for score in scores], np.float32),
        entropy=np.array([score.entropy for score in scores], np.float32),
        embeddings=np.stack([score.embedding for score in scores]),  # (N, E)
        multiple=multiple,
    )


def place(plan: Plan, scores: Sequence[Score], arrangement: Arrangement) -> Plan:
    """Return a plan with the predictions of N arranged scores."""
    items = tuple(
        _plan_prediction(
            scores[index],
            arrangement.scores[index],
            reason=arrangement.reasons[index],
            held_out=arrangement.held_out[index],
            meta={"strategy": plan.strategy, "rank": rank},
        )
        for rank, index in enumerate(arrangement.order, start=1)
    )
    duplicates = int((arrangement.representative != np.arange(len(scores))).sum())
    return replace(plan, near_duplicates=duplicates, items=items)


def keep_places(
    plan: Plan, former: Collection[StoredPrediction], unlabelled: Collection[int], *, project: int, holdout_share: float
) -> Plan:
    """Add the tasks that could not be scored but were ranked before, at their former places among the other tasks.

    `former` are the predictions of the replaced ranking, with results for the tasks that could not be scored. Only
    `unlabelled` tasks count. Raises ConfigError if `holdout_share` is not in [0, 1).
    """
    queue = sorted((each.score, each.task) for each in former if each.score is not None and each.task in unlabelled)
    results = {each.task: each.result for each in former}
    unscored = set(plan.unscored)
    places = [(place, task) for place, (_, task) in enumerate(queue) if task in unscored]
    scored_before = np.array([place - earlier for earlier, (place, _) in enumerate(places)], np.int64)
    scored = len(queue) - len(places)
    values = _interpolate([item.score for item in plan.items], scored_before, total=scored)
    held_out = is_held_out(project, np.array([task for _, task in places], np.int64), holdout_share)
    kept = [
        PlannedPrediction(
            task, value, _with_place(results[task], {"reason": KEPT}, held_out=out), KEPT, None, out, kept=True
        )
        for (_, task), value, out in zip(places, values.tolist(), held_out.tolist(), strict=True)
    ]
    return replace(plan, kept=len(kept), items=tuple(sorted([*plan.items, *kept], key=lambda item: item.score)))


def _interpolate(scores: Sequence[float], before: npt.NDArray[np.int64], *, total: int) -> npt.NDArray[np.float64]:
    """Return K rising scores that divide N rising scores in the ratio in which K tasks divided `total` others.

    `before`, (K,), is the number of others before each task, in rising order.
    """
    gaps = np.rint(before * len(scores) / max(total, 1)).astype(
        np.int64
    )  # gap g lies between bounds[g] and bounds[g + 1]
    bounds = np.array([0.0, *scores, 1.0])
    start, end = np.searchsorted(gaps, gaps), np.searchsorted(gaps, gaps, side="right")  # of the tasks in the same gap
    share = (np.arange(len(gaps)) - start + 1) / (end - start + 1)
    placed: npt.NDArray[np.float64] = bounds[gaps] + share * (bounds[gaps + 1] - bounds[gaps])
    return placed


def place_later(
    scores: Sequence[Score],
    ranked: Mapping[int, float],
    *,
    unscored: Collection[int],
    project: int,
    holdout_share: float,
    multiple: bool,
) -> tuple[PlannedPrediction, ...]:
    """Return predictions of tasks added after a ranking, or `unscored` by it; `ranked` are its scores by task.

    The score is 1 minus BALD as a share of its maximum, as for ranked tasks. A task of the random holdout is placed by
    its draw among the ranked tasks of the holdout, or among all ranked tasks if there are none. Raises ConfigError if
    `holdout_share` is not in [0, 1).
    """
    task_ids, holdout = np.array([score.task for score in scores], np.int64), np.array([*ranked], np.int64)
    draws, held_out = holdout_order(project, task_ids), is_held_out(project, task_ids, holdout_share)
    holdout = holdout[is_held_out(project, holdout, holdout_share)]
    holdout = holdout[np.argsort(holdout_order(project, holdout))]
    first, last = min(ranked.values(), default=0.0), max(ranked.values(), default=1.0)
    known_draws = [*(holdout_order(project, holdout) if len(holdout) else [0.0]), holdout_share]
    known_scores = [*([ranked[task] for task in holdout.tolist()] or [first]), last]
    items = []
    for score, draw, out in zip(scores, draws, held_out, strict=True):
        by_bald = label_studio_score(np.array(score.bald), len(score.probabilities), multiple=multiple)
        value = np.interp(draw, known_draws, known_scores) if out else by_bald
        reason = reasons.HELD_OUT if out else SCORED_LATER if score.task in unscored else ADDED_LATER
        items.append(_plan_prediction(score, float(value), reason=reason, held_out=out, meta={}))
    return tuple(sorted(items, key=lambda item: item.score))


def _plan_prediction(
    score: Score, value: float, *, reason: str, held_out: bool, meta: Mapping[str, Any]
) -> PlannedPrediction:
    bald = float(score.bald) if len(score.probabilities) else None
    result = _with_place(score.result, {"reason": reason, **meta}, held_out=held_out)
    return PlannedPrediction(score.task, float(value), result, reason, bald, bool(held_out))


def _with_place(
    result: Sequence[Mapping[str, Any]], meta: Mapping[str, Any], *, held_out: bool
) -> list[Mapping[str, Any]]:
    """Return regions with new `meta` about the task's place; empty for the random holdout.

    Label and reason are the first keys, because the Data Manager shows only the beginning of the JSON. Label Studio
    preselects predicted labels, which would bias the labels of the random holdout.
    """
    if held_out:
        return []
    regions = list[Mapping[str, Any]]()
    for region in result:
        known = {name: value for name, value in (region.get("meta") or {}).items() if name not in _PLACE_KEYS}
        others = {name: value for name, value in region.items() if name not in {"value", "meta"}}
        regions.append({"value": region["value"], "meta": {**meta, **known}, **others})
    return regions
