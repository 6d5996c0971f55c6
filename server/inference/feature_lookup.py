"""Looks up the features of images in the feature store, and asks sources whether their files have changed.

A recently checked image is not checked again, so that scoring a pool in rounds costs no requests. Later its source is
asked whether the file has changed; a source that cannot answer that sends the file again.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.images.download import Validators
from contract.images.fetch import Fetcher, FetchResult
from server.inference.backbone import Features
from server.inference.engine import Engine
from server.observe.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ImageReference:
    """The reference to a task's image, in any form that Label Studio uses."""

    reference: str
    task_id: int | None = None
    project_id: int | None = None


class NoImage(ImageError):
    """Found no image reference in a task's data, or in a row."""

    code = "no_image"


class ImageFile(NamedTuple):
    """The file of an image whose features are not stored."""

    data: bytes
    digest: bytes | None
    """sha256; None without a feature store."""


class FeatureLookup:
    """Looks up features in the store, or fetches image files. Thread-safe."""

    def __init__(
        self,
        store: FeatureStore | None,
        fetcher: Fetcher,
        *,
        recheck_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Check an image again after `recheck_s` seconds; 0 checks it each time."""
        self._store = store
        self._fetcher = fetcher
        self._recheck_s = recheck_s
        self._metrics = metrics
        self._clock = clock

    def recall(self, images: Mapping[int, ImageReference], engine: Engine) -> dict[int, Features]:
        """Return the stored features, float32 (F,), of recently checked images by index, without any request."""
        if (store := self._store) is None or not self._recheck_s:
            return {}
        with self._metrics.stage("recall"):
            sources = {index: source for index, image in images.items() if (source := self._source(image))}
            downloads = dict(zip(sources, store.get_downloads([*sources.values()]), strict=True))
            now = self._clock()
            digests = {
                index: download.digest
                for index, download in downloads.items()
                if download and 0 <= now - download.checked_at < self._recheck_s
            }
            rows = zip(digests, _rows(store, [*digests.values()], engine), strict=True)
            features = {index: row for index, row in rows if row is not None}
        self._metrics.feature_cache_hits.inc(len(features))
        return features

    def fetch(self, image: ImageReference, engine: Engine, deadline: float) -> ImageFile | Features:
        """Return the stored features of an image, float32 (F,), after a check with its source, or else its file.

        Raises:
            ImageError: if the image cannot be fetched.
        """
        if (store := self._store) is None:
            return ImageFile(self._fetch(image, deadline).data, None)
        source = self._source(image)
        last = store.get_download(source) if source else None
        (row,) = _rows(store, [last.digest], engine) if last else (None,)
        known = last if row is not None else None  # without features the file is needed, changed or not
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
            return ImageFile(fetched.data, digest)
        self._metrics.feature_cache_hits.inc()
        return row

    def _fetch(self, image: ImageReference, deadline: float, known: Validators | None = None) -> FetchResult:
        return self._fetcher.fetch_if_changed(
            image.reference, known=known, task_id=image.task_id, project_id=image.project_id, deadline=deadline
        )

    def _source(self, image: ImageReference) -> str | None:
        """Return the address of an image; None if there is none, which fetching reports."""
        try:
            return self._fetcher.source(image.reference, task_id=image.task_id, project_id=image.project_id)
        except ImageError:
            return None


def _rows(store: FeatureStore, digests: Sequence[bytes], engine: Engine) -> list[Features | None]:
    """Return stored features of the right length, because other programs may write to the store's folder."""
    rows = store.get_many(engine.backbone.key, digests)
    return [row if row is not None and len(row) == engine.backbone.features else None for row in rows]
