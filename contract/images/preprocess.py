"""Image files to pixels, identically in training and serving.

The whole image is resized to the graph's input, ignoring its aspect ratio, since the label may be about something at
the border. Normalisation is part of the graph. 8-bit levels are used as stored: colour profiles are not applied.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL.ExifTags import Base

from contract.errors import DecodeError
from contract.images.formats import name_format
from contract.images.levels import Range, is_deep
from contract.versions.manifest import InputSpec

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Enabled decoders; Pillow's others have a record of decompression bombs and worse."""

MAX_MEGAPIXELS: Final = 50
"""Default limit of decoded pixels in memory, checked before decoding; a file of 12 kB can claim 100 million pixels."""

# Up to twice this limit Pillow only warns, and suppressing warnings is not thread-safe.
Image.MAX_IMAGE_PIXELS = None

AvifImagePlugin.DEFAULT_MAX_THREADS = 1
"""Images are decoded in threads already, and each thread of an image holds frames in memory."""

RECIPE: Final = "whole-bilinear-2"
"""Version of the preprocessing; change it with anything that changes a pixel, to invalidate stored features."""

_DRAFT_MARGIN: Final = 2
"""JPEGs are decoded at the smallest scale, in eighths, of at least this many times the target, to keep detail."""

_MAX_READS: Final = 400_000
"""Limit of reads from a file, about two seconds of Pillow's Python code. An image of 20 MiB needs 30,000."""

_MAX_SCANNED_PIXELS: Final = 2_000_000_000
"""Limit of pixels times scans of a JPEG, about two seconds of decoding. Usual images have 10 scans."""

_START_OF_SCAN: Final = b"\xff\xda"
_SEQUENTIAL: Final = frozenset({b"\xff\xc0", b"\xff\xc1"})
"""JPEG frames that are decoded row by row if a single scan has all components."""

_STRIP_PIXELS: Final = 1 << 20

_SEPARATE_PLANES, _SIGNED = 2, 2
"""TIFF values of PlanarConfiguration for separate planes, and of SampleFormat for signed integers."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transposition that undoes it."""


class _PixelLimit:
    """Limits the total pixels of images that are being decoded."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Context manager that waits for, and holds, room for an image; one larger than the limit gets all of it."""
        pixels = min(pixels, self._pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_LIMIT: Final = _PixelLimit(2 * MAX_MEGAPIXELS * 1_000_000)
"""Limit of the process: a decoded pixel takes up to 12 bytes until the image is resized."""


class _File(io.BytesIO):
    """A file in memory that limits the number of reads.

    Pillow parses a file's segments in Python. A file of millions of empty segments would hold the GIL for many seconds,
    and block all other requests.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; DecodeError after too many reads."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise DecodeError(f"the file has more than {_MAX_READS} parts, more than any image needs; export it again")
        return super().read(size)


def decode_image(data: bytes, spec: InputSpec, *, max_megapixels: int = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """Decode the first frame upright as RGB, and resize it: uint8 (height, width, 3).

    Transparency is composed over white. Deeper greyscale is scaled to 8 bits as in `contract.images.levels`. An
    unreadable orientation is ignored. Time and memory are bounded for any input; the call may wait for images that
    other threads are decoding.

    Args:
        data: the content of the file.
        spec: the size of the result.
        max_megapixels: limit of decoded pixels in memory, in millions; most JPEGs are decoded at a fraction of their
            size.

    Raises:
        DecodeError: if there is no image, or it exceeds a limit.
    """
    if not data:
        raise DecodeError("expected an image file, got 0 bytes; check what the task's reference points to")
    try:
        with Image.open(_File(data), formats=FORMATS) as image:
            return _to_pixels(image, data, spec, max_megapixels)
    except DecodeError:
        raise
    except UnidentifiedImageError as err:
        raise DecodeError(
            f"expected one of {', '.join(FORMATS)}, got {len(data)} bytes of {name_format(data)}; "
            "save it as one of these"
        ) from err
    except Exception as err:  # Pillow raises many types on hostile input: struct.error, EOFError, SyntaxError
        raise DecodeError(f"the image cannot be decoded ({type(err).__name__}: {err}); export it again") from err


def _to_pixels(image: Image.Image, data: bytes, spec: InputSpec, max_megapixels: int) -> npt.NDArray[np.uint8]:
    _refuse_misread_tiff(image)
    side, stored = max(spec.width, spec.height) * _DRAFT_MARGIN, image.size
    limit = max_megapixels * 1_000_000
    image.draft("RGB", (side, side))
    sizes = [image.size, _tile_size(image), *([stored] if _is_jpeg(image) and _needs_full_memory(data) else [])]
    for width, height in sizes:
        if not 0 < width * height <= limit:
            raise DecodeError(
                f"the image has {width} x {height} pixels, at most {limit} in all are decoded; "
                "shrink it, or raise LABELNEXT_MAX_MEGAPIXELS"
            )
    _check_scans(image, data, stored)
    with _LIMIT.reserved(max(width * height for width, height in sizes)):
        rgb, turn = _to_rgb(image, data), _turn_upright(image)
        upright = rgb if turn is None else rgb.transpose(turn)
        resized = upright.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)  # (H, W, 3)


def _refuse_misread_tiff(image: Image.Image) -> None:
    """Refuse TIFFs that Pillow 13 misreads: 16-bit levels in planes, and signed 8-bit levels."""
    tags = getattr(image, "tag_v2", {})
    in_planes = tags.get(Base.PlanarConfiguration) == _SEPARATE_PLANES and max(tags.get(Base.BitsPerSample, (1,))) > 8
    if in_planes and any(tile.codec_name == "raw" for tile in getattr(image, "tile", ())):
        raise DecodeError("the TIFF has colours of 16 bits in planes, which are not decoded; save it as PNG")
    if image.mode == "L" and _SIGNED in tags.get(Base.SampleFormat, ()):
        raise DecodeError("the TIFF has levels of 8 bits with a sign, which are not decoded; save it as PNG")


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in {"JPEG", "MPO"}


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the tile size of a TIFF, whose tiles are decoded whole; for other images their size."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(Base.TileWidth, image.width), tags.get(Base.TileLength, image.height)


def _needs_full_memory(jpeg: bytes) -> bool:
    """Return whether a JPEG decoder needs memory for the full image, even at a reduced scale.

    It does for several scans. Unusual headers count as such a file, since libjpeg might read them differently.
    """
    at, components = 2, b""
    while (marker := jpeg[at : at + 2]) != _START_OF_SCAN:
        if not b"\xff\xc0" <= marker <= b"\xff\xfe" or b"\xff\xd0" <= marker <= b"\xff\xd9":
            return True
        if marker in _SEQUENTIAL:
            components = jpeg[at + 9 : at + 10]
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg[at + 4 : at + 5] != components


def _check_scans(image: Image.Image, data: bytes, size: tuple[int, int]) -> None:
    """Refuse a JPEG with too many scans; other data rarely contains the marker."""
    scans, (width, height) = data.count(_START_OF_SCAN) if _is_jpeg(image) else 0, size
    if scans * width * height > _MAX_SCANNED_PIXELS:
        raise DecodeError(
            f"the JPEG has {scans} scans of {width} x {height} pixels, which take too long to decode; save it again"
        )


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(int(image.getexif().get(Base.Orientation, 1)))
    except Exception:  # Pillow raises many types for broken EXIF data, which the image does not need
        return None


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Convert an image to RGB in strips, since intermediate images would take several times its memory."""
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    deep = Range.of(image, data, (strip for _, strip in _strips(image))) if is_deep(image) else None
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(deep.to_8_bits(strip) if deep else _flatten(strip), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of the full width, each with its first row."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flatten(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")
