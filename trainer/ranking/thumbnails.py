"""Thumbnails for the record of a ranking: its first images, and the most uncertain and most confident ones."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import nsmallest
from typing import Final

from contract.errors import ImageError
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.scores.ranking import RankedImage
from contract.tasks import labels_in
from trainer.ranking.predictions import PlannedPrediction
from trainer.report.thumbnails import thumbnail

MAX_IMAGES: Final = 12
"""Maximum number of thumbnails of each kind."""

_THREADS: Final = 4


def make_thumbnails(
    items: Sequence[PlannedPrediction], fetch: Callable[[int], bytes], *, max_megapixels: int = MAX_MEGAPIXELS
) -> dict[str, tuple[RankedImage, ...]]:
    """Return thumbnails of the `first`, `most_uncertain` (by BALD) and `most_confident` (by probability) images.

    Each image is fetched once, by its task, and left out on ImageError. Images of the random holdout, whose predictions
    must stay hidden, and unscored ones appear only among the first.
    """

    def make(item: PlannedPrediction) -> RankedImage | None:
        try:
            small = thumbnail(fetch(item.task), max_megapixels=max_megapixels)
        except ImageError:
            return None
        return RankedImage(item.task, *_predicted(item), item.bald, item.score, item.reason, small)

    predicted = [item for item in items if not item.held_out and not item.kept]
    chosen = {
        "first": items[:MAX_IMAGES],
        "most_uncertain": _greatest([(item.bald, item) for item in predicted]),
        "most_confident": _greatest([(_predicted(item)[1], item) for item in predicted]),
    }
    distinct = {item.task: item for items in chosen.values() for item in items}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails") as executor:
        images = {image.task: image for image in executor.map(make, distinct.values()) if image}
    return {kind: tuple(images[item.task] for item in items if item.task in images) for kind, items in chosen.items()}


def _greatest(valued: Sequence[tuple[float | None, PlannedPrediction]]) -> list[PlannedPrediction]:
    """Return the items with the greatest values, ties by task number; items without a value are left out."""
    return [
        item
        for *_, item in nsmallest(
            MAX_IMAGES, ((-value, item.task, item) for value, item in valued if value is not None)
        )
    ]


def _predicted(item: PlannedPrediction) -> tuple[str | None, float | None]:
    """Return the label or labels of the first region as one text, and its probability."""
    if not item.result:
        return None, None
    region = item.result[0]
    return ", ".join(labels_in(region["value"])), region.get("score")
