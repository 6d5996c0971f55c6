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
from trainer.study import arrays
from trainer.study.dataset import read_pool
from trainer.study.features import compute, decode

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(autouse=True)
def _record_each_batch(monkeypatch):
    monkeypatch.setattr(arrays, "_SECONDS_A_RECORD", 0.0)


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


class Interrupted(Exception):
    """What ends a computation in these tests."""


class Counting:
    """A source that knows which files were read, and fails once it has read so many."""

    def __init__(self, source, *, at_most=1_000):
        self.source, self.at_most, self.read_files = source, at_most, []
        self.holds, self.state = source.holds, source.state

    def read(self, reference):
        if len(self.read_files) == self.at_most:
            raise Interrupted
        self.read_files.append(reference)
        return self.source.read(reference)


def watched(pool, **settings):
    """The same pool, and the source that counts."""
    source = Counting(pool.source, **settings)
    return replace(pool, source=source), source


def files(cache, kind):
    return sorted(cache.glob(f"{kind}-*.npy"))


class TestDecode:
    def test_pixels_are_those_that_serving_sees(self, pool, cache):
        """In the order of the pool."""
        decoded = decode(pool, image_size=SIZE, cache=cache)
        assert decoded.images.shape == (120, SIZE, SIZE, 3)
        for image, pixels in enumerate(decoded.images):
            assert pixels.tobytes() == decode_image(pool.read(image), InputSpec(SIZE, SIZE)).tobytes()
        assert decoded.readable.all()
        assert decoded.unreadable == ()

    def test_pixels_are_decoded_once(self, pool, cache, capfd):
        """The second time no file is read, and no bar is drawn."""
        first, _ = decode(pool, image_size=SIZE, cache=cache), capfd.readouterr()
        again, source = watched(pool)
        second = decode(again, image_size=SIZE, cache=cache)
        assert source.read_files == []
        assert capfd.readouterr().err == ""
        assert isinstance(second.images, np.memmap)
        assert not second.images.flags.writeable
        assert second.images.tobytes() == first.images.tobytes()
        assert second.key == first.key

    def test_what_was_interrupted_goes_on(self, pool, cache, tmp_path):
        """No more is decoded again than one batch, and the file is the same byte for byte."""
        with pytest.raises(Interrupted):
            decode(watched(pool, at_most=70)[0], image_size=SIZE, cache=cache)
        rest, source = watched(pool)
        decode(rest, image_size=SIZE, cache=cache)
        assert sorted(source.read_files) == sorted(pool.references[64:])
        decode(pool, image_size=SIZE, cache=tmp_path / "other")
        (resumed,), (whole,) = files(cache, "pixels"), files(tmp_path / "other", "pixels")
        assert resumed.name == whole.name
        assert resumed.read_bytes() == whole.read_bytes()

    def test_unreadable_images_are_named_and_black(self, tmp_path, cache):
        """The first time and whenever they come from the cache; the others keep their places."""
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
        (copy / "blue" / "000.png").write_bytes((copy / "blue" / "003.png").read_bytes())
        keys.add(decode(read_pool(copy, None), image_size=32, cache=cache).key)
        assert len(keys) == len(files(cache, "pixels")) == 5

    def test_targets_and_split_do_not_matter(self, pool, cache):
        """A study of other labels or another split reads the same pixels."""
        key = decode(pool, image_size=SIZE, cache=cache).key
        other = replace(pool, targets=pool.targets[::-1], test=~pool.test, name="other")
        assert decode(other, image_size=SIZE, cache=cache).key == key


class TestCompute:
    def test_features_are_the_backbones(self, decoded, cache):
        """As the trainer computes them: in evaluation, whatever the network was left in."""
        network = lively_network().train()
        features = compute(decoded, network=network, device=CPU, cache=cache)
        with torch.no_grad():
            expected = network.eval().backbone(torch.from_numpy(np.array(decoded.images)))
        assert (features.shape, features.dtype) == ((120, 64), np.float32)
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)

    def test_features_are_computed_once(self, decoded, cache, capfd):
        """The second time the backbone does not run, and no bar is drawn."""
        first, _ = compute(decoded, network=lively_network(), device=CPU, cache=cache), capfd.readouterr()
        network, runs = lively_network(), []
        network.backbone.register_forward_hook(lambda *_: runs.append(1))
        second = compute(decoded, network=network, device=CPU, cache=cache)
        assert runs == []
        assert capfd.readouterr().err == ""
        assert isinstance(second, np.memmap)
        assert not second.flags.writeable
        assert second.tobytes() == first.tobytes()

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
from trainer.study import arrays
from trainer.study.features import compute, decode
from trainer.study.dataset import read_pool

arrays._SECONDS_A_RECORD = 0.0
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


@pytest.mark.slow
def test_a_killed_run_leaves_what_the_next_goes_on_from(folder, pool, cache, tmp_path):
    """The lock goes with the process; two of four batches are not computed again, and the bytes are the same."""
    ended = subprocess.run([sys.executable, "-c", KILLED, folder, cache], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert files(cache, "features") == []
    network, runs = lively_network(), []
    network.backbone.register_forward_hook(lambda *_: runs.append(1))
    resumed = compute(decode(pool, image_size=SIZE, cache=cache), network=network, device=CPU, cache=cache)
    assert len(runs) == 2
    whole = compute(
        decode(pool, image_size=SIZE, cache=cache), network=lively_network(), device=CPU, cache=tmp_path / "whole"
    )
    assert resumed.tobytes() == whole.tobytes()
