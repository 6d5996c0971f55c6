"""Scores of a project's unlabelled pool, by a version or a pretrained network.

Scores are logged on disk, so that an interrupted ranking does not compute them again.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ImageError, with_subject
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher
from contract.images.preprocess import decode_image
from contract.tasks import find_reference
from contract.versions.manifest import InputSpec
from trainer.labels.dataset import THREADS
from trainer.labelstudio.tasks import PoolTask
from trainer.progress_bar import Bar
from trainer.scoring.retries import ScoreTasks, retry
from trainer.scoring.scores import Failure, Score, ScoreLog, digest

_log = logging.getLogger(__name__)

_MAX_REASONS: Final = 3
"""Maximum number of reasons for failures that are listed; images with other reasons are only counted."""
_IMAGE_DETAILS: Final = re.compile(r"task \d+|\S*/\S*|'[^']*'|(?<!answered )\b\d+\b")
"""The parts of a message that differ between failures for the same reason: an image's URL, name and size."""
_EMBEDDING_BATCH: Final = 256
_NO_PROBABILITIES: Final = np.zeros(0, np.float32)

Embed = Callable[[npt.NDArray[np.uint8], Sequence[bytes]], npt.NDArray[np.float32]]
"""From images, uint8 (N, H, W, 3), and the sha256 of their files to unit vectors (N, E)."""

_Loaded = tuple[bytes, npt.NDArray[np.uint8]]
"""The sha256 of an image's file, and its pixels."""


def embed_tasks(
    tasks: Sequence[PoolTask],
    log: ScoreLog,
    fetcher: Fetcher,
    *,
    key: str,
    project: int,
    embed: Embed,
    store: FeatureStore,
    spec: InputSpec,
    max_megapixels: int,
) -> tuple[list[Score], list[Failure]]:
    """Compute embeddings of tasks before there is a version, and return them as scores without probabilities.

    References are in the tasks' data under `key`. The store records the file of each source, as on servers. Raises
    ConfigError if the log cannot be read or written; images that cannot be fetched or decoded are failures.
    """
    decode = partial(decode_image, spec=spec, max_megapixels=max_megapixels)

    def load(task: PoolTask) -> _Loaded | Failure:
        reference = find_reference(task.data, key)
        if reference is None:
            return Failure(task.id, "no_image", f"its data has no image reference under {key!r}")
        try:
            fetched = fetcher.fetch_if_changed(reference, known=None, task_id=task.id, project_id=project)
            file_digest = sha256(fetched.data).digest()
            source = fetcher.source(reference, task_id=task.id, project_id=project)
            store.put_download(source, fetched.validators, file_digest, at=time.time())
            return file_digest, decode(fetched.data)
        except ImageError as err:
            return Failure(task.id, err.code, str(err), later=err.later)

    def compute(missing: Sequence[PoolTask]) -> Iterator[list[Score | Failure]]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:
            for start in range(0, len(missing), _EMBEDDING_BATCH):
                batch = missing[start : start + _EMBEDDING_BATCH]
                yield _embed_readable(batch, list(executor.map(load, batch)), embed)

    return collect_scores(tasks, log, compute, "embedded")


def _embed_readable(
    tasks: Sequence[PoolTask], images: Sequence[_Loaded | Failure], embed: Embed
) -> list[Score | Failure]:
    failures = [image for image in images if isinstance(image, Failure)]
    readable = [(task.id, *image) for task, image in zip(tasks, images, strict=True) if not isinstance(image, Failure)]
    if not readable:
        return [*failures]
    numbers, digests, pixels = zip(*readable, strict=True)
    vectors = embed(np.stack(pixels), digests)  # (n, E)
    return [
        *failures,
        *(
            Score(number, [], _NO_PROBABILITIES, bald=0.0, entropy=0.0, embedding=vector)
            for number, vector in zip(numbers, vectors, strict=True)
        ),
    ]


def group_failures(failures: Sequence[Failure]) -> str:
    """Describe failures: the number of images and an example for each reason, the most frequent first."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(f"{failure.code} {re.sub(_IMAGE_DETAILS, '', failure.detail)}", []).append(failure)
    common = sorted(groups.values(), key=len, reverse=True)
    parts = [
        f"{len(group)}, such as {with_subject(f'task {group[0].task}', group[0].detail)}"
        for group in common[:_MAX_REASONS]
    ]
    others = sum(map(len, common[_MAX_REASONS:]))
    return " | ".join([*parts, *([f"{others} for other reasons"] if others else [])])


def collect_scores(
    tasks: Sequence[PoolTask], log: ScoreLog, score_tasks: ScoreTasks, done: str
) -> tuple[list[Score], list[Failure]]:
    """Return the scores of tasks in their order, from the log or by `score_tasks`, and the failures.

    New scores are logged as they arrive, so that they are kept if `score_tasks` fails. `done` is a participle for
    messages. Raises ConfigError if the log cannot be read or written, and what `score_tasks` raises.
    """
    digests = {task.id: digest(task.data) for task in tasks}
    known = log.read(digests)
    missing = [task for task in tasks if task.id not in known]
    if known:
        _log.info("%d of %d images were already %s", len(known), len(tasks), done)
    failures: list[Failure] = []
    with Bar(total=len(missing), desc=done, unit="image") as bar:
        for outcomes in retry(score_tasks, missing, len(tasks)):
            fresh = [outcome for outcome in outcomes if isinstance(outcome, Score)]
            log.append(fresh, digests)
            known.update((score.task, score) for score in fresh)
            failures += [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            bar.update(len(outcomes))
    if failures:
        _log.warning("%d of %d images cannot be scored: %s", len(failures), len(tasks), group_failures(failures))
    return [known[task.id] for task in tasks if task.id in known], failures
