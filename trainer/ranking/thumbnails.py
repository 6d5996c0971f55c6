"""The images that are shown of a ranking: its head, and those that the model is least and most sure of."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from heapq import nsmallest
from operator import itemgetter
from typing import Final

from contract.errors import ImageError
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.scores.ranking import RankedImage
from contract.tasks import labels_in
from trainer.ranking.predictions import Planned
from trainer.report.thumbnails import thumbnail

SHOWN: Final = 12
"""The most images of each kind."""
_THREADS: Final = 4

Fetch = Callable[[int], bytes]
"""From a task's number to its image file; ImageError where there is none."""


def show(
    items: Sequence[Planned], fetch: Fetch, *, max_megapixels: int = MAX_MEGAPIXELS
) -> dict[str, tuple[RankedImage, ...]]:
    """Return the `first` images of an order, the `uncertain` by falling BALD, the `confident` by falling probability.

    Each image is fetched once, and left out if it cannot be had or shown. What is predicted of the random holdout is
    shown to nobody, so it is at the head only; and so is what could not be scored and keeps its place.
    """
    predicted = [item for item in items if not item.held_out and not item.kept]
    chosen = {
        "first": items[:SHOWN],
        "uncertain": _greatest(predicted, lambda item: item.bald),
        "confident": _greatest(predicted, lambda item: _predicted(item)[1]),
    }
    once = {item.task: item for those in chosen.values() for item in those}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails") as executor:
        shown = executor.map(partial(_show, fetch, max_megapixels), once.values())
        images = {image.task: image for image in shown if image is not None}
    return {kind: tuple(images[item.task] for item in those if item.task in images) for kind, those in chosen.items()}


def _greatest(items: Sequence[Planned], value: Callable[[Planned], float | None]) -> list[Planned]:
    """Return the items of greatest value, of equals the earlier task first; those without a value are left out."""
    valued = [(-found, item.task, item) for item in items if (found := value(item)) is not None]
    return [item for *_, item in nsmallest(SHOWN, valued, key=itemgetter(0, 1))]


def _show(fetch: Fetch, max_megapixels: int, item: Planned) -> RankedImage | None:
    try:
        small = thumbnail(fetch(item.task), max_megapixels=max_megapixels)
    except ImageError:
        return None
    return RankedImage(item.task, *_predicted(item), item.bald, item.score, item.reason, small)


def _predicted(item: Planned) -> tuple[str | None, float | None]:
    """The label of the first region, several of them in one text, and its probability."""
    if not item.result:
        return None, None
    region = item.result[0]
    return ", ".join(labels_in(region["value"])), region.get("score")
