import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from tests.trainer.small import lively_network, write_folders
from trainer.study import dataset
from trainer.study.dataset import read_pool
from trainer.study.features import compute, decode

pytestmark = pytest.mark.slow  # trains or exports networks

CPU = torch.device("cpu")
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


class TestCompute:
    def test_features_are_the_backbones_and_computed_once(self, decoded, cache):
        """As the trainer computes them: in evaluation, whatever the network was left in."""
        network, runs = lively_network().train(), []
        network.backbone.register_forward_hook(lambda *_: runs.append(1))
        for _ in range(2):
            features = np.load(compute(decoded, network=network, device=CPU, cache=cache))
        assert len(runs) == 4
        with torch.no_grad():
            expected = network.eval().backbone(torch.from_numpy(np.array(decoded.images)))
        assert (features.shape, features.dtype) == ((120, 64), np.float32)
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("change", ["weight", "statistics", "constant", "layer", "pixels"])
    def test_other_features_are_kept_apart(self, decoded, cache, change):
        """Whatever they depend on, in or out of the state dict."""
        compute(decoded, network=lively_network(), device=CPU, cache=cache)
        network = lively_network()
        with torch.no_grad():
            if change == "weight":
                network.backbone[1].weight[0, 0, 0, 0] += 1e-3
            elif change == "statistics":
                network.backbone[2].running_mean[0] += 1e-3
            elif change == "constant":
                network.backbone[0].offset[0] += 1e-3
            elif change == "layer":
                network.backbone[3] = nn.GELU()
            else:
                decoded = replace(decoded, key="other")
        compute(decoded, network=network, device=CPU, cache=cache)
        assert len(files(cache, "features")) == 2

    def test_the_classifier_does_not_matter(self, decoded, cache):
        """Rounds train it, on features that stay."""
        compute(decoded, network=lively_network(), device=CPU, cache=cache)
        network = lively_network()
        with torch.no_grad():
            for parameter in network.classifier.parameters():
                parameter.add_(1)
        compute(decoded, network=network, device=CPU, cache=cache)
        assert len(files(cache, "features")) == 1


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from tests.trainer.small import lively_network
from trainer.study.features import compute, decode
from trainer.study.dataset import read_pool

torch.set_num_threads(1)
folder, cache = map(Path, sys.argv[1:])
network, runs = lively_network(), []

def kill(*_):
    runs.append(1)
    if len(runs) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

network.backbone.register_forward_hook(kill)
decoded = decode(read_pool(folder, None), image_size=32, cache=cache)
compute(decoded, network=network, device=torch.device("cpu"), cache=cache)
"""


def test_a_killed_run_leaves_what_the_next_goes_on_from(folder, pool, decoded, cache, tmp_path):
    """The lock goes with the process; two of four batches are not computed again, and the bytes are the same."""
    ended = subprocess.run([sys.executable, "-c", KILLED, folder, cache], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert files(cache, "features") == []
    network, runs = lively_network(), []
    network.backbone.register_forward_hook(lambda *_: runs.append(1))
    resumed = compute(decode(pool, image_size=SIZE, cache=cache), network=network, device=CPU, cache=cache)
    assert len(runs) == 2
    whole = compute(decoded, network=lively_network(), device=CPU, cache=tmp_path / "whole")
    assert resumed.read_bytes() == whole.read_bytes()
