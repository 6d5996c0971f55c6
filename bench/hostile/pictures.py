"""Test pictures, and writers of files that no library would write.

All files show the same picture, a square with a different colour in each quarter, which has no symmetry.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.subjects.photos import save

SIDE = 64
"""In pixels."""

_LONG = 4
"""The TIFF field type of unsigned 32-bit integers."""
_QUARTERS = ((230, 40, 30), (40, 200, 60), (30, 60, 220), (250, 240, 90))


def pixels(side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Return the picture as an array of shape (side, side, 3)."""
    quarters = np.array(_QUARTERS, np.uint8).reshape(2, 2, 3)
    return quarters.repeat(side // 2, axis=0).repeat(side // 2, axis=1)


def picture(side: int = SIDE) -> Image.Image:
    """Return the picture as an RGB image."""
    return Image.fromarray(pixels(side))


@cache
def plain() -> bytes:
    """Return the picture as an ordinary PNG."""
    return save(picture(), "PNG")


@cache
def jpeg() -> bytes:
    """Return the picture as an ordinary JPEG."""
    return save(picture(), "JPEG", quality=95)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG with this header and compressed rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def compressed_zeros(count: int) -> bytes:
    """Return `count` zero bytes compressed to a thousandth."""
    compressor, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, compressor.compress(block[: count & (1 << 20) - 1]), compressor.flush()])


def insert_chunks(chunks: bytes) -> bytes:
    """Return the plain PNG with chunks inserted after its header."""
    return plain()[:33] + chunks + plain()[33:]


def insert_segments(segments: bytes) -> bytes:
    """Return the plain JPEG with segments inserted at its beginning."""
    return jpeg()[:2] + segments + jpeg()[2:]


def segment(marker: int, content: bytes) -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def tiff(tags: Mapping[int, Sequence[int]], data: bytes = b"", *, next_directory: int = 0) -> bytes:
    """Return a TIFF of one directory followed by data; values of -1 are replaced by the offset of the data."""
    directory_end = 8 + 2 + 12 * len(tags) + 4
    data_at = directory_end + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    entries, extra = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *(data_at if value == -1 else value for value in values))
        if len(values) > 1:
            packed, extra = struct.pack("<I", directory_end + len(extra)), extra + packed
        entries += struct.pack("<HHI", tag, _LONG, len(values)) + packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", next_directory) + extra + data


def tiff_tags(width: int, height: int, *, bits: Sequence[int], compression: int = 1) -> dict[int, Sequence[int]]:
    """Return the tags of an RGB or greyscale image in one strip, without the strip's size (tag 279)."""
    photometric = 2 if len(bits) > 1 else 1
    single = {256: width, 257: height, 259: compression, 262: photometric, 273: -1, 277: len(bits), 278: height}
    return {258: bits, **{tag: [value] for tag, value in single.items()}}


def tiff_of(
    data: bytes, *, bits: Sequence[int], extra: Mapping[int, Sequence[int]] | None = None, then: int = 0
) -> bytes:
    """Return a TIFF of 64 x 64 pixels with extra tags, whose next directory is at offset `then`."""
    return tiff({**tiff_tags(64, 64, bits=bits), 279: [len(data)], **(extra or {})}, data, next_directory=then)


def flat(colour: str, width: int = 8, height: int = 8) -> bytes:
    """Return a single-coloured PNG."""
    return save(Image.new("RGB", (width, height), colour), "PNG")


def replace(file: bytes, at: int, content: bytes) -> bytes:
    """Return a file with its bytes from offset `at` overwritten."""
    return file[:at] + content + file[at + len(content) :]


def gif(screen: tuple[int, int], frame: tuple[int, int], data: bytes = b"\x04\x04\x05") -> bytes:
    """Return a GIF of one frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0)
    return head + descriptor + b"\x02" + bytes([len(data)]) + data + b"\0;"


def bmp(width: int, height: int, data: bytes = b"", *, bits: int = 24, palette: bytes = b"") -> bytes:
    """Return a BMP; with 8 bits per pixel it is run-length encoded."""
    compression, colours = (1, 256) if bits == 8 else (0, 0)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    data_at = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", data_at + len(data), 0, 0, data_at) + head + palette + data
