"""The images of the demo and their true classes, which stand in for the person who labels.

Knows folders of class folders, and how to write scikit-learn's handwritten digits as one; nothing of Label Studio.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from demo.processes import DemoError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_SIDE_PX = 64  # scikit-learn's digits are 8 x 8; a person is to see what they label

# How many of each digit there are: a long tail, one class in front. scikit-learn has at least 174 of each.
DIGIT_COUNTS = (170, 90, 60, 45, 35, 28, 22, 18, 16, 14)


@dataclass(frozen=True, slots=True)
class PoolImage:
    """A file, the name that it is uploaded under, and its true class, which only the annotator knows."""

    path: Path
    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Images in random order, and their classes in the order of the labelling config."""

    labels: tuple[str, ...]
    images: tuple[PoolImage, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many images each class has, most frequent first."""
        return dict(Counter(image.label for image in self.images).most_common())

    @property
    def rare(self) -> frozenset[str]:
        """The classes with under half of what each would have if all had as many; the rarest where none has so few."""
        counts = self.counts
        few = {label for label, count in counts.items() if 2 * len(counts) * count < len(self.images)}
        return frozenset(few or {min(counts, key=counts.__getitem__)})


def read_pool(root: Path, *, limit: int, seed: int) -> Pool:
    """Return at most `limit` images of a folder of class folders, in an order that `seed` fixes."""
    found = [(path, path.parent.name) for path in sorted(root.glob("*/*")) if path.suffix.lower() in _SUFFIXES]
    labels = tuple(sorted({label for _, label in found}))
    if len(labels) < 2:
        raise DemoError(f"expected {root} to hold two or more class folders with images, found {len(labels)}")
    random.Random(seed).shuffle(found)  # noqa: S311  # an order, not a secret
    # The name that Label Studio shows must not give the class away, and must be unlike all others.
    images = [
        PoolImage(path, f"image-{index:05}{path.suffix.lower()}", label)
        for index, (path, label) in enumerate(found[:limit])
    ]
    return Pool(labels, tuple(images))


def write_digits(root: Path, counts: Sequence[int] = DIGIT_COUNTS) -> None:
    """Write so many of scikit-learn's handwritten digits from 0 on as PNG files in class folders "0" to "9".

    Files that are there already stay as they are.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit, count in enumerate(counts):
        folder = root / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(digits.target == digit)[:count]:
            path = folder / f"{index:04}.png"
            if not path.exists():
                # (8, 8) with ink from 0 to 16: it becomes dark ink on white paper with a margin.
                paper = Image.fromarray((255 - np.pad(digits.images[index], 1) * (255 / 16)).astype(np.uint8))
                paper.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC).convert("RGB").save(path)
