import hashlib
import re
import resource
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from contract.errors import ConfigError, FetchError
from contract.features.store import FeatureStore
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from tests.trainer.small import small_backbone, write_folders
from trainer.model.frozen import FrozenBackbone, freeze
from trainer.study import dataset, features
from trainer.study.dataset import read_pool
from trainer.study.features import compute_features, decode

pytestmark = pytest.mark.slow  # trains or exports networks

SIZE = 32
ROWS = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("images") / "colours", each=40)


@pytest.fixture(scope="module")
def pool(folder):
    return read_pool(folder, None)


@pytest.fixture(scope="module")
def decoded(pool, tmp_path_factory):
    return decode(pool, image_size=SIZE, cache=tmp_path_factory.mktemp("pixels"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def files(cache, kind):
    return sorted(cache.glob(f"{kind}-*.npy"))


class TestDecode:
    def test_pixels_equal_those_of_the_server(self, pool, decoded, monkeypatch):
        """In the order of the pool, memory-mapped read-only, and decoded once."""
        assert decoded.images.shape == (120, SIZE, SIZE, 3)
        for image, pixels in enumerate(decoded.images):
            assert pixels.tobytes() == decode_image(pool.read(image), InputSpec(SIZE, SIZE)).tobytes()
        assert decoded.readable.all()
        assert not decoded.images.flags.writeable
        monkeypatch.setattr(dataset, "_read", None)
        assert decode(pool, image_size=SIZE, cache=decoded.path.parent).path == decoded.path

    def test_unreadable_images_are_reported_and_black(self, tmp_path, cache):
        folder = write_folders(tmp_path / "colours", each=20)
        names = ["blue/000.png", "red/002.png", "red/059.png"]
        (folder / names[0]).write_bytes(b"not an image")
        (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:60])
        pool = read_pool(folder, None)
        (folder / names[2]).unlink()
        for _ in range(2):
            decoded = decode(pool, image_size=SIZE, cache=cache)
            assert [pool.references[row] for row in np.flatnonzero(~decoded.readable)] == names
            reasons = ("something else", "cannot be decoded", "cannot be read")
            for (image, fault), name, reason in zip(decoded.faults.items(), names, reasons, strict=True):
                assert pool.references[image] == name
                assert reason in fault
            assert (decoded.images.any(axis=(1, 2, 3)) == decoded.readable).all()

    def test_caches_each_size_separately(self, pool, cache):
        keys = {decode(pool, image_size=size, cache=cache).key for size in (32, 33)}
        assert len(keys) == len(files(cache, "pixels")) == 2


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A frozen backbone."""
    torch.manual_seed(0)
    return freeze(small_backbone(), tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def store():
    store = FeatureStore(None, max_bytes=2**24, count_fault=lambda fault: None)
    yield store
    store.close()


def count_runs(monkeypatch, *, at_most=None):
    """Return a list of the batch sizes of a backbone's runs; it is interrupted after `at_most` runs."""
    runs, compute = [], FrozenBackbone.compute

    def count(self, images, **options):
        if len(runs) == at_most:
            raise KeyboardInterrupt
        runs.append(len(images))
        return compute(self, images, **options)

    monkeypatch.setattr(FrozenBackbone, "compute", count)
    return runs


class TestCompute:
    def test_features_are_computed_once(self, pool, decoded, backbone, store, cache, monkeypatch):
        expected = backbone.compute(np.array(decoded.images))
        runs = count_runs(monkeypatch)
        for _ in range(2):
            features = np.load(compute_features(pool, decoded, backbone=backbone, store=store, cache=cache))
        assert runs == [32, 32, 32, 24]
        assert (features.shape, features.dtype) == ((120, 64), np.float32)
        np.testing.assert_array_equal(features, expected)

    def test_caches_each_backbone_and_pixels_separately(self, pool, decoded, backbone, store, cache):
        for each, pixels in ((backbone, decoded), (backbone, replace(decoded, key="other"))):
            compute_features(pool, pixels, backbone=each, store=store, cache=cache)
        compute_features(pool, decoded, backbone=replace(backbone, fingerprint="f" * 64), store=store, cache=cache)
        assert len(files(cache, "features")) == 3

    def test_features_of_unreadable_images_are_not_stored(self, backbone, store, cache, tmp_path):
        """Its pixels are black, but a server that allows larger images may share the store."""
        folder = write_folders(tmp_path / "colours", each=12)
        (folder / "blue" / "000.png").write_bytes(b"too large")
        pool = read_pool(folder, None)
        compute_features(pool, decode(pool, image_size=SIZE, cache=cache), backbone=backbone, store=store, cache=cache)
        digests = [hashlib.sha256(pool.read(image)).digest() for image in (0, 1)]
        unreadable, readable = store.get_many(backbone.key, digests)
        assert unreadable is None
        assert readable is not None

    def test_image_that_disappeared_is_named(self, backbone, store, cache, tmp_path):
        pool = read_pool(write_folders(tmp_path / "colours", each=12), None)
        decoded = decode(pool, image_size=SIZE, cache=cache)
        (pool.root / pool.references[3]).unlink()
        with pytest.raises(FetchError, match=f"^{re.escape(pool.references[3])}: the file cannot be read"):
            compute_features(pool, decoded, backbone=backbone, store=store, cache=cache)
        assert files(cache, "features") == []

    def test_resume_after_interruption_uses_the_store(self, pool, decoded, backbone, store, cache, monkeypatch):
        with monkeypatch.context() as patch:
            count_runs(patch, at_most=2)
            with pytest.raises(KeyboardInterrupt):
                compute_features(pool, decoded, backbone=backbone, store=store, cache=cache)
        assert files(cache, "features") == []
        runs = count_runs(monkeypatch)
        compute_features(pool, decoded, backbone=backbone, store=store, cache=cache)
        assert runs == [32, 24]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "array.npy"


def write_once(path, rows):
    features._write_once(path, np.array_split(rows, 2), count=len(rows), title="rows")
    return np.load(path)


def test_second_process_waits_for_the_file_of_the_first(path):
    results = []
    second = threading.Thread(target=lambda: results.append(write_once(path, ROWS + 1)))
    path.parent.mkdir()
    with FileLock(path.with_suffix(".lock")):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        np.save(path, ROWS)
    second.join(30)
    np.testing.assert_array_equal(results, [ROWS])


def test_full_disk_raises_config_error(path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROWS.nbytes // 2, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"array\.npy to .*; free disk space and run the command again"):
            write_once(path, ROWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(write_once(path, ROWS), ROWS)
