"""As many different photos as a bench needs, made of those there are: other cuts, sides and brightness of each.

They are written once and kept below .cache/bench.
"""

import io
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

_CUTS = (0.6, 1.0)
"""The least and the most of a photo's sides that a cut keeps."""
_BRIGHTNESS = (0.7, 1.3)
_QUALITY = (80, 95)


def vary(photos: Sequence[tuple[Path, str]], count: int, *, folder: Path) -> list[tuple[Path, str]]:
    """Return so many files and their classes: each photo in turn, then each in another variation, and so on.

    Args:
        photos: files and their classes.
        count: how many files to make.
        folder: takes them; those that are there already stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, (path, label) in enumerate(islice(cycle(photos), count)):
        file = folder / f"{number}.jpg"
        if not file.exists():
            _write(path, file, random.Random(number))  # noqa: S311  # an order, not a secret
        made.append((file, label))
    return made


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _write(photo: Path, file: Path, rng: random.Random) -> None:
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    width, height = (max(1, round(side * rng.uniform(*_CUTS))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*_BRIGHTNESS))
    draft = file.with_suffix(".draft")
    image.save(draft, "JPEG", quality=rng.randint(*_QUALITY))
    draft.replace(file)
