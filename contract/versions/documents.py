"""Small files beside the versions, each replaced whole: records of rankings, requests to train.

Knows nothing of what they say.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Documents(Protocol):
    """One folder of such files."""

    @property
    def location(self) -> str:
        """Where it is, for people."""

    def names(self) -> list[str]:
        """Return the files' names, sorted; none where there is no folder yet.

        Raises:
            OSError: if it cannot be read.
        """

    def read(self, name: str) -> bytes:
        """Return what a file holds.

        Raises:
            FileNotFoundError: if there is none.
            OSError: if it cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Put a file in the place of the last one of that name, in one step.

        Raises:
            OSError: if it cannot be written; the last one then stays.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OSError: if it cannot be removed.
        """


class FolderDocuments:
    """Documents in a folder, which the first of them makes."""

    def __init__(self, folder: Path) -> None:
        """Take the folder."""
        self._folder = folder

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self._folder)

    def names(self) -> list[str]:
        """Return the files' names, sorted, but for those that are being written."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Put a file in the place of the last one of that name, synced and in one step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{secrets.token_hex(8)}"
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._folder / name)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)
