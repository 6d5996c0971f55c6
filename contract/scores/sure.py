"""What may be confirmed in bulk: on what evidence, and how what was offered is known again.

Label Studio's *Create Annotations From Predictions* copies a prediction into an annotation. Which prediction it was is
forgotten as soon as a newer ranking removes it; what stays is the copy, and the mark in its regions' `meta`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

DEFAULT_PRECISION: Final = 0.8
"""Of what is offered to be confirmed in bulk, once somebody has looked it over."""

MARK: Final = "tab"
"""The key of a region's `meta` under which the mark stands."""

_MARK: Final = re.compile(r"(?s)(.+)/sure/(?:other/)?(\d{1,9})\.")

_ROUNDED: Final = 1e-9

_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


def mark(ranking: str, label: int, *, other: bool = False) -> str:
    """Return what marks a prediction that may be confirmed, for a search in its text: no mark is part of another one.

    Args:
        ranking: what it is stamped with.
        label: the index in the labelling config of the first label that is predicted.
        other: whether it is one of the labels that are offered together.
    """
    return f"{common_mark(ranking) if other else f'{ranking}/sure/'}{label}."


def common_mark(ranking: str) -> str:
    """Return how the marks begin of a ranking's labels that are offered together."""
    return f"{ranking}/sure/other/"


def parse_mark(text: object) -> tuple[str, int] | None:
    """Return the ranking and the label's index that a mark names."""
    found = _MARK.fullmatch(text) if isinstance(text, str) else None
    return (found[1], int(found[2])) if found else None


def percent_below(share: float) -> int:
    """Return a share in whole per cent, never more than it is; what a float cannot hold exactly is let off."""
    return math.floor(100 * share + _ROUNDED)


@dataclass(frozen=True, slots=True)
class Shadow:
    """What would have become of a task of the random holdout, were it not held out: its label confirmed in bulk."""

    task: _Count
    ranking: str
    """By which it would have been offered."""
    label: _Count
    """The index in the labelling config of the first label that is predicted."""
    predicted: tuple[str, ...]
    confirmed: bool
    """Whether others of that ranking and label have been confirmed since; until then it is but offered."""


@dataclass(frozen=True, slots=True)
class Sure:
    """What a ranking offers to be confirmed in bulk, and on what evidence."""

    ranking: str
    """What its predictions are stamped with."""
    precision: _Share
    """The least share of right labels that was asked for."""
    offered: Mapping[str, _Count] = field(default_factory=dict)
    """How many tasks, by what is predicted."""
    least_margin: float | None = None
    """The margin from which a prediction is offered; None where none is for its margin."""
    images: _Count = 0
    """Labelled ones of the random holdout that would be offered now, or confirmed before, were they not held out."""
    wrong: _Count = 0
    """How many of these would have had a wrong label."""
    low: _Share | None = None
    """The lower end of the 95 % interval, one-sided, of the share that is right; None where nothing is offered."""
    near_duplicates: bool = False
    """Whether near-duplicates of images that people labelled are offered as such."""
    wanted: _Count = 0
    """So many more random labels would probably do where nothing is offered; 0 where something is."""
    sentence: str = ""
    """All this for people."""
    shadows: tuple[Shadow, ...] = ()
    passed_over: tuple[_Count, ...] = ()
    """Tasks that were offered while others of their group were confirmed: they are not offered again."""
    tasks: Mapping[_Count, _Count] = field(default_factory=dict)
    """The tasks offered, each with its label's index."""
