"""The images of the demo and their true classes, from class folders, or from scikit-learn's handwritten digits."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from demo.processes import DemoError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_SIDE_PX = 64  # scikit-learn's digits have 8 x 8 pixels: too small to look at

# The number of images of each digit, a long tail; scikit-learn has at least 174 of each.
DIGIT_COUNTS = (170, 90, 60, 45, 35, 28, 22, 18, 16, 14)


@dataclass(frozen=True, slots=True)
class PoolImage:
    """An image file, its name in Label Studio, and its true class, which only the annotator knows."""

    path: Path
    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Images in random order, and the classes in the order of the labelling config."""

    labels: tuple[str, ...]
    images: tuple[PoolImage, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, most frequent first."""
        return dict(Counter(image.label for image in self.images).most_common())

    @property
    def rare(self) -> frozenset[str]:
        """The classes with less than half of the mean number of images; if there are none, the rarest class."""
        counts = self.counts
        few = {label for label, count in counts.items() if 2 * len(counts) * count < len(self.images)}
        return frozenset(few or {min(counts, key=counts.__getitem__)})


def read_pool(root: Path, *, limit: int, seed: int) -> Pool:
    """Return at most `limit` images of a folder of class folders, shuffled by `seed`.

    Raises DemoError if fewer than two folders have images.
    """
    found = [(path, path.parent.name) for path in sorted(root.glob("*/*")) if path.suffix.lower() in _SUFFIXES]
    labels = tuple(sorted({label for _, label in found}))
    if len(labels) < 2:
        raise DemoError(f"expected two or more class folders with images in {root}, found {len(labels)}")
    random.Random(seed).shuffle(found)  # noqa: S311  # not for cryptography
    # Label Studio shows the name, which must be unique and must not reveal the class.
    images = [
        PoolImage(path, f"image-{index:05}{path.suffix.lower()}", label)
        for index, (path, label) in enumerate(found[:limit])
    ]
    return Pool(labels, tuple(images))


def write_digits(root: Path, counts: Sequence[int] = DIGIT_COUNTS) -> None:
    """Write scikit-learn's handwritten digits as PNG files in class folders "0" to "9"; existing files are kept.

    `counts` is the number of images of each digit, starting with 0.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit, count in enumerate(counts):
        folder = root / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(digits.target == digit)[:count]:
            path = folder / f"{index:04}.png"
            if not path.exists():
                # (8, 8), 0 for background and 16 for ink: becomes black on white, with a margin.
                paper = Image.fromarray((255 - np.pad(digits.images[index], 1) * (255 / 16)).astype(np.uint8))
                paper.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC).convert("RGB").save(path)
