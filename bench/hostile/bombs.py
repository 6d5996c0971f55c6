"""Decompression bombs, files with false dimensions, and files of very many parts."""

import struct
import zlib
from functools import partial

from PIL import Image

from bench.hostile import pictures
from bench.hostile.case import (
    MEBIBYTE,
    PLAIN,
    PLAIN_LOSSY,
    Case,
    Kind,
    file_case,
    refused_decode,
    refused_fetch,
    scored_as,
)
from bench.hostile.pictures import chunk, insert_chunks, insert_segments, jpeg, picture, pixels, plain, segment
from bench.hostile.site import Site
from bench.subjects.photos import save

_TOO_LARGE = refused_decode("at most 50000000")
_UNDECODABLE = refused_decode("cannot be decoded|expected one of JPEG")
_TOO_MANY_PARTS = refused_decode("more than any image needs|which take too long")


def cases() -> list[Case]:
    """Return the cases of this module."""
    many_large = Case("16-images-of-50-megapixels", Kind.IMAGE, _score_sixteen, lambda _: _largest_png(), seconds=60)
    return [*small_files(), *_bombs(), *_slow_files(), many_large]


def small_files() -> list[Case]:
    """Return cases of small files that claim large dimensions."""
    reduced = refused_decode("8188 x 8188 pixels, at most 50000000")
    nothing = zlib.compress(b"")
    return [
        file_case("png-2-billion-wide", _TOO_LARGE, lambda: pictures.png(2**31 - 1, 2**31 - 1, nothing)),
        file_case("png-zero-wide", _UNDECODABLE, lambda: pictures.png(0, 64, nothing)),
        file_case("gif-huge-screen", _TOO_LARGE, lambda: pictures.gif((65_535, 65_535), (8, 8))),
        file_case("gif-huge-frame", _TOO_LARGE, lambda: pictures.gif((1, 1), (65_535, 65_535))),
        file_case("jpeg-65500x65500", reduced, lambda: _claim(jpeg(), 65_500)),
        file_case("jpeg-scan-for-each-component", _TOO_LARGE, _jpeg_non_interleaved),
        file_case("avif-100-megapixels", _TOO_LARGE, _avif_bomb),
        file_case("bmp-2-billion-wide", _TOO_LARGE, lambda: pictures.bmp(2**31 - 1, 2**31 - 1)),
        file_case("tiff-1-gigapixel", _TOO_LARGE, lambda: _tiff(31_623, 31_623)),
        file_case("tiff-giant-tile", _TOO_LARGE, _tiff_tile),
        file_case("tiff-giant-strip", _UNDECODABLE, lambda: _tiff(64, 64, rows=4_000_000_000)),
        file_case("tiff-strip-of-4-gb", _UNDECODABLE, lambda: _tiff(64, 64, size=4_000_000_000)),
    ]


def _bombs() -> list[Case]:
    """Files of the largest allowed size, and larger ones; Pillow only warns of 100 megapixels."""
    limit = 20 * MEBIBYTE
    return [
        file_case("png-400-megapixels", _TOO_LARGE, lambda: _zero_png(20_000, 20_000)),
        file_case("png-100-megapixels", _TOO_LARGE, lambda: _zero_png(10_000, 10_000, colour=2)),
        file_case("png-1-bit-400-megapixels", _TOO_LARGE, lambda: _zero_png(20_000, 20_000, depth=1)),
        file_case("png-65535x1000", _TOO_LARGE, lambda: _zero_png(65_535, 1_000)),
        file_case("png-rgba-50-megapixels", scored_as("white"), _largest_png, seconds=20),
        file_case(
            "png-16-bit-50-megapixels", scored_as("black"), lambda: _zero_png(7_071, 7_071, depth=16), seconds=20
        ),
        file_case("webp-200-megapixels", _TOO_LARGE, _webp_bomb),
        # A progressive JPEG must be decoded in full; others are decoded at an eighth of the size.
        file_case("jpeg-progressive-400-megapixels", _TOO_LARGE, lambda: _black_jpeg(progressive=True)),
        file_case("jpeg-400-megapixels", scored_as("black"), _black_jpeg, seconds=20),
        file_case("png-ztxt-bomb", _UNDECODABLE, lambda: _with_bomb(b"zTXt", 200 * MEBIBYTE)),
        file_case("png-many-ztxt-bombs", _UNDECODABLE, lambda: _with_bomb(b"zTXt", MEBIBYTE - 1, times=1_000)),
        file_case("png-iccp-bomb", _UNDECODABLE, lambda: _with_bomb(b"iCCP", 200 * MEBIBYTE)),
        file_case(
            "file-one-byte-too-large", refused_fetch(f"more than {limit}"), lambda: plain().ljust(limit + 1, b"\0")
        ),
        file_case("file-of-largest-size", PLAIN, lambda: plain().ljust(limit, b"\0")),
    ]


def _slow_files() -> list[Case]:
    """Files of very many parts, each of which takes time to parse."""
    segments = {"segments": 0xEF, "comments": 0xFE, "tables": 0xDB}
    whole = pixels().tobytes()
    return [
        file_case("jpeg-1000-scans", _TOO_MANY_PARTS, lambda: _scans(7_000, 1_000)),
        file_case("jpeg-100000-scans", PLAIN_LOSSY, lambda: _scans(64, 100_000)),
        *(
            file_case(f"jpeg-5-million-{name}", _TOO_MANY_PARTS, partial(_segments, marker))
            for name, marker in segments.items()
        ),
        file_case("jpeg-20-million-fill-bytes", _TOO_MANY_PARTS, lambda: insert_segments(b"\xff" * 20_000_000)),
        file_case("jpeg-huge-tables", _UNDECODABLE, _jpeg_tables),
        file_case("png-million-chunks-before", _TOO_MANY_PARTS, lambda: insert_chunks(_chunks(b"prVt"))),
        file_case(
            "png-million-chunks-behind", _TOO_MANY_PARTS, lambda: plain()[:-12] + _chunks(b"prVt") + plain()[-12:]
        ),
        file_case("png-million-data-chunks", _TOO_MANY_PARTS, lambda: insert_chunks(_chunks(b"IDAT"))),
        file_case("bmp-million-runs", _TOO_MANY_PARTS, _bmp_runs),
        file_case("gif-million-comments", _TOO_MANY_PARTS, _gif_comments),
        file_case("gif-10000-frames", PLAIN_LOSSY, _gif_frames),
        file_case("tiff-65535-tags", _UNDECODABLE, lambda: pictures.tiff({tag: [1] for tag in range(65_535)})),
        file_case("tiff-directory-loop", PLAIN, lambda: pictures.tiff_of(whole, bits=[8, 8, 8], then=8)),
        file_case("tiff-exif-loop", PLAIN, lambda: pictures.tiff_of(whole, bits=[8, 8, 8], extra={34665: [8]})),
    ]


def _score_sixteen(site: Site, data: bytes) -> None:
    """Score sixteen images of the largest size in one request; `Site.unharmed` checks the memory."""
    address = site.images.serve("/sixteen", data, connection="close")
    for result in site.score([f"{address}?{number}" for number in range(16)]):
        scored_as("white").check(site, result)


def _zero_png(width: int, height: int, *, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of zeros; the colour type is grey (0), RGB (2) or RGBA (6)."""
    row_bytes = 1 + width * depth * {0: 1, 2: 3, 6: 4}[colour] // 8
    data = pictures.compressed_zeros(height * row_bytes)
    return pictures.png(width, height, data, depth=depth, colour=colour)


def _largest_png() -> bytes:
    """Return a PNG with the largest number of pixels that is decoded, all transparent."""
    return _zero_png(7_071, 7_071, colour=6)


def _with_bomb(kind: bytes, size: int, *, times: int = 1) -> bytes:
    """Return a PNG with text or profile chunks, each of which unpacks to `size` bytes."""
    return insert_chunks(chunk(kind, b"a\0\0" + pictures.compressed_zeros(size)) * times)


def _webp_bomb() -> bytes:
    return save(Image.new("RGB", (16_000, 12_500)), "WEBP", lossless=True, method=0)


def _claim(file: bytes, side: int) -> bytes:
    """Return a JPEG whose header claims `side` x `side` pixels."""
    return pictures.replace(file, file.index(b"\xff\xc0") + 5, struct.pack(">HH", side, side))


def _black_jpeg(*, progressive: bool = False) -> bytes:
    """Return a JPEG of 400 megapixels."""
    return save(Image.new("L", (20_000, 20_000)), "JPEG", progressive=progressive)


def _jpeg_non_interleaved() -> bytes:
    """Return a JPEG that claims 400 megapixels, and whose first scan claims to have one of three components."""
    file = jpeg()
    scan = file.index(b"\xff\xda")
    return _claim(file[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + file[scan + 14 :], 20_000)


def _avif_bomb() -> bytes:
    """Return a small AVIF whose ispe box claims 100 megapixels."""
    file = save(picture(), "AVIF")
    return pictures.replace(file, file.index(b"ispe") + 8, struct.pack(">II", 10_000, 10_000))


def _segments(marker: int) -> bytes:
    return insert_segments(segment(marker, b"") * 5_000_000)


def _chunks(kind: bytes) -> bytes:
    return chunk(kind, b"") * 1_700_000


def _jpeg_tables() -> bytes:
    return insert_segments(segment(0xDB, b"\xff" * 65_000) + segment(0xC4, b"\xff" * 65_000))


def _scans(side: int, count: int) -> bytes:
    file = save(picture(side), "JPEG", progressive=True, quality=95)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * count + file[-2:]


def _gif_parts() -> tuple[bytes, bytes]:
    """Return a GIF in two parts, divided after its global palette."""
    file = save(picture(), "GIF")
    palette_end = 13 + (6 << (file[10] & 7))
    return file[:palette_end], file[palette_end:]


def _gif_comments() -> bytes:
    head, frame = _gif_parts()
    return head + b"!\xfe\0" * 3_000_000 + frame


def _gif_frames() -> bytes:
    head, frame = _gif_parts()
    return head + frame[:-1] + frame[frame.index(b",") : -1] * 10_000 + b";"


def _bmp_runs() -> bytes:
    """Return a BMP of ten million runs of one pixel."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    return pictures.bmp(4_000, 2_500, b"\1\5" * 10_000_000, bits=8, palette=palette)


def _tiff(width: int, height: int, *, rows: int | None = None, size: int = 100) -> bytes:
    tags = pictures.tiff_tags(width, height, bits=[8, 8, 8], compression=8)
    return pictures.tiff({**tags, 278: [rows or height], 279: [size]}, zlib.compress(bytes(1_000)))


def _tiff_tile() -> bytes:
    """Return a TIFF of 64 x 64 pixels in a tile of 30000 x 23000, 2 GB."""
    data = zlib.compress(bytes(1_000))
    tags = pictures.tiff_tags(64, 64, bits=[8, 8, 8], compression=8)
    del tags[273], tags[278]
    return pictures.tiff({**tags, 322: [30_000], 323: [23_000], 324: [-1], 325: [len(data)]}, data)
