"""The images that are shown of a ranking: its head, and those that the model is least and most sure of."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import nsmallest
from typing import Final

from contract.errors import ImageError
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.scores.ranking import RankedImage
from contract.tasks import labels_in
from trainer.ranking.predictions import Planned
from trainer.report.thumbnails import thumbnail

SHOWN: Final = 12
_THREADS: Final = 4


def show(
    items: Sequence[Planned], fetch: Callable[[int], bytes], *, max_megapixels: int = MAX_MEGAPIXELS
) -> dict[str, tuple[RankedImage, ...]]:
    """Return the `first` images of an order, and by falling BALD or probability those that are least and most sure.

    Each image is fetched once, by its task, and left out if ImageError says that it cannot be had or shown. What is
    predicted of the random holdout is shown to nobody, so it is at the head only; and so is what could not be scored
    and keeps its place.
    """

    def picture(item: Planned) -> RankedImage | None:
        try:
            small = thumbnail(fetch(item.task), max_megapixels=max_megapixels)
        except ImageError:
            return None
        return RankedImage(item.task, *_predicted(item), item.bald, item.score, item.reason, small)

    predicted = [item for item in items if not item.held_out and not item.kept]
    chosen = {
        "first": items[:SHOWN],
        "most_uncertain": _greatest([(item.bald, item) for item in predicted]),
        "most_confident": _greatest([(_predicted(item)[1], item) for item in predicted]),
    }
    once = {item.task: item for those in chosen.values() for item in those}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails") as executor:
        images = {image.task: image for image in executor.map(picture, once.values()) if image}
    return {kind: tuple(images[item.task] for item in those if item.task in images) for kind, those in chosen.items()}


def _greatest(valued: Sequence[tuple[float | None, Planned]]) -> list[Planned]:
    """Return the items of greatest value, of equals the earlier task first; those without a value are left out."""
    return [
        item
        for *_, item in nsmallest(SHOWN, ((-value, item.task, item) for value, item in valued if value is not None))
    ]


def _predicted(item: Planned) -> tuple[str | None, float | None]:
    """The label of the first region, several of them in one text, and its probability."""
    if not item.result:
        return None, None
    region = item.result[0]
    return ", ".join(labels_in(region["value"])), region.get("score")
