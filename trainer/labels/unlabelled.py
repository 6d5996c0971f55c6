"""Unlabelled images of a project that are known already: by the list of the last ranking, and by a feature store.

Asks nobody: no image is fetched, and no features are computed. What is not known, nothing is learnt from.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher
from contract.scores.holdout import is_held_out
from contract.scores.keyed_uniforms import keyed_uniforms
from contract.tasks import find_reference
from trainer.labels.sources import LabelledPool
from trainer.labelstudio.task_lists import recall_unlabelled

MOST: Final = 10_000
"""Images that are looked up; of more, a random sample, which is always the same."""

_log = logging.getLogger(__name__)


def find_sources(
    pool: LabelledPool, project: int, kept: Path, fetcher: Fetcher, *, holdout_share: float
) -> tuple[str, ...]:
    """Return where the images of unlabelled tasks are asked for, as `Fetcher.source` names it: `MOST` at most.

    The random holdout is left out, and so is what has been annotated since the list was made.

    Args:
        pool: the project's labels.
        project: its number.
        kept: the folder that the project's lists are kept in.
        fetcher: as the server has it that shares the store.
        holdout_share: of the tasks.
    """
    annotated = {image.task_id for image in pool.images}.union(*pool.left_out.values())
    tasks = {task.id: task for task in recall_unlabelled(kept) if task.id not in annotated}
    numbers = np.array([*tasks], np.int64)
    numbers = numbers[~is_held_out(project, numbers, holdout_share)]
    chosen = numbers[np.argsort(keyed_uniforms(f"pseudo-labels/{project}", numbers), kind="stable")[:MOST]]
    sources = []
    for number in np.sort(chosen).tolist():
        reference = find_reference(tasks[number].data, pool.image_key)
        with suppress(ImageError):
            if reference and (source := fetcher.source(reference, task_id=number, project_id=project)):
                sources.append(source)
    return tuple(sources)


def recall(
    sources: Sequence[str], store: FeatureStore, backbone: str, length: int, *, but: Collection[bytes]
) -> npt.NDArray[np.float32]:
    """Return what a store knows of what a backbone made of images, each file once: float32 (U, F).

    Args:
        sources: as `find_sources` returns them.
        store: of this host.
        backbone: as features are kept under.
        length: F.
        but: the sha256 of files that are left out.
    """
    left_out = set(but)
    downloads = [download for download in store.recall_many(sources) if download]
    digests = [*dict.fromkeys(download.digest for download in downloads if download.digest not in left_out)]
    rows = [row for row in store.get_many(backbone, digests) if row is not None and len(row) == length]
    if sources:
        _log.info("of %d unlabelled images the features of %d are known here", len(sources), len(rows))
    return np.stack(rows) if rows else np.empty((0, length), np.float32)
