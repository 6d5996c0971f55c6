"""What rankings are called, which is what their predictions are stamped with.

The first ranking by a version bears the version's name, a deliberate second one `<version>.r2`, then `.r3`. Before
there is a version it is `cold-start-<model>`.
"""

import re
from collections.abc import Iterable
from typing import Final

from contract.versions.repository import Repository

_ROUND: Final = re.compile(r"\.r([1-9][0-9]*)")


def base_name(version: str | None, model: str) -> str:
    """Return the first ranking's name."""
    return version if version is not None else f"cold-start-{model}"


def round_of(name: str, base: str) -> int | None:
    """Return which ranking by a version a name stands for, from 1; None for a name that is not of that version."""
    if name == base:
        return 1
    found = _ROUND.fullmatch(name.removeprefix(base)) if name.startswith(base) else None
    return int(found[1]) if found and int(found[1]) > 1 else None


def next_name(base: str, taken: Iterable[str]) -> str:
    """Return the name after all those taken."""
    rounds = [number for name in taken if (number := round_of(name, base)) is not None]
    return f"{base}.r{max(rounds) + 1}" if rounds else base


def own_names(repository: Repository, names: Iterable[str], *, gone: Iterable[str] = ()) -> list[str]:
    """Return the names of model versions that are this model's: its versions, rankings by them, and the cold start.

    `gone` are versions whose folders were deleted. Raises OSError if the repository cannot be read.
    """
    bases = [*repository.history(), *gone, base_name(None, repository.model)]
    return [name for name in names if any(round_of(name, base) is not None for base in bases)]
