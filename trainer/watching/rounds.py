"""When a round of training is due: what has changed in a project since its newest version was trained.

Pure but for reading manifests; who looks, trains and waits is `trainer.watching.watch`.
"""

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
    """None leaves open which."""


def _parse_projects(value: str) -> tuple[WatchedProject, ...]:
    found = []
    for each in split(value):
        number, named, model = each.partition("=")
        if not number.isdecimal() or not number.isascii() or (named and not is_model_name(model)):
            raise ValueError("a project's number, such as 1, with its model as in 1=cats, or several between commas")
        found.append(WatchedProject(int(number), model or None))
    return tuple(found)


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=DECLARED)
class WatchOptions:
    """What to watch, and when a round is due."""

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
    """Seconds between two looks at Label Studio; at most 2 once half of `--labels` have arrived."""
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
    def enough(self) -> int | None:
        """After so many annotations that are new, edited or deleted a round is due; None leaves it to the time."""
        return _DEFAULT_LABELS if self.labels is None and self.minutes is None else self.labels

    def is_near(self, changes: "Changes") -> bool:
        """Whether half of the labels that are asked for have come."""
        return self.enough is not None and 2 * changes.total >= self.enough

    def describe(self) -> str:
        """Say when a round is due."""
        labels = "label" if self.enough == 1 else "labels"
        parts = [f"after {self.enough} new or changed {labels}"] if self.enough else []
        parts += [f"{self.minutes:g} minutes after the last if labels have changed"] if self.minutes is not None else []
        return " or ".join(parts)


@dataclass(frozen=True, slots=True)
class Trained:
    """What the newest version of a project was trained on."""

    version: str
    labels: tuple[str, ...]
    control: str | None
    annotations: int
    """In all, before the labels were read."""
    updated_at: str
    """When a task with annotations had last changed, as Label Studio wrote it."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """What has happened to a project's annotations since its newest version was trained."""

    new: int = 0
    edited: int = 0
    deleted: int = 0

    @classmethod
    def count(cls, growth: int, *, made: int = 0, edited: int = 0) -> Self:
        """Count from by how many annotations there are more, and what is known of when they were made and edited.

        What was made and is not there was deleted: Label Studio says it of no annotation, but the sum does.
        """
        new = max(made, growth, 0)
        return cls(new, edited, new - growth)

    @property
    def total(self) -> int:
        """How many annotations are not what they were; one that was edited twice counts once."""
        return self.new + self.edited + self.deleted

    def __str__(self) -> str:
        counts = [(self.new, "new"), (self.edited, "edited"), (self.deleted, "deleted")]
        (first, how), *others = [each for each in counts if each[0]] or counts[:1]
        labels = "label" if first == 1 else "labels"
        return ", ".join([f"{first} {how} {labels}", *(f"{count} {how}" for count, how in others)])


def read_trained(repository: Repository, project: int) -> Trained | None:
    """Find the newest version that was trained on a project, whichever is in use; None if there is none.

    After a rollback it is not the one in use, and labels that it has seen are no reason to train again.
    """
    for name in reversed(repository.history()):
        try:
            manifest = repository.read_manifest(name)
            at = datetime.fromisoformat(manifest.created_at)
        except RepositoryUnreachable:
            raise  # it would be trained on the same labels again
        except (RepositoryError, ValueError):
            continue
        if (seen := manifest.training.project) and seen.id == project:
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return Trained(name, manifest.labels, manifest.control, seen.annotations, seen.updated_at, at)
    return None


def why_train(
    when: WatchOptions, trained: Trained | None, changes: Changes, *, controls: Sequence[ChoicesControl], idle_s: float
) -> str | None:
    """Say why a round is due; None if it is not.

    The last was `idle_s` seconds ago, or watching began then; `controls` are those of the labelling config.
    """
    if when.enough is not None and changes.total >= when.enough:
        return f"{changes} ({when.enough} asked for)"
    if trained:
        now = choose_control(controls, name=trained.control, labels=trained.labels).labels
        added = [label for label in now if label not in trained.labels]
        gone = [label for label in trained.labels if label not in now]
        told = [f"{sign}: {name_some(each, most=3)}" for sign, each in (("new", added), ("gone", gone)) if each]
        if told:
            return f"the labelling config has changed ({', '.join(told)})"
    if when.minutes is not None and changes.total and idle_s >= 60 * when.minutes:
        return f"{changes} in {idle_s / 60:.0f} min ({when.minutes:g} asked for)"
    return None
