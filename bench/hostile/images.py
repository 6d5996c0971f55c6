"""Hostile image files: broken files, other formats and polyglots; and odd but valid files, which are scored."""

import gzip
import random
import struct
import zlib
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from PIL import Image, ImageCms

from bench.hostile import pictures
from bench.hostile.case import LOSSY, MEBIBYTE, PLAIN, PLAIN_LOSSY, Case, Scored, file_case, refused_decode, scored_as
from bench.hostile.pictures import chunk, insert_chunks, insert_segments, jpeg, picture, pixels, plain, segment
from bench.subjects.photos import save

_NO_IMAGE = refused_decode("expected one of JPEG, PNG")
_UNDECODABLE = refused_decode("cannot be decoded|expected one of JPEG")
_LIKE_JPEG = Scored(jpeg)
_RED = (230, 40, 30)


def cases() -> list[Case]:
    """Return the cases of this module, all of which are quick."""
    return [*_broken(), *_other_formats(), *_polyglots(), *_odd_but_valid(), *_metadata()]


def _broken() -> list[Case]:
    """Truncated and corrupt files."""
    formats = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
    return [
        *(
            file_case(f"{name.lower()}-cut-at-{share}-percent", _UNDECODABLE, partial(_cut, name, share))
            for name, share in product(formats, (10, 60))
        ),
        file_case("file-empty", refused_decode("got 0 bytes; check what"), lambda: b""),
        file_case("file-of-one-byte", _NO_IMAGE, lambda: b"\xff"),
        file_case("png-bad-checksum", _UNDECODABLE, lambda: pictures.replace(plain(), 29, bytes(4))),
        file_case(
            "png-bad-data-checksum", PLAIN, lambda: pictures.replace(plain(), plain().index(b"IEND") - 8, bytes(4))
        ),
        file_case("png-zlib-garbage", _UNDECODABLE, lambda: pictures.png(64, 64, b"garbage")),
        file_case("png-chunk-of-2-gb", _UNDECODABLE, lambda: plain()[:33] + struct.pack(">I4s", 2**31 - 1, b"prVt")),
        file_case("gif-bad-lzw", _UNDECODABLE, lambda: pictures.gif((8, 8), (8, 8), data=b"\xff" * 8)),
        file_case("file-of-noise", _NO_IMAGE, lambda: random.Random(0).randbytes(MEBIBYTE)),  # noqa: S311
    ]


def _other_formats() -> list[Case]:
    """Files of other formats; the error names the format."""
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
        "tiff-64-bit": ("TIFF that is broken or of a rare kind", pictures.tiff_of(bytes(8 * 64 * 64), bits=[64])),
        "png-signature-only": ("PNG that is broken", plain()[:8]),
        "git-lfs-pointer": (
            "a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        ),
        **{name.lower(): ("something else", save(picture(), name)) for name in ("TGA", "PCX", "SGI")},
    }
    return [
        file_case(
            name, refused_decode(rf"JPEG, PNG.*AVIF, got \d+ bytes of {kind}.*; save it as"), partial(bytes, data)
        )
        for name, (kind, data) in files.items()
    ]


def _polyglots() -> list[Case]:
    """Files that are valid in two formats, or declared as another type."""
    page, script = chunk(b"tEXt", b"a\0<script>alert(1)</script>"), b"*/=1;alert(1)//"
    return [
        file_case(
            "gif-and-javascript", PLAIN_LOSSY, lambda: save(picture(), "GIF") + script, content_type="text/javascript"
        ),
        file_case("jpeg-and-zip", _LIKE_JPEG, lambda: jpeg() + b"PK\5\6" + bytes(18)),
        file_case("png-and-html", PLAIN, lambda: insert_chunks(page), content_type="text/html"),
        file_case("pdf-and-jpeg", _NO_IMAGE, lambda: b"%PDF-1.7\n" + jpeg()),
        file_case("jpeg-sent-as-png", _LIKE_JPEG, jpeg),
        file_case("png-sent-as-text", PLAIN, plain, content_type="text/plain"),
        file_case("png-with-trailing-junk", PLAIN, lambda: plain().ljust(MEBIBYTE, b"\0")),
    ]


def _odd_but_valid() -> list[Case]:
    """Unusual but valid files, which must be scored by the pixels of their first page or frame."""
    grey = np.asarray(picture().convert("L"))
    bright = Image.fromarray(grey > 120)
    not_finite = np.where(grey > 120, np.inf, np.nan).astype(np.float32)  # white and black
    as_grey, black_and_white = (Scored(partial(_rgb, image)) for image in (Image.fromarray(grey), bright))
    return [
        file_case("webp-lossless", PLAIN, lambda: save(picture(), "WEBP", lossless=True)),
        file_case("webp-animated", PLAIN, lambda: _animated("WEBP", lossless=True)),
        file_case("apng", PLAIN, lambda: _animated("PNG")),
        file_case("gif-animated", PLAIN_LOSSY, lambda: _animated("GIF")),
        file_case("tiff-pages", PLAIN, lambda: _animated("TIFF")),
        file_case("jpeg-cmyk", PLAIN_LOSSY, lambda: save(picture().convert("CMYK"), "JPEG", quality=95)),
        file_case("jpeg-ycck", PLAIN_LOSSY, _ycck),
        file_case(
            "jpeg-grey", replace(as_grey, tolerance=LOSSY), lambda: save(picture().convert("L"), "JPEG", quality=95)
        ),
        file_case(
            "jpeg-progressive", Scored(jpeg, LOSSY), lambda: save(picture(), "JPEG", quality=95, progressive=True)
        ),
        file_case("png-16-bit-grey", as_grey, lambda: save(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")),
        file_case("png-16-bit-rgb", PLAIN, _png_16_bit),
        file_case("png-interlaced", PLAIN, _png_interlaced),
        file_case("png-palette-transparent", Scored(_quarter_white), _palette),
        file_case("png-rgb-transparent", Scored(_quarter_white), lambda: save(picture(), "PNG", transparency=_RED)),
        file_case("png-transparent", scored_as("white"), lambda: save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")),
        file_case("png-1-bit", black_and_white, lambda: save(bright, "PNG")),
        file_case("avif", PLAIN_LOSSY, lambda: save(picture(), "AVIF", quality=95, subsampling="4:4:4")),
        file_case(
            "tiff-16-bit-rgb", PLAIN, lambda: pictures.tiff_of((pixels().astype("<u2") * 257).tobytes(), bits=[16] * 3)
        ),
        file_case("tiff-float-0-to-1", as_grey, lambda: save(Image.fromarray(grey.astype(np.float32) / 255), "TIFF")),
        file_case("tiff-float", as_grey, lambda: save(Image.fromarray(grey.astype(np.float32)), "TIFF")),
        file_case("tiff-float-not-finite", black_and_white, lambda: save(Image.fromarray(not_finite), "TIFF")),
        file_case("tiff-32-bit", as_grey, lambda: save(Image.fromarray(grey.astype(np.int32)), "TIFF")),
        file_case("jpeg-51-megapixels", scored_as("black"), lambda: save(Image.new("RGB", (8_160, 6_250)), "JPEG")),
        file_case("bmp-top-down", PLAIN, lambda: pictures.bmp(64, -64, pixels()[..., ::-1].tobytes())),
        file_case("bmp-bottom-up", PLAIN, lambda: save(picture(), "BMP")),
        *(
            file_case(f"pixels-{width}x{height}", scored_as("red"), partial(pictures.flat, "red", width, height))
            for width, height in ((1, 1), (65_535, 1), (1, 65_535))
        ),
    ]


def _metadata() -> list[Case]:
    """EXIF orientations, which must be applied; colour profiles, which must be ignored; and broken metadata."""
    noise = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 500
    icc_noise = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 2_000)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        *(file_case(f"exif-orientation-{number}", PLAIN, partial(_rotated, "PNG", number)) for number in range(1, 9)),
        file_case("exif-orientation-jpeg", PLAIN_LOSSY, lambda: _rotated("JPEG", 6, quality=95)),
        file_case("exif-orientation-0", PLAIN, lambda: save(picture(), "PNG", exif=_exif(0))),
        file_case("exif-orientation-99", PLAIN, lambda: save(picture(), "PNG", exif=_exif(99))),
        file_case("exif-broken", _LIKE_JPEG, lambda: insert_segments(segment(0xE1, b"Exif\0\0MM\0*\0\0"))),
        file_case("exif-garbage", _LIKE_JPEG, lambda: insert_segments(segment(0xE1, noise))),
        file_case("exif-png-garbage", PLAIN, lambda: insert_chunks(chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 302))),
        file_case("exif-10-mb", _LIKE_JPEG, lambda: insert_segments(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 160)),
        file_case("icc-broken", _LIKE_JPEG, lambda: insert_segments(icc_noise)),
        file_case("icc-huge", _LIKE_JPEG, _huge_profile),
        file_case("icc-real", PLAIN, lambda: save(picture(), "PNG", icc_profile=srgb)),
    ]


def _cut(file_format: str, share: int) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    file = save(noise, file_format)
    return file[: len(file) * share // 100]


def _ycck() -> bytes:
    """Return a JPEG whose Adobe segment declares the components YCC and an inverted K."""
    cmyk = np.asarray(picture().convert("CMYK"))
    luminance = np.asarray(Image.fromarray(np.ascontiguousarray(cmyk[..., :3])).convert("YCbCr"))
    planes = np.dstack([255 - luminance, cmyk[..., 3]])  # Pillow inverts CMYK when it writes
    file = save(Image.frombytes("CMYK", (64, 64), planes.tobytes()), "JPEG", quality=95, subsampling=0)
    return pictures.replace(file, file.index(b"Adobe") + 11, b"\2")


def _png_16_bit() -> bytes:
    rows = (pixels().astype(">u2") * 257).astype(">u2")
    return pictures.png(64, 64, zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), depth=16)


def _png_interlaced() -> bytes:
    """Return the picture as an interlaced PNG: the seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels()[y::dy, x::dx])
    file = pictures.png(64, 64, zlib.compress(data))
    return file[:8] + chunk(b"IHDR", file[16:28] + b"\1") + file[33:]


def _palette() -> bytes:
    """Return the picture as a PNG with a palette whose first colour is transparent."""
    indices = np.kron(np.arange(4).reshape(2, 2), np.ones((32, 32))).astype(np.uint8)
    image = Image.frombytes("P", (64, 64), indices.tobytes())
    image.putpalette(pixels()[::63, ::63].tobytes())
    return save(image, "PNG", transparency=0)


def _quarter_white() -> bytes:
    whitened = pixels().copy()
    whitened[:32, :32] = 255
    return save(Image.fromarray(whitened), "PNG")


def _rgb(image: Image.Image) -> bytes:
    return save(image.convert("RGB"), "PNG")


def _animated(file_format: str, **options: object) -> bytes:
    others = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    return save(picture(), file_format, save_all=True, append_images=others, **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _rotated(file_format: str, orientation: int, **options: object) -> bytes:
    """Return the picture as stored by a camera with this EXIF orientation."""
    upright = pixels()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    return save(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=_exif(orientation), **options)


def _huge_profile() -> bytes:
    parts = 160
    segments = (segment(0xE2, b"ICC_PROFILE\0" + bytes([part, parts]) + bytes(65_000)) for part in range(1, parts + 1))
    return insert_segments(b"".join(segments))
