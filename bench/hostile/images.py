"""Files that an image host sends: bombs, lies, fragments and disguises, and odd but good ones."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from bench import hosts
from bench.hostile import pictures
from bench.hostile.case import PLAIN, Attack, Case, Kind, Outcome, Scored, refused_decode, refused_fetch
from bench.hostile.pictures import (
    LONG,
    SHORT,
    chunk,
    insert_chunk,
    insert_segments,
    jpeg,
    picture,
    pixels,
    plain,
    save,
    segment,
)
from bench.hostile.site import Site

MEBIBYTE = 1 << 20
_MOST_BYTES = 20 * MEBIBYTE
_MANY = 5_000_000
_CHUNKS = 1_700_000
_LOSSY = 0.05  # of a probability, which a mirror image moves by more

_TOO_LARGE = refused_decode("at most 50000000")
_NO_IMAGE = refused_decode("expected one of JPEG, PNG")
_BROKEN = refused_decode("cannot be decoded|expected one of JPEG")
_TOO_LONG = refused_decode("which no image needs|which take too long")
_ALIKE = Scored(plain, within=_LOSSY)
_JPEG = Scored(jpeg)


@dataclass(frozen=True, slots=True)
class File:
    """A file from a host that may be asked, and what must come of it."""

    name: str
    outcome: Outcome
    make: Callable[[], bytes]
    kind: str = "image/png"
    """The content type that it is sent under."""
    seconds: float = 10

    def prepare(self, site: Site) -> Attack:
        """Have the host send it."""
        address = site.images.serve(f"/{self.name}", self.make(), content_type=self.kind, connection="close")
        return lambda: self.outcome.check(site, site.score_among_good(address))


def cases() -> list[Case]:
    """Every file."""
    return [
        *(Case(file.name, Kind.IMAGE, file.prepare, file.seconds) for file in (*large_files(), *small_files())),
        Case("sixteen-50-megapixels-at-once", Kind.IMAGE, _many_large, 60),
    ]


def large_files() -> list[File]:
    """Those that take seconds to make, or as long or as much memory as may be to look at."""
    return [*_bombs(), *_slow_ones()]


def small_files() -> list[File]:
    """All others."""
    return [*_claims(), *_fragments(), *_no_images(), *_disguises(), *_odd_but_good(), *_of_metadata()]


def _claims() -> list[File]:
    """Files that claim more than they hold."""
    return [
        File("png-2-billion-wide", _TOO_LARGE, lambda: _png(2**31 - 1, 2**31 - 1, zlib.compress(b""))),
        File("png-zero-wide", _BROKEN, lambda: _png(0, 64, zlib.compress(b""))),
        File("gif-huge-screen", _TOO_LARGE, lambda: _gif((65_535, 65_535), (8, 8))),
        File("gif-huge-frame", _TOO_LARGE, lambda: _gif((1, 1), (65_535, 65_535))),
        File(
            "jpeg-65500x65500",
            refused_decode("8188 x 8188 pixels, at most 50000000"),
            lambda: _claim(jpeg(), 65_500),
            kind="image/jpeg",
        ),
        File("jpeg-scan-for-each-component", _TOO_LARGE, _jpeg_parted, kind="image/jpeg"),
        File("avif-100-megapixels", _TOO_LARGE, _avif_bomb, kind="image/avif"),
        File("bmp-2-billion-wide", _TOO_LARGE, lambda: _bmp(2**31 - 1, 2**31 - 1)),
        File("tiff-1-gigapixel", _TOO_LARGE, lambda: _tiff(31_623, 31_623)),
        File("tiff-giant-tile", _TOO_LARGE, _tiff_tile),
        File("tiff-giant-strip", _BROKEN, lambda: _tiff(64, 64, rows=4_000_000_000)),
        File("tiff-strip-of-4-gb", _BROKEN, lambda: _tiff(64, 64, size=4_000_000_000)),
    ]


def _bombs() -> list[File]:
    """Files that hold as much as may be, or unpack to more."""
    return [
        File("png-400-megapixels", _TOO_LARGE, lambda: _zeros(20_000, 20_000)),
        File("png-100-megapixels", _TOO_LARGE, lambda: _zeros(10_000, 10_000, colour=2)),  # of which Pillow only warns
        File("png-1-bit-400-megapixels", _TOO_LARGE, lambda: _zeros(20_000, 20_000, depth=1)),
        File("png-65535x1000", _TOO_LARGE, lambda: _zeros(65_535, 1_000)),
        File("png-rgba-50-megapixels", _of("white"), _largest, seconds=20),
        File("png-16-bit-50-megapixels", _of("black"), lambda: _zeros(7_071, 7_071, depth=16), seconds=20),
        File("webp-200-megapixels", _TOO_LARGE, _webp_bomb, kind="image/webp"),
        File("jpeg-progressive-400-megapixels", _TOO_LARGE, lambda: _black_jpeg(progressive=True), kind="image/jpeg"),
        File("jpeg-400-megapixels", _of("black"), _black_jpeg, kind="image/jpeg", seconds=20),  # decoded at an eighth
        File("png-ztxt-bomb", _BROKEN, lambda: _with(b"zTXt", 200 * MEBIBYTE)),
        File("png-many-ztxt-bombs", _BROKEN, lambda: _with(b"zTXt", MEBIBYTE - 1, times=1_000)),
        File("png-iccp-bomb", _BROKEN, lambda: _with(b"iCCP", 200 * MEBIBYTE)),
        File("file-one-byte-too-large", refused_fetch("more than 20971520 bytes"), lambda: _padded(_MOST_BYTES + 1)),
        File("file-as-large-as-may-be", PLAIN, lambda: _padded(_MOST_BYTES)),
    ]


def _slow_ones() -> list[File]:
    """Files of very many parts, each of which takes a moment."""
    return [
        File("jpeg-1000-scans", _TOO_LONG, lambda: _scans(7_000, 1_000)),
        File("jpeg-100000-scans", _ALIKE, lambda: _scans(64, 100_000)),
        File("jpeg-5-million-segments", _TOO_LONG, lambda: insert_segments(jpeg(), segment(0xEF, b"") * _MANY)),
        File("jpeg-5-million-comments", _TOO_LONG, lambda: insert_segments(jpeg(), segment(0xFE, b"") * _MANY)),
        File("jpeg-5-million-tables", _TOO_LONG, lambda: insert_segments(jpeg(), segment(0xDB, b"") * _MANY)),
        File("jpeg-20-million-fill-bytes", _TOO_LONG, lambda: insert_segments(jpeg(), b"\xff" * 20_000_000)),
        File("jpeg-huge-tables", _BROKEN, _jpeg_tables),
        File("png-million-chunks-before", _TOO_LONG, lambda: insert_chunk(plain(), chunk(b"prVt", b"") * _CHUNKS)),
        File("png-million-chunks-behind", _TOO_LONG, _chunks_behind),
        File("png-million-data-chunks", _TOO_LONG, lambda: insert_chunk(plain(), chunk(b"IDAT", b"") * _CHUNKS)),
        File("bmp-million-runs", _TOO_LONG, _bmp_runs),
        File("gif-million-comments", _TOO_LONG, _gif_comments),
        File("gif-10000-frames", _ALIKE, _gif_frames),
        File("tiff-65535-tags", _BROKEN, lambda: pictures.tiff({tag: (SHORT, [1]) for tag in range(65_535)})),
        File("tiff-directory-loop", PLAIN, lambda: _good_tiff(next_directory=8)),
        File("tiff-exif-loop", PLAIN, lambda: _good_tiff(exif_at=8)),
    ]


def _fragments() -> list[File]:
    """Files that end too early, or hold other bytes than they say."""
    cut = [
        File(f"{name.lower()}-cut-at-{share}-percent", _BROKEN, partial(_cut, name, share))
        for name in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
        for share in (10, 60)
    ]
    return [
        *cut,
        File("empty", refused_decode("got 0 bytes; check what"), lambda: b""),
        File("one-byte", _NO_IMAGE, lambda: b"\xff"),
        File("png-bad-checksum", _BROKEN, lambda: _replace(plain(), 29, bytes(4))),
        File("png-bad-data-checksum", PLAIN, lambda: _replace(plain(), plain().index(b"IEND") - 8, bytes(4))),
        File("png-zlib-garbage", _BROKEN, lambda: _png(64, 64, b"garbage")),
        File("png-chunk-of-2-gb", _BROKEN, lambda: plain()[:33] + struct.pack(">I4s", 2**31 - 1, b"prVt")),
        File("gif-bad-lzw", _BROKEN, lambda: _gif((8, 8), (8, 8), data=b"\xff" * 8)),
        File("noise", _NO_IMAGE, lambda: random.Random(0).randbytes(MEBIBYTE)),  # noqa: S311
    ]


def _no_images() -> list[File]:
    """Files of other kinds, each of which is refused by the name of its kind."""
    fits = (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)).ljust(2880)
    heic = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)
    files = {
        "svg": ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        "svg-in-xml": ("SVG", b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->\n<svg viewBox="0 0 1 1"/>'),
        "html": ("a web page", b"<html><script>alert(1)</script></html>"),
        "html-around-svg": ("a web page", b"  <!DOCTYPE html><html><svg></svg></html>"),
        "pdf": ("PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"),
        "eps": ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%id) (w) file\n%%EOF\n"),
        "fits": ("FITS", fits),
        "psd": ("Photoshop", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(12)),
        "xbm": ("something else", b"#define a_width 8\n#define a_height 8\nstatic char a[] = {0x00};"),
        "wmf": ("something else", b"\xd7\xcd\xc6\x9a" + bytes(40)),
        "zip": ("something else", b"PK\5\6" + bytes(18)),
        "gzip-of-a-png": ("a gzip archive", gzip.compress(plain(), mtime=0)),
        "heic": ("HEIC", heic),
        "heic-by-a-compatible-brand": ("HEIC", heic.replace(b"ftypheic", b"ftypmif1")),
        "avif-cut-in-its-head": ("AVIF that is broken", save(picture(), "AVIF")[:40]),
        "mp4": ("a video", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"),
        "jpeg-xl": ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)),
        "jpeg-2000": ("JPEG 2000", save(picture(), "JPEG2000")),
        "jpeg-2000-bare": ("JPEG 2000", save(picture(), "JPEG2000", no_jp2=True)),
        "exr": ("OpenEXR", b"v/1\x01" + bytes(50)),
        "dicom": ("DICOM", bytes(128) + b"DICM"),
        "ppm": ("Netpbm", save(picture(), "PPM")),
        "ico": ("an icon", save(picture(), "ICO")),
        **{name.lower(): ("something else", save(picture(), name)) for name in ("TGA", "PCX", "SGI")},
    }
    return [
        File(name, refused_decode(rf"JPEG, PNG.*AVIF, got \d+ bytes of {called}.*; save it as"), partial(bytes, data))
        for name, (called, data) in files.items()
    ]


def _disguises() -> list[File]:
    """Files that are two things at once, or not what they are called: as images they are good."""
    page = chunk(b"tEXt", b"a\0<script>alert(1)</script>")
    return [
        File("gif-and-javascript", _ALIKE, lambda: _gif_file() + b"*/=1;alert(1)//", kind="text/javascript"),
        File("jpeg-and-zip", _JPEG, lambda: jpeg() + _zip()),
        File("png-and-html", PLAIN, lambda: insert_chunk(plain(), page), kind="text/html"),
        File("pdf-and-jpeg", _NO_IMAGE, lambda: b"%PDF-1.7\n" + jpeg()),
        File("jpeg-called-png", _JPEG, jpeg),
        File("png-called-text", PLAIN, plain, kind="text/plain"),
        File("png-with-trailing-junk", PLAIN, lambda: _padded(MEBIBYTE)),
    ]


def _odd_but_good() -> list[File]:
    """Files that are unusual, and must be scored as what they show; of several pages or frames the first counts."""
    grey, black_and_white = Scored(_grey_plain), Scored(_black_and_white_plain)
    return [
        File("webp-lossless", PLAIN, lambda: save(picture(), "WEBP", lossless=True)),
        File("webp-animated", PLAIN, lambda: _animated("WEBP", lossless=True)),
        File("apng", PLAIN, lambda: _animated("PNG")),
        File("gif-animated", _ALIKE, lambda: _animated("GIF")),
        File("tiff-pages", PLAIN, lambda: _animated("TIFF")),
        File("jpeg-cmyk", _ALIKE, lambda: save(picture().convert("CMYK"), "JPEG", quality=95)),
        File("jpeg-ycck", _ALIKE, _ycck),
        File("jpeg-grey", Scored(_grey_plain, _LOSSY), lambda: save(picture().convert("L"), "JPEG", quality=95)),
        File(
            "jpeg-progressive",
            Scored(jpeg, _LOSSY),
            lambda: save(picture(), "JPEG", quality=95, progressive=True),
        ),
        File("png-16-bit-grey", grey, lambda: save(Image.fromarray(_grey().astype(np.uint16) * 257), "PNG")),
        File("png-16-bit-rgb", PLAIN, _png_16_bit),
        File("png-interlaced", PLAIN, _png_interlaced),
        File("png-palette-transparent", Scored(_quarter_white), _palette),
        File("png-rgb-transparent", Scored(_quarter_white), lambda: save(picture(), "PNG", transparency=(230, 40, 30))),
        File("png-transparent", _of("white"), lambda: save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")),
        File("png-1-bit", black_and_white, lambda: save(_black_and_white(), "PNG")),
        File("tiff-16-bit-rgb", PLAIN, lambda: _tiff_of((pixels().astype("<u2") * 257).tobytes(), bits=[16] * 3)),
        File("avif", _ALIKE, lambda: save(picture(), "AVIF", quality=95, subsampling="4:4:4")),
        File("tiff-float-0-to-1", grey, lambda: save(Image.fromarray(_grey().astype(np.float32) / 255), "TIFF")),
        File("jpeg-51-megapixels", _of("black"), lambda: save(Image.new("RGB", (8_160, 6_250)), "JPEG")),
        File("tiff-float", grey, lambda: save(Image.fromarray(_grey().astype(np.float32)), "TIFF")),
        File("tiff-float-not-a-number", black_and_white, _not_numbers),
        File("tiff-32-bit", grey, lambda: save(Image.fromarray(_grey().astype(np.int32)), "TIFF")),
        File("bmp-top-down", PLAIN, lambda: _bmp(64, -64, pixels()[..., ::-1].tobytes())),
        File("bmp-bottom-up", PLAIN, lambda: save(picture(), "BMP")),
        File("pixel-1x1", _of("red"), lambda: _flat("red", 1, 1)),
        File("pixels-65535x1", _of("red"), lambda: _flat("red", 65_535, 1)),
        File("pixels-1x65535", _of("red"), lambda: _flat("red", 1, 65_535)),
    ]


def _of_metadata() -> list[File]:
    """Orientations, which count, and colour profiles, which do not; and what is neither."""
    noise = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 500
    icc_noise = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 2_000)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        *(File(f"exif-orientation-{number}", PLAIN, partial(_turned, "PNG", number)) for number in range(1, 9)),
        File("exif-orientation-jpeg", _ALIKE, lambda: _turned("JPEG", 6, quality=95)),
        File("exif-orientation-0", PLAIN, lambda: save(picture(), "PNG", exif=_exif(0))),
        File("exif-orientation-99", PLAIN, lambda: save(picture(), "PNG", exif=_exif(99))),
        File("exif-broken", _JPEG, lambda: insert_segments(jpeg(), segment(0xE1, b"Exif\0\0MM\0*\0\0"))),
        File("exif-garbage", _JPEG, lambda: insert_segments(jpeg(), segment(0xE1, noise))),
        File(
            "exif-png-garbage",
            PLAIN,
            lambda: insert_chunk(plain(), chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 300)),
        ),
        File(
            "exif-10-mb",
            _JPEG,
            lambda: insert_segments(jpeg(), segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 160),
        ),
        File("icc-broken", _JPEG, lambda: insert_segments(jpeg(), icc_noise)),
        File("icc-huge", _JPEG, _huge_profile),
        File("icc-real", PLAIN, lambda: save(picture(), "PNG", icc_profile=srgb)),
    ]


def _many_large(site: Site) -> Attack:
    """Sixteen as large as may be, in one request: memory is bounded."""
    address = site.images.serve("/sixteen-50-megapixels-at-once", hosts.reply(_largest(), connection="close"))

    def attack() -> None:
        for result in site.score([f"{address}?{number}" for number in range(16)]):
            _of("white").check(site, result)

    return attack


def _flat(colour: str, width: int = 8, height: int = 8) -> bytes:
    return save(Image.new("RGB", (width, height), colour), "PNG")


def _of(colour: str) -> Scored:
    return Scored(partial(_flat, colour))


def _padded(size: int) -> bytes:
    return plain().ljust(size, b"\0")


def _replace(file: bytes, at: int, content: bytes) -> bytes:
    return file[:at] + content + file[at + len(content) :]


def _png(width: int, height: int, data: bytes) -> bytes:
    return pictures.png(width, height, depth=8, colour=2, data=data)


def _zeros(width: int, height: int, *, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of zeros: of grey, RGB (colour 2) or RGBA (6)."""
    row_bytes = 1 + width * depth * {0: 1, 2: 3, 6: 4}[colour] // 8
    data = pictures.squeezed_zeros(height * row_bytes)
    return pictures.png(width, height, depth=depth, colour=colour, data=data)


def _largest() -> bytes:
    """Return as many pixels as are decoded, transparent ones."""
    return _zeros(7_071, 7_071, colour=6)


def _with(kind: bytes, size: int, *, times: int = 1) -> bytes:
    """Return a PNG with a text or a profile that unpacks to so many bytes."""
    return insert_chunk(plain(), chunk(kind, b"a\0\0" + pictures.squeezed_zeros(size)) * times)


def _chunks_behind() -> bytes:
    return plain()[:-12] + chunk(b"prVt", b"") * _CHUNKS + plain()[-12:]


def _cut(file_format: str, share: int) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    file = save(noise, file_format)
    return file[: len(file) * share // 100]


def _webp_bomb() -> bytes:
    return save(Image.new("RGB", (16_000, 12_500)), "WEBP", lossless=True, method=0)


def _claim(file: bytes, side: int) -> bytes:
    """Return a JPEG whose header claims other sides."""
    return _replace(file, file.index(b"\xff\xc0") + 5, struct.pack(">HH", side, side))


def _black_jpeg(*, progressive: bool = False) -> bytes:
    """Return 400 million pixels; progressive ones must be held before they are reduced."""
    return save(Image.new("L", (20_000, 20_000)), "JPEG", progressive=progressive)


def _jpeg_parted() -> bytes:
    """Return a JPEG that claims 400 million pixels, and whose first scan says that it holds one component of three."""
    file = jpeg()
    scan = file.index(b"\xff\xda")
    return _claim(file[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + file[scan + 14 :], 20_000)


def _avif_bomb() -> bytes:
    """Return a small picture whose property says that it is large."""
    file = save(picture(), "AVIF")
    return _replace(file, file.index(b"ispe") + 8, struct.pack(">II", 10_000, 10_000))


def _jpeg_tables() -> bytes:
    return insert_segments(jpeg(), segment(0xDB, b"\xff" * 65_000) + segment(0xC4, b"\xff" * 65_000))


def _scans(side: int, count: int) -> bytes:
    file = save(picture(side), "JPEG", progressive=True, quality=95)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * count + file[-2:]


def _ycck() -> bytes:
    """Return a JPEG whose components are YCC and an inverted K, which the Adobe segment says."""
    cmyk = np.asarray(picture().convert("CMYK"))
    luminance = np.asarray(Image.fromarray(np.ascontiguousarray(cmyk[..., :3])).convert("YCbCr"))
    planes = np.dstack([255 - luminance, cmyk[..., 3]])  # Pillow inverts what it writes
    file = save(Image.frombytes("CMYK", (64, 64), planes.tobytes()), "JPEG", quality=95, subsampling=0)
    return _replace(file, file.index(b"Adobe") + 11, b"\2")


def _gif(screen: tuple[int, int], frame: tuple[int, int], data: bytes = b"\x04\x04\x05") -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0)
    return head + descriptor + b"\x02" + bytes([len(data)]) + data + b"\0;"


def _gif_file() -> bytes:
    return save(picture(), "GIF")


def _behind_palette(file: bytes) -> int:
    """Return where a GIF's global palette ends."""
    return 13 + (6 << (file[10] & 7))


def _gif_comments() -> bytes:
    file = _gif_file()
    at = _behind_palette(file)
    return file[:at] + b"!\xfe\0" * 3_000_000 + file[at:]


def _gif_frames() -> bytes:
    file = _gif_file()
    at = file.index(b",", _behind_palette(file))
    return file[:-1] + file[at:-1] * 10_000 + b";"


def _bmp(width: int, height: int, data: bytes = b"", *, bits: int = 24, palette: bytes = b"") -> bytes:
    """Return a BMP; of 8 bits it is in runs."""
    compression, colours = (1, 256) if bits == 8 else (0, 0)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    data_at = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", data_at + len(data), 0, 0, data_at) + head + palette + data


def _bmp_runs() -> bytes:
    """Return ten million runs of one pixel."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    return _bmp(4_000, 2_500, b"\1\5" * 10_000_000, bits=8, palette=palette)


def _tiff(width: int, height: int, *, rows: int | None = None, size: int = 100) -> bytes:
    tags = pictures.tiff_tags(width, height, bits=[8, 8, 8], compression=8, rows=rows)
    return pictures.tiff({**tags, 279: (LONG, [size])}, zlib.compress(bytes(1_000)))


def _tiff_tile() -> bytes:
    """Return 64 x 64 pixels in a tile of 30000 x 23000, 2 GB."""
    data = zlib.compress(bytes(1_000))
    tags = pictures.tiff_tags(64, 64, bits=[8, 8, 8], compression=8)
    del tags[273], tags[278]
    tiles = {322: 30_000, 323: 23_000, 324: -1, 325: len(data)}
    return pictures.tiff({**tags, **{tag: (LONG, [value]) for tag, value in tiles.items()}}, data)


def _tiff_of(data: bytes, *, bits: Sequence[int], extra: dict[int, pictures.Tag] | None = None, then: int = 0) -> bytes:
    """Return a TIFF of 64 x 64 pixels with further tags, and the offset of another directory."""
    tags = {**pictures.tiff_tags(64, 64, bits=bits), 279: (LONG, [len(data)]), **(extra or {})}
    return pictures.tiff(tags, data, next_directory=then)


def _good_tiff(*, next_directory: int = 0, exif_at: int | None = None) -> bytes:
    exif: dict[int, pictures.Tag] = {} if exif_at is None else {34665: (LONG, [exif_at])}
    return _tiff_of(pixels().tobytes(), bits=[8, 8, 8], extra=exif, then=next_directory)


def _png_16_bit() -> bytes:
    rows = (pixels().astype(">u2") * 257).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return pictures.png(64, 64, depth=16, colour=2, data=data)


def _png_interlaced() -> bytes:
    """Return the seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels()[y::dy, x::dx])
    file = _png(64, 64, zlib.compress(data))
    return file[:8] + chunk(b"IHDR", file[16:28] + b"\1") + file[33:]


def _palette() -> bytes:
    """Return a palette's four colours, of which the first is transparent and lies over white."""
    indices = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 32, axis=0), 32, axis=1)
    palette = Image.fromarray(indices).convert("P")
    palette.putdata(indices.ravel().tolist())
    palette.putpalette([level for y, x in ((0, 0), (0, 63), (63, 0), (63, 63)) for level in pixels()[y, x].tolist()])
    return save(palette, "PNG", transparency=0)


def _quarter_white() -> bytes:
    found = pixels().copy()
    found[:32, :32] = 255
    return save(Image.fromarray(found), "PNG")


def _grey() -> npt.NDArray[np.uint8]:
    return np.asarray(picture().convert("L"))


def _grey_plain() -> bytes:
    return save(Image.fromarray(_grey()).convert("RGB"), "PNG")


def _black_and_white() -> Image.Image:
    return Image.fromarray(_grey() > 120)


def _black_and_white_plain() -> bytes:
    return save(_black_and_white().convert("RGB"), "PNG")


def _not_numbers() -> bytes:
    """Return NaN for black and infinity for white."""
    return save(Image.fromarray(np.where(_grey() > 120, np.inf, np.nan).astype(np.float32)), "TIFF")


def _animated(file_format: str, **options: object) -> bytes:
    others = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    return save(picture(), file_format, save_all=True, append_images=others, **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _turned(file_format: str, orientation: int, **options: object) -> bytes:
    """Return the picture as a camera that was held otherwise stores it, by what EXIF's orientations mean."""
    found = pixels()
    stored = {
        1: found,
        2: found[:, ::-1],
        3: found[::-1, ::-1],
        4: found[::-1],
        5: found.swapaxes(0, 1),
        6: np.rot90(found, 1),
        7: found[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(found, -1),
    }[orientation]
    return save(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=_exif(orientation), **options)


def _huge_profile() -> bytes:
    parts = 160
    segments = (segment(0xE2, b"ICC_PROFILE\0" + bytes([part, parts]) + bytes(65_000)) for part in range(1, parts + 1))
    return insert_segments(jpeg(), b"".join(segments))


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("payload.sh", "id")
    return file.getvalue()
