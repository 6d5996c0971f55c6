"""The record of a ranking: what a trainer put at the head of a project's queue and why, for a server to show.

    models/<model>/rankings/<project>.json

One file a project, replaced whole: one version is ranked by in several projects, and again when somebody asks for it.
All functions raise OSError where the folder cannot be read or written.
"""

import json
import logging
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from contract.scores.sure import Sure
from contract.versions.documents import Documents
from contract.versions.repository import RANKINGS_FOLDER, Repository

_SUFFIX: Final = ".json"

_logger = logging.getLogger(__name__)

_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Bytes = Annotated[
    bytes,
    PlainValidator(lambda text: b64decode(text, validate=True)),
    PlainSerializer(lambda content: b64encode(content).decode()),
]


@dataclass(frozen=True, slots=True)
class RankedImage:
    """One image of a ranking, as it is to be shown."""

    task: _Count
    label: str | None
    """What is predicted; None where nothing is."""
    probability: _Number | None
    """Of the label, calibrated; of several, of the least likely."""
    bald: _Number | None
    """In nats; None before there is a version."""
    score: _Number
    """In [0, 1], as Label Studio has it; the lowest is labelled first."""
    reason: str
    """Why it stands where it stands, in a few words."""
    thumbnail: _Bytes
    """JPEG."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """One ranking of a project's unlabelled tasks."""

    name: str
    """What its predictions are stamped with."""
    version: str | None
    """None before there is one."""
    project: _Count
    title: str
    created_at: str
    """UTC, ISO 8601."""
    strategy: str
    tasks: _Count
    """How many were ranked, the random holdout included."""
    audit: _Count
    """How many of them are of the random holdout."""
    near_duplicates: _Count
    failed: _Count
    """Images that could not be scored."""
    mean_bald: _Number | None
    """In nats."""
    most_uncertain: tuple[RankedImage, ...]
    """Those of greatest BALD, falling; without the random holdout, as are the most confident."""
    most_confident: tuple[RankedImage, ...]
    """Those of greatest probability, falling."""
    first: tuple[RankedImage, ...]
    """Those at its head, in order."""
    unscored: tuple[_Count, ...] = ()
    """Tasks whose images could not be scored, to be tried again; some keep a place of an earlier ranking."""
    sure: Sure | None = None
    """What may be confirmed in bulk; None where nothing was asked."""


_RANKING: Final = TypeAdapter(Ranking)


def save_ranking(repository: Repository, ranking: Ranking) -> None:
    """Put a ranking in the place of the project's last one; on an error the last one stays."""
    text = json.dumps(_RANKING.dump_python(ranking), ensure_ascii=False, allow_nan=False)
    repository.documents(RANKINGS_FOLDER).write(f"{ranking.project}{_SUFFIX}", text.encode())


def forget_ranking(repository: Repository, project: int) -> None:
    """Remove the record of a project's last ranking, if there is one."""
    repository.documents(RANKINGS_FOLDER).remove(f"{project}{_SUFFIX}")


def load_rankings(repository: Repository) -> list[Ranking]:
    """Return the last ranking of each project, newest first. A file that holds none is left out, with a warning."""
    records = repository.documents(RANKINGS_FOLDER)
    found = [ranking for file in records.names() if file.endswith(_SUFFIX) and (ranking := _load(records, file))]
    return sorted(found, key=lambda ranking: ranking.created_at, reverse=True)


def ranked_projects(repository: Repository) -> dict[int, float]:
    """Return which projects a model has ranked, and when it last did, in seconds since 1970. No record is read."""
    times = repository.documents(RANKINGS_FOLDER).times()
    names = {file: file.removesuffix(_SUFFIX) for file in times if file.endswith(_SUFFIX)}
    return {int(name): times[file] for file, name in names.items() if name.isascii() and name.isdecimal()}


def _load(records: Documents, file: str) -> Ranking | None:
    try:
        return _RANKING.validate_json(records.read(file), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        _logger.warning("%s/%s is no record of a ranking and is passed over: %s", records.location, file, err)
        return None
