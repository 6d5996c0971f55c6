"""JPEG thumbnails of image files and of decoded pixels."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from contract.errors import DecodeError
from contract.images.preprocess import FORMATS, MAX_MEGAPIXELS, decode_image
from contract.versions.manifest import InputSpec

_PIXELS: Final = 160
"""Longer side of a thumbnail."""
_SIDEWAYS: Final = range(5, 9)
"""EXIF orientations that swap width and height."""


def thumbnail(data: bytes, *, max_megapixels: int = MAX_MEGAPIXELS) -> bytes:
    """Return a JPEG of an image file's first frame, upright, at most 160 pixels wide and high; raises DecodeError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            width, height = reversed(image.size) if sideways else image.size
    except Exception as err:  # Pillow raises many types on malformed files
        raise DecodeError(f"expected an image file, got {len(data)} bytes of something else") from err
    shrink = min(1.0, _PIXELS / max(width, height, 1))
    spec = InputSpec(height=max(1, round(height * shrink)), width=max(1, round(width * shrink)))
    return to_thumbnail(decode_image(data, spec, max_megapixels=max_megapixels))


def to_thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a JPEG of decoded pixels, uint8 (H, W, 3), at most 160 pixels wide and high."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_PIXELS, _PIXELS))
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
