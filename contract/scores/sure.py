"""Bulk confirmation: what a ranking offers, on what evidence, and how offers are recognised later.

Label Studio's *Create Annotations From Predictions* copies a prediction into an annotation. A newer ranking removes the
prediction; the copy keeps the mark in its regions' `meta`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

DEFAULT_PRECISION: Final = 0.8
"""Required share of right labels among those offered for bulk confirmation, once somebody has checked them."""

MARK: Final = "tab"
"""Key of the mark in a region's `meta`."""

_MARK: Final = re.compile(r"(?s)(.+)/sure/(?:other/)?(\d{1,9})\.")

_ROUNDED: Final = 1e-9

_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


def mark(ranking: str, label: int, *, other: bool = False) -> str:
    """Return the mark of a prediction that may be confirmed; no mark is a substring of another.

    Args:
        ranking: the name of the ranking.
        label: index in the labelling config of the first predicted label.
        other: whether the label is one of those offered together.
    """
    return f"{common_mark(ranking) if other else f'{ranking}/sure/'}{label}."


def common_mark(ranking: str) -> str:
    """Return the common prefix of the marks of labels that are offered together."""
    return f"{ranking}/sure/other/"


def parse_mark(text: object) -> tuple[str, int] | None:
    """Return the ranking and the label's index of a mark."""
    match = _MARK.fullmatch(text) if isinstance(text, str) else None
    return (match[1], int(match[2])) if match else None


def percent_below(share: float) -> int:
    """Return a share in whole per cent, rounded down, with tolerance for float rounding."""
    return math.floor(100 * share + _ROUNDED)


@dataclass(frozen=True, slots=True)
class Shadow:
    """The counterfactual of a held-out task: what bulk confirmation would have done with it."""

    task: _Count
    ranking: str
    """The ranking that would have offered it."""
    label: _Count
    """Index in the labelling config of the first predicted label."""
    predicted: tuple[str, ...]
    confirmed: bool
    """Whether tasks of the same ranking and label have been confirmed; until then it is only offered."""


@dataclass(frozen=True, slots=True)
class Sure:
    """A ranking's offers for bulk confirmation, and the evidence."""

    ranking: str
    """The name of the ranking."""
    precision: _Share
    """The required share of right labels."""
    offered: Mapping[str, _Count] = field(default_factory=dict)
    """Number of tasks by predicted label."""
    least_margin: float | None = None
    """The least margin of an offered prediction; None if none is offered for its margin."""
    images: _Count = 0
    """Labelled images of the random holdout that would be offered, now or before."""
    wrong: _Count = 0
    """How many of them would have got a wrong label."""
    low: _Share | None = None
    """Lower bound of the one-sided 95 % interval for the share of right labels; None if nothing is offered."""
    near_duplicates: bool = False
    """Whether near-duplicates of labelled images are offered."""
    wanted: _Count = 0
    """Estimate of the random labels missing until something can be offered; 0 if something is."""
    sentence: str = ""
    """Summary for users."""
    shadows: tuple[Shadow, ...] = ()
    passed_over: tuple[_Count, ...] = ()
    """Tasks that were skipped when others of their group were confirmed; they are not offered again."""
    tasks: Mapping[_Count, _Count] = field(default_factory=dict)
    """Offered tasks to the index of their label."""
