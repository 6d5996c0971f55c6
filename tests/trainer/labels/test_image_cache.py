import os

import pytest

from contract.errors import ConfigError
from contract.images.download import Validators
from trainer.labels.image_cache import ImageCache, open_cache
from trainer.settings import Environment

FILE = (Validators("http://host/a", '"1"', "Sat, 28 Nov 2026 10:00:00 GMT"), b"\n" + b"x" * 10_000)
FILE_BYTES = 10_200
"""Approximate size of a cached file, with its header."""


def total_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"", lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]],
    ids=["one byte short", "empty", "one bit"],
)
def test_returns_cached_files_unless_damaged(tmp_path, damage):
    ImageCache(tmp_path, max_bytes=2**20).put("a", *FILE)
    cache = ImageCache(tmp_path, max_bytes=2**20)
    assert (cache.get("a"), cache.get("b")) == (FILE, None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("a") is None
    cache.put("a", *FILE)
    assert cache.get("a") == FILE


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.labels.image_cache.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        ImageCache(tmp_path, max_bytes=2**20).put("a", *FILE)
    assert list(tmp_path.iterdir()) == []


def test_folder_stays_within_its_limit(tmp_path):
    """Partial files older than an hour are removed; newer ones may belong to another process. Subfolders stay."""
    (tmp_path / "rank").mkdir()
    for name in (".partial-old", ".partial-new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".partial-old", (0, 0))
    for number in range(8):
        ImageCache(tmp_path, max_bytes=2**20).put(f"before {number}", *FILE)
    cache = ImageCache(tmp_path, max_bytes=5 * FILE_BYTES)
    for number in range(20):
        cache.put(str(number), *FILE)
        assert total_bytes(tmp_path) <= 5 * FILE_BYTES
        assert cache.get(str(number)) == FILE
    assert total_bytes(tmp_path) > 2 * FILE_BYTES
    assert {".partial-new", "rank"} < {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / ".partial-old").exists()


def test_evicts_the_least_recently_used_file_first(tmp_path):
    cache = ImageCache(tmp_path, max_bytes=4 * FILE_BYTES)
    for number, source in enumerate("abcd"):
        cache.put(source, *FILE)
        os.utime(cache._path(source), (number * 3600, number * 3600))
    cache.get("a")
    cache.put("e", *FILE)
    assert [source for source in "abcde" if cache.get(source)] == ["a", "d", "e"]


def test_limit_is_a_setting(tmp_path):
    environment = Environment.read({"LABELNEXT_CACHE": str(tmp_path), "LABELNEXT_IMAGE_CACHE_MB": "0"})
    for cache in (open_cache(environment), ImageCache(tmp_path, max_bytes=9_999)):
        cache.put("a", *FILE)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="LABELNEXT_IMAGE_CACHE_MB must be a whole number, got 'all'"):
        Environment.read({"LABELNEXT_IMAGE_CACHE_MB": "all"})
