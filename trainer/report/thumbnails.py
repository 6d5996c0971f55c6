"""Small images for pages: of files and of pixels."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from contract.errors import DecodeError
from contract.images.preprocess import FORMATS, MAX_MEGAPIXELS, decode_image
from contract.versions.manifest import InputSpec

_PIXELS: Final = 160
"""The longer side of a thumbnail."""
_SIDEWAYS: Final = range(5, 9)
"""EXIF orientations that swap width and height."""


def thumbnail(data: bytes, *, max_megapixels: int = MAX_MEGAPIXELS) -> bytes:
    """Return an image file's first frame, upright and at most 160 pixels long, as JPEG; a DecodeError if it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            width, height = reversed(image.size) if sideways else image.size
    except Exception as err:  # Pillow raises many types on hostile input
        raise DecodeError(f"expected an image file, got {len(data)} bytes of something else") from err
    shrink = min(1.0, _PIXELS / max(width, height, 1))
    spec = InputSpec(height=max(1, round(height * shrink)), width=max(1, round(width * shrink)))
    return to_thumbnail(decode_image(data, spec, max_megapixels=max_megapixels))


def to_thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return decoded pixels, uint8 (H, W, 3), at most 160 long, as JPEG."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_PIXELS, _PIXELS))
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
