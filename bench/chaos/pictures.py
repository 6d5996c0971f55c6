"""The images that requests are about."""

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.subjects.photos import save

_COUNT = 48
_SIDES = (8, 64)
_LARGE_SIDE = 512
"""Of noise: a PNG of three quarters of a megabyte."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that every server can score, in a file."""

    path: Path
    data: bytes

    @property
    def inline(self) -> str:
        """Its data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.data).decode()


def draw_pictures(folder: Path, *, seed: int) -> tuple[Picture, ...]:
    """Write images of noise into a folder; the last is large."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number, side in enumerate([*rng.integers(*_SIDES, _COUNT - 1), _LARGE_SIDE]):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        picture = Picture(folder / f"{number}.png", save(Image.fromarray(noise), "PNG"))
        picture.path.write_bytes(picture.data)
        pictures.append(picture)
    return tuple(pictures)
