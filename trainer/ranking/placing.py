"""From scores and an order to the predictions that Label Studio is to store. Pure: reads and writes nothing."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from contract.acquisition import label_studio_score
from trainer.ordering import audit, reasons
from trainer.ordering.order import Arrangement
from trainer.ordering.strategies import Candidates
from trainer.ranking.plan import Plan, Planned
from trainer.ranking.scores import Score

LATER: Final = "came after the ranking, placed by its own score"
"""Why a task stands where it stands that was not there when the others were ranked."""


def to_candidates(scores: Sequence[Score], *, multiple: bool) -> Candidates:
    """Put N scores side by side."""
    return Candidates(
        task_ids=np.array([score.task for score in scores], np.int64),
        probabilities=np.stack([score.probabilities for score in scores]),  # (N, C)
        bald=np.array([score.bald for score in scores], np.float32),
        entropy=np.array([score.entropy for score in scores], np.float32),
        embeddings=np.stack([score.embedding for score in scores]),  # (N, E)
        multiple=multiple,
    )


def place(scores: Sequence[Score], arrangement: Arrangement, *, name: str, strategy: str, failed: int) -> Plan:
    """Return what to import of N scores that were arranged."""
    items = tuple(
        _planned(
            scores[index],
            arrangement.scores[index],
            reason=arrangement.reasons[index],
            audit=arrangement.audit[index],
            told={"strategy": strategy, "rank": rank},
        )
        for rank, index in enumerate(arrangement.order, start=1)
    )
    duplicates = int((arrangement.representative != np.arange(len(scores))).sum())
    return Plan(name, strategy, near_duplicates=duplicates, failed=failed, items=items)


def place_later(
    scores: Sequence[Score], ranked: Collection[float], *, project: int, audit_share: float, multiple: bool
) -> tuple[Planned, ...]:
    """Return what to import of N tasks that came after a ranking: 1 - BALD as a share of the most it can be.

    That is the scale of the ranked scores. A task of the audit slice is given its place by chance among them, as those
    were that came in time.

    Args:
        scores: of the tasks.
        ranked: the scores of the ranking.
        project: its number.
        audit_share: the audit slice's share of the tasks.
        multiple: whether several labels may hold.
    """
    task_ids = np.array([score.task for score in scores], np.int64)
    draws = audit.draws(project, task_ids)
    sampled = audit.is_audit(project, task_ids, audit_share)
    values = np.array(sorted(ranked))
    items = []
    for score, draw, by_chance in zip(scores, draws, sampled, strict=True):
        own = label_studio_score(np.array(score.bald), len(score.probabilities), multiple=multiple)
        value = np.quantile(values, draw / audit_share) if by_chance and len(values) else own
        reason = reasons.AUDIT if by_chance else LATER
        items.append(_planned(score, float(value), reason=reason, audit=by_chance, told={}))
    return tuple(sorted(items, key=lambda item: item.score))


def _planned(score: Score, value: float, *, reason: str, audit: bool, told: Mapping[str, Any]) -> Planned:
    told = {**told, "reason": reason}
    result = [{**region, "meta": {**region.get("meta", {}), **told}} for region in score.result]
    bald = float(score.bald) if len(score.probabilities) else None
    return Planned(score.task, float(value), result, reason=reason, bald=bald, audit=bool(audit))
