"""From greyscale of more than 8 bits to 8: which level is black, and which is white.

A range that a file declares holds, and unsigned levels of so many bits declare it by that. It is not guessed from the
brightest pixel, or else one camera's pictures would come out black or not by what is in them. So levels of twelve bits
in a file of sixteen that does not say so are dark, as they are in a browser, and so to those who label them. Where
nothing declares a range, in floats and in integers of 32 bits or with a sign, it begins at 0, or below that at the
least level, and ends at 1 or 255, or beyond that at the greatest: never so that levels run together.
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
"""Floats from here on stand for no number, as infinities do: maps fill with the least float there is."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image is greyscale of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


@dataclass(frozen=True, slots=True)
class Range:
    """The levels that become 0 and 255. Black is the greater one where an image is stored as its negative."""

    black: float
    white: float

    @classmethod
    def of(cls, image: Image.Image, data: bytes, strips: Iterable[Image.Image]) -> Self:
        """Return the range of a deep image; its pieces are looked at where the file does not say enough."""
        tags = getattr(image, "tag_v2", {})
        black, white = _declared(image, tags) or (0.0, 65535.0 if image.mode.startswith("I;16") else None)
        if white is None:
            black, white = _held(strips, floats=image.mode == "F")
        elif image.format == "PNG" and (bits := _significant_bits(data)) and _is_unscaled(strips, bits):
            white = 2.0**bits - 1
        return cls(white, black) if tags.get(Base.PhotometricInterpretation) == _WHITE_IS_ZERO else cls(black, white)

    def to_8_bits(self, image: Image.Image) -> Image.Image:
        """Return a deep image in RGB; what is no number is black, and what is transparent white."""
        levels = _levels(image)
        shares = np.nan_to_num((levels - self.black) / (self.white - self.black))  # (H, W)
        if isinstance(clear := image.info.get("transparency"), int):
            shares[levels == clear] = 1
        return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _levels(image: Image.Image) -> Levels:
    return np.asarray(image, dtype=np.float64)


def _declared(image: Image.Image, tags: Any) -> tuple[float, float] | None:
    """The range that a TIFF declares.

    A greatest sample of unsigned integers is taken if it is that of a depth, such as 4095: some write there the
    greatest that the image holds.
    """
    unsigned = image.mode.startswith("I;16")
    least = _number(tags.get(Base.SMinSampleValue, tags.get(Base.MinSampleValue)))
    greatest = _number(tags.get(Base.SMaxSampleValue, tags.get(Base.MaxSampleValue)))
    if unsigned and greatest is not None and greatest > 1 and math.log2(greatest + 1).is_integer():
        return 0.0, greatest
    if unsigned and (bits := _number(tags.get(Base.BitsPerSample))):
        return 0.0, 2.0**bits - 1
    if not unsigned and least is not None and greatest is not None and -_NO_DATA < least < greatest < _NO_DATA:
        return least, greatest
    return None


def _number(value: object) -> float | None:
    """A tag's only value, or the first of several."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) else None


def _held(strips: Iterable[Image.Image], *, floats: bool) -> tuple[float, float]:
    """The range of levels of which nothing is known but that they are in the image.

    Floats that are whole numbers are levels of integers; others are shares of 1 if none is greater.
    """
    least, greatest, whole = 0.0, 0.0, True
    for strip in strips:
        levels = _levels(strip)
        levels = levels[np.abs(levels) < _NO_DATA]
        least, greatest = float(levels.min(initial=least)), float(levels.max(initial=greatest))
        whole = whole and bool((levels == np.floor(levels)).all())
    shares = floats and (greatest <= 1 or not whole)
    return least, max(greatest, 1.0 if shares else 255.0)


def _significant_bits(png: bytes) -> int | None:
    """What sBIT says of a greyscale PNG: how many bits its levels had before they were scaled to 16."""
    at = 8
    while (kind := png[at + 4 : at + 8]) not in {b"IDAT", b""}:
        if kind == b"sBIT":
            return png[at + 8] if png[at + 8] in range(8, 16) else None
        at += 12 + int.from_bytes(png[at : at + 4])
    return None


def _is_unscaled(strips: Iterable[Image.Image], bits: int) -> bool:
    """Whether levels are those of so many bits as they were, although PNG asks that they be scaled to 16.

    Below 2 ** bits, scaled levels are multiples of 2 ** (16 - bits), or one more.
    """
    few, step = True, 2 ** (16 - bits)
    for strip in strips:
        levels = _levels(strip)
        if levels.max() >= 2**bits:
            return False
        few = few and bool((levels % step <= 1).all())
    return not few
