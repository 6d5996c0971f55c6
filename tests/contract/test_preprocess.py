"""From bytes to pixels: formats, orientation, transparency, depth, and what is refused."""

import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from contract import preprocess
from contract.errors import DecodeError
from contract.manifest import InputSpec
from contract.preprocess import decode_image

SPEC = InputSpec(height=32, width=48)


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(mode="RGB", size=(96, 64)):
    """Red at the left, blue at the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image.convert(mode)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_becomes_rgb_of_the_graphs_size(file_format, mode):
    """All formats give uint8 (H, W, 3)."""
    pixels = decode_image(encode(photo(mode), file_format), SPEC)
    assert pixels.shape == (32, 48, 3)
    assert pixels.dtype == np.uint8


def test_pixels_are_those_of_a_plain_bilinear_resize():
    """A PNG is decoded, resized with Pillow's antialiasing bilinear filter, and nothing else."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 70, 3), dtype=np.uint8))
    expected = np.asarray(noise.resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_image(encode(noise), SPEC), expected)


def test_large_jpeg_gives_almost_the_pixels_of_a_full_decode():
    """Decoding a JPEG at a fraction of its size changes smooth pixels by a few levels at most."""
    y, x = np.mgrid[0:1200, 0:1600]
    smooth = np.stack([x / 1600, y / 1200, (x + y) / 2800], axis=2) * 255
    jpeg = encode(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(jpeg)).resize((48, 32), Image.Resampling.BILINEAR)
    assert np.abs(decode_image(jpeg, SPEC).astype(int) - np.asarray(full)).max() <= 3


STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation to how a camera that writes it has turned the upright picture."""


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_undone(orientation):
    """All eight EXIF orientations come out as the upright image."""
    turn = STORED[orientation]
    stored = photo() if turn is None else photo().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(encode(stored, exif=exif), SPEC)
    np.testing.assert_array_equal(pixels[:, 5], np.tile([255, 0, 0], (32, 1)))
    np.testing.assert_array_equal(pixels[:, -5], np.tile([0, 0, 255], (32, 1)))


def test_transparency_is_laid_over_white():
    """What a viewer shows as white is white to the model, with an alpha channel or a palette."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode_image(encode(clear), SPEC) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert (decode_image(encode(palette, transparency=0), SPEC) == 255).all()


def test_16_bit_greyscale_is_scaled_to_8():
    """The high byte is kept, where Pillow's own conversion would clip nearly everything to white."""
    grey = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert (decode_image(encode(grey), SPEC) == 128).all()


def test_cmyk_becomes_rgb():
    """Print JPEGs are converted."""
    assert decode_image(encode(photo("CMYK"), "JPEG"), SPEC).shape == (32, 48, 3)


def test_first_frame_of_an_animation_is_used():
    """An animated GIF is scored by its first frame."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, SPEC)[0, 0], [255, 0, 0])


def bomb(width, height):
    """A PNG of a few dozen bytes that claims to be huge."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "got 0 bytes", id="empty"),
        pytest.param(b"<html>not found</html>", "expected one of JPEG, PNG", id="web-page"),
        pytest.param(encode(photo(), "PPM"), "expected one of JPEG, PNG", id="format-not-allowed"),
        pytest.param(encode(photo())[:-60], "cannot be decoded", id="png-cut-short"),
        pytest.param(encode(photo(size=(640, 480)), "JPEG")[:700], "cannot be decoded", id="jpeg-cut-short"),
        pytest.param(bomb(10_000, 10_000), "at most 50000000", id="pixel-bomb-that-pillow-only-warns-of"),
        pytest.param(bomb(30_000, 30_000), "cannot be decoded|at most", id="pixel-bomb"),
    ],
)
def test_bytes_that_cannot_be_scored_are_refused(data, message):
    """Each refusal is a DecodeError that says what came."""
    with pytest.raises(DecodeError, match=message):
        decode_image(data, SPEC)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "I", "F"])
def test_strips_change_no_pixel(mode, monkeypatch):
    """An image that is converted in many strips comes out as one that is converted as a whole."""
    levels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    deep = levels[..., :2].copy().view(np.uint16)[..., 0]
    made = {"I;16": deep, "I": deep.astype(np.int32) - 9000, "F": deep.astype(np.float32) / 3}
    image = Image.fromarray(made[mode]) if mode in made else Image.fromarray(levels).convert(mode)
    data = encode(image, "TIFF")
    whole = decode_image(data, SPEC)
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", 3 * 40)
    np.testing.assert_array_equal(decode_image(data, SPEC), whole)


def test_what_is_no_number_is_black():
    """A float image may hold NaN and infinities."""
    levels = np.full((32, 48), 100, np.float32)
    levels[:, 24:], levels[16:, 24:] = np.nan, np.inf
    pixels = decode_image(encode(Image.fromarray(levels), "TIFF"), SPEC)
    assert (pixels[:8, 30:] == 0).all()
    assert (pixels[20:, 30:] == 255).all()


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("broken", [b"MM\0*\0\0", b"II*\0\xff\xff\xff\x7f" + b"\xff" * 200, b"MM\0*\0\0\0\x08\xff\xff"])
def test_an_orientation_that_cannot_be_read_is_none(broken):
    """A picture is not lost for its EXIF."""
    plain = encode(photo(), "JPEG")
    segment = b"Exif\0\0" + broken
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    np.testing.assert_array_equal(decode_image(data, SPEC), decode_image(plain, SPEC))


def test_a_file_of_nothing_but_parts_is_refused(monkeypatch):
    """Pillow walks them one by one while it holds the interpreter's lock."""
    monkeypatch.setattr(preprocess, "_MAX_READS", 100)
    plain = encode(photo(), "JPEG")
    with pytest.raises(DecodeError, match="more than 100 parts"):
        decode_image(plain[:2] + b"\xff\xef\0\x02" * 200 + plain[2:], SPEC)


def test_a_jpeg_of_too_many_scans_is_refused(monkeypatch):
    """Each passes over all pixels, and a thousand fit into a few kilobytes."""
    plain = encode(photo(), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    many = plain[:-2] + last * 100 + plain[-2:]
    np.testing.assert_array_equal(decode_image(many, SPEC), decode_image(plain, SPEC))
    monkeypatch.setattr(preprocess, "_MAX_SCANNED_PIXELS", 50 * 96 * 64)
    with pytest.raises(DecodeError, match="110 scans"):
        decode_image(many, SPEC)
    assert decode_image(plain, SPEC).any()


def test_a_small_tiff_in_a_giant_tile_is_refused():
    """The tile is what memory is taken for."""
    tiles = {322: 30_000, 323: 23_000, 324: 8, 325: 8}
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, **tiles}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100)
    with pytest.raises(DecodeError, match="30000 x 23000 pixels"):
        decode_image(data, SPEC)


def test_large_images_wait_for_each_other(monkeypatch):
    """However many threads decode, pixels in memory are bounded; an image larger than the room gets it alone."""
    room = preprocess._Room(100)
    inside, most, lock = 0, 0, threading.Lock()

    def hold(pixels):
        nonlocal inside, most
        with room.taken(pixels):
            with lock:
                inside += min(pixels, 100)
                most = max(most, inside)
            with lock:
                inside -= min(pixels, 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [30, 60, 100, 10, 250] * 100))
    assert (inside, room._free) == (0, 100)
    assert 0 < most <= 100
