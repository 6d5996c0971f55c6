"""Problems with labels and images, described for annotators, with task IDs or files."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from contract.errors import name_some
from trainer.labels.dataset import Pixels, count_images
from trainer.labels.sources import LabelledPool

_some = partial(name_some, limit=5)
"""List at most five names, and count the rest."""


def drop_empty_classes(pool: LabelledPool, pixels: Pixels) -> tuple[LabelledPool, Pixels]:
    """Drop class folders without a readable image; labels of a labelling config are kept."""
    if pool.control is not None:
        return pool, pixels
    seen, targets = np.unique(pixels.targets, return_inverse=True)  # ascending indices of the kept labels
    new_index = {int(label): row for row, label in enumerate(seen)}
    images = [replace(each, labels=(new_index[each.labels[0]],)) for each in pool.images if each.labels[0] in new_index]
    reduced = replace(pool, labels=tuple(pool.labels[label] for label in seen), images=tuple(images))
    return reduced, replace(pixels, targets=targets)


def describe_unreadable(pixels: Pixels) -> list[str]:
    """Describe the unreadable images, one sentence per reason, the most frequent first."""
    by_kind = defaultdict[str, list[tuple[str, str]]](list)
    for image in pixels.unreadable:
        text = image.reason.removeprefix(image.name).strip()
        kind = re.sub(r"\d+", "0", text)  # sizes do not matter
        by_kind[kind].append((text, image.name if image.task_id is None else f"task {image.task_id}"))
    sentences = []
    for images in sorted(by_kind.values(), key=len, reverse=True):
        names, text = [name for _, name in images], images[0][0]
        sentences.append(f"{len(names)} image{'s' * (len(names) != 1)} cannot be read: {text} ({_some(names)})")
    return sentences


def describe_lost(before: LabelledPool, pixels: Pixels) -> list[str]:
    """Describe the labels none of whose images can be read."""
    readable = count_images(pixels.targets, len(before.labels))
    labels = np.array([label for each in before.images for label in each.labels], np.int64)
    labelled = np.bincount(labels, minlength=len(before.labels))
    lost = [
        f"{before.labels[label]!r} ({labelled[label]})" for label in np.flatnonzero((labelled > 0) & (readable == 0))
    ]
    if not lost:
        return []
    consequence = (
        "it is no class of this version"
        if before.control is None
        else "it stays a label, since the labelling config has it, but nothing of it is learnt"
    )
    return [f"of a label, no image can be read, and {consequence}: {_some(lost)}"]


def describe_unlabelled(labels: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Describe the labels without images, given the number of images of each."""
    unseen = [label for label, count in zip(labels, counts, strict=True) if not count]
    if not unseen:
        return []
    named = _some([repr(label) for label in unseen])
    return [f"no image is labelled {named} yet: nothing of that is learnt; label some if you find any"]


def describe_contradictions(pool: LabelledPool, pixels: Pixels, *, split: bool) -> list[str]:
    """Describe images with equal pixels and different labels.

    If a share of each class is held out (`split`), such images are always trained on.
    """
    rows = defaultdict[int, list[int]](list)
    for row, group in enumerate(pixels.groups):
        rows[int(group)].append(row)
    groups = [each for each in rows.values() if (pixels.targets[each] != pixels.targets[each[0]]).any()]
    if not groups:
        return []
    most = max(len({pixels.targets[row].tobytes() for row in each}) for each in groups)
    examples = _some(["; ".join(_labelled(pool, pixels, row) for row in each) for each in groups], separator=" | ")
    consequence = " and cannot be held out to measure on" if split else ""
    return [
        f"{len(groups)} image{'s have' if len(groups) > 1 else ' has'} two labels{' or more' if most > 2 else ''}, "
        f"for equal images are labelled differently: {examples}; "
        f"they are trained on as they are{consequence}; correct their labels"
    ]


def _labelled(pool: LabelledPool, pixels: Pixels, row: int) -> str:
    target = pixels.targets[row]
    indices = np.flatnonzero(target) if pool.multiple else [int(target)]
    labels = " and ".join(repr(pool.labels[label]) for label in indices) or "no label"
    return f"{pixels.name(row, is_file=pool.control is None)} {labels}"
