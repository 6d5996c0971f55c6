from pathlib import Path

import pytest
from PIL import Image

from demo.pool import DIGIT_COUNTS, read_pool, write_digits


@pytest.mark.slow
def test_digits_have_a_long_tail(tmp_path: Path):
    write_digits(tmp_path)
    pool = read_pool(tmp_path, limit=1000, seed=0)
    assert pool.counts == {str(digit): count for digit, count in enumerate(DIGIT_COUNTS)}
    assert pool.rare == {"6", "7", "8", "9"}


def test_small_classes_are_rare(tmp_path: Path):
    """A class with less than half of the mean number of images is rare; among equal classes, one is."""
    write_digits(tmp_path, counts=(8,) * 10)
    assert len(read_pool(tmp_path, limit=80, seed=0).rare) == 1
    for path in [*sorted((tmp_path / "4").iterdir())[3:], *sorted((tmp_path / "7").iterdir())[4:]]:
        path.unlink()
    assert read_pool(tmp_path, limit=80, seed=0).rare == {"4"}


def test_names_and_order_of_digits_do_not_reveal_their_class(tmp_path: Path):
    """The order depends only on the seed; each image is an RGB PNG of a legible size."""
    write_digits(tmp_path, counts=(10, 10))
    pool = read_pool(tmp_path, limit=20, seed=3)
    assert pool == read_pool(tmp_path, limit=20, seed=3) != read_pool(tmp_path, limit=20, seed=4)
    assert [image.name for image in pool.images] == [f"image-{index:05}.png" for index in range(20)]
    with Image.open(pool.images[0].path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))


def test_a_limit_keeps_all_labels(tmp_path: Path):
    """A class whose images the limit removes stays in the labelling config."""
    write_digits(tmp_path, counts=(20, 1))
    pool = read_pool(tmp_path, limit=2, seed=0)
    assert len(pool.images) == 2
    assert pool.labels == ("0", "1")
