"""Descriptions of problems with labels and images, with task IDs or file names."""

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
"""List at most five names, and count the others."""


def drop_empty_classes(pool: LabelledPool, pixels: Pixels) -> tuple[LabelledPool, Pixels]:
    """Drop class folders without a readable image; keep all labels of a labelling config."""
    if pool.control is not None:
        return pool, pixels
    kept, targets = np.unique(pixels.targets, return_inverse=True)
    new_index = {int(label): row for row, label in enumerate(kept)}
    images = [replace(each, labels=(new_index[each.labels[0]],)) for each in pool.images if each.labels[0] in new_index]
    reduced = replace(pool, labels=tuple(pool.labels[label] for label in kept), images=tuple(images))
    return reduced, replace(pixels, targets=targets)


def describe_unreadable(pixels: Pixels) -> list[str]:
    """Describe the unreadable images, one sentence per reason, the most frequent first."""
    by_kind = defaultdict[str, list[tuple[str, str]]](list)
    for image in pixels.unreadable:
        text = image.reason.removeprefix(image.name).strip()
        kind = re.sub(r"\d+", "0", text)  # sizes in bytes or pixels differ
        by_kind[kind].append((text, image.name if image.task_id is None else f"task {image.task_id}"))
    sentences = []
    for images in sorted(by_kind.values(), key=len, reverse=True):
        names, text = [name for _, name in images], images[0][0]
        sentences.append(f"{len(names)} unreadable image{'s' * (len(names) != 1)}: {text} ({_some(names)})")
    return sentences


def describe_lost(pool: LabelledPool, pixels: Pixels) -> list[str]:
    """Describe the labels without a readable image."""
    readable = count_images(pixels.targets, len(pool.labels))
    labels = np.array([label for each in pool.images for label in each.labels], np.int64)
    labelled = np.bincount(labels, minlength=len(pool.labels))
    lost = [f"{pool.labels[label]!r} ({labelled[label]})" for label in np.flatnonzero((labelled > 0) & (readable == 0))]
    if not lost:
        return []
    consequence = (
        "not classes of this version"
        if pool.control is None
        else "classes of this version, because of the labelling config, but not learnt"
    )
    return [f"labels without a readable image: {_some(lost)}; {consequence}"]


def describe_unlabelled(labels: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Describe the labels without images, given the number of images of each."""
    unseen = [repr(label) for label, count in zip(labels, counts, strict=True) if not count]
    return [f"labels without images: {_some(unseen)}; not learnt until you label some"] if unseen else []


def describe_contradictions(pool: LabelledPool, pixels: Pixels, *, split: bool) -> list[str]:
    """Describe images with equal pixels and different labels.

    If a share of each class is held out (`split`), such images are always in the training part.
    """
    rows = defaultdict[int, list[int]](list)
    for row, group in enumerate(pixels.groups):
        rows[int(group)].append(row)
    groups = [each for each in rows.values() if (pixels.targets[each] != pixels.targets[each[0]]).any()]
    if not groups:
        return []
    examples = _some(["; ".join(_labelled(pool, pixels, row) for row in each) for each in groups], separator=" | ")
    consequence = "used for training, never held out" if split else "used for training"
    return [
        f"{len(groups)} group{'s' * (len(groups) > 1)} of identical images with different labels: {examples}; "
        f"{consequence}; correct their labels"
    ]


def _labelled(pool: LabelledPool, pixels: Pixels, row: int) -> str:
    target = pixels.targets[row]
    indices = np.flatnonzero(target) if pool.multiple else [int(target)]
    labels = " and ".join(repr(pool.labels[label]) for label in indices) or "no label"
    return f"{pixels.name(row, is_file=pool.control is None)} {labels}"
