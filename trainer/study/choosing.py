"""What a strategy would have labelled next: production's order, or that of a rival which production does not have."""

from dataclasses import dataclass

import numpy as np

from contract.scores.embedding import embed
from contract.scores.holdout import DEFAULT_SHARE
from contract.scores.keyed_uniforms import keyed_uniforms
from trainer.labels.dataset import Indices
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, Candidates
from trainer.study.model import Floats, Model, Scores
from trainer.study.options import BAAL_BALD, CORE_SET, PRODUCT, RANDOM

_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a chain stands before it chooses."""

    left: Indices
    """(n,), rising: the images without a label."""
    labelled: Indices
    labels_by_class: tuple[int, ...]
    """(C,): how many labels there are."""
    project: int
    """Decides which images are of the audit slice."""
    name: str
    """The model's; decides what falls to chance."""


class Chooser:
    """One strategy, at work on one model."""

    def __init__(self, strategy: str, model: Model, situation: Situation, *, passes: int) -> None:
        """Score what is left, as far as the strategy needs it."""
        self._strategy = strategy
        self._model = model
        self._situation = situation
        self._passes = passes
        self._features: Floats = np.empty((0, 0), np.float32)  # (n, D)
        self._candidates: Candidates | None = None
        if strategy != RANDOM:
            self._features = model.compute_features(situation.left)
        if strategy not in (RANDOM, CORE_SET, BAAL_BALD):
            self._candidates = _to_candidates(situation.left, model.score(self._features))

    def choose(self, query: int) -> Indices:
        """Return which `query` images of those left are labelled next."""
        situation = self._situation
        if self._strategy == RANDOM:
            order = np.argsort(keyed_uniforms(f"random/{situation.name}", situation.left), kind="stable")
        elif self._strategy == BAAL_BALD:
            order = self._model.rank_by_baal(self._features, passes=self._passes)
        elif self._strategy == CORE_SET:
            covered = embed(self._model.compute_features(situation.labelled))
            order = cover_greedily(embed(self._features), covered, count=query)
        else:
            order = self._arrange(query)
        return situation.left[order[:query]]

    def _arrange(self, query: int) -> Indices:
        if self._candidates is None:
            raise ValueError(f"{self._strategy} orders by scores, and nothing was scored")
        situation, product = self._situation, self._strategy == PRODUCT
        return arrange(
            self._candidates,
            strategy=DEFAULT_STRATEGY if product else self._strategy,
            project=situation.project,
            name=situation.name,
            labels_by_class=situation.labels_by_class,
            audit_share=DEFAULT_SHARE if product else 0.0,
            first=query,
            duplicates=product,
            passes=lambda indices: self._model.passes(self._features[indices]),
        ).order


def cover_greedily(vectors: Floats, covered: Floats, *, count: int) -> Indices:
    """Return the indices of `count` vectors (n, E), each the farthest from those covered and those chosen before it.

    Args:
        vectors: of length 1.
        covered: (m, E), of length 1.
        count: at most n.
    """
    nearest = np.full(len(vectors), -1.0, np.float32)  # the greatest cosine
    for start in range(0, len(covered), _AT_ONCE):
        nearest = np.maximum(nearest, (vectors @ covered[start : start + _AT_ONCE].T).max(axis=1))
    chosen = np.empty(count, np.int64)
    for place in range(count):
        chosen[place] = nearest.argmin()
        nearest = np.maximum(nearest, vectors @ vectors[chosen[place]])
        nearest[chosen[: place + 1]] = np.inf
    return chosen


def _to_candidates(left: Indices, scores: Scores) -> Candidates:
    return Candidates(left, scores.probabilities, scores.bald, scores.entropy, scores.embeddings, multiple=False)
