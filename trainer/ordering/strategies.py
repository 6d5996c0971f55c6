"""Which images a strategy would have labelled first, from what a version says about each.

Numpy over scores; knows nothing of duplicates and of the random holdout. A utility is a number by which images are
sorted, the highest first; some strategies choose the first places one after the other, since what an image is worth
depends on those chosen before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from contract.scores.acquisition import margin
from contract.scores.keyed_uniforms import keyed_uniforms
from trainer.ordering import badge, batchbald, covering
from trainer.ordering.batchbald import Passes
from trainer.subsampling import evenly_spaced

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COVER: Final = "balanced-cover"
BADGE: Final = "badge"
BATCH_BALD: Final = "batch-bald"
STRATEGIES: Final = (COVER, "balanced-bald-margin", BADGE, "bald", BATCH_BALD, "margin", "random")
DEFAULT_STRATEGY: Final = COVER
BALANCED: Final = frozenset({COVER, "balanced-bald-margin"})
DRAWN: Final = frozenset({COVER, BADGE})
"""Those that draw their first places, each with regard to those before it."""

_FORMER: Final[Mapping[str, str]] = {
    "balanced-bald": "balanced-bald-margin",
    "balanced-margin": "balanced-bald-margin",
    "power-bald": "bald",
    "entropy": "margin",
}
"""Strategies of earlier versions, and what to use in their place."""


_FEW_LABELS: Final = 5
"""A class, on average, below which a model is not asked which images it wants."""
_TYPICAL: Final = 2
"""Power of the distance to an image's neighbours where features tell classes apart badly: there, what is far is odd."""
_CONSIDERED: Final = 50_000
"""Images, those with the highest utility, that are drawn from; of the others hardly one ever would be."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a version says about N unlabelled images, each a task.

    Raises:
        ValueError: if the shapes disagree, a task comes twice, or a number is not finite.
    """

    task_ids: Ints
    """(N,)"""
    probabilities: npt.NDArray[np.float32]
    """(N, C): mean over the passes."""
    bald: npt.NDArray[np.float32]
    """(N,), in nats, as is the entropy."""
    entropy: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    """(N, E): of length 1."""
    multiple: bool
    """Whether an image may have several labels."""

    def __post_init__(self) -> None:
        check_tasks(self.task_ids)
        for name, axes in (("probabilities", 2), ("bald", 1), ("entropy", 1), ("embeddings", 2)):
            values: npt.NDArray[np.float32] = getattr(self, name)
            if values.ndim != axes or len(values) != len(self.task_ids):
                raise ValueError(
                    f"{name} must have {axes} axes and a row for each of {len(self.task_ids)} tasks, "
                    f"got shape {values.shape}"
                )
            check_finite(name, values, self.task_ids)

    def surprise(self) -> npt.NDArray[np.float32]:
        """Return probabilities less the labels that they amount to: (N, C)."""
        return badge.surprise(self.probabilities, multiple=self.multiple)

    def take(self, indices: Ints) -> "Candidates":
        """Return some of the candidates, by index."""
        names = ("task_ids", "probabilities", "bald", "entropy", "embeddings")
        return replace(self, **{name: getattr(self, name)[indices] for name in names})


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """M images that people labelled, or some of many."""

    embeddings: npt.NDArray[np.float32]
    """(M, E)"""
    labels: Ints
    """(M,): one number for the same label; below 0 where it is not known, or several may hold."""


UNLABELLED: Final = LabelledImages(np.empty((0, 0), np.float32), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What images are wanted for."""

    strategy: str
    name: str
    """The ranking's: in another one chance falls otherwise."""
    labels_by_class: Sequence[int]
    """(C,), how many labels there are already."""
    labelled: LabelledImages
    told_apart: bool
    """Whether people label images differently that are as alike as near-duplicates."""
    batch_size: int
    """How many are about to be labelled: so many are chosen with regard to each other."""
    passes: Passes | None = None
    """Gives the probabilities of the passes of candidates by index; needed by batch-bald."""

    @property
    def purpose(self) -> str:
        """Decides what falls to chance."""
        return f"{self.strategy}/{self.name}"


def check(strategy: str, *, multiple: bool) -> None:
    """Raise ConfigError unless there is such a strategy for such labels."""
    if strategy in _FORMER:
        raise ConfigError(
            f"the strategy {strategy} is no more; use {_FORMER[strategy]} or, by default, {DEFAULT_STRATEGY}"
        )
    if strategy not in STRATEGIES:
        raise ConfigError(f"the strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}")
    if strategy == BATCH_BALD and multiple:
        raise ConfigError(
            "batch-bald needs labels that exclude each other, and this project allows several for an image; "
            f"use another strategy, such as {DEFAULT_STRATEGY}"
        )


def check_tasks(task_ids: Ints) -> None:
    """Raise ValueError if a task comes twice, for it can stand in one place only."""
    if task_ids.ndim != 1:
        raise ValueError(f"task_ids must have 1 axis, got shape {task_ids.shape}")
    found, counts = np.unique(task_ids, return_counts=True)
    if len(found) < len(task_ids):
        raise ValueError(f"task {found[counts > 1][0]} comes {counts.max()} times; each can stand in one place only")


def check_finite(name: str, values: npt.NDArray[np.float32], task_ids: Ints) -> None:
    """Raise ValueError if a number in the tasks' rows is NaN or infinite, and cannot be sorted by."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))  # (N,)
    if not finite.all():
        raise ValueError(
            f"{name} of task {task_ids[~finite][0]} is not finite, as that of {np.count_nonzero(~finite)} of "
            f"{len(task_ids)} tasks; leave out images that could not be scored"
        )


def base_utility(candidates: Candidates, strategy: str, *, name: str) -> Floats:
    """Return what a strategy goes by before it looks at other images, or at labels: float64 (N,).

    Of BALD and margin together it is the geometric mean of BALD and 1 - margin: one of them at 0 counts for nothing.
    `name` is the ranking's: in another one chance falls otherwise.
    """
    if strategy in DRAWN:
        return badge.squared_lengths(candidates.surprise()).astype(np.float64)
    if strategy == "random":
        return keyed_uniforms(f"random/{name}", candidates.task_ids)
    bald = candidates.bald.astype(np.float64)
    if strategy in {"bald", BATCH_BALD}:
        return bald
    doubt = 1.0 - margin(candidates.probabilities, multiple=candidates.multiple).astype(np.float64)
    return doubt if strategy == "margin" else np.sqrt(np.maximum(bald, 0) * doubt)


def prefer(candidates: Candidates, base: Floats, aim: Aim, *, eligible: Bools) -> tuple[Ints, Floats]:
    """Let a strategy choose the first places among the eligible, bool (N,), and value all by their base utility (N,).

    Candidates come in rising order of their tasks' numbers: of equals the first one is chosen.

    Returns:
        Those chosen, (K,), by index, and the utility of all, (N,): the highest comes first, behind those chosen.

    Raises:
        ValueError: if batch-bald is given no passes.
    """
    if aim.strategy == COVER:
        return _cover(candidates, base, aim, eligible)
    if aim.strategy == BADGE:
        return _draw(candidates, base, aim, eligible), base
    if aim.strategy in BALANCED:
        return _balance(candidates.probabilities, base, aim, eligible)
    if aim.strategy == BATCH_BALD:
        if aim.passes is None:
            raise ValueError("batch-bald needs the passes' probabilities, got none")
        falling = descending(base)
        return batchbald.choose(falling[eligible[falling]], aim.passes, batch_size=aim.batch_size), base
    return np.empty(0, np.int64), base


def few_labels(classes: int) -> int:
    """Return below how many labels a model cannot know yet which images it needs."""
    return _FEW_LABELS * classes


def are_few(labels_by_class: Sequence[int]) -> bool:
    """Whether labels are too few for a model to know which images it needs."""
    return sum(labels_by_class) < few_labels(len(labels_by_class))


def descending(utility: Floats) -> Ints:
    """Return the indices of values (N,) from high to low, equals in the order in which they came."""
    return np.argsort(-utility, kind="stable")


def rarity(probabilities: npt.NDArray[np.float32], labels_by_class: Floats) -> npt.NDArray[np.float32]:
    """Return for each image how few labels the classes have that it may be of: (N, C) and (C,) to (N,).

    The sum over the classes of probability / (labels of the class + 1).
    """
    return probabilities @ (1.0 / (labels_by_class + 1.0)).astype(np.float32)


def _cover(candidates: Candidates, base: Floats, aim: Aim, eligible: Bools) -> tuple[Ints, Floats]:
    """Choose far from what has labels: by distance alone while these are few, then drawn by gradient and rarity."""
    pool = candidates.embeddings
    utility = base * rarity(candidates.probabilities, np.array(aim.labels_by_class, np.float64)).astype(np.float64) ** 4
    known = badge.directions(aim.labelled.embeddings.reshape(-1, pool.shape[1]), pool)
    if are_few(aim.labels_by_class):
        considered = np.flatnonzero(eligible)
        considered = considered[evenly_spaced(len(considered), most=_CONSIDERED)]
        ways = badge.directions(pool[considered], pool)
        neighbours = covering.neighbour_distances(ways) ** (_TYPICAL if aim.told_apart else 1)
        chosen = covering.choose(ways, known, neighbours, count=aim.batch_size)
    else:
        considered = _consider(utility, eligible)
        ways = badge.directions(pool[considered], pool)
        chosen = covering.draw(utility[considered], ways, known, count=aim.batch_size, purpose=aim.purpose)
    return considered[chosen], utility


def _draw(candidates: Candidates, base: Floats, aim: Aim, eligible: Bools) -> Ints:
    """Draw by gradient embeddings, whose squared lengths are the base utility."""
    considered = _consider(base, eligible)
    surprise, ways = candidates.surprise(), badge.directions(candidates.embeddings[considered], candidates.embeddings)
    return considered[badge.draw(surprise[considered], ways, count=aim.batch_size, purpose=aim.purpose)]


def _consider(utility: Floats, eligible: Bools) -> Ints:
    """Return the eligible of the highest utility, by index."""
    falling = descending(utility)
    return np.sort(falling[eligible[falling]][:_CONSIDERED])


def _balance(probabilities: npt.NDArray[np.float32], base: Floats, aim: Aim, eligible: Bools) -> tuple[Ints, Floats]:
    """Choose greedily by base utility times rarity, counting on each image chosen the labels it is expected to get."""
    labels = np.array(aim.labels_by_class, np.float64)
    open_, chosen = eligible.copy(), list[int]()
    utility = base * rarity(probabilities, labels)
    for _ in range(min(aim.batch_size, np.count_nonzero(eligible))):
        best = int(np.where(open_, utility, -np.inf).argmax())
        chosen.append(best)
        open_[best] = False
        labels += probabilities[best]
        utility = base * rarity(probabilities, labels)
    return np.array(chosen, np.int64), utility
