import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from contract.errors import ConfigError, TrainingError
from contract.features.store import FeatureStore
from contract.versions.version import BACKBONE_WEIGHTS_FILE
from tests.trainer.small import coloured_images, freeze_network, lively_network, small_backbone
from trainer.model import frozen
from trainer.model.frozen import freeze, open_frozen
from trainer.model.graphs.export import export_backbone
from trainer.model.network import Round

pytestmark = pytest.mark.slow  # exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 20)
DIGESTS = tuple(hashlib.sha256(image.tobytes()).digest() for image in IMAGES)


@pytest.fixture(scope="module")
def network():
    return lively_network().eval()


@pytest.fixture(scope="module")
def backbone(network, tmp_path_factory):
    return freeze_network(network, tmp_path_factory.mktemp("frozen") / "backbone")


@pytest.fixture
def store(tmp_path):
    store = FeatureStore(tmp_path / "features", max_bytes=2**20, count_fault=lambda fault: None)
    yield store
    store.close()


@pytest.fixture(scope="module")
def graph():
    """What a small backbone is exported to."""
    return export_backbone(nn.Sequential(small_backbone().module, Round()), image_size=32)


@pytest.fixture
def asked(monkeypatch, graph):
    """What was opened, in place of networks that take seconds to draw and to export."""
    names = []

    def open_small(name, *, image_size, weights, grid):
        names.append((name, image_size, str(weights), grid))
        return small_backbone()

    monkeypatch.setattr(frozen, "open_backbone", open_small)
    monkeypatch.setattr(frozen, "export_backbone", lambda *_, **__: graph)
    return names


@pytest.fixture
def opened(asked, tmp_path):
    options = {"image_size": 32, "weights": "none", "grid": 1, "cache": tmp_path / "backbones"}
    return lambda name="small", **fields: open_frozen(name, **{**options, **fields})


class TestCompute:
    def test_features_are_torchs_rounded_to_float16(self, backbone, network):
        """By onnxruntime from the graph, in batches, and equal to a thousandth."""
        with torch.no_grad():
            expected = network.backbone(torch.from_numpy(IMAGES)).numpy()
        found = backbone.compute(IMAGES)
        assert (found.shape, found.dtype) == ((20, 64), np.float32)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
        assert np.ptp(expected, axis=0).max() > 0.1

    def test_no_image_gives_no_row(self, backbone):
        """Of F columns all the same."""
        assert backbone.compute(IMAGES[:0]).shape == (0, 64)

    @pytest.mark.parametrize("scale", [1e6, float("nan")])
    def test_features_that_float16_does_not_hold_are_an_error(self, tmp_path, scale):
        """Or that are no numbers: it is said of which backbone, and what is allowed."""
        opened = small_backbone()
        with torch.no_grad():
            opened.module[5].bias.fill_(scale)
        with pytest.raises(TrainingError, match=r"backbone small .* 65504"):
            freeze(opened, tmp_path).compute(IMAGES)


class TestComputeOnce:
    @pytest.fixture
    def computed(self, monkeypatch):
        """How many images were computed at a time."""
        counts, compute = [], frozen.FrozenBackbone.compute

        def note(self, images, **options):
            counts.append(len(images))
            return compute(self, images, **options)

        monkeypatch.setattr(frozen.FrozenBackbone, "compute", note)
        return counts

    def test_only_what_is_new_is_computed(self, backbone, store, computed):
        """Rows come in the order of the images, wherever they came from, and are the same."""
        expected = backbone.compute(IMAGES)
        first = backbone.compute_once(IMAGES[5:12], DIGESTS[5:12], store)
        found = backbone.compute_once(IMAGES, DIGESTS, store)
        again = backbone.compute_once(IMAGES, DIGESTS, store)
        assert computed == [20, 7, 13]
        np.testing.assert_array_equal(first, expected[5:12])
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
        np.testing.assert_array_equal(again, found)

    def test_files_go_by_their_bytes(self, backbone, store, computed):
        """Pixels are not looked at where the file is known."""
        first = backbone.compute_once(IMAGES[:1], DIGESTS[:1], store)
        np.testing.assert_array_equal(backbone.compute_once(IMAGES[1:2], DIGESTS[:1], store), first)
        assert computed == [1]

    def test_another_backbones_rows_are_not_taken(self, backbone, store, computed, tmp_path):
        """Nor those of another precision, which is another key."""
        backbone.compute_once(IMAGES[:3], DIGESTS[:3], store)
        other = freeze_network(lively_network(1), tmp_path / "other")
        other.compute_once(IMAGES[:3], DIGESTS[:3], store)
        assert computed == [3, 3]
        assert other.key != backbone.key

    def test_a_row_of_another_length_is_computed_anew(self, backbone, store, computed):
        """The folder may be written by others."""
        store.put(backbone.key, DIGESTS[0], np.zeros(7, np.float32))
        found = backbone.compute_once(IMAGES[:2], DIGESTS[:2], store)
        assert computed == [2]
        np.testing.assert_array_equal(found, backbone.compute(IMAGES[:2]))


class TestOpenFrozen:
    def test_it_is_exported_once_and_found_again(self, opened, asked):
        """With all that is known of it."""
        first, second = opened(), opened()
        assert len(asked) == 1
        assert second == first
        assert (first.name, first.features, first.channels) == ("small", 64, 16)
        assert first.spec.height == first.spec.width == 32
        np.testing.assert_array_equal(first.compute(IMAGES), second.compute(IMAGES))

    def test_what_starts_from_nothing_starts_alike(self, opened, tmp_path, monkeypatch):
        """In every cache, whatever torch's generator has drawn, which is left as it was."""
        monkeypatch.setattr(frozen, "export_backbone", export_backbone)
        first = opened()
        torch.manual_seed(77)
        state = torch.get_rng_state()
        second = opened(cache=tmp_path / "elsewhere")
        assert torch.equal(torch.get_rng_state(), state)
        assert first.folder != second.folder
        assert first.fingerprint == second.fingerprint
        files = [(each.folder / BACKBONE_WEIGHTS_FILE).read_bytes() for each in (first, second)]
        assert files[0] == files[1]

    def test_other_makings_have_folders_of_their_own(self, opened, asked, tmp_path):
        """Name, size, weights and grid; a file of weights goes by its bytes, wherever it lies."""
        for name, content in (("a.pth", b"a"), ("copy.pth", b"a"), ("b.pth", b"b")):
            (tmp_path / name).write_bytes(content)
        makings = [{}, {"name": "other"}, {"image_size": 64}, {"grid": 2}]
        makings += [{"weights": tmp_path / name} for name in ("a.pth", "copy.pth", "b.pth")]
        folders = [opened(**each).folder for each in makings]
        assert folders[4] == folders[5]
        assert len(set(folders)) == len(asked) == 6

    @pytest.mark.parametrize(
        ("file", "left"),
        [("backbone.json", None), ("backbone.json", 40), ("backbone.onnx", None), (BACKBONE_WEIGHTS_FILE, 0)],
    )
    def test_a_folder_that_is_not_whole_is_made_anew(self, opened, asked, file, left):
        """As one that a crash left, or that somebody cleaned up by halves."""
        first = opened()
        if left is None:
            (first.folder / file).unlink()
        else:
            os.truncate(first.folder / file, left)
        second = opened()
        assert len(asked) == 2
        assert second == first
        second.compute(IMAGES[:1])
        assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]

    def test_a_graph_goes_by_its_bytes_and_by_what_is_beside_it(self, opened, asked, tmp_path):
        """An ONNX file may be written anew under the same name, and so may what says how its pixels are made."""
        graph = tmp_path / "graph.onnx"
        for file, content in (("graph.onnx", b"a"), ("graph.onnx.json", b"{}"), ("graph.onnx", b"b")):
            (tmp_path / file).write_bytes(content)
            opened(str(graph))
        (tmp_path / "graph.onnx.json").write_bytes(b"{ }")
        assert opened(str(graph)) == opened(str(graph))
        assert len(asked) == 4

    def test_an_export_that_fails_leaves_nothing(self, opened, tmp_path, monkeypatch):
        """The next one begins from the beginning."""

        def fail(*args, **kwargs):
            raise TrainingError("no program")

        monkeypatch.setattr(frozen, "export_backbone", fail)
        with pytest.raises(TrainingError, match="no program"):
            opened()
        assert list((tmp_path / "backbones").iterdir()) == []

    def test_a_cache_that_cannot_be_written_is_named(self, opened, tmp_path):
        """With the setting that names another one."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="set LABELNEXT_CACHE_DIR to a folder with room"):
            opened(cache=tmp_path / "file")


class TestFingerprint:
    def test_any_weight_is_noticed_and_the_head_is_not_part_of_it(self, backbone, network, tmp_path):
        """A retrain of the head leaves it; another backbone has another."""
        other = lively_network()
        with torch.no_grad():
            other.head[0].weight.add_(1)
        assert freeze_network(other, tmp_path / "head").fingerprint == backbone.fingerprint
        for number, change in enumerate((lambda m: m[1].weight, lambda m: m[2].running_mean)):
            other = lively_network()
            with torch.no_grad():
                change(other.backbone[0]).view(-1)[0].add_(1e-2)
            assert freeze_network(other, tmp_path / str(number)).fingerprint != backbone.fingerprint

    def test_a_layer_and_the_size_of_images_are_noticed(self, backbone, network, tmp_path):
        """Though the weights are the same."""
        module = lively_network().backbone[0]
        module[3] = nn.GELU()
        (tmp_path / "layer").mkdir()
        assert freeze(replace(small_backbone(), module=module), tmp_path / "layer").fingerprint != backbone.fingerprint
        described = json.loads((backbone.folder / "backbone.json").read_text())
        assert described["fingerprint"] == backbone.fingerprint == backbone.describe().fingerprint
        assert (backbone.describe().tensor, backbone.describe().precision) == ("features", "fp32")
