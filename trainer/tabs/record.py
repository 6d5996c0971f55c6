"""The record of our tabs in a project: models/<model>/tabs/<project>.json, replaced atomically."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from contract.files import explaining
from contract.versions.repository import Repository

TABS_FOLDER: Final = "tabs"


@dataclass(frozen=True, slots=True)
class OwnTab:
    """One of our tabs."""

    id: int | None
    """Its number in Label Studio; None while it is being created."""
    title: str
    former: tuple[str, ...] = ()
    """Earlier titles: a browser tab open since then may restore one."""
    written: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """Filters set so far, oldest first: a browser tab open since then may restore older ones."""
    leaving: bool = False
    """Whether it is being removed."""


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A labelled task that was listed in *Look again*."""

    since: str
    """Time of its last change before it was listed, in Label Studio's format."""
    given: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TabRecord:
    """The record of a project."""

    created_at: str = ""
    """When the project was created, to detect another project with the same number."""
    tabs: Mapping[str, OwnTab] = field(default_factory=dict)
    listed: Mapping[int, ListedTask] = field(default_factory=dict)
    sure: Mapping[str, str] = field(default_factory=dict)
    """Labels offered for bulk confirmation, by the marker in their predictions."""


_RECORD: Final = TypeAdapter(TabRecord)


def load_record(repository: Repository, project_id: int, created_at: str) -> TabRecord:
    """Return a project's record; empty if it is missing or invalid, or of another project with the same number.

    Raises OSError if the record exists but cannot be read.
    """
    try:
        record = _RECORD.validate_json(repository.documents(TABS_FOLDER).read(f"{project_id}.json"))
    except (FileNotFoundError, ValueError):
        return TabRecord(created_at)
    return record if record.created_at == created_at else TabRecord(created_at)


def save_record(repository: Repository, project_id: int, record: TabRecord) -> None:
    """Save a record; raises ConfigError if it cannot be written."""
    remedy = "give the trainer write access to the folder, or use --no-tabs"
    with explaining(f"the tabs of project {project_id}", repository.root, place=repository.location, remedy=remedy):
        repository.documents(TABS_FOLDER).write(f"{project_id}.json", _RECORD.dump_json(record))


def forget_record(repository: Repository, project_id: int) -> None:
    """Remove the record, if it exists; raises OSError if it cannot be removed."""
    repository.documents(TABS_FOLDER).remove(f"{project_id}.json")
