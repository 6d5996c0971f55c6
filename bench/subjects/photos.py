"""As many different images as a bench needs: of noise, or photos in other cuts, sides and brightness of each."""

import io
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps


def vary(photos: Sequence[tuple[Path, str]], count: int, *, folder: Path) -> list[tuple[Path, str]]:
    """Return so many files and their classes: each photo in turn, then each in another variation, and so on.

    Those that are in the folder already stay.
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
    width, height = (max(1, round(side * rng.uniform(0.6, 1.0))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    draft = file.with_suffix(".draft")
    image.save(draft, "JPEG", quality=rng.randint(80, 95))
    draft.replace(file)


def coloured_noise(count: int, *, size: int) -> npt.NDArray[np.uint8]:
    """Return images, uint8 (count, size, size, 3), that are always the same and as rough at each scale as photos are.

    Their amplitude falls as one over the frequency, after Field 1987 (doi 10.1364/JOSAA.4.002379).
    """
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)  # (size, size // 2 + 1)
    white = rng.standard_normal((count, 3, size, size))
    planes = np.fft.irfft2(np.fft.rfft2(white) * falloff, s=(size, size))
    planes /= planes.std(axis=(2, 3), keepdims=True)
    return (128 + 50 * planes).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
