"""The record of a ranking: what a trainer put at the head of a project's queue and why, for a server to show.

    models/<model>/rankings/<project>.json

One file a project, replaced whole. It is not part of a version, which never changes: one version is ranked by in
several projects, and again when somebody asks for it.
"""

import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final, TypeVar

from contract.versions.documents import Documents
from contract.versions.repository import Repository

RANKINGS_FOLDER: Final = "rankings"
_SUFFIX: Final = ".json"

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RankedImage:
    """One image of a ranking, as it is to be shown."""

    task: int
    label: str | None
    """What is predicted; None where nothing is."""
    probability: float | None
    """Of the label, calibrated; of several, of the least likely."""
    bald: float | None
    """In nats; None before there is a version."""
    score: float
    """In [0, 1], as Label Studio has it; the lowest is labelled first."""
    reason: str
    """Why it stands where it stands, in a few words."""
    thumbnail: bytes
    """JPEG."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """One ranking of a project's unlabelled tasks."""

    name: str
    """What its predictions are stamped with."""
    version: str | None
    """None before there is one."""
    project: int
    title: str
    created_at: str
    """UTC, ISO 8601."""
    strategy: str
    tasks: int
    """How many were ranked, the random holdout included."""
    audit: int
    """How many of them are of the random holdout."""
    near_duplicates: int
    failed: int
    """Images that could not be scored."""
    mean_bald: float | None
    """Over the ranked tasks, in nats."""
    most_uncertain: tuple[RankedImage, ...]
    """Those of greatest BALD, falling; without the random holdout, as are the most confident."""
    most_confident: tuple[RankedImage, ...]
    """Those of greatest probability, falling."""
    unscored: tuple[int, ...] = ()
    """Tasks whose images could not be scored, to be tried again; some keep a place of an earlier ranking."""
    first: tuple[RankedImage, ...] = ()
    """Those at its head, in order."""


def save_ranking(repository: Repository, ranking: Ranking) -> None:
    """Put a ranking in the place of the project's last one, in one step.

    Raises:
        OSError: if it cannot be written; the last one then stays.
    """
    text = json.dumps(asdict(ranking), ensure_ascii=False, allow_nan=False, default=_encode)
    repository.documents(RANKINGS_FOLDER).write(f"{ranking.project}{_SUFFIX}", text.encode())


def forget_ranking(repository: Repository, project: int) -> None:
    """Remove the record of a project's last ranking, if there is one.

    Raises:
        OSError: if it cannot be removed.
    """
    repository.documents(RANKINGS_FOLDER).remove(f"{project}{_SUFFIX}")


def load_rankings(repository: Repository) -> list[Ranking]:
    """Return the last ranking of each project, newest first. A file that holds none is left out, with a warning.

    Raises:
        OSError: if the folder cannot be read.
    """
    records = repository.documents(RANKINGS_FOLDER)
    found = [ranking for file in records.names() if file.endswith(_SUFFIX) and (ranking := _load(records, file))]
    return sorted(found, key=lambda ranking: ranking.created_at, reverse=True)


def _load(records: Documents, file: str) -> Ranking | None:
    try:
        return _parse(json.loads(records.read(file)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as err:
        _logger.warning("%s/%s is no record of a ranking and is passed over: %s", records.location, file, err)
        return None


def _parse(document: Mapping[str, Any]) -> Ranking:
    if "first" not in document:  # of a trainer that took the head of the order for the most uncertain
        document = {**document, "first": document["most_uncertain"], "most_uncertain": [], "most_confident": []}
    return Ranking(
        **{name: check(document[name]) for name, check in _RANKING.items()},
        unscored=_counts(document.get("unscored", [])),  # records of earlier releases do not name them
        most_uncertain=_parse_images(document["most_uncertain"]),
        most_confident=_parse_images(document["most_confident"]),
        first=_parse_images(document["first"]),
    )


def _parse_images(documents: object) -> tuple[RankedImage, ...]:
    if not isinstance(documents, list):
        raise TypeError(f"a list of images was expected, found {documents!r:.40}")
    return tuple(
        RankedImage(**{name: check(document[name]) for name, check in _IMAGE.items()}) for document in documents
    )


def _encode(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"a ranking holds no {type(value).__name__}")
    return base64.b64encode(value).decode()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, found {value!r:.40}")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a whole number was expected, found {value!r:.40}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"a number was expected, found {value!r:.40}")
    return float(value)


def _bytes(value: object) -> bytes:
    return base64.b64decode(_text(value), validate=True)


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list of whole numbers was expected, found {value!r:.40}")
    return tuple(map(_count, value))


def _optional(check: Callable[[object], _T]) -> Callable[[object], _T | None]:
    return lambda value: None if value is None else check(value)


_RANKING: Final[Mapping[str, Callable[[object], Any]]] = {
    "name": _text,
    "version": _optional(_text),
    "project": _count,
    "title": _text,
    "created_at": _text,
    "strategy": _text,
    "tasks": _count,
    "audit": _count,
    "near_duplicates": _count,
    "failed": _count,
    "mean_bald": _optional(_number),
}
_IMAGE: Final[Mapping[str, Callable[[object], Any]]] = {
    "task": _count,
    "label": _optional(_text),
    "probability": _optional(_number),
    "bald": _optional(_number),
    "score": _number,
    "reason": _text,
    "thumbnail": _bytes,
}
