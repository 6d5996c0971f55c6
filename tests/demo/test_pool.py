"""The demo's images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from demo.pool import DIGIT_COUNTS, read_pool, write_digits
from demo.processes import DemoError


@pytest.mark.slow
def test_digits_have_a_long_tail(tmp_path: Path):
    """One class is in front, and the classes with few images are called rare."""
    write_digits(tmp_path)
    pool = read_pool(tmp_path, limit=1000, seed=0)
    assert pool.counts == {str(digit): count for digit, count in enumerate(DIGIT_COUNTS)}
    assert pool.rare == {"6", "7", "8", "9"}


def test_of_many_classes_few_are_rare(tmp_path: Path):
    """Where all classes have as many images, one stands for the rare ones; what has less than half of that is rare."""
    write_digits(tmp_path, counts=(8,) * 10)
    assert len(read_pool(tmp_path, limit=80, seed=0).rare) == 1
    for path in [*sorted((tmp_path / "4").iterdir())[3:], *sorted((tmp_path / "7").iterdir())[4:]]:
        path.unlink()
    assert read_pool(tmp_path, limit=80, seed=0).rare == {"4"}


def test_digits_are_real_image_files(tmp_path: Path):
    """Each is a PNG in colour that a person can read."""
    write_digits(tmp_path, counts=(2,))
    for path in tmp_path.glob("0/*"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))


def test_a_pool_is_the_same_for_the_same_seed(tmp_path: Path):
    """The order depends on the seed alone."""
    write_digits(tmp_path, counts=(10, 10))
    assert read_pool(tmp_path, limit=20, seed=3) == read_pool(tmp_path, limit=20, seed=3)
    assert read_pool(tmp_path, limit=20, seed=3) != read_pool(tmp_path, limit=20, seed=4)


def test_uploaded_names_hide_the_class(tmp_path: Path):
    """An image is uploaded under a name that is its own and says nothing."""
    write_digits(tmp_path, counts=(5, 5))
    names = [image.name for image in read_pool(tmp_path, limit=10, seed=0).images]
    assert names == [f"image-{index:05}.png" for index in range(10)]


def test_a_limit_keeps_all_labels(tmp_path: Path):
    """A class that the limit leaves without images stays in the labelling config."""
    write_digits(tmp_path, counts=(20, 1))
    pool = read_pool(tmp_path, limit=2, seed=0)
    assert len(pool.images) == 2
    assert pool.labels == ("0", "1")


def test_a_folder_without_classes_is_refused(tmp_path: Path):
    """One class is no classification."""
    write_digits(tmp_path, counts=(3,))
    with pytest.raises(DemoError, match="two or more class folders with images, found 1"):
        read_pool(tmp_path, limit=10, seed=0)
