"""The cache of downloaded images: bounded, and who used it longest ago leaves first."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.errors import ConfigError
from contract.images.download import Validators
from trainer.labels.image_cache import ImageCache, Kept, open_cache
from trainer.settings import Environment

KEPT = Kept(Validators("http://host/a", '"1"', "Sat, 28 Nov 2026 10:00:00 GMT"), b"\n" + b"x" * 10_000)
ABOUT = 10_200
"""Bytes of one file, its head included."""


def taken(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def age(folder, cache, *sources):
    """Have what is kept be used at times an hour apart, in the order of the sources."""
    for number, source in enumerate(sources):
        path = cache._path(source)
        os.utime(path, (number * 3600, number * 3600))


def test_what_is_kept_comes_back(tmp_path):
    """Bytes, line breaks among them, and validators; also in the next process."""
    ImageCache(tmp_path, max_bytes=2**20).put("a", KEPT)
    assert ImageCache(tmp_path, max_bytes=2**20).get("a") == KEPT
    assert ImageCache(tmp_path, max_bytes=2**20).get("b") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: b"another image",
    ],
    ids=["one byte short", "empty", "one bit", "another image"],
)
def test_a_damaged_file_is_not_served(tmp_path, damage):
    """Until it is kept anew."""
    cache = ImageCache(tmp_path, max_bytes=2**20)
    cache.put("a", KEPT)
    (victim,) = tmp_path.iterdir()
    victim.write_bytes(damage(victim.read_bytes()))
    assert cache.get("a") is None
    cache.put("a", KEPT)
    assert cache.get("a") == KEPT


def test_a_crash_before_the_file_has_its_name_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    """Nor a file."""

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.labels.image_cache.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        ImageCache(tmp_path, max_bytes=2**20).put("a", KEPT)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_never_holds_more_than_the_bound(tmp_path):
    """Not even for the time of one file, and not by what lay there before."""
    for number in range(8):
        ImageCache(tmp_path, max_bytes=2**20).put(f"before {number}", KEPT)
    cache = ImageCache(tmp_path, max_bytes=5 * ABOUT)
    for number in range(20):
        cache.put(str(number), KEPT)
        assert taken(tmp_path) <= 5 * ABOUT
        assert cache.get(str(number)) == KEPT
    assert taken(tmp_path) > 2 * ABOUT


def test_who_was_used_longest_ago_leaves_first(tmp_path):
    """Reading is a use."""
    cache = ImageCache(tmp_path, max_bytes=4 * ABOUT)
    for source in "abcd":
        cache.put(source, KEPT)
    age(tmp_path, cache, *"abcd")
    cache.get("a")
    cache.put("e", KEPT)
    assert [source for source in "abcde" if cache.get(source)] == ["a", "d", "e"]


def test_a_replaced_file_counts_once(tmp_path):
    """An image that changes often pushes no other out."""
    cache = ImageCache(tmp_path, max_bytes=4 * ABOUT)
    cache.put("a", KEPT)
    for _ in range(20):
        cache.put("b", KEPT)
    assert cache.get("a") == KEPT


@pytest.mark.parametrize("max_bytes", [0, 9_999])
def test_what_is_larger_than_the_bound_is_not_kept(tmp_path, max_bytes):
    """Nor does it push others out; 0 keeps nothing."""
    cache = ImageCache(tmp_path / "cache", max_bytes=max_bytes)
    cache.put("a", KEPT)
    assert not (tmp_path / "cache").exists()


def test_threads_write_into_a_full_cache(tmp_path):
    """None loses the file that another is writing."""
    cache = ImageCache(tmp_path, max_bytes=3 * ABOUT)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: cache.put(str(number), KEPT), range(200)))
    assert taken(tmp_path) <= 3 * ABOUT
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_crash_left_is_removed_and_folders_are_not(tmp_path):
    """A partial file of an hour ago is nobody's; a new one may be another process's."""
    (tmp_path / "rank").mkdir()
    for name, when in ((".partial-old", 0), (".partial-new", None)):
        (tmp_path / name).write_bytes(b"x" * ABOUT)
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    cache = ImageCache(tmp_path, max_bytes=2 * ABOUT)
    for source in "ab":
        cache.put(source, KEPT)
    assert {path.name for path in tmp_path.iterdir() if path.name in {"rank", ".partial-old", ".partial-new"}} == {
        "rank",
        ".partial-new",
    }


def test_the_bound_is_a_setting(tmp_path):
    """In MiB; what is no number is named."""
    environment = Environment.read({"LABELNEXT_CACHE": str(tmp_path), "LABELNEXT_IMAGE_CACHE_MB": "0"})
    open_cache(environment).put("a", KEPT)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="LABELNEXT_IMAGE_CACHE_MB must be a whole number, got 'all'"):
        Environment.read({"LABELNEXT_IMAGE_CACHE_MB": "all"})
