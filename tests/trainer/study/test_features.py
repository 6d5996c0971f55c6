import hashlib
import resource
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.errors import ConfigError
from contract.features.store import FeatureStore
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from tests.trainer.small import small_backbone, write_folders
from trainer.model.frozen import freeze
from trainer.study import dataset, features
from trainer.study.dataset import read_pool
from trainer.study.features import compute, decode

pytestmark = pytest.mark.slow  # trains or exports networks

SIZE = 32
WHOLE = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)


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
    def test_pixels_are_those_that_serving_sees(self, pool, decoded):
        """In the order of the pool; a map that cannot be written to, so that processes share its memory."""
        assert decoded.images.shape == (120, SIZE, SIZE, 3)
        for image, pixels in enumerate(decoded.images):
            assert pixels.tobytes() == decode_image(pool.read(image), InputSpec(SIZE, SIZE)).tobytes()
        assert decoded.readable.all()
        assert decoded.unreadable == ()
        assert not decoded.images.flags.writeable

    def test_what_was_interrupted_leaves_no_pixels(self, pool, decoded, cache, monkeypatch):
        """The next one begins again; what is there is only mapped."""
        plain, read = dataset._read, []

        def note(root, reference):
            if len(read) == 100:
                raise KeyboardInterrupt
            read.append(reference)
            return plain(root, reference)

        monkeypatch.setattr(dataset, "_read", note)
        with pytest.raises(KeyboardInterrupt):
            decode(pool, image_size=SIZE, cache=cache)
        assert files(cache, "pixels") == []
        monkeypatch.setattr(dataset, "_read", plain)
        again = decode(pool, image_size=SIZE, cache=cache)
        assert again.path.read_bytes() == decoded.path.read_bytes()
        monkeypatch.setattr(dataset, "_read", None)
        assert decode(pool, image_size=SIZE, cache=cache).path == again.path

    def test_unreadable_images_are_named_and_black(self, tmp_path, cache):
        """The first time and from the cache; the others keep their places."""
        folder = write_folders(tmp_path / "colours", each=20)
        names = ["blue/000.png", "red/002.png", "red/059.png"]
        (folder / names[0]).write_bytes(b"not an image")
        (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:60])
        pool = read_pool(folder, None)
        (folder / names[2]).unlink()
        for _ in range(2):
            decoded = decode(pool, image_size=SIZE, cache=cache)
            assert [pool.references[row] for row in np.flatnonzero(~decoded.readable)] == names
            assert [name for name, _ in decoded.unreadable] == names
            reasons = [reason for _, reason in decoded.unreadable]
            assert "something else" in reasons[0]
            assert "cannot be decoded" in reasons[1]
            assert "cannot be read" in reasons[2]
            assert (decoded.images.any(axis=(1, 2, 3)) == decoded.readable).all()

    def test_other_pixels_are_kept_apart(self, folder, pool, cache, tmp_path):
        """Another size, other files, another order and changed files each have a file of their own."""
        copy = write_folders(tmp_path / "colours", each=40)
        reordered = replace(pool, references=pool.references[::-1])
        keys = {
            decode(each, image_size=size, cache=cache).key
            for each, size in ((pool, 32), (pool, 33), (read_pool(copy, None), 32), (reordered, 32))
        }
        shutil.copyfile(copy / "blue" / "003.png", copy / "blue" / "000.png")
        keys.add(decode(read_pool(copy, None), image_size=32, cache=cache).key)
        assert len(keys) == len(files(cache, "pixels")) == 5

    def test_targets_and_split_do_not_matter(self, pool, decoded, cache):
        """A study of other labels or another split reads the same pixels."""
        other = replace(pool, targets=pool.targets[::-1], test=~pool.test, name="other")
        assert decode(other, image_size=SIZE, cache=cache).key == decoded.key


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """One that is opened anew in each test, so that what it runs can be counted."""
    torch.manual_seed(0)
    return freeze(small_backbone(), tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def store():
    store = FeatureStore(None, max_bytes=2**24, count_fault=lambda fault: None)
    yield store
    store.close()


def count_runs(backbone, monkeypatch):
    """Return a list that grows by the number of images whenever the backbone computes."""
    runs, plain = [], type(backbone).compute
    monkeypatch.setattr(
        type(backbone), "compute", lambda self, images, **options: runs.append(len(images)) or plain(self, images)
    )
    return runs


class TestCompute:
    def test_features_are_the_backbones_and_computed_once(self, pool, decoded, backbone, store, cache, monkeypatch):
        """In the order of the pool; the second time they are mapped from disk."""
        expected = backbone.compute(np.array(decoded.images))
        runs = count_runs(backbone, monkeypatch)
        for _ in range(2):
            features = np.load(compute(pool, decoded, backbone=backbone, store=store, cache=cache))
        assert runs == [32, 32, 32, 24]
        assert (features.shape, features.dtype) == ((120, 64), np.float32)
        np.testing.assert_array_equal(features, expected)

    def test_what_the_store_knows_is_not_computed(self, pool, decoded, backbone, store, cache, monkeypatch):
        """As a server that has scored the same files may have left it."""
        for image in range(0, 120, 2):
            digest = hashlib.sha256(pool.read(image)).digest()
            store.put(backbone.key, digest, np.full(64, image, np.float32))
        runs = count_runs(backbone, monkeypatch)
        features = np.load(compute(pool, decoded, backbone=backbone, store=store, cache=cache))
        assert sum(runs) == 60
        np.testing.assert_array_equal(features[::2, 0], np.arange(0, 120, 2))

    def test_other_features_are_kept_apart(self, pool, decoded, backbone, store, cache):
        """Those of another backbone, and of other pixels."""
        for each, pixels in ((backbone, decoded), (backbone, replace(decoded, key="other"))):
            compute(pool, pixels, backbone=each, store=store, cache=cache)
        compute(pool, decoded, backbone=replace(backbone, fingerprint="f" * 64), store=store, cache=cache)
        assert len(files(cache, "features")) == 3


def test_features_that_are_interrupted_go_on_from_the_store(pool, decoded, backbone, store, cache, monkeypatch):
    """Batches that were computed are not computed again, and no file has half of them."""
    runs, plain = [], type(backbone).compute

    def count(self, images, **options):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(len(images))
        return plain(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "compute", count)
        with pytest.raises(KeyboardInterrupt):
            compute(pool, decoded, backbone=backbone, store=store, cache=cache)
    assert files(cache, "features") == []
    runs = count_runs(backbone, monkeypatch)
    compute(pool, decoded, backbone=backbone, store=store, cache=cache)
    assert runs == [32, 24]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "array.npy"


def write_once(path, batches, count=50):
    features._write_once(path, batches, count=count, title="rows")
    return np.load(path)


def test_two_at_once_write_once(path):
    """The second waits for the first and then takes what that one has written."""
    begun, may_end, results = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert may_end.wait(30)
        yield WHOLE

    def never():
        raise AssertionError("not to be asked")
        yield

    first = threading.Thread(target=lambda: results.append(write_once(path, slow())))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: results.append(write_once(path, never())))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    may_end.set()
    for thread in (first, second):
        thread.join(30)
    assert [each.tobytes() == WHOLE.tobytes() for each in results] == [True, True]


def test_a_full_disk_is_an_error_that_says_what_to_do(path):
    """With room again, it is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WHOLE.nbytes // 2, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"array\.npy to .*; make room and run it again"):
            write_once(path, [WHOLE])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(write_once(path, [WHOLE]), WHOLE)
