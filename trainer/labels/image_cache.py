"""The images that a trainer has downloaded, for as long as their sources say that they are unchanged.

Owns the files of one folder, but not its subfolders. What was used longest ago leaves first.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.files import explaining
from contract.images.download import Validators
from contract.images.fetch import Fetcher
from trainer.settings import Environment

Decode = Callable[[bytes], npt.NDArray[np.uint8]]
"""From a file's bytes to pixels (H, W, 3); raises ImageError."""

_PARTIAL: Final = ".partial-"
_CRASHED_AFTER_S: Final = 3600.0
"""A partial file that is older is nobody's."""
_FILLED_AFTERWARDS: Final = 0.9
"""How full the folder is when room has been made."""


def open_cache(environment: Environment) -> "ImageCache":
    """Return the cache that the environment names."""
    return ImageCache(environment.cache, max_bytes=environment.image_cache_mb * 2**20)


class ImageCache:
    """Files by their sources. Used by many threads; other processes may use the folder too.

    The folder is made when something is to be kept; `max_bytes` is the most that it holds, 0 for nothing.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._size: int | None = None
        """Of all files together, those that were replaced since the folder was looked at included; None before that."""

    def fetch(
        self, fetcher: Fetcher, reference: str, decode: Decode, *, task_id: int | None
    ) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """Return an image's bytes and its pixels; what its source can be asked about, and could be decoded, is kept."""
        source = fetcher.source(reference, task_id=task_id) if fetcher.is_remote(reference) else None
        known, data = (self.get(source) if source else None) or (None, b"")
        fetched = fetcher.fetch_if_changed(reference, known=known, task_id=task_id)
        if fetched.unchanged and known:
            return data, decode(data)
        pixels = decode(fetched.data)  # before it is kept: an error page sent as 200 must not stay
        if source and fetched.validators and fetched.validators.can_ask:
            self.put(source, fetched.validators, fetched.data)
        return fetched.data, pixels

    def get(self, source: str) -> tuple[Validators, bytes] | None:
        """Return what was kept of a source and how to ask it whether that has changed, or None."""
        path = self._path(source)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        head, _, data = content.partition(b"\n")
        with suppress(ValueError, TypeError):
            digest, place, etag, last_modified = json.loads(head)
            if digest == hashlib.sha256(data).hexdigest():
                return Validators(place, etag, last_modified), data
        return None

    def put(self, source: str, validators: Validators, data: bytes) -> None:
        """Keep what a source has sent, in place of what it sent before, if there is room for it at all."""
        head = [hashlib.sha256(data).hexdigest(), validators.place, validators.etag, validators.last_modified]
        content = json.dumps(head).encode() + b"\n" + data
        if len(content) > self._max_bytes:
            return
        remedy = "set LABELNEXT_CACHE to a folder with room, or LABELNEXT_IMAGE_CACHE_MB to less"
        with explaining("images", self._folder, remedy=remedy), self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            self._write(self._path(source), content)
            self._size = (self._size or 0) + len(content)

    def _path(self, source: str) -> Path:
        """Named by a digest: sources may hold signatures."""
        return self._folder / hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()

    def _write(self, path: Path, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=_PARTIAL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def _make_room(self, needed: int) -> None:
        """Remove who was used longest ago, and a share more, so that the folder is not gone through for each file."""
        if self._size is not None and self._size + needed <= self._max_bytes:
            return
        files = self._files()
        self._size = sum(size for _, size, _ in files)
        if self._size + needed <= self._max_bytes:
            return
        for _, size, path in sorted(files):
            if self._size + needed <= self._max_bytes * _FILLED_AFTERWARDS:
                break
            with suppress(OSError):
                path.unlink()
                self._size -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each file was used, its size and its path, but for files that are being written by any process."""
        found = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):  # another process has just removed it
                status = entry.stat(follow_symlinks=False)
                written = entry.name.startswith(_PARTIAL) and time.time() < status.st_mtime + _CRASHED_AFTER_S
                if entry.is_file(follow_symlinks=False) and not written:
                    found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return found
