"""Which images a strategy would have labelled first, from what a version says about each.

Numpy over scores; knows nothing of duplicates and of the random holdout. A utility is a number by which images are
sorted, the highest first; some strategies choose the first places one after the other, since what an image is worth
depends on those chosen before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

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

Base = Literal["gradient", "bald-margin", "bald", "margin", "random"]
"""What a strategy goes by before it looks at other images."""

_BASES: Final[Mapping[str, Base]] = {
    "balanced-cover": "gradient",
    "balanced-bald-margin": "bald-margin",
    "badge": "gradient",
    "bald": "bald",
    "batch-bald": "bald",
    "margin": "margin",
    "random": "random",
}
STRATEGIES: Final = tuple(_BASES)
DEFAULT_STRATEGY: Final = "balanced-cover"
COVER: Final = "balanced-cover"
BADGE: Final = "badge"
BATCH_BALD: Final = "batch-bald"
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
    """(N,), in nats."""
    entropy: npt.NDArray[np.float32]
    """(N,), in nats."""
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
        return Candidates(
            self.task_ids[indices],
            self.probabilities[indices],
            self.bald[indices],
            self.entropy[indices],
            self.embeddings[indices],
            self.multiple,
        )


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """M images that people labelled, or some of many."""

    embeddings: npt.NDArray[np.float32]
    """(M, E)"""
    labels: Ints
    """(M,): one number for the same label; below 0 where it is not known, or several may hold."""


UNLABELLED: Final = LabelledImages(np.empty((0, 0), np.float32), np.empty(0, np.int64))
"""Where nothing is known of what is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What images are wanted for."""

    strategy: str
    """One of `STRATEGIES`."""
    name: str
    """The ranking's: in another one chance falls otherwise."""
    labels_by_class: Sequence[int]
    """(C,), how many labels there are already."""
    labelled: LabelledImages
    """Images that have some."""
    told_apart: bool
    """Whether people label images differently that are as alike as near-duplicates."""
    batch_size: int
    """The most that are chosen one after the other."""
    passes: Passes | None = None
    """Gives the probabilities of the passes of candidates by index; needed by batch-bald."""

    @property
    def purpose(self) -> str:
        """Decides what falls to chance."""
        return f"{self.strategy}/{self.name}"


@dataclass(frozen=True, slots=True)
class Preference:
    """In which order a strategy wants images."""

    chosen: Ints
    """(K,): the first places, by index."""
    utility: Floats
    """(N,): the highest comes first, behind those chosen."""


def check(strategy: str, *, multiple: bool) -> None:
    """Make sure that there is such a strategy for such labels.

    Raises:
        ConfigError: if there is none.
    """
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
    """Make sure that no task comes twice.

    Raises:
        ValueError: if one does.
    """
    if task_ids.ndim != 1:
        raise ValueError(f"task_ids must have 1 axis, got shape {task_ids.shape}")
    found, counts = np.unique(task_ids, return_counts=True)
    if len(found) < len(task_ids):
        raise ValueError(f"task {found[counts > 1][0]} comes {counts.max()} times; each can stand in one place only")


def check_finite(name: str, values: npt.NDArray[np.float32], task_ids: Ints) -> None:
    """Make sure that a row of numbers for each task can be sorted by.

    Raises:
        ValueError: if one is NaN or infinite.
    """
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
    base = _BASES[strategy]
    if base == "gradient":
        return badge.squared_lengths(candidates.surprise()).astype(np.float64)
    if base == "random":
        return keyed_uniforms(f"random/{name}", candidates.task_ids)
    doubt = 1.0 - margin(candidates.probabilities, multiple=candidates.multiple).astype(np.float64)
    if base == "margin":
        return doubt
    bald = candidates.bald.astype(np.float64)
    if base == "bald":
        return bald
    return np.sqrt(np.maximum(bald, 0) * doubt)


def prefer(candidates: Candidates, base: Floats, aim: Aim, *, eligible: Bools) -> Preference:
    """Let a strategy choose the first places among the eligible, bool (N,), and value all.

    Candidates come in rising order of their tasks' numbers: of equals the first one is chosen.

    Args:
        candidates: N images.
        base: float64 (N,), from `base_utility`.
        aim: what they are wanted for.
        eligible: which may be chosen.

    Raises:
        ValueError: if batch-bald is given no passes.
    """
    if aim.strategy == COVER:
        return _cover(candidates, base, aim, eligible)
    if aim.strategy == BADGE:
        return _draw(candidates, base, aim, eligible)
    if aim.strategy in BALANCED:
        return _balance(candidates.probabilities, base, aim, eligible)
    if aim.strategy == BATCH_BALD:
        if aim.passes is None:
            raise ValueError("batch-bald needs the passes' probabilities, got none")
        falling = descending(base)
        return Preference(batchbald.choose(falling[eligible[falling]], aim.passes, batch_size=aim.batch_size), base)
    return Preference(np.empty(0, np.int64), base)


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


def _cover(candidates: Candidates, base: Floats, aim: Aim, eligible: Bools) -> Preference:
    """Choose far from what has labels: by distance alone while these are few, then drawn by gradient and rarity."""
    pool = candidates.embeddings
    utility = base * rarity(candidates.probabilities, np.array(aim.labels_by_class, np.float64)).astype(np.float64) ** 4
    known = badge.directions(aim.labelled.embeddings.reshape(-1, pool.shape[1]), pool)
    if are_few(aim.labels_by_class):
        considered = np.flatnonzero(eligible)
        considered = considered[evenly_spaced(len(considered), most=_CONSIDERED)]
        ways = badge.directions(pool[considered], pool)
        neighbours = covering.neighbour_distances(ways)
        chosen = covering.choose(
            ways, known, neighbours**_TYPICAL if aim.told_apart else neighbours, count=aim.batch_size
        )
    else:
        considered = _consider(utility, eligible)
        ways = badge.directions(pool[considered], pool)
        chosen = covering.draw(utility[considered], ways, known, count=aim.batch_size, purpose=aim.purpose)
    return Preference(considered[chosen], utility)


def _draw(candidates: Candidates, base: Floats, aim: Aim, eligible: Bools) -> Preference:
    """Draw by gradient embeddings, whose squared lengths are the base utility."""
    considered = _consider(base, eligible)
    chosen = badge.draw(
        candidates.surprise()[considered],
        badge.directions(candidates.embeddings[considered], candidates.embeddings),
        count=aim.batch_size,
        purpose=aim.purpose,
    )
    return Preference(considered[chosen], base)


def _consider(utility: Floats, eligible: Bools) -> Ints:
    """Return the eligible of the highest utility, by index."""
    falling = descending(utility)
    considered: Ints = np.sort(falling[eligible[falling]][:_CONSIDERED])
    return considered


def _balance(probabilities: npt.NDArray[np.float32], base: Floats, aim: Aim, eligible: Bools) -> Preference:
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
    return Preference(np.array(chosen, np.int64), utility)
