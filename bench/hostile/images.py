"""Files that an image host sends: bombs, lies, fragments and disguises, and odd but good ones."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageCms

from bench.hostile import hosts, pictures
from bench.hostile.case import Attack, Case, Kind, Outcome, Scored, refused_decode, refused_fetch
from bench.hostile.pictures import LONG, SHORT, chunk, insert_chunk, insert_segments, segment
from bench.hostile.site import Site

MEBIBYTE = 1 << 20
_MOST_BYTES = 20 * MEBIBYTE
_LOSSY = 0.05  # of a probability, which a mirror image moves by more
_TOO_LARGE = refused_decode("at most 50000000")
_NOT_AN_IMAGE = refused_decode("expected one of JPEG, PNG")
_BROKEN = refused_decode("cannot be decoded|expected one of JPEG")
_TOO_LONG = refused_decode("which no image needs|which take too long")
_PLAIN = Scored(pictures.plain)
_ALIKE = Scored(pictures.plain, within=_LOSSY)


def image(
    name: str, sent: str, outcome: Outcome, make: Callable[[], bytes], *, kind: str = "image/png", seconds: float = 10
) -> Case:
    """A file from a host that may be asked, under a content type."""

    def prepare(site: Site) -> Attack:
        address = site.images.serve(f"/{name}", hosts.body(make(), content_type=kind))
        return lambda: outcome.check(site, site.score_among_good(address))

    return Case(name, Kind.IMAGE, sent, outcome.must, prepare, seconds)


def cases() -> list[Case]:
    """Every file."""
    return [*_bombs(), *_slow_ones(), *_fragments(), *_no_images(), *_disguises(), *_odd_but_good()]


def _bombs() -> Iterator[Case]:
    yield image(
        "png-400-megapixels",
        "400 million grey pixels in 400 kB",
        _TOO_LARGE,
        lambda: pictures.png(20_000, 20_000, depth=8, colour=0, data=pictures.squeezed_zeros(20_000 * 20_001)),
    )
    yield image(
        "png-100-megapixels",
        "100 million pixels, of which Pillow only warns",
        _TOO_LARGE,
        lambda: pictures.png(10_000, 10_000, depth=8, colour=2, data=pictures.squeezed_zeros(10_000 * 30_001)),
    )
    yield image(
        "png-1-bit-400-megapixels",
        "400 million pixels of one bit in 50 kB",
        _TOO_LARGE,
        lambda: pictures.png(20_000, 20_000, depth=1, colour=0, data=pictures.squeezed_zeros(20_000 * 2_501)),
    )
    yield image(
        "png-65535x1000",
        "a strip of 65 million pixels",
        _TOO_LARGE,
        lambda: pictures.png(65_535, 1_000, depth=8, colour=0, data=pictures.squeezed_zeros(65_536_000)),
    )
    yield image(
        "png-2-billion-wide",
        "a header that claims 2**31 - 1 x 2**31 - 1 pixels",
        _TOO_LARGE,
        lambda: pictures.png(2**31 - 1, 2**31 - 1, depth=8, colour=2, data=zlib.compress(b"")),
    )
    yield image(
        "png-zero-wide",
        "a header that claims no pixels",
        _BROKEN,
        lambda: pictures.png(0, 64, depth=8, colour=2, data=zlib.compress(b"")),
    )
    yield image(
        "png-rgba-50-megapixels",
        "as many pixels as are decoded, transparent ones",
        Scored(partial(_flat, "white")),
        lambda: pictures.png(7_071, 7_071, depth=8, colour=6, data=pictures.squeezed_zeros(7_071 * 28_285)),
        seconds=20,
    )
    yield image(
        "png-16-bit-50-megapixels",
        "as many pixels as are decoded, of 16 bits",
        Scored(partial(_flat, "black")),
        lambda: pictures.png(7_071, 7_071, depth=16, colour=0, data=pictures.squeezed_zeros(7_071 * 14_143)),
        seconds=20,
    )
    yield Case(
        "sixteen-50-megapixels-at-once",
        Kind.IMAGE,
        "sixteen images of 50 million pixels in one request",
        "all scored, in bounded memory",
        _many_large,
        60,
    )
    yield image("webp-200-megapixels", "200 million pixels in 300 bytes", _TOO_LARGE, _webp_bomb, kind="image/webp")
    yield image(
        "gif-huge-screen", "a logical screen of 65535 x 65535", _TOO_LARGE, lambda: _gif((65_535, 65_535), (8, 8))
    )
    yield image(
        "gif-huge-frame",
        "a frame of 65535 x 65535 on a screen of 1 x 1",
        _TOO_LARGE,
        lambda: _gif((1, 1), (65_535, 65_535)),
    )
    yield image("jpeg-65500x65500", "a header that claims 4 billion pixels", _TOO_LARGE, _jpeg_bomb, kind="image/jpeg")
    yield image(
        "jpeg-progressive-400-megapixels",
        "400 million pixels that must be held before they are reduced, in 4 MB",
        _TOO_LARGE,
        partial(_jpeg_of, 20_000, 20_000, progressive=True),
        kind="image/jpeg",
    )
    yield image(
        "jpeg-scan-for-each-component",
        "a header of 400 million pixels whose components come one after the other",
        _TOO_LARGE,
        _jpeg_parted,
        kind="image/jpeg",
    )
    yield image(
        "jpeg-400-megapixels",
        "400 million pixels, decoded at an eighth of their size",
        Scored(partial(_flat, "black")),
        partial(_jpeg_of, 20_000, 20_000),
        kind="image/jpeg",
        seconds=20,
    )
    yield image("avif-100-megapixels", "100 million pixels in a kilobyte", _TOO_LARGE, _avif_bomb, kind="image/avif")
    yield image(
        "bmp-2-billion-wide",
        "a header that claims 2**31 - 1 pixels a side",
        _TOO_LARGE,
        lambda: _bmp(2**31 - 1, 2**31 - 1),
    )
    yield image("tiff-1-gigapixel", "a header that claims a billion pixels", _TOO_LARGE, lambda: _tiff(31_623, 31_623))
    yield image("tiff-giant-tile", "64 x 64 pixels in a tile of 30000 x 23000, 2 GB", _TOO_LARGE, _tiff_tile)
    yield image(
        "tiff-giant-strip", "64 rows in a strip of 4 billion", _BROKEN, lambda: _tiff(64, 64, rows=4_000_000_000)
    )
    yield image(
        "tiff-strip-of-4-gb", "a strip that says it holds 4 GB", _BROKEN, lambda: _tiff(64, 64, size=4_000_000_000)
    )
    yield image("png-ztxt-bomb", "a comment that unpacks to 200 MB", _BROKEN, lambda: _png_text(200 * MEBIBYTE))
    yield image("png-many-ztxt-bombs", "a thousand comments that unpack to 1 MB each", _BROKEN, _png_texts)
    yield image("png-iccp-bomb", "a colour profile that unpacks to 200 MB", _BROKEN, _png_profile)
    yield image(
        "file-one-byte-too-large",
        "20 MiB and one byte",
        refused_fetch("more than 20971520 bytes"),
        lambda: _padded(_MOST_BYTES + 1),
    )
    yield image(
        "file-as-large-as-may-be", "20 MiB, most of it behind the picture", _PLAIN, lambda: _padded(_MOST_BYTES)
    )


def _slow_ones() -> Iterator[Case]:
    many = 5_000_000
    jpeg, png = pictures.jpeg, pictures.plain
    yield image(
        "jpeg-1000-scans",
        "50 million pixels that are gone over a thousand times",
        _TOO_LONG,
        lambda: _scans(7_000, 1_000),
    )
    yield image(
        "jpeg-100000-scans", "a small picture that is gone over 100,000 times", _ALIKE, lambda: _scans(64, 100_000)
    )
    yield image(
        "jpeg-5-million-segments",
        "empty segments",
        _TOO_LONG,
        lambda: insert_segments(jpeg(), segment(0xEF, b"") * many),
    )
    yield image(
        "jpeg-5-million-comments",
        "empty comments",
        _TOO_LONG,
        lambda: insert_segments(jpeg(), segment(0xFE, b"") * many),
    )
    yield image(
        "jpeg-5-million-tables",
        "empty quantisation tables",
        _TOO_LONG,
        lambda: insert_segments(jpeg(), segment(0xDB, b"") * many),
    )
    yield image(
        "jpeg-20-million-fill-bytes",
        "fill bytes before a segment",
        _TOO_LONG,
        lambda: insert_segments(jpeg(), b"\xff" * 20_000_000),
    )
    yield image("jpeg-huge-tables", "64 kB of quantisation and of Huffman tables", _BROKEN, _jpeg_tables)
    yield image(
        "png-million-chunks-before",
        "empty chunks before the pixels",
        _TOO_LONG,
        lambda: insert_chunk(png(), chunk(b"prVt", b"") * 1_700_000),
    )
    yield image(
        "png-million-chunks-behind",
        "empty chunks behind the pixels",
        _TOO_LONG,
        lambda: png()[:-12] + chunk(b"prVt", b"") * 1_700_000 + png()[-12:],
    )
    yield image(
        "png-million-data-chunks",
        "empty chunks among the pixels",
        _TOO_LONG,
        lambda: insert_chunk(png(), chunk(b"IDAT", b"") * 1_700_000),
    )
    yield image("bmp-million-runs", "ten million runs of one pixel", _TOO_LONG, _bmp_runs)
    yield image("gif-million-comments", "three million empty comments", _TOO_LONG, _gif_comments)
    yield image("gif-10000-frames", "ten thousand frames, of which the first counts", _ALIKE, _gif_frames)
    yield image("tiff-65535-tags", "65535 tags", _BROKEN, _tiff_tags)
    yield image(
        "tiff-directory-loop", "a directory whose next one is itself", _PLAIN, lambda: _good_tiff(next_directory=8)
    )
    yield image("tiff-exif-loop", "an EXIF directory that is the image's own", _PLAIN, lambda: _good_tiff(exif_at=8))


def _fragments() -> Iterator[Case]:
    for file_format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        for share in (10, 60):
            yield image(
                f"{file_format.lower()}-cut-at-{share}-percent",
                f"the first {share} % of a {file_format}",
                _BROKEN,
                partial(_cut, file_format, share),
            )
    yield image("empty", "no bytes", refused_decode("got 0 bytes"), lambda: b"")
    yield image("one-byte", "one byte", _NOT_AN_IMAGE, lambda: b"\xff")
    yield image(
        "png-bad-checksum",
        "a header whose CRC is wrong",
        _BROKEN,
        lambda: pictures.plain()[:29] + b"\0\0\0\0" + pictures.plain()[33:],
    )
    yield image("png-bad-data-checksum", "pixels that are right under a CRC that is wrong", _PLAIN, _png_bad_data)
    yield image(
        "png-zlib-garbage",
        "pixels that are not deflated",
        _BROKEN,
        lambda: pictures.png(64, 64, depth=8, colour=2, data=b"garbage"),
    )
    yield image(
        "png-chunk-of-2-gb",
        "a chunk that says it is 2 GB long",
        _BROKEN,
        lambda: pictures.plain()[:33] + struct.pack(">I4s", 2**31 - 1, b"prVt"),
    )
    yield image(
        "gif-bad-lzw", "LZW codes before their clear code", _BROKEN, lambda: _gif((8, 8), (8, 8), data=b"\xff" * 8)
    )
    yield image("noise", "a megabyte of noise", _NOT_AN_IMAGE, lambda: random.Random(0).randbytes(MEBIBYTE))  # noqa: S311


def _no_images() -> Iterator[Case]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    header = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)
    for name, kind, data in (
        ("svg", "image/svg+xml", svg),
        ("html", "text/html", b"<html><script>alert(1)</script></html>"),
        ("html-as-png", "image/png", b"<html>sign in</html>"),
        ("pdf", "application/pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"),
        (
            "eps",
            "application/postscript",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%id) (w) file\n%%EOF\n",
        ),
        ("fits", "image/fits", header.ljust(2880)),
        ("psd", "image/vnd.adobe.photoshop", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(12)),
        ("xbm", "image/x-xbitmap", b"#define a_width 8\n#define a_height 8\nstatic char a[] = {0x00};"),
        ("wmf", "image/wmf", b"\xd7\xcd\xc6\x9a" + bytes(40)),
        ("zip", "application/zip", b"PK\5\6" + bytes(18)),
        ("gzip-of-a-png", "image/png", gzip.compress(pictures.plain())),
    ):
        yield image(name, f"a file of {kind}", _NOT_AN_IMAGE, partial(bytes, data), kind=kind)
    yield image("heic", "a photo as some phones take it", refused_decode("bytes of HEIC"), _heic, kind="image/heic")
    yield image("dicom", "a file of medical imaging", refused_decode("bytes of DICOM"), lambda: bytes(128) + b"DICM")
    for file_format in ("JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI"):
        yield image(
            file_format.lower(),
            "a good file in a format that is not decoded",
            _NOT_AN_IMAGE,
            partial(pictures.save, pictures.picture(), file_format),
        )


def _disguises() -> Iterator[Case]:
    """Files that are two things at once, or not what they are called: as images they are good."""
    yield image(
        "gif-and-javascript",
        "a GIF that is also a script",
        _ALIKE,
        lambda: _gif_of_picture(b"*/=1;alert(1)//"),
        kind="text/javascript",
    )
    yield image(
        "jpeg-and-zip", "a JPEG with an archive behind it", Scored(pictures.jpeg), lambda: pictures.jpeg() + _zip()
    )
    yield image(
        "png-and-html",
        "a PNG with a page in a comment",
        _PLAIN,
        lambda: insert_chunk(pictures.plain(), chunk(b"tEXt", b"a\0<script>alert(1)</script>")),
        kind="text/html",
    )
    yield image("pdf-and-jpeg", "a PDF that has a JPEG in it", _NOT_AN_IMAGE, lambda: b"%PDF-1.7\n" + pictures.jpeg())
    yield image("jpeg-called-png", "a JPEG under the content type of a PNG", Scored(pictures.jpeg), pictures.jpeg)
    yield image("png-called-text", "a PNG under text/plain", _PLAIN, pictures.plain, kind="text/plain")
    yield image("png-with-trailing-junk", "a PNG and a megabyte of zeros", _PLAIN, lambda: _padded(MEBIBYTE))


def _odd_but_good() -> Iterator[Case]:
    picture = pictures.picture
    yield image("webp-lossless", "a WebP", _PLAIN, lambda: pictures.save(picture(), "WEBP", lossless=True))
    yield image("webp-animated", "an animated WebP: its first frame", _PLAIN, lambda: _animated("WEBP", lossless=True))
    yield image("apng", "an animated PNG: its first frame", _PLAIN, lambda: _animated("PNG"))
    yield image("gif-animated", "an animated GIF: its first frame", _ALIKE, lambda: _animated("GIF"))
    yield image("tiff-pages", "a TIFF of two pages: the first one", _PLAIN, lambda: _animated("TIFF"))
    yield image(
        "jpeg-cmyk", "a JPEG in CMYK", _ALIKE, lambda: pictures.save(picture().convert("CMYK"), "JPEG", quality=95)
    )
    yield image("jpeg-ycck", "a JPEG in YCCK, inverted as Adobe does", _ALIKE, _ycck)
    yield image(
        "jpeg-grey",
        "a grey JPEG",
        Scored(_grey_plain, _LOSSY),
        lambda: pictures.save(picture().convert("L"), "JPEG", quality=95),
    )
    yield image(
        "jpeg-progressive",
        "a progressive JPEG",
        Scored(pictures.jpeg, _LOSSY),
        lambda: pictures.save(picture(), "JPEG", quality=95, progressive=True),
    )
    yield image(
        "png-16-bit-grey",
        "grey of 16 bits",
        Scored(_grey_plain),
        lambda: pictures.save(Image.fromarray(_grey().astype(np.uint16) * 257), "PNG"),
    )
    yield image("png-16-bit-rgb", "colours of 16 bits", _PLAIN, _png_16_bit)
    yield image("png-interlaced", "an interlaced PNG", _PLAIN, _png_interlaced)
    yield image(
        "png-palette-transparent", "a palette with a transparent colour, over white", Scored(_quarter_white), _palette
    )
    yield image(
        "png-rgb-transparent",
        "RGB with one colour transparent, over white",
        Scored(_quarter_white),
        lambda: pictures.save(picture(), "PNG", transparency=(230, 40, 30)),
    )
    yield image(
        "png-1-bit", "black and white", Scored(_black_and_white_plain), lambda: pictures.save(_black_and_white(), "PNG")
    )
    yield image(
        "tiff-16-bit-rgb",
        "colours of 16 bits",
        _PLAIN,
        lambda: _deep_tiff(pictures.pixels().astype("<u2") * 257, [16] * 3),
    )
    yield image("avif", "an AVIF", _ALIKE, lambda: pictures.save(picture(), "AVIF", quality=95, subsampling="4:4:4"))
    yield image(
        "tiff-float-0-to-1",
        "grey in floating point, 0 to 1",
        Scored(_grey_plain),
        lambda: pictures.save(Image.fromarray(_grey().astype(np.float32) / 255), "TIFF"),
    )
    yield image(
        "jpeg-51-megapixels",
        "a photo of more pixels than are decoded, at an eighth of its size",
        Scored(partial(_flat, "black")),
        lambda: pictures.save(Image.new("RGB", (8_160, 6_250)), "JPEG"),
    )
    yield image(
        "tiff-float",
        "grey in floating point, 0 to 255",
        Scored(_grey_plain),
        lambda: pictures.save(Image.fromarray(_grey().astype(np.float32)), "TIFF"),
    )
    yield image("tiff-float-not-a-number", "NaN for black and infinity for white", Scored(_ends_plain), _not_numbers)
    yield image(
        "tiff-32-bit",
        "grey in integers of 32 bits",
        Scored(_grey_plain),
        lambda: pictures.save(Image.fromarray(_grey().astype(np.int32)), "TIFF"),
    )
    yield image("bmp-top-down", "a BMP of negative height", _PLAIN, lambda: _bmp(64, -64, rows=pictures.pixels()))
    yield image("bmp-bottom-up", "a BMP", _PLAIN, lambda: pictures.save(picture(), "BMP"))
    yield image(
        "pixel-1x1",
        "one pixel",
        Scored(partial(_flat, "red")),
        lambda: pictures.save(Image.new("RGB", (1, 1), "red"), "PNG"),
    )
    yield image(
        "pixels-65535x1",
        "a line",
        Scored(partial(_flat, "red")),
        lambda: pictures.save(Image.new("RGB", (65_535, 1), "red"), "PNG"),
    )
    yield image(
        "pixels-1x65535",
        "a column",
        Scored(partial(_flat, "red")),
        lambda: pictures.save(Image.new("RGB", (1, 65_535), "red"), "PNG"),
    )
    for orientation in range(1, 9):
        yield image(
            f"exif-orientation-{orientation}",
            "a PNG that is stored turned",
            _PLAIN,
            partial(_turned, "PNG", orientation),
        )
    yield image(
        "exif-orientation-jpeg", "a JPEG that is stored on its side", _ALIKE, lambda: _turned("JPEG", 6, quality=95)
    )
    yield image(
        "exif-orientation-0",
        "an orientation that there is not",
        _PLAIN,
        lambda: pictures.save(picture(), "PNG", exif=_exif(0)),
    )
    yield image(
        "exif-orientation-99",
        "an orientation that there is not",
        _PLAIN,
        lambda: pictures.save(picture(), "PNG", exif=_exif(99)),
    )
    yield image(
        "exif-broken",
        "EXIF that is cut short",
        Scored(pictures.jpeg),
        lambda: insert_segments(pictures.jpeg(), segment(0xE1, b"Exif\0\0MM\0*\0\0")),
    )
    yield image(
        "exif-garbage",
        "EXIF of noise",
        Scored(pictures.jpeg),
        lambda: insert_segments(pictures.jpeg(), segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 500)),
    )
    yield image(
        "exif-png-garbage",
        "an eXIf chunk of noise",
        _PLAIN,
        lambda: insert_chunk(pictures.plain(), chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 300)),
    )
    yield image(
        "exif-10-mb",
        "EXIF of 10 MB in segments",
        Scored(pictures.jpeg),
        lambda: insert_segments(pictures.jpeg(), segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 160),
    )
    yield image(
        "icc-broken",
        "a colour profile of noise",
        Scored(pictures.jpeg),
        lambda: insert_segments(pictures.jpeg(), segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 2_000)),
    )
    yield image("icc-huge", "a colour profile of 10 MB", Scored(pictures.jpeg), _huge_profile)
    yield image(
        "icc-real",
        "a colour profile, which is not applied",
        _PLAIN,
        lambda: pictures.save(
            picture(), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
    )


def _many_large(site: Site) -> Attack:
    data = pictures.png(7_071, 7_071, depth=8, colour=6, data=pictures.squeezed_zeros(7_071 * 28_285))
    address = site.images.serve("/sixteen-50-megapixels-at-once", hosts.body(data))

    def attack() -> None:
        for result in site.score([f"{address}?{number}" for number in range(16)]):
            Scored(partial(_flat, "white")).check(site, result)

    return attack


def _flat(colour: str) -> bytes:
    return pictures.save(Image.new("RGB", (8, 8), colour), "PNG")


def _padded(size: int) -> bytes:
    return pictures.plain().ljust(size, b"\0")


def _cut(file_format: str, share: int) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    file = pictures.save(noise, file_format)
    return file[: len(file) * share // 100]


def _webp_bomb() -> bytes:
    return pictures.save(Image.new("RGB", (16_000, 12_500)), "WEBP", lossless=True, method=0)


def _jpeg_bomb() -> bytes:
    file = pictures.jpeg()
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + struct.pack(">HH", 65_500, 65_500) + file[at + 4 :]


def _jpeg_of(width: int, height: int, *, progressive: bool = False) -> bytes:
    return pictures.save(Image.new("L", (width, height)), "JPEG", progressive=progressive)


def _jpeg_parted() -> bytes:
    """As `_jpeg_bomb`, and the first scan says that it holds one component of three."""
    file = pictures.jpeg()
    frame, scan = file.index(b"\xff\xc0") + 5, file.index(b"\xff\xda")
    file = file[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + file[scan + 14 :]
    return file[:frame] + struct.pack(">HH", 20_000, 20_000) + file[frame + 4 :]


def _avif_bomb() -> bytes:
    """A small picture whose property says that it is large."""
    file = pictures.save(pictures.picture(), "AVIF")
    at = file.index(b"ispe") + 8
    return file[:at] + struct.pack(">II", 10_000, 10_000) + file[at + 8 :]


def _heic() -> bytes:
    return struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)


def _jpeg_tables() -> bytes:
    tables = segment(0xDB, b"\xff" * 65_000) + segment(0xC4, b"\xff" * 65_000)
    return insert_segments(pictures.jpeg(), tables)


def _scans(side: int, count: int) -> bytes:
    file = pictures.save(pictures.picture(side), "JPEG", progressive=True, quality=95)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * count + file[-2:]


def _ycck() -> bytes:
    """A JPEG whose components are YCC and an inverted K, which the Adobe segment says."""
    cmyk = np.asarray(pictures.picture().convert("CMYK"))
    luminance = np.asarray(Image.fromarray(np.ascontiguousarray(cmyk[..., :3])).convert("YCbCr"))
    planes = np.dstack([255 - luminance, cmyk[..., 3]])  # Pillow inverts what it writes
    file = pictures.save(Image.frombytes("CMYK", (64, 64), planes.tobytes()), "JPEG", quality=95, subsampling=0)
    at = file.index(b"Adobe") + 11
    return file[:at] + b"\2" + file[at + 1 :]


def _gif(screen: tuple[int, int], frame: tuple[int, int], data: bytes = b"\x04\x04\x05") -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0)
    return head + descriptor + b"\x02" + bytes([len(data)]) + data + b"\0;"


def _gif_of_picture(behind: bytes) -> bytes:
    return pictures.save(pictures.picture(), "GIF") + behind


def _gif_comments() -> bytes:
    file = pictures.save(pictures.picture(), "GIF")
    at = 13 + 3 * 2 ** ((file[10] & 7) + 1)
    return file[:at] + b"!\xfe\0" * 3_000_000 + file[at:]


def _gif_frames() -> bytes:
    file = pictures.save(pictures.picture(), "GIF")
    at = file.index(b",", 13 + 3 * 2 ** ((file[10] & 7) + 1))
    return file[:-1] + file[at:-1] * 10_000 + b";"


def _bmp(width: int, height: int, rows: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None" = None) -> bytes:
    data = b"" if rows is None else rows[..., ::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + head + data


def _bmp_runs() -> bytes:
    width, height = 4_000, 2_500
    data = b"\1\5" * (width * height)
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1_078 + len(data), 0, 0, 1_078) + head + palette + data


def _tiff(width: int, height: int, *, rows: int | None = None, size: int = 100) -> bytes:
    data = zlib.compress(bytes(1_000))
    tags = pictures.tiff_tags(width, height, bits=[8, 8, 8], compression=8, rows=rows)
    return pictures.tiff({**tags, 279: (LONG, [size])}, data)


def _tiff_tile() -> bytes:
    data = zlib.compress(bytes(1_000))
    tags = pictures.tiff_tags(64, 64, bits=[8, 8, 8], compression=8)
    del tags[273], tags[278]
    tiles: dict[int, pictures.Tag] = {
        322: (LONG, [30_000]),
        323: (LONG, [23_000]),
        324: (LONG, [-1]),
        325: (LONG, [len(data)]),
    }
    return pictures.tiff({**tags, **tiles}, data)


def _tiff_tags() -> bytes:
    return pictures.tiff({tag: (SHORT, [1]) for tag in range(65_535)})


def _good_tiff(*, next_directory: int = 0, exif_at: int | None = None) -> bytes:
    data = pictures.pixels().tobytes()
    tags: dict[int, pictures.Tag] = {**pictures.tiff_tags(64, 64, bits=[8, 8, 8]), 279: (LONG, [len(data)])}
    if exif_at is not None:
        tags[34665] = (LONG, [exif_at])
    return pictures.tiff(tags, data, next_directory=next_directory)


def _deep_tiff(samples: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]", bits: Sequence[int]) -> bytes:
    data = samples.tobytes()
    return pictures.tiff({**pictures.tiff_tags(64, 64, bits=bits), 279: (LONG, [len(data)])}, data)


def _png_text(size: int) -> bytes:
    return insert_chunk(pictures.plain(), chunk(b"zTXt", b"a\0\0" + pictures.squeezed_zeros(size)))


def _png_texts() -> bytes:
    text = chunk(b"zTXt", b"a\0\0" + pictures.squeezed_zeros(MEBIBYTE - 1))
    return insert_chunk(pictures.plain(), text * 1_000)


def _png_profile() -> bytes:
    return insert_chunk(pictures.plain(), chunk(b"iCCP", b"a\0\0" + pictures.squeezed_zeros(200 * MEBIBYTE)))


def _png_bad_data() -> bytes:
    file = pictures.plain()
    at = file.index(b"IEND") - 8
    return file[:at] + b"\0\0\0\0" + file[at + 4 :]


def _png_16_bit() -> bytes:
    rows = (pictures.pixels().astype(">u2") * 257).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return pictures.png(64, 64, depth=16, colour=2, data=data)


def _png_interlaced() -> bytes:
    """The seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    pixels = pictures.pixels()
    data = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    file = pictures.png(64, 64, depth=8, colour=2, data=zlib.compress(data))
    header = file[16:28] + b"\1"
    return file[:8] + chunk(b"IHDR", header) + file[33:]


def _palette() -> bytes:
    indices = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 32, axis=0), 32, axis=1)
    palette = Image.fromarray(indices).convert("P")
    palette.putdata(indices.ravel().tolist())
    palette.putpalette(
        [level for y, x in ((0, 0), (0, 63), (63, 0), (63, 63)) for level in pictures.pixels()[y, x].tolist()]
    )
    return pictures.save(palette, "PNG", transparency=0)


def _quarter_white() -> bytes:
    pixels = pictures.pixels().copy()
    pixels[:32, :32] = 255
    return pictures.save(Image.fromarray(pixels), "PNG")


def _grey() -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(pictures.picture().convert("L"))


def _grey_plain() -> bytes:
    return pictures.save(Image.fromarray(_grey()).convert("RGB"), "PNG")


def _black_and_white() -> Image.Image:
    return Image.fromarray(_grey() > 120)


def _black_and_white_plain() -> bytes:
    return pictures.save(_black_and_white().convert("RGB"), "PNG")


def _not_numbers() -> bytes:
    levels = np.where(_grey() > 120, np.inf, np.nan).astype(np.float32)
    return pictures.save(Image.fromarray(levels), "TIFF")


def _ends_plain() -> bytes:
    return _black_and_white_plain()


def _animated(file_format: str, **options: object) -> bytes:
    others = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    return pictures.save(pictures.picture(), file_format, save_all=True, append_images=others, **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _turned(file_format: str, orientation: int, **options: object) -> bytes:
    """The picture as a camera that was held otherwise stores it, by what EXIF's orientations mean."""
    pixels = pictures.pixels()
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }[orientation]
    return pictures.save(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=_exif(orientation), **options)


def _huge_profile() -> bytes:
    parts = 160
    segments = (segment(0xE2, b"ICC_PROFILE\0" + bytes([part, parts]) + bytes(65_000)) for part in range(1, parts + 1))
    return insert_segments(pictures.jpeg(), b"".join(segments))


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("payload.sh", "id")
    return file.getvalue()
