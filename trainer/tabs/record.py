"""Which tabs of a project are ours, and what was said in them of tasks that people may answer.

    models/<model>/tabs/<project>.json

is replaced whole. Owns what is remembered; knows no Label Studio.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from contract.files import explaining
from contract.versions.repository import Repository

TABS_FOLDER: Final = "tabs"


@dataclass(frozen=True, slots=True)
class Kept:
    """One tab of ours."""

    id: int | None
    """Its number; None if it was about to be made."""
    title: str
    former: tuple[str, ...] = ()
    """Titles that it was given before: a browser that has been open for long puts one back."""
    written: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """The filters that it was given, the last ones last: a browser that has been open for long puts older ones back."""
    leaving: bool = False
    """Whether it was about to be removed."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A labelled task that stood in *Look again*."""

    since: str
    """When it had last changed when it came to stand there, as Label Studio writes it."""
    given: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TabRecord:
    """What is remembered of a project."""

    created_at: str = ""
    """When the project was made: another one may come to bear its number."""
    tabs: Mapping[str, Kept] = field(default_factory=dict)
    listed: Mapping[int, Listed] = field(default_factory=dict)
    sure: Mapping[str, str] = field(default_factory=dict)
    """Labels, by the marker that predictions of them carry that may be confirmed."""


_RECORD: Final = TypeAdapter(TabRecord)


def load_record(repository: Repository, project_id: int, created_at: str) -> TabRecord:
    """Return what is remembered of a project; nothing of another that bore its number, or if it cannot be understood.

    Raises OSError if the record is there and cannot be read.
    """
    try:
        record = _RECORD.validate_json(repository.documents(TABS_FOLDER).read(f"{project_id}.json"))
    except (FileNotFoundError, ValueError):
        return TabRecord(created_at)
    return record if record.created_at == created_at else TabRecord(created_at)


def save_record(repository: Repository, project_id: int, record: TabRecord) -> None:
    """Put a record in the place of the last one; raises ConfigError where it cannot be written."""
    remedy = "give the trainer the folder to write, or go without by --no-tabs"
    with explaining(f"the tabs of project {project_id}", repository.root, place=repository.location, remedy=remedy):
        repository.documents(TABS_FOLDER).write(f"{project_id}.json", _RECORD.dump_json(record))


def forget_record(repository: Repository, project_id: int) -> None:
    """Remove the record, if there is one; raises OSError if it cannot be removed."""
    repository.documents(TABS_FOLDER).remove(f"{project_id}.json")
