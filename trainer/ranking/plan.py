"""What a ranking is going to import, on disk before the first prediction is sent.

So a ranking that was killed goes on with the order it had begun with, although labels have come in meanwhile.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import ConfigError
from contract.files import explain


@dataclass(frozen=True, slots=True)
class Planned:
    """One task's prediction, and what is to be told of it."""

    task: int
    score: float
    """In [0, 1]; the lowest is labelled first."""
    result: Sequence[Mapping[str, Any]]
    reason: str
    bald: float | None
    """In nats; None before there is a version."""
    audit: bool
    kept: bool = False
    """Whether it could not be scored and keeps the place that it had in the ranking before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A ranking's predictions, in the order in which the tasks are to be labelled."""

    name: str
    """What they are stamped with."""
    strategy: str
    near_duplicates: int
    unscored: tuple[int, ...]
    """Tasks that could not be scored, those that keep a place included."""
    kept: int
    """How many of these keep a place."""
    items: tuple[Planned, ...]

    @property
    def scored(self) -> tuple[Planned, ...]:
        """Those that have a place by their own score."""
        return tuple(item for item in self.items if not item.kept)


def save_plan(path: Path, plan: Plan) -> None:
    """Write a plan in one step.

    Raises:
        ConfigError: if it cannot be written.
    """
    head = {"name": plan.name, "strategy": plan.strategy, "count": len(plan.items)}
    head |= {"near_duplicates": plan.near_duplicates, "unscored": plan.unscored, "kept": plan.kept}
    draft = path.with_suffix(".draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head) + "\n")
            file.writelines(json.dumps(asdict(item)) + "\n" for item in plan.items)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as err:
        raise ConfigError(
            f"expected to write a plan to {path.parent}, got {explain(err, path.parent)}; set LABELNEXT_CACHE to a "
            "folder with room"
        ) from err


def load_plan(path: Path) -> Plan | None:
    """Read a plan; None if there is none that can be read."""
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
            count = head.pop("count")
            items = tuple(Planned(**json.loads(line)) for line in file)
            unscored = tuple(head.pop("unscored"))
            return Plan(items=items, unscored=unscored, **head) if len(items) == count else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
