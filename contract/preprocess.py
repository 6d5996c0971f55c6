"""From an image file's bytes to the pixels that a graph takes, the same in training and in serving.

The whole image is kept: it is resized to the graph's input without regard to its aspect, since what lies at the border
may be what the label is about, and training sees it in the same way. Normalisation is part of the graph.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

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

_MAX_READS: Final = 400_000
"""Parts of a file that Pillow may take one by one, in Python: some two seconds. An image of 20 MiB needs 30,000."""

_MAX_SCANNED_PIXELS: Final = 2_000_000_000
"""Pixels times scans of a JPEG, each of which passes over all pixels: some two seconds. An image has 10 scans or so."""

_START_OF_SCAN: Final = b"\xff\xda"

_STRIP_PIXELS: Final = 1 << 20

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""TIFF's tags."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From EXIF's orientation to what undoes it."""


class _Room:
    """Lets images be decoded at the same time for as long as their pixels, of all together, are not too many."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many, and hold it; an image larger than the room gets it alone."""
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


_ROOM: Final = _Room(2 * MAX_PIXELS)
"""Of the process, whose memory it bounds: a decoded pixel takes up to 12 bytes until it is resized."""


class _File(io.BytesIO):
    """A file in memory that is read in a bounded number of pieces.

    Pillow walks the parts of a file in Python. One that is nothing but empty parts would hold the interpreter's lock
    for many seconds, and all other requests with it.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; raises DecodeError when there have been too many pieces."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise DecodeError(f"the file has more than {_MAX_READS} parts, which no image needs; export it again")
        return super().read(size)


def decode_image(data: bytes, spec: InputSpec, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode the first frame, upright and in RGB, and resize it: uint8 (height, width, 3).

    Transparency is laid over white. Greyscale of more than 8 bits is scaled to 8. An orientation that cannot be read
    is none. Time and memory are bounded whatever the bytes are; where large images are being decoded in other threads,
    it waits for these.

    Raises:
        DecodeError: if the bytes are no image of a format in `FORMATS`, are cut short, are larger than `max_pixels`, or
            are made to take long.
    """
    if not data:
        raise DecodeError("expected an image file, got 0 bytes; check what the task's reference points to")
    try:
        with Image.open(_File(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            _check_scans(image, data)
            return _to_pixels(image, spec)
    except DecodeError:
        raise
    except UnidentifiedImageError as err:
        raise DecodeError(f"expected one of {', '.join(FORMATS)}, got {len(data)} bytes of something else") from err
    except Exception as err:  # Pillow's decoders raise many types on hostile input: struct.error, EOFError, SyntaxError
        raise DecodeError(f"the image cannot be decoded ({type(err).__name__}: {err}); export it again") from err


def _check_size(image: Image.Image, max_pixels: int) -> None:
    for width, height in (image.size, _tile_size(image)):
        if not 0 < width * height <= max_pixels:
            raise DecodeError(
                f"the image has {width} x {height} pixels, at most {max_pixels} in all are decoded; shrink it"
            )


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """The size of a TIFF's tiles, which are decoded whole however small the image is; else that of the image."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_TILE_WIDTH, image.width), tags.get(_TILE_LENGTH, image.height)


def _check_scans(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG that would be passed over too often; other data may hold the marker by chance, but seldom."""
    scans = data.count(_START_OF_SCAN) if image.format in {"JPEG", "MPO"} else 0
    if scans * image.width * image.height > _MAX_SCANNED_PIXELS:
        raise DecodeError(
            f"the JPEG has {scans} scans of {image.width} x {image.height} pixels, which take too long; save it anew"
        )


def _to_pixels(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    longest = max(spec.width, spec.height) * _DRAFT_MARGIN
    image.draft("RGB", (longest, longest))
    decoded, tile = (width * height for width, height in (image.size, _tile_size(image)))
    with _ROOM.taken(max(decoded, tile)):
        upright = _turn_upright(_to_rgb(image), _orientation(image))
        resized = upright.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)  # (H, W, 3)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as many types as there are ways to break a header that the picture does not need
        return 1


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image strip by strip: what conversions need on the way would be several times the image."""
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    deep = image.mode.startswith("I") or image.mode == "F"
    brightest = max(float(_levels(strip).max()) for _, strip in _strips(image)) if deep else 0.0
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(_scale_to_8_bits(strip, brightest) if deep else _flatten(strip), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in pieces of its whole width, each with the row that it begins at."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flatten(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image, brightest: float) -> Image.Image:
    """Pillow clips 16-bit greyscale at 255 when converting; the high byte is what people see elsewhere."""
    full = 65535.0 if brightest > 255 else 255.0
    return Image.fromarray((_levels(image).clip(0, full) / full * 255).round().astype(np.uint8)).convert("RGB")


def _levels(image: Image.Image) -> npt.NDArray[np.float64]:
    """Greyscale of any depth, (H, W); what is no number is black."""
    return np.nan_to_num(np.asarray(image, dtype=np.float64))
