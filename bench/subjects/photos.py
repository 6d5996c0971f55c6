"""Generates distinct images: noise, or variations of photos."""

import io
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps


def make_variations(photos: Sequence[tuple[Path, str]], count: int, *, folder: Path) -> list[tuple[Path, str]]:
    """Return `count` variations of photos, in turn, with their classes: random crops, mirrored, brighter or darker.

    Files that exist in the folder are reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variations = []
    for number, (path, label) in enumerate(islice(cycle(photos), count)):
        file = folder / f"{number}.jpg"
        if not file.exists():
            _write_variation(path, file, random.Random(number))  # noqa: S311  # an order, not a secret
        variations.append((file, label))
    return variations


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _write_variation(photo: Path, file: Path, rng: random.Random) -> None:
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


def pink_noise(count: int, *, size: int) -> npt.NDArray[np.uint8]:
    """Return images of noise with the spectrum of photos, uint8 (count, size, size, 3), from a fixed seed.

    The amplitude is inversely proportional to the frequency, after Field 1987 (doi 10.1364/JOSAA.4.002379).
    """
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)  # (size, size // 2 + 1)
    white = rng.standard_normal((count, 3, size, size))
    planes = np.fft.irfft2(np.fft.rfft2(white) * falloff, s=(size, size))
    planes /= planes.std(axis=(2, 3), keepdims=True)
    return (128 + 50 * planes).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
