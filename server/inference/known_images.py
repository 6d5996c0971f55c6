"""What is known of an image before it is decoded: its features, if its source still has the file that they are of.

Owns when a source is asked. One that said what it has not long ago is taken at its word, so that a pool which is scored
in rounds costs no requests; after that it is asked whether the file changed, and where it cannot be asked, downloaded
again. Knows no threads and no graph.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.images.download import Validators
from contract.images.fetch import Fetched, Fetcher
from server.inference.backbone import Features
from server.inference.engine import Engine
from server.observe.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where a task's image is, in any form that Label Studio uses."""

    reference: str
    task_id: int | None = None
    project_id: int | None = None


class NoImage(ImageError):
    """Found no image reference in a task's data, or in a row."""

    code = "no_image"


class File(NamedTuple):
    """An image whose features are not known."""

    data: bytes
    digest: bytes | None
    """sha256; None where nothing is kept."""


class KnownImages:
    """A store of features, if there is one, and the sources of images. Used by many threads."""

    def __init__(
        self,
        store: FeatureStore | None,
        fetcher: Fetcher,
        *,
        recheck_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take for how many seconds a source's word is taken; 0 asks it each time."""
        self._store = store
        self._fetcher = fetcher
        self._recheck_s = recheck_s
        self._metrics = metrics
        self._clock = clock

    def recall(self, images: Mapping[int, ImageReference], engine: Engine) -> dict[int, Features]:
        """Return float32 (F,) of those images whose sources need not be asked, in order. Asks no image host."""
        if (store := self._store) is None or not self._recheck_s:
            return {}
        with self._metrics.stage("recall"):
            named = {index: source for index, image in images.items() if (source := self._source(image))}
            last = dict(zip(named, store.get_downloads([*named.values()]), strict=True))
            now = self._clock()
            digests = {
                index: download.digest
                for index, download in last.items()
                if download and 0 <= now - download.checked_at < self._recheck_s
            }
            rows = zip(digests, _rows(store, [*digests.values()], engine), strict=True)
            found = {index: row for index, row in rows if row is not None}
        self._metrics.feature_cache_hits.inc(len(found))
        return found

    def find(self, image: ImageReference, engine: Engine, deadline: float) -> File | Features:
        """Return what is known of an image after asking its source: its features, or else its file.

        Raises:
            ImageError: if the source does not give it.
        """
        if (store := self._store) is None:
            return File(self._fetch(image, deadline).data, None)
        source = self._source(image)
        last = store.get_download(source) if source else None
        (row,) = _rows(store, [last.digest], engine) if last else (None,)
        known = last if row is not None else None  # who has no features needs the file, changed or not
        fetched = self._fetch(image, deadline, known.validators if known else None)
        if known and fetched.unchanged:
            digest, result = known.digest, "unchanged"
        else:
            digest = hashlib.sha256(fetched.data).digest()
            result = "ignored" if known and digest == known.digest else "changed"
            (row,) = _rows(store, [digest], engine)
        if known and (fetched.unchanged or known.validators.can_ask):
            self._metrics.image_revalidations.labels(result).inc()
        store.put_download(source, fetched.validators, digest, at=self._clock())
        if row is None:
            self._metrics.feature_cache_misses.inc()
            return File(fetched.data, digest)
        self._metrics.feature_cache_hits.inc()
        return row

    def _fetch(self, image: ImageReference, deadline: float, known: Validators | None = None) -> Fetched:
        """Fetch an image, unless its source says that it is the one that is known."""
        return self._fetcher.fetch_if_changed(
            image.reference, known=known, task_id=image.task_id, project_id=image.project_id, deadline=deadline
        )

    def _source(self, image: ImageReference) -> str | None:
        """Where an image is asked for; None too where that cannot be said, which is told when it is fetched."""
        try:
            return self._fetcher.source(image.reference, task_id=image.task_id, project_id=image.project_id)
        except ImageError:
            return None


def _rows(store: FeatureStore, digests: Sequence[bytes], engine: Engine) -> list[Features | None]:
    """Features of files, where there are as many as the head takes: the store's folder may be written by others."""
    rows = store.get_many(engine.backbone.key, digests)
    return [row if row is not None and len(row) == engine.backbone.features else None for row in rows]
