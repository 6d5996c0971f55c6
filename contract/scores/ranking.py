"""Records of rankings: written by the trainer, and shown by the server.

    models/<model>/rankings/<project>.json

There is one file per project, replaced atomically by each ranking. All functions raise OSError if the folder cannot be
read or written.
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


def _decode(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("expected a string in base64")
    return b64decode(text, validate=True)


_Bytes = Annotated[bytes, PlainValidator(_decode), PlainSerializer(lambda content: b64encode(content).decode())]


@dataclass(frozen=True, slots=True)
class RankedImage:
    """A ranked image as it is displayed."""

    task: _Count
    label: str | None
    """The predicted label, if any."""
    probability: _Number | None
    """Calibrated probability of the label; with multiple labels of the least likely."""
    bald: _Number | None
    """In nats; None before the first version."""
    score: _Number
    """Label Studio's score in [0, 1]; the lowest is labelled first."""
    reason: str
    """A few words on why it is ranked here."""
    thumbnail: _Bytes
    """JPEG."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking of a project's unlabelled tasks."""

    name: str
    """The `model_version` of its predictions."""
    version: str | None
    """None before the first version."""
    project: _Count
    title: str
    created_at: str
    """UTC, ISO 8601."""
    strategy: str
    tasks: _Count
    """Ranked tasks, including the random holdout."""
    audit: _Count
    """Ranked tasks of the random holdout."""
    near_duplicates: _Count
    failed: _Count
    """Images that could not be scored."""
    mean_bald: _Number | None
    """In nats."""
    most_uncertain: tuple[RankedImage, ...]
    """By falling BALD; like `most_confident` without the random holdout."""
    most_confident: tuple[RankedImage, ...]
    """By falling probability."""
    first: tuple[RankedImage, ...]
    """The first images of the ranking, in order."""
    unscored: tuple[_Count, ...] = ()
    """Tasks whose images could not be scored, to be retried; some have a place from an earlier ranking."""
    sure: Sure | None = None
    """Offers for bulk confirmation; None if not requested."""


_RANKING: Final = TypeAdapter(Ranking)


def save_ranking(repository: Repository, ranking: Ranking) -> None:
    """Replace the record of the project's last ranking, which stays if this fails.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(_RANKING.dump_python(ranking), ensure_ascii=False, allow_nan=False)
    repository.documents(RANKINGS_FOLDER).write(f"{ranking.project}{_SUFFIX}", text.encode())


def forget_ranking(repository: Repository, project: int) -> None:
    """Remove the record of a project's last ranking, if there is one."""
    repository.documents(RANKINGS_FOLDER).remove(f"{project}{_SUFFIX}")


def load_rankings(repository: Repository) -> list[Ranking]:
    """Return the last ranking of each project, newest first; invalid files are skipped with a warning."""
    records = repository.documents(RANKINGS_FOLDER)
    rankings = [ranking for file in records.names() if file.endswith(_SUFFIX) and (ranking := _load(records, file))]
    return sorted(rankings, key=lambda ranking: ranking.created_at, reverse=True)


def ranked_projects(repository: Repository) -> dict[int, float]:
    """Return the ranked projects and when they were ranked, in seconds since 1970, without reading records."""
    times = repository.documents(RANKINGS_FOLDER).times()
    names = {file: file.removesuffix(_SUFFIX) for file in times if file.endswith(_SUFFIX)}
    return {int(name): times[file] for file, name in names.items() if name.isascii() and name.isdecimal()}


def _load(records: Documents, file: str) -> Ranking | None:
    try:
        return _RANKING.validate_json(records.read(file), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        _logger.warning("%s/%s is not a valid ranking and is ignored: %s", records.location, file, err)
        return None
