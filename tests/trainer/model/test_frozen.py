import hashlib
import json
import os

import numpy as np
import pytest
import torch

from contract.errors import ConfigError, TrainingError
from contract.features.store import FeatureStore
from contract.versions.version import BACKBONE_WEIGHTS_FILE
from tests.trainer.small import coloured_images, freeze_network, lively_network, small_backbone
from trainer.model import frozen
from trainer.model.frozen import freeze, open_frozen
from trainer.model.graphs.export import export_backbone

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


@pytest.fixture
def loaded_names(monkeypatch, backbone):
    """Names of the loaded backbones, all of which are replaced by a small network."""
    names, graph = [], backbone.graph_with_weights()
    monkeypatch.setattr(frozen, "load_backbone", lambda name, **_: names.append(name) or small_backbone())
    monkeypatch.setattr(frozen, "export_backbone", lambda *_, **__: graph)
    return names


@pytest.fixture
def open_backbone(loaded_names, tmp_path):
    """Function that opens a frozen backbone, with default options."""
    defaults = {"image_size": 32, "weights": "none", "grid": 1, "cache": tmp_path / "backbones"}
    return lambda name="small", **options: open_frozen(name, **{**defaults, **options})


class TestCompute:
    def test_features_equal_torchs_rounded_to_float16(self, backbone, network):
        with torch.no_grad():
            expected = network.backbone(torch.from_numpy(IMAGES)).numpy()
        features = backbone.compute(IMAGES)
        assert (features.shape, features.dtype) == ((20, 64), np.float32)
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(features, features.astype(np.float16).astype(np.float32))
        assert np.ptp(expected, axis=0).max() > 0.1
        assert backbone.compute(IMAGES[:0]).shape == (0, 64)

    @pytest.mark.parametrize("scale", [1e6, float("nan")])
    def test_rejects_features_outside_the_range_of_float16(self, tmp_path, scale):
        backbone = small_backbone()
        with torch.no_grad():
            backbone.module[5].bias.fill_(scale)
        with pytest.raises(TrainingError, match=r"backbone small .* 65504"):
            freeze(backbone, tmp_path).compute(IMAGES)


def test_computes_only_missing_features(backbone, store, monkeypatch):
    """Files are identified by sha256, not by their pixels. Stored features of a wrong length are computed again."""
    computed, compute = [], frozen.FrozenBackbone.compute

    def record(self, images, **options):
        computed.append(len(images))
        return compute(self, images, **options)

    monkeypatch.setattr(frozen.FrozenBackbone, "compute", record)
    store.put(backbone.key, DIGESTS[6], np.zeros(7, np.float32))
    expected = backbone.compute(IMAGES)
    first = backbone.compute_cached(IMAGES[5:12], DIGESTS[5:12], store)
    all_features = backbone.compute_cached(IMAGES, DIGESTS, store)
    cached = backbone.compute_cached(np.zeros_like(IMAGES), DIGESTS, store)
    assert computed == [20, 7, 13]
    np.testing.assert_array_equal(first, expected[5:12])
    np.testing.assert_allclose(all_features, expected, rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(cached, all_features)


class TestOpenFrozen:
    def test_exports_a_backbone_once(self, open_backbone, loaded_names):
        first, second = open_backbone(), open_backbone()
        assert (len(loaded_names), second) == (1, first)
        assert (first.name, first.features, first.channels, first.spec.height) == ("small", 64, 16, 32)
        np.testing.assert_array_equal(first.compute(IMAGES), second.compute(IMAGES))

    def test_random_weights_are_the_same_in_every_cache(self, open_backbone, tmp_path, monkeypatch):
        """Torch's global generator is not used."""
        monkeypatch.setattr(frozen, "export_backbone", export_backbone)
        first = open_backbone()
        torch.manual_seed(77)
        state = torch.get_rng_state()
        second = open_backbone(cache=tmp_path / "elsewhere")
        assert torch.equal(torch.get_rng_state(), state)
        assert first.folder != second.folder
        assert first.fingerprint == second.fingerprint
        files = [(each.folder / BACKBONE_WEIGHTS_FILE).read_bytes() for each in (first, second)]
        assert files[0] == files[1]

    @pytest.mark.parametrize(
        ("file", "remaining_bytes"),
        [("backbone.json", None), ("backbone.json", 40), ("backbone.onnx", None), (BACKBONE_WEIGHTS_FILE, 0)],
    )
    def test_replaces_an_incomplete_folder(self, open_backbone, loaded_names, file, remaining_bytes):
        first = open_backbone()
        if remaining_bytes is None:
            (first.folder / file).unlink()
        else:
            os.truncate(first.folder / file, remaining_bytes)
        second = open_backbone()
        assert len(loaded_names) == 2
        assert second == first
        second.compute(IMAGES[:1])
        assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]

    def test_folder_depends_on_options_and_on_the_content_of_files(self, open_backbone, loaded_names, tmp_path):
        """The files of a graph are all that extend its name."""
        for name, content in (("a.pth", b"a"), ("copy.pth", b"a"), ("b.pth", b"b"), ("graph.onnx", b"a")):
            (tmp_path / name).write_bytes(content)
        options = [{}, {"name": "other"}, {"image_size": 64}, {"grid": 2}]
        options += [{"weights": tmp_path / name} for name in ("a.pth", "copy.pth", "b.pth")]
        folders = [open_backbone(**each).folder for each in options]
        assert folders[4] == folders[5]
        graph = str(tmp_path / "graph.onnx")
        for file, content in (("graph.onnx.json", b"{}"), ("graph.onnx", b"b"), ("graph.onnx.json", b"{ }")):
            (tmp_path / file).write_bytes(content)
            folders.append(open_backbone(graph).folder)
        assert open_backbone(graph).folder == folders[-1]
        assert len(set(folders)) == len(loaded_names) == 9

    def test_failed_export_leaves_no_files(self, open_backbone, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise TrainingError("no program")

        monkeypatch.setattr(frozen, "export_backbone", fail)
        with pytest.raises(TrainingError, match="no program"):
            open_backbone()
        assert list((tmp_path / "backbones").iterdir()) == []

    def test_error_names_the_setting_of_an_unusable_cache(self, open_backbone, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="set LABELNEXT_CACHE_DIR to a folder with room"):
            open_backbone(cache=tmp_path / "file")


def test_features_key_depends_on_the_backbone_and_not_on_the_head(backbone, tmp_path):
    other_head, other_backbone = lively_network(), lively_network()
    other_head.head[0].weight.data.add_(1)
    other_backbone.backbone[0][1].weight.data.view(-1)[0].add_(1e-2)
    same, other = freeze_network(other_head, tmp_path / "head"), freeze_network(other_backbone, tmp_path / "backbone")
    assert same.key == backbone.key != other.key
    description = json.loads((backbone.folder / "backbone.json").read_text())
    assert description["fingerprint"] == backbone.fingerprint == backbone.describe().fingerprint
    assert (backbone.describe().tensor, backbone.describe().precision) == ("features", "fp32")
