"""Unlabelled images of a project, for pseudo-labels, from the last ranking's task list and the feature store.

No image is fetched, and no features are computed.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher
from contract.scores.keyed_uniforms import keyed_uniforms
from contract.tasks import find_reference
from trainer.labels.dataset import Indices
from trainer.labels.sources import LabelledPool
from trainer.labelstudio.task_lists import cached_unlabelled

MAX_IMAGES: Final = 10_000
"""Maximum number of images to look up in the feature store; of more, a fixed random sample is used."""
_DRAW: Final = "pseudo-labels"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Unlabelled tasks of a project, and the sources of their images."""

    tasks: int = 0
    sources: tuple[str, ...] = ()
    """At most `MAX_IMAGES` image sources (`Fetcher.source`)."""


def find_unlabelled(pool: LabelledPool, project: int, cache: Path, fetcher: Fetcher) -> Unlabelled:
    """Return the tasks of the last task list that have not been annotated since, and those confirmed in bulk.

    `cache` is the folder of the project's task lists; the fetcher needs the settings of the server that shares the
    feature store.
    """
    annotated = {image.task_id for image in pool.images}.union(*pool.left_out.values())
    listed = {task.id: task for task in cached_unlabelled(cache) if task.id not in annotated}
    numbers = np.array([*listed, *pool.confirmed], np.int64)
    chosen = numbers[np.argsort(keyed_uniforms(_DRAW, numbers), kind="stable")[:MAX_IMAGES]]
    sources = []
    for number in np.sort(chosen).tolist():
        reference = pool.confirmed.get(number) or find_reference(listed[number].data, pool.image_key)
        with suppress(ImageError):
            if reference and (source := fetcher.source(reference, task_id=number, project_id=project)):
                sources.append(source)
    return Unlabelled(len(numbers), tuple(sources))


def draw_as_unlabelled(tasks: Indices, unlabelled: Unlabelled, known: int) -> npt.NDArray[np.bool_]:
    """Return which of the held-out tasks (N,) to treat as unlabelled images with cached features: bool (N,).

    `known` is the number of unlabelled images with cached features. The held-out images represent the unlabelled ones
    only if the same share of them is available when pseudo-labels are chosen.
    """
    return keyed_uniforms(_DRAW, tasks) < known / max(1, unlabelled.tasks)


def read_known_features(
    sources: Sequence[str], store: FeatureStore, backbone: str, length: int, *, excluding: Collection[bytes]
) -> npt.NDArray[np.float32]:
    """Return the stored features of a backbone for image sources, each file once: float32 (U, F).

    Args:
        sources: image sources, as in `Unlabelled`.
        store: the feature store.
        backbone: the backbone's key in the store.
        length: F; rows of another length are ignored.
        excluding: sha256 of files to leave out.
    """
    downloaded = dict.fromkeys(each.digest for each in store.get_downloads(sources) if each)
    left_out = set(excluding)
    digests = [digest for digest in downloaded if digest not in left_out]
    rows = [row for row in store.get_many(backbone, digests) if row is not None and len(row) == length]
    if sources:
        _log.info("features of %d of %d unlabelled images are cached", len(rows), len(sources))
    return np.stack(rows) if rows else np.empty((0, length), np.float32)
