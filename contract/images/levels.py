"""Scales greyscale of more than 8 bits to 8: which levels become black and white.

A declared range is used, and unsigned integers of n bits declare theirs. It is not estimated from the brightest pixel,
which would make a camera's brightness depend on the scene; so 12-bit levels in a 16-bit file that does not say so are
dark, as they are in browsers and thus for annotators. Without a declared range, in floats and in 32-bit or signed
integers, it starts at 0, or at a lower minimum, and ends at 1 or 255, or at a higher maximum: levels are never
clipped.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base

Levels = npt.NDArray[np.float64]
"""Greyscale of any depth, (H, W)."""

_WHITE_IS_ZERO: Final = 0
_NO_DATA: Final = 1e38
"""Floats from here on mean no data, like infinities: maps are filled with the lowest float."""


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is greyscale of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


@dataclass(frozen=True, slots=True)
class Range:
    """The levels that become 0 and 255; black is the higher one in an inverted image."""

    black: float
    white: float

    @classmethod
    def of(cls, image: Image.Image, data: bytes, strips: Iterable[Image.Image]) -> Self:
        """Return the range of a deep image; its strips are examined if the file does not declare one."""
        tags = getattr(image, "tag_v2", {})
        black, white = _declared_range(image, tags) or (0.0, 65535.0 if image.mode.startswith("I;16") else None)
        if white is None:
            black, white = _observed_range(strips, floats=image.mode == "F")
        elif image.format == "PNG" and (bits := _significant_bits(data)) and _is_unscaled(strips, bits):
            white = 2.0**bits - 1
        return cls(white, black) if tags.get(Base.PhotometricInterpretation) == _WHITE_IS_ZERO else cls(black, white)

    def to_8_bits(self, image: Image.Image) -> Image.Image:
        """Return a deep image in RGB; NaN becomes black, transparency white."""
        levels = _levels(image)
        shares = np.nan_to_num((levels - self.black) / (self.white - self.black))  # (H, W)
        if isinstance(clear := image.info.get("transparency"), int):
            shares[levels == clear] = 1
        return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _levels(image: Image.Image) -> Levels:
    return np.asarray(image, dtype=np.float64)


def _declared_range(image: Image.Image, tags: Any) -> tuple[float, float] | None:
    """Return the range that a TIFF declares.

    For unsigned integers a maximum counts only if it is the maximum of a bit depth, such as 4095, since some programs
    write the image's own maximum there.
    """
    unsigned = image.mode.startswith("I;16")
    low = _number(tags.get(Base.SMinSampleValue, tags.get(Base.MinSampleValue)))
    high = _number(tags.get(Base.SMaxSampleValue, tags.get(Base.MaxSampleValue)))
    if unsigned and high is not None and high > 1 and math.log2(high + 1).is_integer():
        return 0.0, high
    if unsigned and (bits := _number(tags.get(Base.BitsPerSample))):
        return 0.0, 2.0**bits - 1
    if not unsigned and low is not None and high is not None and -_NO_DATA < low < high < _NO_DATA:
        return low, high
    return None


def _number(value: object) -> float | None:
    """Return a tag's value, or the first of several."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) else None


def _observed_range(strips: Iterable[Image.Image], *, floats: bool) -> tuple[float, float]:
    """Return the range of levels in an image without a declared range.

    Floats that are whole numbers count as integer levels; others are shares of 1 if none is greater.
    """
    low, high, whole = 0.0, 0.0, True
    for strip in strips:
        levels = _levels(strip)
        levels = levels[np.abs(levels) < _NO_DATA]
        low, high = float(levels.min(initial=low)), float(levels.max(initial=high))
        whole = whole and bool((levels == np.floor(levels)).all())
    shares = floats and (high <= 1 or not whole)
    return low, max(high, 1.0 if shares else 255.0)


def _significant_bits(png: bytes) -> int | None:
    """Return the sBIT of a greyscale PNG: the bits of its levels before they were scaled to 16."""
    at = 8
    while (kind := png[at + 4 : at + 8]) not in {b"IDAT", b""}:
        if kind == b"sBIT":
            return png[at + 8] if png[at + 8] in range(8, 16) else None
        at += 12 + int.from_bytes(png[at : at + 4])
    return None


def _is_unscaled(strips: Iterable[Image.Image], bits: int) -> bool:
    """Return whether levels were not scaled to 16 bits, as PNG requires.

    Scaled levels below 2 ** bits are multiples of 2 ** (16 - bits), or one more.
    """
    few, step = True, 2 ** (16 - bits)
    for strip in strips:
        levels = _levels(strip)
        if levels.max() >= 2**bits:
            return False
        few = few and bool((levels % step <= 1).all())
    return not few
