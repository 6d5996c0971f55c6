import hashlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.features.store import FeatureStore
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from tests.trainer.small import small_backbone, write_folders
from trainer.model.frozen import freeze
from trainer.study import dataset
from trainer.study.dataset import read_pool
from trainer.study.features import compute, decode

pytestmark = pytest.mark.slow  # trains or exports networks

SIZE = 32


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


@pytest.fixture
def read(monkeypatch):
    """The files that were read; after a hundred of them, it is interrupted."""
    files, plain = [], dataset._read

    def note(root, reference):
        if len(files) == 100:
            raise KeyboardInterrupt
        files.append(reference)
        return plain(root, reference)

    monkeypatch.setattr(dataset, "_read", note)
    return files


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

    def test_what_was_interrupted_goes_on_and_nothing_is_decoded_twice(self, pool, decoded, cache, read):
        """But for one batch at most; the file is the same byte for byte."""
        with pytest.raises(KeyboardInterrupt):
            decode(pool, image_size=SIZE, cache=cache)
        read.clear()
        resumed = decode(pool, image_size=SIZE, cache=cache)
        assert sorted(read) == sorted(pool.references[96:])
        assert resumed.path.name == decoded.path.name
        assert resumed.path.read_bytes() == decoded.path.read_bytes()
        decode(pool, image_size=SIZE, cache=cache)
        assert len(read) == 24

    def test_unreadable_images_are_named_and_black(self, tmp_path, cache):
        """The first time, from the cache, and after an interruption; the others keep their places."""
        folder = write_folders(tmp_path / "colours", each=20)
        names = ["blue/000.png", "red/002.png", "red/059.png"]
        (folder / names[0]).write_bytes(b"not an image")
        (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:60])
        pool = read_pool(folder, None)
        (folder / names[2]).unlink()
        decoded = decode(pool, image_size=SIZE, cache=cache)
        for interrupted in (False, True):
            if interrupted:
                partial = decoded.path.rename(decoded.path.with_suffix(".partial"))
                os.truncate(partial, 128 + 50 * SIZE * SIZE * 3)
                faults = decoded.path.with_suffix(".jsonl")
                faults.write_text('{"image": 7, "reason": "it was busy"}\n' + faults.read_text()[:-10])
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
        assert len(keys) == len(files(cache, "decoded")) == 5

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


KILLED = """
import os, signal, sys
from pathlib import Path
from contract.features.store import FeatureStore
from trainer.model.frozen import FrozenBackbone, read
from trainer.study.features import compute, decode
from trainer.study.dataset import read_pool

folder, cache, kept = map(Path, sys.argv[1:])
runs, plain = [], FrozenBackbone.compute

def kill(*arguments, **options):
    runs.append(1)
    if len(runs) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments, **options)

FrozenBackbone.compute = kill
pool = read_pool(folder, None)
store = FeatureStore(None, max_bytes=2**24, count_fault=print)
compute(pool, decode(pool, image_size=32, cache=cache), backbone=read(kept), store=store, cache=cache)
"""


def test_a_killed_run_leaves_what_the_next_goes_on_from(
    folder, pool, decoded, backbone, store, cache, tmp_path, monkeypatch
):
    """The lock goes with the process; two of four batches are not computed again, and the bytes are the same."""
    command = [sys.executable, "-c", KILLED, folder, cache, backbone.folder]
    ended = subprocess.run(command, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert files(cache, "features") == []
    runs = count_runs(backbone, monkeypatch)
    resumed = compute(pool, decode(pool, image_size=SIZE, cache=cache), backbone=backbone, store=store, cache=cache)
    assert runs == [32, 24]
    whole = compute(pool, decoded, backbone=backbone, store=store, cache=tmp_path / "whole")
    assert resumed.read_bytes() == whole.read_bytes()
