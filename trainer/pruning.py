"""Removal of old versions, except their manifests and reports, which the learning curve and the advice need.

The newest versions, the current one, versions that rank a project, and versions that a server or trainer has open are
kept.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from contract.errors import RepositoryError, RepositoryUnreachable, VersionInUse
from contract.scores.ranking import load_rankings
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import SHARED_FILES, is_kept, shared_files
from trainer.locks import lock_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PruneSummary:
    """What `prune` removed and kept."""

    removed: tuple[str, ...]
    """Oldest first."""
    freed_mb: float
    kept: Mapping[str, str]
    """Reason by version, newest first."""

    def describe(self) -> str:
        """Return the summary as one line."""
        count, reasons = len(self.removed), Counter(self.kept.values())
        kept = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        removed = f"{count} version{'s' * (count != 1)} removed, {self.freed_mb:,.0f} MiB"
        return f"{removed if count else 'no version removed'}; kept: {kept}"


def prune(repository: Repository, *, newest: int) -> PruneSummary:
    """Remove all versions except the newest ones and those in use.

    Raises:
        ConfigError: if another process is pruning.
        RepositoryError: if no version is current, since it is then unknown which ones are needed.
        OSError: if the repository cannot be read or written.
    """
    refusal = f"another process is pruning {repository.location}; wait for it to finish"
    with lock_model(repository, work=".prune", refusal=refusal):
        repository.finish_retiring()
        names = repository.versions()
        manifests = {name: manifest for name in names if (manifest := _read_manifest(repository, name))}
        kept = _find_needed(repository, names, newest)
        for name in [name for name in names if name not in kept]:
            try:
                repository.retire(name)
            except VersionInUse as err:
                _log.info("%s", err)
                kept[name] = "open"
    remaining = [manifest for name, manifest in manifests.items() if name in kept]
    freed_mb = round((_size(manifests.values()) - _size(remaining)) / 2**20, 1)
    removed = tuple(name for name in names if name not in kept)
    return PruneSummary(removed, freed_mb, dict(sorted(kept.items(), reverse=True)))


def _find_needed(repository: Repository, names: list[str], newest: int) -> dict[str, str]:
    """Return the versions to keep, with the reason."""
    ranked_by = [ranking.version for ranking in load_rankings(repository)]
    in_rankings = {version: "ranked by" for version in ranked_by if version in names}
    return {**in_rankings, **dict.fromkeys(names[-newest:], "newest"), repository.current(): "current"}


def _read_manifest(repository: Repository, name: str) -> Manifest | None:
    """Return a version's manifest; None if it is damaged, which does not prevent its removal."""
    try:
        return repository.read_manifest(name)
    except RepositoryUnreachable:
        raise
    except RepositoryError:
        return None


def _size(manifests: Collection[Manifest]) -> int:
    """Return the bytes that removing these versions frees; shared files are counted once."""
    shared = {digest.sha256: digest.size_bytes for each in manifests for digest in shared_files(each).values()}
    own = (
        digest.size_bytes
        for each in manifests
        for file, digest in each.files.items()
        if file not in SHARED_FILES and not is_kept(file)
    )
    return sum(shared.values()) + sum(own)
