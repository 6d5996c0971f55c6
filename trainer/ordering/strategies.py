"""Acquisition strategies: utilities of images from a version's predictions, and the batch that should come first.

Images are sorted by falling utility. Some strategies choose the first places one by one, because an image's utility
depends on those chosen before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from contract.errors import ConfigError
from contract.scores.acquisition import margin
from contract.scores.keyed_uniforms import keyed_uniforms
from trainer.ordering import badge, batchbald, covering
from trainer.ordering.arrays import Bools, Float32s, Float64s, Ints
from trainer.ordering.batchbald import Passes
from trainer.ordering.directions import squared_lengths, to_directions
from trainer.subsampling import evenly_spaced

COVER: Final = "balanced-cover"
BADGE: Final = "badge"
BATCH_BALD: Final = "batch-bald"
STRATEGIES: Final = (COVER, "balanced-bald-margin", BADGE, "bald", BATCH_BALD, "margin", "random")
DEFAULT_STRATEGY: Final = COVER
BALANCED: Final = frozenset({COVER, "balanced-bald-margin"})
DRAWN: Final = frozenset({COVER, BADGE})
"""Strategies that draw a diverse batch for the first places."""

_REMOVED: Final[Mapping[str, str]] = {
    "balanced-bald": "balanced-bald-margin",
    "balanced-margin": "balanced-bald-margin",
    "power-bald": "bald",
    "entropy": "margin",
}
"""Removed strategies, and their replacements."""


_FEW_LABELS: Final = 5
"""Mean number of labels per class below which the model's uncertainty is not used."""
_FINE_GRAINED_POWER: Final = 2
"""Power of the distance to neighbours for fine-grained labels: there, distant images are outliers."""
_MAX_CONSIDERED: Final = 50_000
"""Maximum number of images to choose from, by utility; others would hardly ever be chosen."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Predictions of a version for N unlabelled images, one per task.

    Raises:
        ValueError: if the shapes disagree, a task occurs twice, or a number is not finite.
    """

    task_ids: Ints
    """(N,)"""
    probabilities: Float32s
    """(N, C): means over the passes."""
    bald: Float32s
    """(N,), in nats."""
    entropy: Float32s
    """(N,), in nats."""
    embeddings: Float32s
    """(N, E), of length 1."""
    multiple: bool
    """Whether an image may have several labels."""

    def __post_init__(self) -> None:
        check_tasks(self.task_ids)
        for name, axes in (("probabilities", 2), ("bald", 1), ("entropy", 1), ("embeddings", 2)):
            values: Float32s = getattr(self, name)
            if values.ndim != axes or len(values) != len(self.task_ids):
                raise ValueError(
                    f"{name} must have {axes} axes and a row for each of {len(self.task_ids)} tasks, "
                    f"got shape {values.shape}"
                )
            check_finite(name, values, self.task_ids)

    def logit_gradients(self) -> Float32s:
        """Return the gradient of the loss with respect to the logits if the predicted label is right: (N, C)."""
        return badge.logit_gradients(self.probabilities, multiple=self.multiple)

    def take(self, indices: Ints) -> "Candidates":
        """Return a part of the candidates, by index."""
        names = ("task_ids", "probabilities", "bald", "entropy", "embeddings")
        return replace(self, **{name: getattr(self, name)[indices] for name in names})


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """M images labelled by people; of many, only a part."""

    embeddings: Float32s
    """(M, E)"""
    labels: Ints
    """(M,): class indices; below 0 if the label is unknown or an image may have several."""


UNLABELLED: Final = LabelledImages(np.empty((0, 0), np.float32), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The parameters of a selection."""

    strategy: str
    name: str
    """The ranking's name, which seeds random choices."""
    labels_by_class: Sequence[int]
    """(C,): the number of labels of each class."""
    labelled: LabelledImages
    fine_grained: bool
    """Whether images as similar as near-duplicates often have different labels."""
    batch_size: int
    """Number of images to choose jointly."""
    passes: Passes | None = None
    """The probabilities of the passes, needed by batch-bald."""

    @property
    def purpose(self) -> str:
        """Seed of random choices."""
        return f"{self.strategy}/{self.name}"


def check(strategy: str, *, multiple: bool) -> None:
    """Raise ConfigError unless the strategy exists and supports the labels."""
    if strategy in _REMOVED:
        raise ConfigError(
            f"the strategy {strategy} was removed; use {_REMOVED[strategy]}, or the default, {DEFAULT_STRATEGY}"
        )
    if strategy not in STRATEGIES:
        raise ConfigError(f"the strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}")
    if strategy == BATCH_BALD and multiple:
        raise ConfigError(
            "batch-bald does not support projects with several labels per image; "
            f"use another strategy, such as {DEFAULT_STRATEGY}"
        )


def check_tasks(task_ids: Ints) -> None:
    """Raise ValueError if a task occurs twice."""
    if task_ids.ndim != 1:
        raise ValueError(f"task_ids must have 1 axis, got shape {task_ids.shape}")
    distinct, counts = np.unique(task_ids, return_counts=True)
    if len(distinct) < len(task_ids):
        raise ValueError(f"expected distinct tasks, task {distinct[counts > 1][0]} occurs {counts.max()} times")


def check_finite(name: str, values: Float32s, task_ids: Ints) -> None:
    """Raise ValueError if a value is NaN or infinite."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))  # (N,)
    if not finite.all():
        affected = task_ids[~finite]
        raise ValueError(
            f"{name} of task {affected[0]} is not finite ({len(affected)} of {len(task_ids)} tasks are affected); "
            "exclude images that could not be scored"
        )


def base_utility(candidates: Candidates, strategy: str, *, name: str) -> Float64s:
    """Return the utility of each image by itself, without regard to other images or labels: float64 (N,).

    For BALD and margin together it is the geometric mean of BALD and 1 - margin. `name`, of the ranking, seeds random
    choices.
    """
    if strategy in DRAWN:
        return squared_lengths(candidates.logit_gradients()).astype(np.float64)
    if strategy == "random":
        return keyed_uniforms(f"random/{name}", candidates.task_ids)
    bald = candidates.bald.astype(np.float64)
    if strategy in {"bald", BATCH_BALD}:
        return bald
    uncertainty = 1.0 - margin(candidates.probabilities, multiple=candidates.multiple).astype(np.float64)
    return uncertainty if strategy == "margin" else np.sqrt(np.maximum(bald, 0) * uncertainty)


def select(candidates: Candidates, base: Float64s, selection: Selection, *, eligible: Bools) -> tuple[Ints, Float64s]:
    """Choose the first places among the eligible candidates, bool (N,), and return the utility of all.

    Candidates must be sorted by task number: of equals the first one is chosen.

    Returns:
        Indices of the chosen ones, (K,), and the utility of all, (N,), which orders the others.

    Raises:
        ValueError: if batch-bald has no passes.
    """
    if selection.strategy == COVER:
        return _cover(candidates, base, selection, eligible)
    if selection.strategy == BADGE:
        return _draw(candidates, base, selection, eligible), base
    if selection.strategy in BALANCED:
        return _balance(candidates.probabilities, base, selection, eligible)
    if selection.strategy == BATCH_BALD:
        if selection.passes is None:
            raise ValueError("batch-bald needs the passes' probabilities, got none")
        falling = descending(base)
        return batchbald.choose(falling[eligible[falling]], selection.passes, batch_size=selection.batch_size), base
    return np.empty(0, np.int64), base


def few_labels(classes: int) -> int:
    """Return the number of labels below which a model's uncertainty is not used."""
    return _FEW_LABELS * classes


def are_few(labels_by_class: Sequence[int]) -> bool:
    """Return whether labels are too few to use the model's uncertainty."""
    return sum(labels_by_class) < few_labels(len(labels_by_class))


def descending(utility: Float64s) -> Ints:
    """Return the indices that sort values (N,) from high to low, stable."""
    return np.argsort(-utility, kind="stable")


def rarity(probabilities: Float32s, labels_by_class: Float64s) -> Float32s:
    """Return the rarity of each image, the sum over the classes of probability / (labels of the class + 1).

    (N, C) and (C,) to (N,).
    """
    return probabilities @ (1.0 / (labels_by_class + 1.0)).astype(np.float32)


def _cover(candidates: Candidates, base: Float64s, selection: Selection, eligible: Bools) -> tuple[Ints, Float64s]:
    """Choose images far from labelled ones: by distance while labels are few, then also by gradient and rarity."""
    pool = candidates.embeddings
    rare = rarity(candidates.probabilities, np.array(selection.labels_by_class, np.float64)).astype(np.float64)
    utility = base * rare**4
    labelled = to_directions(selection.labelled.embeddings.reshape(-1, pool.shape[1]), pool)
    if are_few(selection.labels_by_class):
        considered = np.flatnonzero(eligible)
        considered = considered[evenly_spaced(len(considered), max_count=_MAX_CONSIDERED)]
        directions = to_directions(pool[considered], pool)
        neighbours = covering.neighbour_distances(directions) ** (_FINE_GRAINED_POWER if selection.fine_grained else 1)
        chosen = covering.choose(directions, labelled, neighbours, count=selection.batch_size)
    else:
        considered = _consider(utility, eligible)
        directions = to_directions(pool[considered], pool)
        chosen = covering.draw(
            utility[considered], directions, labelled, count=selection.batch_size, purpose=selection.purpose
        )
    return considered[chosen], utility


def _draw(candidates: Candidates, base: Float64s, selection: Selection, eligible: Bools) -> Ints:
    """Draw by k-means++ on gradient embeddings, whose squared lengths are the base utility."""
    considered = _consider(base, eligible)
    gradients = candidates.logit_gradients()[considered]
    directions = to_directions(candidates.embeddings[considered], candidates.embeddings)
    return considered[badge.draw(gradients, directions, count=selection.batch_size, purpose=selection.purpose)]


def _consider(utility: Float64s, eligible: Bools) -> Ints:
    """Return the indices of the eligible candidates with the highest utility."""
    falling = descending(utility)
    return np.sort(falling[eligible[falling]][:_MAX_CONSIDERED])


def _balance(probabilities: Float32s, base: Float64s, selection: Selection, eligible: Bools) -> tuple[Ints, Float64s]:
    """Choose greedily by base utility times rarity, adding the predicted labels of each chosen image to the counts."""
    labels = np.array(selection.labels_by_class, np.float64)
    remaining, chosen = eligible.copy(), list[int]()
    utility = base * rarity(probabilities, labels)
    for _ in range(min(selection.batch_size, np.count_nonzero(eligible))):
        best = int(np.where(remaining, utility, -np.inf).argmax())
        chosen.append(best)
        remaining[best] = False
        labels += probabilities[best]
        utility = base * rarity(probabilities, labels)
    return np.array(chosen, np.int64), utility
