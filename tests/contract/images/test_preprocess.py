import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from bench.hostile import bombs, images, pictures
from bench.hostile.case import Refused
from bench.hostile.site import SAME
from contract.errors import DecodeError
from contract.images import preprocess
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec

SPEC = InputSpec(height=32, width=48)
WHOLE = InputSpec(pictures.SIDE, pictures.SIDE)


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.slow
def test_large_jpeg_is_decoded_almost_as_at_full_size():
    y, x = np.mgrid[0:1200, 0:1600]
    smooth = np.stack([x / 1600, y / 1200, (x + y) / 2800], axis=2) * 255
    jpeg = encode(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(jpeg)).resize((48, 32), Image.Resampling.BILINEAR)
    assert np.abs(decode_image(jpeg, SPEC).astype(int) - np.asarray(full)).max() <= 3


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("file", [*bombs.small_files(), *images.cases()], ids=lambda file: file.name)
def test_hostile_files_are_decoded_or_rejected_by_name(file):
    """All files of bench/hostile that are quick to make."""
    if isinstance(file.outcome, Refused):
        with pytest.raises(DecodeError, match=file.outcome.reason):
            decode_image(file.make(None), WHOLE)
    else:
        pixels, expected = (decode_image(data, WHOLE).astype(int) for data in (file.make(None), file.outcome.like()))
        assert np.abs(pixels - expected).mean() <= (0 if file.outcome.tolerance == SAME else 2)


def expected_pixels(data, spec):
    """Return the expected pixels of an 8-bit file, computed with Pillow."""
    with Image.open(io.BytesIO(data)) as file:
        file.draft("RGB", (2 * max(spec.width, spec.height),) * 2)
        image = file.convert("RGBA") if file.has_transparency_data else file.convert("RGB")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BILINEAR))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "CMYK", "1")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("BMP", mode) for mode in ("RGB", "L")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        ("GIF", "P"),
    ],
)
def test_8_bit_levels_are_unchanged(file_format, mode):
    """Without colour profiles or stretching; published versions were trained on these pixels."""
    levels = np.random.default_rng(1).integers(20, 90, (210, 300, 4), dtype=np.uint8)
    image = Image.fromarray(levels).convert(mode)
    data = encode(image, file_format, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    pixels = decode_image(data, SPEC)
    assert (pixels.shape, pixels.dtype) == ((32, 48, 3), np.uint8)
    np.testing.assert_array_equal(pixels, expected_pixels(data, SPEC))


SQUARE = InputSpec(height=16, width=16)
RAMP = np.arange(256).reshape(16, 16)


def grey_levels(levels, file_format="TIFF", *, dtype=None, **options):
    """Encode an array, and return its decoded grey levels, at the same size."""
    image = Image.fromarray(np.asarray(levels, dtype))
    pixels = decode_image(encode(image, file_format, **options), SQUARE)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def up_to(greatest):
    return np.linspace(0, greatest, 256).round().reshape(16, 16)


@pytest.mark.parametrize(
    ("file_format", "dtype", "levels", "tags", "declared"),
    [
        *((kind, np.uint16, up_to(top), {}, (0, 65535)) for kind in ("PNG", "TIFF") for top in (1, 255, 4095, 65535)),
        *(("TIFF", np.uint16, up_to(2**bits // 2), {281: 2**bits - 1}, (0, 2**bits - 1)) for bits in (9, 10, 12, 14)),
        ("TIFF", np.uint16, RAMP * 10, {281: 2550}, (0, 65535)),
        *(("TIFF", np.float32, RAMP * top / 255, {}, (0, 1)) for top in (0.2, 1.0)),
        *(("TIFF", kind, np.minimum(RAMP, top), {}, (0, 255)) for kind in (np.float32, np.int32) for top in (40, 255)),
        ("TIFF", np.float32, RAMP * 61.5 / 255 - 20, {340: -20.0, 341: 80.0}, (-20, 80)),
    ],
)
def test_deep_grey_is_scaled_by_its_declared_range(file_format, dtype, levels, tags, declared):
    """Brightness does not depend on the rest of the image.

    16-bit files have the full range, unless MaxSampleValue is the maximum of a lower depth, not just of the image;
    floats have that of SMinSampleValue and SMaxSampleValue, or else shares of 1 or whole numbers up to 255.
    """
    (black, white), exact = declared, levels.astype(dtype).astype(float)
    options = {"tiffinfo": tags} if tags else {}
    grey = grey_levels(levels, file_format, dtype=dtype, **options)
    np.testing.assert_array_equal(grey, np.round((exact - black) / (white - black) * 255))


def big_endian():
    """16 bits, big-endian."""
    tags = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: 16, 279: 512}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries
    return head.ljust(200, b"\0") + (RAMP * 257).astype(">u2").tobytes(), RAMP[..., None]


def packed():
    """12 bits per sample."""
    levels = np.linspace(0, 4095, 256).round().astype(np.uint16)
    pairs = levels.reshape(-1, 2)
    triples = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    tags = {**pictures.tiff_tags(16, 16, bits=[12]), 262: [1], 279: [384]}
    return pictures.tiff(tags, triples.astype(np.uint8).tobytes()), np.round(levels / 4095 * 255).reshape(16, 16, 1)


def negative():
    """WhiteIsZero, as in X-rays; Pillow inverts it only up to 8 bits."""
    tags = {**pictures.tiff_tags(16, 16, bits=[16]), 262: [0], 279: [512]}
    return pictures.tiff(tags, (RAMP * 257).astype("<u2").tobytes()), 255 - RAMP[..., None]


def compressed_planes():
    """Compressed planes of 16 bits, which libtiff decodes correctly."""
    planes = [np.full((64, 64), level * 257, "<u2") for level in (200, 100, 50)]
    compressed = [zlib.compress(plane.tobytes()) for plane in planes]
    tags = {
        **pictures.tiff_tags(64, 64, bits=[16] * 3, compression=8),
        284: [2],
        279: [len(each) for each in compressed],
    }
    head = len(pictures.tiff({**tags, 273: [0] * 3}))
    offsets = [head + sum(map(len, compressed[:before])) for before in range(3)]
    return pictures.tiff({**tags, 273: offsets}, b"".join(compressed)), [200, 100, 50]


@pytest.mark.parametrize("make", [big_endian, packed, negative, compressed_planes])
def test_layouts_of_tiff(make):
    data, expected = make()
    np.testing.assert_array_equal(decode_image(data, SQUARE), np.broadcast_to(expected, (16, 16, 3)))


@pytest.mark.parametrize(
    "scale",
    [
        lambda level: level,
        lambda level: level << 4,
        lambda level: level << 4 | level >> 8,
        lambda level: np.round(level * 65535 / 4095),
    ],
    ids=["not-at-all", "zeros", "upper-bits", "rounded"],
)
@pytest.mark.parametrize("brightest", [200, 4095])
def test_png_is_scaled_by_its_significant_bits(scale, brightest):
    """Whether or not levels were scaled to 16 bits, as PNG requires."""
    levels = up_to(brightest).astype(np.int64)
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([12]))
    grey = grey_levels(scale(levels), "PNG", dtype=np.uint16, pnginfo=info)
    assert np.abs(grey - levels / 4095 * 255).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        *((np.float32, 0, high) for high in (256, 1.01, 1000, 65535, 255 * 2**15)),
        *((np.float32, low, high) for low, high in ((-20, 41.5), (-1, 1))),
        *((np.int32, low, high) for low, high in ((0, 2**31 - 1), (0, 100_000), (0, 4095), (-1024, 3071))),
    ],
)
def test_undeclared_range_is_that_of_the_levels(dtype, low, high):
    """From 0, or a lower minimum, to the maximum: the image is neither all black nor all white."""
    levels = np.linspace(low, high, 256)
    grey = grey_levels((levels.round() if dtype == np.int32 else levels).reshape(16, 16), dtype=dtype)
    assert len(np.unique(grey)) > 250
    assert (np.diff(grey.ravel().astype(int)) >= 0).all()
    assert (grey.min(), grey.max()) == (0, 255)


@pytest.mark.parametrize(("missing", "expected"), [(np.finfo(np.float32).min, 0), (np.nan, 0), (np.inf, 255)])
def test_missing_data_does_not_affect_the_range(missing, expected):
    """The lowest float marks missing data; like NaN it must not reduce the contrast."""
    levels = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    levels[0] = missing
    grey = grey_levels(levels)
    assert (grey[0] == expected).all()
    np.testing.assert_array_equal(grey[1:], np.round(levels[1:].astype(float) * 255))


@pytest.mark.parametrize(
    ("bits", "tags", "reason"),
    [
        ([16] * 3, {284: [2], 273: [-1] * 3}, "colours of 16 bits in planes"),
        ([8], {339: [2]}, "levels of 8 bits with a sign"),
    ],
)
def test_rejects_tiffs_that_pillow_misreads(bits, tags, reason):
    """Pillow would read single bytes of 16-bit levels, and negative levels as levels above 127."""
    levels = np.arange(64 * 64, dtype=np.uint16) * 16
    with pytest.raises(DecodeError, match=reason):
        decode_image(pictures.tiff_of(levels.tobytes(), bits=bits, extra=tags), SQUARE)


def test_transparent_16_bit_level_is_white():
    grey = grey_levels(RAMP * 257, "PNG", dtype=np.uint16, transparency=257 * 3)
    assert (grey[RAMP == 3] == 255).all()
    np.testing.assert_array_equal(grey[RAMP != 3], RAMP[RAMP != 3])


@pytest.fixture(scope="module")
def large():
    """JPEGs of more than a megapixel."""
    image = Image.new("RGB", (1280, 960), (90, 120, 30))
    return {
        "plain": encode(image, "JPEG"),
        "sequential": encode(image, "JPEG", exif=make_exif()),
        "progressive": encode(image, "JPEG", progressive=True),
    }


def make_exif():
    """Return EXIF data with a thumbnail, a JPEG with a scan."""
    exif = Image.Exif()
    exif[0x010E] = "a camera"
    return exif.tobytes() + encode(Image.new("L", (16, 16)), "JPEG")


def test_limit_of_a_jpeg_applies_to_its_decoded_size(large):
    """An eighth of each side, unless the graph's input is larger or the JPEG is progressive."""
    pixels = decode_image(large["sequential"], SPEC, max_megapixels=1)
    assert np.abs(pixels.astype(int) - [90, 120, 30]).max() <= 2
    for name, spec in (("sequential", InputSpec(height=4096, width=4096)), ("progressive", SPEC)):
        with pytest.raises(DecodeError, match=r"1280 x 960 pixels, at most 1000000 .* raise LABELNEXT_MAX_MEGAPIXELS"):
            decode_image(large[name], spec, max_megapixels=1)
    assert decode_image(large["progressive"], SPEC, max_megapixels=2).shape == (32, 48, 3)


@pytest.mark.parametrize(
    "change",
    [lambda jpeg: jpeg[:2] + b"\xff" * 3 + jpeg[2:], lambda jpeg: jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1)],
    ids=["fill-bytes", "arithmetic-coding"],
)
def test_limit_of_an_unusual_jpeg_applies_to_all_its_pixels(large, change):
    """Decoding it may need memory for all of them."""
    with pytest.raises(DecodeError, match="1280 x 960 pixels"):
        decode_image(change(large["plain"]), SPEC, max_megapixels=1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "I", "F"])
def test_strips_do_not_change_pixels(mode, monkeypatch):
    levels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    deep = levels[..., :2].copy().view(np.uint16)[..., 0]
    deep_images = {"I;16": deep, "I": deep.astype(np.int32) - 9000, "F": deep.astype(np.float32) / 3}
    image = Image.fromarray(deep_images[mode]) if mode in deep_images else Image.fromarray(levels).convert(mode)
    data = encode(image, "TIFF")
    whole = decode_image(data, SPEC)
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", 3 * 40)
    np.testing.assert_array_equal(decode_image(data, SPEC), whole)


def test_rejects_files_with_too_many_segments(monkeypatch):
    """Pillow reads segments one by one and holds the GIL."""
    monkeypatch.setattr(preprocess, "_MAX_READS", 100)
    plain = encode(Image.new("RGB", (96, 64), "red"), "JPEG")
    with pytest.raises(DecodeError, match="more than 100 parts"):
        decode_image(plain[:2] + b"\xff\xef\0\x02" * 200 + plain[2:], SPEC)


def test_rejects_jpegs_with_too_many_scans(monkeypatch):
    """Each scan visits all pixels; a thousand scans take a few kilobytes."""
    plain = encode(Image.new("RGB", (96, 64), "red"), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    many = plain[:-2] + last * 100 + plain[-2:]
    np.testing.assert_array_equal(decode_image(many, SPEC), decode_image(plain, SPEC))
    monkeypatch.setattr(preprocess, "_MAX_SCANNED_PIXELS", 50 * 96 * 64)
    with pytest.raises(DecodeError, match="110 scans"):
        decode_image(many, SPEC)
    assert decode_image(plain, SPEC).any()


def test_large_images_wait_for_each_other():
    """Pixels in memory are bounded for any number of threads; a larger image is decoded alone."""
    limit = preprocess._PixelLimit(100)
    inside, peak, lock = 0, 0, threading.Lock()

    def hold(pixels):
        nonlocal inside, peak
        with limit.reserved(pixels):
            with lock:
                inside += min(pixels, 100)
                peak = max(peak, inside)
            with lock:
                inside -= min(pixels, 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [30, 60, 100, 10, 250] * 100))
    assert (inside, limit._free) == (0, 100)
    assert 0 < peak <= 100
