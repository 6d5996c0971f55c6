"""Images of a project that no person has labelled and that are known: by the last ranking's list, by a feature store.

Asks nobody: no image is fetched, and no features are computed. What is not known, nothing is learnt from.
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

MOST_IMAGES: Final = 10_000
"""Images that are looked up; of more, a random sample, which is always the same."""
_DRAW: Final = "pseudo-labels"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """The tasks of a project that no person has labelled, as far as their images may be known."""

    tasks: int = 0
    sources: tuple[str, ...] = ()
    """Where images of them are asked for, as `Fetcher.source` names it: `MOST_IMAGES` at most."""


def find_unlabelled(pool: LabelledPool, project: int, kept: Path, fetcher: Fetcher) -> Unlabelled:
    """Return the tasks of the last list that have not been annotated since, and those that were confirmed in bulk.

    A label that was confirmed in bulk is not learnt from, since nobody may have looked. The project's lists are `kept`
    in a folder, and the fetcher is as the server has it that shares the store.
    """
    annotated = {image.task_id for image in pool.images}.union(*pool.left_out.values())
    listed = {task.id: task for task in cached_unlabelled(kept) if task.id not in annotated}
    numbers = np.array([*listed, *pool.confirmed], np.int64)
    chosen = numbers[np.argsort(keyed_uniforms(_DRAW, numbers), kind="stable")[:MOST_IMAGES]]
    sources = []
    for number in np.sort(chosen).tolist():
        reference = pool.confirmed.get(number) or find_reference(listed[number].data, pool.image_key)
        with suppress(ImageError):
            if reference and (source := fetcher.source(reference, task_id=number, project_id=project)):
                sources.append(source)
    return Unlabelled(len(numbers), tuple(sources))


def draw_as_unlabelled(tasks: Indices, unlabelled: Unlabelled, known: int) -> npt.NDArray[np.bool_]:
    """Return which labelled tasks (N,) would be among the known images, were they unlabelled: (N,).

    Held-out images speak for unlabelled ones if they are treated alike: as large a share of them as has features that
    are `known` has to be there, without its labels, when pseudo-labels are chosen.
    """
    return keyed_uniforms(_DRAW, tasks) < known / max(1, unlabelled.tasks)


def read_known_features(
    sources: Sequence[str], store: FeatureStore, backbone: str, length: int, *, excluding: Collection[bytes]
) -> npt.NDArray[np.float32]:
    """Return the features of images that a store knows, each file once, `but` for files with these sha256: (U, F).

    They are kept under `backbone`, and have the `length` F.
    """
    known, left_out = dict.fromkeys(each.digest for each in store.get_downloads(sources) if each), set(excluding)
    digests = [digest for digest in known if digest not in left_out]
    rows = [row for row in store.get_many(backbone, digests) if row is not None and len(row) == length]
    if sources:
        _log.info("of %d unlabelled images the features of %d are known here", len(sources), len(rows))
    return np.stack(rows) if rows else np.empty((0, length), np.float32)
