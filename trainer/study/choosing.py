"""Selects the images a strategy labels next, in production's order or in that of a competing strategy."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.scores.holdout import DEFAULT_SHARE
from contract.scores.keyed_uniforms import keyed_uniforms
from trainer.labels.dataset import Indices
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, LabelledImages
from trainer.study.model import Floats, Model
from trainer.study.options import BAAL_BALD, CORE_SET, ORACLE, PRODUCT, RANDOM

_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """The images to label next, and the time that the selection took."""

    images: Indices
    score_s: float
    """Seconds spent on predictions for the pool; close to 0 if the strategy needs none."""
    choose_s: float


def choose(strategy: str, model: Model, unlabelled: Indices, labelled: Indices, *, project: int, query: int) -> Choice:
    """Return the `query` images that a strategy selects from the unlabelled pool, (n,), ascending.

    The model was trained on the labelled images, and its name seeds all random choices; `project` seeds the random
    holdout. Raises ConfigError if there is no such strategy.
    """
    started = time.perf_counter()
    features: Floats = np.empty((0, 0), np.float32)
    candidates = None
    if strategy not in (RANDOM, ORACLE):
        features = model.compute_features(unlabelled)  # (n, D)
    if strategy not in (RANDOM, ORACLE, CORE_SET, BAAL_BALD):
        candidates = model.score(unlabelled, features)
    scored = time.perf_counter()
    if candidates is not None:
        product = strategy == PRODUCT
        order = arrange(
            candidates,
            strategy=DEFAULT_STRATEGY if product else strategy,
            project=project,
            name=model.name,
            labels_by_class=model.dataset.count(labelled),
            holdout_share=DEFAULT_SHARE if product else 0.0,
            batch_size=query,
            labelled=LabelledImages(
                model.embed_rounded(model.compute_features(labelled)), model.dataset.targets[labelled]
            ),
            duplicates=product,
            passes=lambda indices: model.passes(features[indices]),
        ).order
    elif strategy == BAAL_BALD:
        order = model.rank_by_baal(features)
    elif strategy == CORE_SET:
        covered = model.embed(model.compute_features(labelled))
        order = k_centre_greedy(model.embed(features), covered, count=query)
    elif strategy == ORACLE:
        counts = model.dataset.count(labelled)
        order = balance_classes(model.dataset.targets[unlabelled], counts, name=model.name, count=query)
    else:
        order = np.argsort(keyed_uniforms(f"random/{model.name}", unlabelled), kind="stable")
    return Choice(unlabelled[order[:query]], round(scored - started, 3), round(time.perf_counter() - scored, 3))


def k_centre_greedy(vectors: Floats, covered: Floats, *, count: int) -> Indices:
    """Return the indices of `count` of the vectors, (n, E), each the farthest from all covered, (m, E), or chosen ones.

    All vectors are unit vectors.
    """
    nearest = np.full(len(vectors), -1.0, np.float32)  # cosine similarity to the nearest covered vector
    for start in range(0, len(covered), _CHUNK_ROWS):
        nearest = np.maximum(nearest, (vectors @ covered[start : start + _CHUNK_ROWS].T).max(axis=1))
    chosen = np.empty(count, np.int64)
    for place in range(count):
        chosen[place] = nearest.argmin()
        nearest = np.maximum(nearest, vectors @ vectors[chosen[place]])
        nearest[chosen[: place + 1]] = np.inf
    return chosen


def balance_classes(targets: Indices, labels_by_class: Sequence[int], *, name: str, count: int) -> Indices:
    """Return the indices of `count` images, each of the class with the fewest labels so far, given their classes (n,).

    Classes begin with `labels_by_class`, (C,); ties go to the first class. Within a class the order is random, seeded
    by the model's name.
    """
    shuffled = np.argsort(keyed_uniforms(f"{ORACLE}/{name}", np.arange(len(targets))), kind="stable")
    queues = [shuffled[targets[shuffled] == label].tolist() for label in range(len(labels_by_class))]
    labels, chosen = list(labels_by_class), list[int]()
    for _ in range(count):
        label = min((label for label, images in enumerate(queues) if images), key=labels.__getitem__)
        chosen.append(queues[label].pop())
        labels[label] += 1
    return np.array(chosen, np.int64)
