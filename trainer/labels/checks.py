"""What is wrong with images as they were read, in sentences for who labelled them, with tasks or files."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from contract.errors import name_some
from trainer.labels.dataset import Pixels, count_images
from trainer.labels.sources import LabelledPool

_some = partial(name_some, most=5)
"""Names tasks, files or labels; the rest are counted."""


def drop_empty_classes(pool: LabelledPool, pixels: Pixels) -> tuple[LabelledPool, Pixels]:
    """Return both without the class folders of which no image can be read; the labels of a labelling config stay."""
    if pool.control is not None:
        return pool, pixels
    seen, targets = np.unique(pixels.targets, return_inverse=True)  # rising indices of the labels that stay
    place = {int(label): row for row, label in enumerate(seen)}
    images = [replace(each, labels=(place[each.labels[0]],)) for each in pool.images if each.labels[0] in place]
    kept = replace(pool, labels=tuple(pool.labels[label] for label in seen), images=tuple(images))
    return kept, replace(pixels, targets=targets)


def describe_unreadable(pixels: Pixels) -> list[str]:
    """What cannot be read, one sentence for each reason, the most frequent first."""
    alike = defaultdict[str, list[tuple[str, str]]](list)
    for image in pixels.unreadable:
        text = image.reason.removeprefix(image.name).strip()
        kind = re.sub(r"\d+", "0", text)  # reasons differ in sizes, too
        alike[kind].append((text, image.name if image.task_id is None else f"task {image.task_id}"))
    sentences = []
    for those in sorted(alike.values(), key=len, reverse=True):
        names, text = [name for _, name in those], those[0][0]
        sentences.append(f"{len(names)} image{'s' * (len(names) != 1)} cannot be read: {text} ({_some(names)})")
    return sentences


def describe_lost(before: LabelledPool, pixels: Pixels) -> list[str]:
    """Name the labels that have images, none of which can be read; `pixels` are those of this pool."""
    readable = count_images(pixels.targets, len(before.labels))
    labels = np.array([label for each in before.images for label in each.labels], np.int64)
    tried = np.bincount(labels, minlength=len(before.labels))
    lost = [f"{before.labels[label]!r} ({tried[label]})" for label in np.flatnonzero((tried > 0) & (readable == 0))]
    if not lost:
        return []
    fate = (
        "it is no class of this version"
        if before.control is None
        else "it stays a label, since the labelling config has it, but nothing of it is learnt"
    )
    return [f"of a label, no image can be read, and {fate}: {_some(lost)}"]


def describe_unlabelled(labels: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Name the labels that no image has yet, by how many have each."""
    unseen = [label for label, count in zip(labels, counts, strict=True) if not count]
    if not unseen:
        return []
    named = _some([repr(label) for label in unseen])
    return [f"no image is labelled {named} yet: nothing of that is learnt; label some if you find any"]


def describe_contradictions(pool: LabelledPool, pixels: Pixels, *, split: bool) -> list[str]:
    """Say which images have two labels: equal pixels under different ones.

    Where a part of each class is held out (`split`), such images never are.
    """
    rows = defaultdict[int, list[int]](list)
    for row, group in enumerate(pixels.groups):
        rows[int(group)].append(row)
    groups = [each for each in rows.values() if (pixels.targets[each] != pixels.targets[each[0]]).any()]
    if not groups:
        return []
    most = max(len({pixels.targets[row].tobytes() for row in each}) for each in groups)
    examples = _some(["; ".join(_labelled(pool, pixels, row) for row in each) for each in groups], between=" | ")
    kept = " and cannot be held out to measure on" if split else ""
    return [
        f"{len(groups)} image{'s have' if len(groups) > 1 else ' has'} two labels{' or more' if most > 2 else ''}, "
        f"for equal images are labelled differently: {examples}; "
        f"they are trained on as they are{kept}; correct their labels"
    ]


def _labelled(pool: LabelledPool, pixels: Pixels, row: int) -> str:
    target = pixels.targets[row]
    held = np.flatnonzero(target) if pool.multiple else [int(target)]
    labels = " and ".join(repr(pool.labels[label]) for label in held) or "no label"
    return f"{pixels.name(row, is_file=pool.control is None)} {labels}"
