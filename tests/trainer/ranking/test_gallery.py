import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from contract.errors import DecodeError, FetchError
from trainer.ranking.gallery import SHOWN, choose, show, thumbnail, to_thumbnail
from trainer.ranking.plan import Planned

REGION = {"value": {"choices": ["cat", "dog"]}, "score": 0.75}

items = st.lists(
    st.builds(
        Planned,
        task=st.integers(1, 999),
        score=st.floats(0, 1),
        result=st.just([REGION]),
        reason=st.just("why"),
        bald=st.none() | st.floats(0, 0.7),
        audit=st.booleans(),
    ),
    unique_by=lambda item: item.task,
    max_size=40,
)


def encoded(width, height, *, orientation=None, form="PNG", mode="RGB"):
    image = Image.new(mode, (width, height), 200)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    return buffer.getvalue()


@given(items)
def test_shown_are_the_head_and_what_the_model_is_surest_of(planned):
    """Not those that chance has placed: they say nothing of either."""
    head, sure = choose(planned)
    placed = [item for item in planned if not item.audit]
    assert head == placed[:SHOWN]
    balds = sorted(item.bald for item in placed if item.bald is not None)
    assert [item.bald for item in sure] == balds[:SHOWN]


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
def test_a_thumbnail_keeps_the_shape(data, size):
    """Upright, and no larger than 160 pixels."""
    with Image.open(io.BytesIO(thumbnail(data))) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", size, "RGB")


@pytest.mark.parametrize("data", [b"", b"no image", encoded(50, 50)[:60]])
def test_what_is_no_image_is_refused(data):
    """By the error that leaves it out."""
    with pytest.raises(DecodeError):
        thumbnail(data)


def test_images_that_cannot_be_had_are_left_out_and_the_others_keep_their_order():
    """A gallery with a gap is better than none."""

    def fetch(task):
        if task == 2:
            raise FetchError("gone")
        return b"no image" if task == 3 else encoded(8, 8)

    planned = [Planned(task, task / 10, [REGION], "why", bald=0.5, audit=False) for task in (1, 2, 3, 4)]
    shown = show([*planned, Planned(5, 0.9, [], "covers", bald=None, audit=False)], fetch)
    assert [(image.task, image.label, image.probability, image.bald) for image in shown] == [
        (1, "cat, dog", 0.75, 0.5),
        (4, "cat, dog", 0.75, 0.5),
        (5, None, None, None),
    ]


@pytest.mark.parametrize(("side", "expected"), [(32, 32), (160, 160), (224, 160)])
def test_decoded_pixels_are_shrunk_and_never_enlarged(side, expected):
    """At most 160 a side, as JPEG."""
    with Image.open(io.BytesIO(to_thumbnail(np.zeros((side, side, 3), np.uint8)))) as image:
        assert (image.format, image.size) == ("JPEG", (expected, expected))


def test_a_nested_label_is_shown_as_the_path_to_it():
    """As the model has it."""
    region = {"value": {"choices": [["colour", "red"], ["plain"]]}, "score": 0.75}
    planned = Planned(task=1, score=0.5, result=[region], reason="why", bald=0.1, audit=False)
    (shown,) = show([planned], lambda task: encoded(20, 20))
    assert shown.label == "colour > red, plain"
