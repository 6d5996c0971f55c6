"""The feature cache: what the trunk made of an image, for as long as the trunk is the same.

Owns what is kept and under which names: rows of features by trunk and by the bytes of the image's file, and of each
source that can say "unchanged" what it said last. Knows neither graphs nor requests.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from contract.images.download import Validators
from server.inference.engine import Engine, Features
from server.inference.feature_store import Store

MAX_ROW_BYTES: Final = 256 * 2**10
"""Larger features are computed anew each time: so few would fit that they would only push each other out."""

_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Download:
    """What a source sent last: how to ask whether it still would, and which bytes it was."""

    validators: Validators
    digest: bytes
    """sha256 of the file."""


class FeatureCache:
    """Features and downloads that are remembered. Used by many threads, closed by its maker."""

    def __init__(self, folder: Path | None, *, max_bytes: int, count_fault: Callable[[str], None]) -> None:
        """Open the folder's file, which replicas of one host may share; None keeps everything in memory.

        Args:
            folder: made if it is not there.
            max_bytes: of the file, or in memory; above 0. Who was used longest ago leaves first.
            count_fault: told what kind of failure there was; none is raised.
        """
        self._store = Store(folder, max_bytes=max_bytes, count_fault=count_fault)

    def close(self) -> None:
        """Write what has not been written yet."""
        self._store.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file, or in memory."""
        return self._store.size_bytes

    def get(self, engine: Engine, digest: bytes) -> Features | None:
        """Return the float32 (F,) of the file with this sha256, or None where they are not known."""
        row = self._store.get(_features_key(engine, digest))
        if row is None or len(row) != engine.features * np.float32().itemsize:
            return None
        return np.frombuffer(row, np.float32)

    def put(self, engine: Engine, digest: bytes, row: Features) -> None:
        """Keep the float32 (F,) of the file with this sha256, if they are numbers and not too many. Does not wait."""
        if row.nbytes <= MAX_ROW_BYTES and np.isfinite(row).all():
            self._store.put(_features_key(engine, digest), row.tobytes())

    def recall(self, source: str) -> Download | None:
        """Return what a source sent last, or None where that is not known."""
        return _parse(self._store.get(_source_key(source)))

    def remember(self, source: str, download: Download) -> None:
        """Keep what a source has sent. Of its name only a digest is kept: URLs may hold signatures."""
        validators = download.validators
        text = json.dumps([validators.place, validators.etag, validators.last_modified])
        self._store.put(_source_key(source), download.digest + text.encode())


def _features_key(engine: Engine, digest: bytes) -> bytes:
    return hashlib.sha256(b"features\0" + digest + engine.trunk_key.encode()).digest()


def _source_key(source: str) -> bytes:
    return hashlib.sha256(b"source\0" + source.encode(errors="surrogatepass")).digest()


def _parse(value: bytes | None) -> Download | None:
    """Read what `remember` wrote; None for anything else, for the folder may be written by others."""
    with suppress(ValueError, TypeError):
        place, etag, last_modified = json.loads((value or b"")[_DIGEST_BYTES:])
        return Download(Validators(place, etag, last_modified), (value or b"")[:_DIGEST_BYTES])
    return None
