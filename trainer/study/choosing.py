"""What a strategy would have labelled next: production's order, or that of a rival which production does not have."""

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

_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """What is labelled next."""

    images: Indices
    score_s: float
    """Seconds spent on what the model says of the images that are left; next to none where nothing of it is needed."""
    choose_s: float


def choose(strategy: str, model: Model, left: Indices, labelled: Indices, *, project: int, query: int) -> Choice:
    """Return which `query` of the images that are left, (n,), rising, a strategy has labelled next.

    The model was trained on the labelled ones, and its name decides what falls to chance; `project` decides which
    images are of the random holdout.
    """
    started = time.perf_counter()
    features: Floats = np.empty((0, 0), np.float32)
    candidates = None
    if strategy not in (RANDOM, ORACLE):
        features = model.compute_features(left)  # (n, D)
    if strategy not in (RANDOM, ORACLE, CORE_SET, BAAL_BALD):
        candidates = model.score(left, features)
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
            labelled=LabelledImages(model.as_sent(model.compute_features(labelled)), model.dataset.targets[labelled]),
            duplicates=product,
            passes=lambda indices: model.passes(features[indices]),
        ).order
    elif strategy == BAAL_BALD:
        order = model.rank_by_baal(features)
    elif strategy == CORE_SET:
        covered = model.embed(model.compute_features(labelled))
        order = cover_greedily(model.embed(features), covered, count=query)
    elif strategy == ORACLE:
        order = balance(model.dataset.targets[left], model.dataset.count(labelled), name=model.name, count=query)
    else:
        order = np.argsort(keyed_uniforms(f"random/{model.name}", left), kind="stable")
    return Choice(left[order[:query]], round(scored - started, 3), round(time.perf_counter() - scored, 3))


def cover_greedily(vectors: Floats, covered: Floats, *, count: int) -> Indices:
    """Return which `count` of n vectors, (n, E), are each the farthest from those covered, (m, E), or chosen before.

    All have length 1.
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


def balance(targets: Indices, labels_by_class: Sequence[int], *, name: str, count: int) -> Indices:
    """Return which `count` of images of known classes (n,) are each of the class that has the fewest labels by then.

    Of equal classes the first one is taken, of a class the images by chance, which the model's name decides. Classes
    begin with `labels_by_class`, (C,).
    """
    by_chance = np.argsort(keyed_uniforms(f"{ORACLE}/{name}", np.arange(len(targets))), kind="stable")
    left = [by_chance[targets[by_chance] == label].tolist() for label in range(len(labels_by_class))]
    labels, chosen = list(labels_by_class), list[int]()
    for _ in range(count):
        label = min((label for label, images in enumerate(left) if images), key=labels.__getitem__)
        chosen.append(left[label].pop())
        labels[label] += 1
    return np.array(chosen, np.int64)
