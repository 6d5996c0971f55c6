"""An LRU cache of downloaded images on disk, revalidated by ETag or Last-Modified.

It uses the files of one folder, but not its subfolders.
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
"""Decodes a file to pixels (H, W, 3); raises ImageError."""

_PARTIAL: Final = ".partial-"
_STALE_AFTER_S: Final = 3600.0
"""Age from which a partial file counts as left over from a crash."""
_EVICTED_FILL: Final = 0.9
"""Share of the size limit in use after an eviction."""


def open_cache(environment: Environment) -> "ImageCache":
    """Return the cache with the environment's folder and size limit."""
    return ImageCache(environment.cache, max_bytes=environment.image_cache_mb * 2**20)


class ImageCache:
    """Files by source; safe to share between threads and processes.

    The folder is created with the first file. `max_bytes` is its size limit; 0 disables the cache.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._size: int | None = None
        """Total bytes, including files that were replaced since the last scan; None before the first scan."""

    def fetch(
        self, fetcher: Fetcher, reference: str, decode: Decode, *, task_id: int | None
    ) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """Return an image's bytes and pixels; cache it if it can be decoded and its source supports revalidation.

        Raises:
            ImageError: if the image cannot be fetched or decoded.
            ConfigError: if the cache cannot be written.
        """
        source = fetcher.source(reference, task_id=task_id) if fetcher.is_remote(reference) else None
        known, data = (self.get(source) if source else None) or (None, b"")
        fetched = fetcher.fetch_if_changed(reference, known=known, task_id=task_id)
        if fetched.unchanged and known:
            return data, decode(data)
        pixels = decode(fetched.data)  # before caching, since it may be an error page with status 200
        if source and fetched.validators and fetched.validators.can_ask:
            self.put(source, fetched.validators, fetched.data)
        return fetched.data, pixels

    def get(self, source: str) -> tuple[Validators, bytes] | None:
        """Return the cached file of a source and its validators, or None."""
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
        """Cache a file, replacing the source's previous one, unless it alone exceeds the size limit.

        Raises ConfigError if it cannot be written.
        """
        head = [hashlib.sha256(data).hexdigest(), validators.place, validators.etag, validators.last_modified]
        content = json.dumps(head).encode() + b"\n" + data
        if len(content) > self._max_bytes:
            return
        remedy = "set LABELNEXT_CACHE to a folder with more space, or lower LABELNEXT_IMAGE_CACHE_MB"
        with explaining("images", self._folder, remedy=remedy), self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            self._write(self._path(source), content)
            self._size = (self._size or 0) + len(content)

    def _path(self, source: str) -> Path:
        # A digest, since sources may contain signatures.
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
        """Evict the least recently used files; more than necessary, so that not every new file needs a scan."""
        if self._size is not None and self._size + needed <= self._max_bytes:
            return
        files = self._files()
        self._size = sum(size for _, size, _ in files)
        if self._size + needed <= self._max_bytes:
            return
        for _, size, path in sorted(files):
            if self._size + needed <= self._max_bytes * _EVICTED_FILL:
                break
            with suppress(OSError):
                path.unlink()
                self._size -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return time of last use, size and path of each file, except files that are being written."""
        files = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):  # removed by another process
                status = entry.stat(follow_symlinks=False)
                in_progress = entry.name.startswith(_PARTIAL) and time.time() < status.st_mtime + _STALE_AFTER_S
                if entry.is_file(follow_symlinks=False) and not in_progress:
                    files.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return files
