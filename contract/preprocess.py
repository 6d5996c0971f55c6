"""From an image file's bytes to the pixels that a graph takes, the same in training and in serving.

The whole image is kept: it is resized to the graph's input without regard to its aspect, since what lies at the border
may be what the label is about, and training sees it in the same way. Normalisation is part of the graph.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from contract.errors import DecodeError
from contract.manifest import InputSpec

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Decoders that are tried; Pillow's others have a record of decompression bombs and worse."""

MAX_PIXELS: Final = 50_000_000
"""Larger images are refused before they are decoded; a file of 12 kB can claim 100 million pixels."""

# Pillow's own limit only warns up to twice its value, and to silence it for one call is not safe between threads.
Image.MAX_IMAGE_PIXELS = None

RECIPE: Final = "whole-bilinear-1"
"""Names how bytes become pixels; to be changed with anything that changes a pixel, so that no features outlive it."""

_DRAFT_MARGIN: Final = 2
"""JPEGs are decoded at the smallest eighth that is still this many times the target, so the filter sees detail."""


def decode_image(data: bytes, spec: InputSpec, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode the first frame, upright and in RGB, and resize it: uint8 (height, width, 3).

    Transparency is laid over white. Greyscale of 16 bits is scaled to 8.

    Raises:
        DecodeError: if the bytes are no image of a format in `FORMATS`, are cut short, or are larger than `max_pixels`.
    """
    if not data:
        raise DecodeError("expected an image file, got 0 bytes; check what the task's reference points to")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            return _to_pixels(image, spec)
    except DecodeError:
        raise
    except UnidentifiedImageError as err:
        raise DecodeError(f"expected one of {', '.join(FORMATS)}, got {len(data)} bytes of something else") from err
    except Exception as err:  # Pillow's decoders raise many types on hostile input: struct.error, EOFError, SyntaxError
        raise DecodeError(f"the image cannot be decoded ({type(err).__name__}: {err}); export it again") from err


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise DecodeError(
            f"the image has {width} x {height} pixels, at most {max_pixels} in all are decoded; shrink it"
        )


def _to_pixels(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    longest = max(spec.width, spec.height) * _DRAFT_MARGIN
    image.draft("RGB", (longest, longest))
    upright = _to_rgb(ImageOps.exif_transpose(image))
    resized = upright.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)  # (H, W, 3)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit greyscale at 255 when converting; the high byte is what people see elsewhere."""
    values = np.asarray(image, dtype=np.float64)
    brightest = 65535.0 if values.max(initial=0) > 255 else 255.0
    return Image.fromarray((values.clip(0, brightest) / brightest * 255).round().astype(np.uint8))
