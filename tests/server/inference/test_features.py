import hashlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest

from contract.images.download import Validators
from server.inference.features import MAX_ROW_BYTES, Download, FeatureCache

DIGEST = hashlib.sha256(b"a file").digest()


@dataclass
class Engine:
    trunk_key: str = "trunk/fp32/cpu"
    features: int = 4


@pytest.fixture
def faults():
    return Counter()


@pytest.fixture
def open_cache(tmp_path, faults):
    def make():
        return closing(
            FeatureCache(tmp_path / "cache", max_bytes=2**22, count_fault=lambda kind: faults.update([kind]))
        )

    return make


@pytest.fixture
def cache(open_cache):
    with open_cache() as opened:
        yield opened


def make_row(count=4, first=0.0):
    row = np.linspace(0, 1 / 3, count, dtype=np.float32)
    row[0] = first
    return row


def test_rows_come_back_bit_for_bit(open_cache):
    """Before they are written as after another start of the server."""
    with open_cache() as cache:
        cache.put(Engine(), DIGEST, make_row())
        np.testing.assert_array_equal(cache.get(Engine(), DIGEST), make_row())
    with open_cache() as cache:
        found = cache.get(Engine(), DIGEST)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, make_row())


def test_a_row_is_that_of_its_trunk_and_its_file(cache):
    """Another trunk, precision or provider computes other features, and of another file, too."""
    cache.put(Engine(), DIGEST, make_row())
    assert cache.get(Engine(trunk_key="trunk/int8/cpu"), DIGEST) is None
    assert cache.get(Engine(), hashlib.sha256(b"another").digest()) is None


def test_a_row_of_another_length_is_none(cache):
    """Whatever went wrong, the graph is not fed with it."""
    cache.put(Engine(), DIGEST, make_row(5))
    assert cache.get(Engine(), DIGEST) is None


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_kept(cache, number):
    """A device that failed once must not fail for that image ever after."""
    cache.put(Engine(), DIGEST, make_row(first=number))
    assert cache.get(Engine(), DIGEST) is None


@pytest.mark.parametrize(("over", "kept"), [(0, True), (1, False)])
def test_long_rows_are_not_kept(cache, over, kept):
    """Up to 256 KiB an image."""
    count = MAX_ROW_BYTES // 4 + over
    cache.put(Engine(), DIGEST, make_row(count))
    assert (cache.get(Engine(features=count), DIGEST) is not None) == kept


@pytest.mark.parametrize(
    "validators",
    [
        Validators("http://a:80", '"tag"', None),
        Validators("http://a:80", None, "Mon, 01 Jan 2024 00:00:00 GMT"),
        Validators("https://b:443", 'W/"tag"', "Mon, 01 Jan 2024 00:00:00 GMT"),
    ],
)
def test_downloads_come_back(cache, validators):
    """With the digest of the bytes that the validators belong to."""
    download = Download(validators, DIGEST)
    cache.remember("http://a/image.png", download)
    assert cache.recall("http://a/image.png") == download
    assert cache.recall("http://a/other.png") is None


def test_the_file_holds_no_address(open_cache, tmp_path):
    """URLs may be signed, and what is signed may be private."""
    with open_cache() as cache:
        cache.remember(
            "http://host/private.png?signature=s3cret", Download(Validators("http://host:80", '"tag"', None), DIGEST)
        )
    files = list((tmp_path / "cache").iterdir())
    assert files
    assert not any(secret in file.read_bytes() for file in files for secret in (b"private", b"s3cret"))


def test_addresses_may_hold_anything(cache):
    """JSON may carry half a surrogate pair into a reference."""
    cache.remember("http://host/\ud800.png", Download(Validators("http://host:80", '"tag"', None), DIGEST))
    assert cache.recall("http://host/\ud800.png") is not None
