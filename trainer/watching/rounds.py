"""Options of a watch, and the conditions under which a round of training is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

import pydantic.dataclasses
from pydantic import Field, model_validator

from contract.commands import Option
from contract.errors import RepositoryError, RepositoryUnreachable, name_some
from contract.labelconfig import ChoicesControl
from contract.matching import choose_control
from contract.settings import DECLARED, Count, parsed, split
from contract.versions.repository import Repository, is_model_name
from trainer.settings import Server

_DEFAULT_LABELS: Final = 20


@dataclass(frozen=True, slots=True)
class WatchedProject:
    """A project in Label Studio, and the model that is trained on it."""

    id: int
    model: str | None = None
    """None if not specified."""


def _parse_projects(value: str) -> tuple[WatchedProject, ...]:
    projects = []
    for part in split(value):
        number, equals, model = part.partition("=")
        if not number.isdecimal() or not number.isascii() or (equals and not is_model_name(model)):
            raise ValueError("a project's number, such as 1, with its model as in 1=cats, or several between commas")
        projects.append(WatchedProject(int(number), model or None))
    return tuple(projects)


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=DECLARED)
class WatchOptions:
    """The projects to watch, and when a round is due."""

    projects: Annotated[
        tuple[WatchedProject, ...],
        parsed(_parse_projects),
        Field(min_length=1),
        Option("--project", metavar="ID[=MODEL]", multiple=True),
    ]
    """A Label Studio project's number, and its model; repeat it for several projects. The default model is
    LABELNEXT_MODEL; of several projects, each that LABELNEXT_MODEL was not trained on has project-ID."""
    labels: Count | None = None
    """Train after this many new, edited or deleted labels (default: 20, unless `--minutes` is given)."""
    minutes: Annotated[float | None, Field(gt=0, lt=1e6, allow_inf_nan=False), Option(metavar="T")] = None
    """Train this many minutes after the last round, if labels have changed."""
    poll_s: Annotated[float, Field(gt=0, lt=3600, allow_inf_nan=False), Option("--poll", metavar="S")] = 10.0
    """Seconds between two polls of Label Studio; at most 2 once half of `--labels` have arrived."""
    keep: Annotated[Count | Literal["all"], Option(metavar="N|all")] = 10
    """How many of the newest versions to keep after each round."""
    rounds: Count | None = None
    """End after this many rounds of each project (default: never)."""
    server: Server = None
    """The server that scores, or the proxy in front of several (default: LABELNEXT_SERVER)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [project.id for project in self.projects]
        if len({*numbers}) < len(numbers):
            raise ValueError("give each --project once")
        return self

    @property
    def label_threshold(self) -> int | None:
        """Number of new, edited or deleted annotations after which a round is due; None if only time counts."""
        return _DEFAULT_LABELS if self.labels is None and self.minutes is None else self.labels

    def is_half_reached(self, changes: "Changes") -> bool:
        """Return whether the changes are at least half of the threshold."""
        return self.label_threshold is not None and 2 * changes.total >= self.label_threshold

    def describe(self) -> str:
        """Return in words when a round is due."""
        threshold = self.label_threshold
        labels = "label" if threshold == 1 else "labels"
        parts = [f"after {threshold} new or changed {labels}"] if threshold else []
        parts += [f"{self.minutes:g} minutes after the last if labels have changed"] if self.minutes is not None else []
        return " or ".join(parts)


@dataclass(frozen=True, slots=True)
class LastTraining:
    """The newest version of a project, and the labels that it was trained on."""

    version: str
    labels: tuple[str, ...]
    control: str | None
    annotations: int
    """Number of annotations in the project, counted before the labels were read."""
    updated_at: str
    """Time of the last change of an annotated task, in Label Studio's format."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """Numbers of annotations that have changed since the last training; one that was edited twice counts once."""

    new: int = 0
    edited: int = 0
    deleted: int = 0

    @classmethod
    def from_counts(cls, growth: int, *, created: int = 0, edited: int = 0) -> Self:
        """Return the changes for a growth of the total, and the numbers of created and of edited annotations.

        Label Studio does not report deletions: they are the created annotations that are missing in the total.
        """
        new = max(created, growth, 0)
        return cls(new, edited, new - growth)

    @property
    def total(self) -> int:
        """Number of new, edited and deleted annotations."""
        return self.new + self.edited + self.deleted

    def __str__(self) -> str:
        counts = [(self.new, "new"), (self.edited, "edited"), (self.deleted, "deleted")]
        (first, kind), *others = [each for each in counts if each[0]] or counts[:1]
        labels = "label" if first == 1 else "labels"
        return ", ".join([f"{first} {kind} {labels}", *(f"{count} {other}" for count, other in others)])


def find_last_training(repository: Repository, project: int) -> LastTraining | None:
    """Return the newest version that was trained on a project, or None if there is none.

    It is not the current version after a rollback, and may have been pruned: its labels are no reason to train again.
    Raises RepositoryUnreachable if a manifest cannot be read at present; invalid ones are ignored.
    """
    for name in reversed(repository.history()):
        try:
            manifest = repository.read_manifest(name)
            created_at = datetime.fromisoformat(manifest.created_at)
        except RepositoryUnreachable:
            raise
        except (RepositoryError, ValueError):
            continue
        state = manifest.training.project
        if state is not None and state.id == project:
            created_at = created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC)
            return LastTraining(
                name, manifest.labels, manifest.control, state.annotations, state.updated_at, created_at
            )
    return None


def reason_to_train(
    options: WatchOptions,
    last: LastTraining | None,
    changes: Changes,
    *,
    controls: Sequence[ChoicesControl],
    idle_s: float,
) -> str | None:
    """Return the reason for which a round is due, or None.

    Args:
        options: the thresholds.
        last: the last training on the project.
        changes: the changes since then.
        controls: the controls of the project's labelling config.
        idle_s: the seconds since the last round, or since the watch started.

    Raises:
        ConfigError: if there was a training, and `controls` is empty.
    """
    threshold = options.label_threshold
    if threshold is not None and changes.total >= threshold:
        return f"{changes} (threshold {threshold})"
    if last:
        labels = choose_control(controls, name=last.control, labels=last.labels).labels
        added = [label for label in labels if label not in last.labels]
        removed = [label for label in last.labels if label not in labels]
        parts = [f"{kind}: {name_some(names, limit=3)}" for kind, names in (("new", added), ("gone", removed)) if names]
        if parts:
            return f"the labelling config has changed ({', '.join(parts)})"
    if options.minutes is not None and changes.total and idle_s >= 60 * options.minutes:
        return f"{changes} in {idle_s / 60:.0f} min (threshold {options.minutes:g})"
    return None
