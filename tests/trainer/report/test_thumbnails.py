import io

import pytest
from PIL import Image

from contract.errors import DecodeError
from trainer.report.thumbnails import thumbnail


def encoded(width, height, *, orientation=None, form="PNG", mode="RGB"):
    image = Image.new(mode, (width, height), 200)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded(400, 200), (160, 80)),
        (encoded(30, 20), (30, 20)),
        (encoded(1, 900), (1, 160)),
        (encoded(400, 200, orientation=6, form="JPEG"), (80, 160)),
        (encoded(400, 200, orientation=3, form="JPEG"), (160, 80)),
        (encoded(200, 200, mode="P"), (160, 160)),
        (encoded(200, 200, mode="I;16"), (160, 160)),
    ],
    ids=["wide", "small", "thin", "sideways", "upside-down", "palette", "16-bit"],
)
def test_thumbnail_keeps_the_aspect_ratio(data, size):
    with Image.open(io.BytesIO(thumbnail(data))) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", size, "RGB")


@pytest.mark.parametrize("data", [b"", b"no image", encoded(50, 50)[:60]])
def test_rejects_other_data_than_images(data):
    with pytest.raises(DecodeError):
        thumbnail(data)
