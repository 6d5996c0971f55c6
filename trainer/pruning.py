"""Removing versions that nobody needs any more. Of each its manifest and its report stay, for curve and advice.

Owns which versions are needed: the newest, the one in use, those that a project is ranked by, and what a server or a
trainer has open. What removing means is the repository's.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.errors import RepositoryError, RepositoryUnreachable, VersionInUse
from contract.scores.ranking import load_rankings
from contract.versions.repository import Repository
from contract.versions.version import is_kept
from trainer.locks import exclusive

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, and what was not."""

    removed: tuple[str, ...]
    """Oldest first."""
    freed_bytes: int
    kept: Mapping[str, str]
    """Version to why it is needed, newest first."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"removed": self.removed, "freed_mb": round(self.freed_bytes / 2**20, 1), "kept": self.kept}

    def describe(self) -> str:
        """Return it as one line for people."""
        count, reasons = len(self.removed), Counter(self.kept.values())
        kept = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        removed = f"{count} version{'s' * (count != 1)} removed, {self.freed_bytes / 2**20:,.0f} MiB"
        return f"{removed if count else 'no version removed'}; kept: {kept}"


def prune(repository: Repository, *, newest: int) -> Pruned:
    """Remove all versions but the newest and those that are in use.

    Raises:
        ConfigError: if another process is pruning.
        RepositoryError: if no version is current: then which is needed is not known.
        OSError: if the repository cannot be read or written.
    """
    refusal = f"the versions in {repository.location} are being pruned by another process; wait for it to end"
    with exclusive(repository, work=".prune", refusal=refusal):
        repository.finish_retiring()
        names = repository.versions()
        kept = _needed(repository, names, newest)
        removed, freed_bytes = [], 0
        for name in names:
            if name in kept:
                continue
            size = _size(repository, name)
            try:
                repository.retire(name)
            except VersionInUse as err:
                _log.info("%s", err)
                kept[name] = "open"
                continue
            removed.append(name)
            freed_bytes += size
    return Pruned(tuple(removed), freed_bytes, dict(sorted(kept.items(), reverse=True)))


def _needed(repository: Repository, names: list[str], newest: int) -> dict[str, str]:
    ranked_by = [ranking.version for ranking in load_rankings(repository)]
    needed = {version: "ranked by" for version in ranked_by if version in names}
    return {**needed, **dict.fromkeys(names[-newest:], "newest"), repository.current(): "current"}


def _size(repository: Repository, name: str) -> int:
    """What removing a version frees, as its manifest says; 0 if that cannot be read, which keeps no version there."""
    try:
        files = repository.read_manifest(name).files
    except RepositoryUnreachable:
        raise
    except RepositoryError:
        return 0
    return sum(digest.size_bytes for file, digest in files.items() if not is_kept(file))
