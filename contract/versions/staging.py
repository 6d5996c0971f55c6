"""A version while it is written: what it becomes, and what it shares, before a repository names it."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import ManifestError
from contract.files import sync_tree
from contract.versions.manifest import Manifest
from contract.versions.version import MANIFEST_FILE, SIGNATURE_FILE, Version, digest_folder, shared_files

if TYPE_CHECKING:
    from contract.versions.repository import Repository


class StagedVersion:
    """A version being written. What is put into `path` becomes the version when `publish` is called."""

    def __init__(self, repository: "Repository", version: str, path: Path) -> None:
        self.version = version
        self.path = path
        self._repository = repository

    def describe(self, manifest: Manifest) -> Version:
        """Write manifest.json with the digests of all files so far, and return the version as a reader sees it.

        Raises:
            ManifestError: if `manifest` names another version.
        """
        if manifest.version != self.version:
            raise ManifestError(f"staged version {self.version}, got the manifest of {manifest.version}")
        complete = dataclasses.replace(manifest, files=digest_folder(self.path))
        (self.path / MANIFEST_FILE).write_text(complete.to_json(), encoding="utf-8")
        return Version(self.path, complete)

    def publish(self, manifest: Manifest) -> Version:
        """Sign the version if there is a key, and make it visible and current.

        Files that it shares with a version that is there become links to that one's. Every step leaves the repository
        usable if the process dies in it.
        """
        described = self.describe(manifest)
        if signing := self._repository.keys.signing:
            content = (self.path / MANIFEST_FILE).read_bytes()
            (self.path / SIGNATURE_FILE).write_bytes(signing.sign(content, version=self.version))
        staging = self._repository.staging_folder(self.version)
        is_private = self.path != staging
        if is_private:
            staging.mkdir()
        shared = shared_files(described.manifest).items()
        linked = [file for file, digest in shared if self._repository.link_shared(file, digest, staging / file)]
        if is_private:
            shutil.copytree(self.path, staging, ignore=shutil.ignore_patterns(*linked), dirs_exist_ok=True)
        sync_tree(staging)
        return self._repository.put(Version(staging, described.manifest))
