"""Names of rankings, which are the model versions of their predictions.

The first ranking by a version has the version's name, repeated ones `<version>.r2`, `<version>.r3` and so on. Before
there is a version the name is `cold-start-<model>`.
"""

import re
from collections.abc import Iterable
from typing import Final

from contract.versions.repository import Repository

_ROUND: Final = re.compile(r"\.r([1-9][0-9]*)")


def base_name(version: str | None, model: str) -> str:
    """Return the name of the first ranking by a version, or of the cold start."""
    return version if version is not None else f"cold-start-{model}"


def round_of(name: str, base: str) -> int | None:
    """Return the number of a ranking by a version, from 1; None if the name is not of that version."""
    if name == base:
        return 1
    match = _ROUND.fullmatch(name.removeprefix(base)) if name.startswith(base) else None
    return int(match[1]) if match and int(match[1]) > 1 else None


def next_name(base: str, taken: Iterable[str]) -> str:
    """Return the next free name."""
    rounds = [number for name in taken if (number := round_of(name, base)) is not None]
    return f"{base}.r{max(rounds) + 1}" if rounds else base


def own_names(repository: Repository, names: Iterable[str], *, gone: Iterable[str] = ()) -> list[str]:
    """Return the names that belong to this model: its versions, rankings by them, and the cold start.

    `gone` are versions whose folders were deleted. Raises OSError if the repository cannot be read.
    """
    bases = [*repository.history(), *gone, base_name(None, repository.model)]
    return [name for name in names if any(round_of(name, base) is not None for base in bases)]
