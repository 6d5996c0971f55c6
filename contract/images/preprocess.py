"""From an image file's bytes to the pixels that a graph takes, the same in training and in serving.

The whole image is kept: it is resized to the graph's input without regard to its aspect, since what lies at the border
may be what the label is about, and training sees it in the same way. Normalisation is part of the graph. Levels of 8
bits are taken as they are stored: no colour profile is applied.
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
"""Decoders that are tried; Pillow's others have a record of decompression bombs and worse."""

MAX_MEGAPIXELS: Final = 50
"""Images of which more would be in memory are refused before they are decoded, unless a setting allows them; a file of
12 kB can claim 100 million pixels."""

# Pillow's own limit only warns up to twice its value, and to silence it for one call is not safe between threads.
Image.MAX_IMAGE_PIXELS = None

AvifImagePlugin.DEFAULT_MAX_THREADS = 1
"""Images are decoded in threads as it is, and each more of an image's own holds frames in memory."""

RECIPE: Final = "whole-bilinear-2"
"""Names how bytes become pixels; to be changed with anything that changes a pixel, so that no features outlive it."""

_DRAFT_MARGIN: Final = 2
"""JPEGs are decoded at the smallest eighth that is still this many times the target, so the filter sees detail."""

_MAX_READS: Final = 400_000
"""Parts of a file that Pillow may take one by one, in Python: some two seconds. An image of 20 MiB needs 30,000."""

_MAX_SCANNED_PIXELS: Final = 2_000_000_000
"""Pixels times scans of a JPEG, each of which passes over all pixels: some two seconds. An image has 10 scans or so."""

_START_OF_SCAN: Final = b"\xff\xda"
_SEQUENTIAL: Final = frozenset({b"\xff\xc0", b"\xff\xc1"})
"""Frames of a JPEG that are decoded row by row, if one scan holds all of it."""

_STRIP_PIXELS: Final = 1 << 20

_APART, _SIGNED = 2, 2
"""Values of TIFF's tags: colours each in a plane of their own, levels with a sign."""

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
    """Bounds the pixels of all images that are decoded at the same time."""

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


_ROOM: Final = _Room(2 * MAX_MEGAPIXELS * 1_000_000)
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


def decode_image(data: bytes, spec: InputSpec, *, max_megapixels: int = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """Decode the first frame, upright and in RGB, and resize it: uint8 (height, width, 3).

    Transparency is laid over white. Greyscale of more than 8 bits is scaled to 8 as `contract.images.levels` says. An
    orientation that cannot be read is none. Time and memory are bounded whatever the bytes are; where large images are
    being decoded in other threads, it waits for these. `max_megapixels`, in millions of pixels, is the most that may be
    in memory: of most JPEGs at a fraction of their size. DecodeError if there is no image that can be had so.
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
    except Exception as err:  # Pillow's decoders raise many types on hostile input: struct.error, EOFError, SyntaxError
        raise DecodeError(f"the image cannot be decoded ({type(err).__name__}: {err}); export it again") from err


def _to_pixels(image: Image.Image, data: bytes, spec: InputSpec, max_megapixels: int) -> npt.NDArray[np.uint8]:
    _check_read_rightly(image)
    longest, stored = max(spec.width, spec.height) * _DRAFT_MARGIN, image.size
    most = max_megapixels * 1_000_000
    image.draft("RGB", (longest, longest))
    sizes = [image.size, _tile_size(image), *([stored] if _is_jpeg(image) and _holds_whole(data) else [])]
    for width, height in sizes:
        if not 0 < width * height <= most:
            raise DecodeError(
                f"the image has {width} x {height} pixels, at most {most} in all are decoded; shrink "
                "it, or raise LABELNEXT_MAX_MEGAPIXELS"
            )
    _check_scans(image, data, stored)
    with _ROOM.taken(max(width * height for width, height in sizes)):
        rgb, turn = _to_rgb(image, data), _turn_upright(image)
        upright = rgb if turn is None else rgb.transpose(turn)
        resized = upright.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)  # (H, W, 3)


def _check_read_rightly(image: Image.Image) -> None:
    """Refuse the TIFFs that Pillow 13 opens and takes for others: bytes of 16 bits for levels, minus one for white."""
    tags = getattr(image, "tag_v2", {})
    in_planes = tags.get(Base.PlanarConfiguration) == _APART and max(tags.get(Base.BitsPerSample, (1,))) > 8
    if in_planes and any(tile.codec_name == "raw" for tile in getattr(image, "tile", ())):
        raise DecodeError("the TIFF has colours of 16 bits in planes, which are not decoded; save it as PNG")
    if image.mode == "L" and _SIGNED in tags.get(Base.SampleFormat, ()):
        raise DecodeError("the TIFF has levels of 8 bits with a sign, which are not decoded; save it as PNG")


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in {"JPEG", "MPO"}


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """The size of a TIFF's tiles, which are decoded whole however small the image is; else that of the image."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(Base.TileWidth, image.width), tags.get(Base.TileLength, image.height)


def _holds_whole(jpeg: bytes) -> bool:
    """Whether a JPEG's decoder needs memory for all of it, to whatever fraction it is then reduced.

    It does where more than one scan makes up the image. Headers are walked strictly: one that is out of the ordinary is
    taken for such a file, since libjpeg might read it in another way.
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
    """Refuse a JPEG that would be passed over too often; other data may hold the marker by chance, but seldom."""
    scans, (width, height) = data.count(_START_OF_SCAN) if _is_jpeg(image) else 0, size
    if scans * width * height > _MAX_SCANNED_PIXELS:
        raise DecodeError(f"the JPEG has {scans} scans of {width} x {height} pixels, which take too long; save it anew")


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(int(image.getexif().get(Base.Orientation, 1)))
    except Exception:  # as many types as there are ways to break a header that the picture does not need
        return None


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Convert an image strip by strip: what conversions need on the way would be several times the image."""
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    deep = Range.of(image, data, (strip for _, strip in _strips(image))) if is_deep(image) else None
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(deep.to_8_bits(strip) if deep else _flatten(strip), (0, top))
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
