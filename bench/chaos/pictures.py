"""The images that requests are about."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

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
    sides = [*rng.integers(*_SIDES, _COUNT - 1), _LARGE_SIDE]
    pictures = tuple(Picture(folder / f"{number}.png", _png(rng, int(side))) for number, side in enumerate(sides))
    for picture in pictures:
        picture.path.write_bytes(picture.data)
    return pictures


def _png(rng: np.random.Generator, side: int) -> bytes:
    file = BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
