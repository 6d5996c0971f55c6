import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from contract.versions.manifest import Backbone
from contract.versions.repository import Repository
from contract.versions.version import INT8_BACKBONE_FILE
from tests import versions
from tests.networks import open_session
from tests.trainer.small import coloured_images, freeze_network, lively_network
from trainer.model.graphs import int8
from trainer.model.graphs.int8 import MIN_IMAGES, choose_precision, similarity

pytestmark = pytest.mark.slow  # exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return freeze_network(lively_network(), tmp_path_factory.mktemp("int8") / "backbone")


@pytest.fixture
def backbone(exported, tmp_path):
    """A copy, since files are added to its folder."""
    shutil.copytree(exported.folder, tmp_path / "backbone")
    return replace(exported, folder=tmp_path / "backbone")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def _accept_int8(monkeypatch):
    """Accept the quantised backbone, although such a small network may not be faster."""
    monkeypatch.setattr(int8, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(int8, "MIN_SIMILARITY", 0.5)


def publish(repository, fingerprint, content):
    """Publish a version of a backbone, with the given content as int8 file or without one."""
    backbone = Backbone("none", fingerprint, "features", "fp32")
    return versions.publish(repository, b"weights", int8=content, backbone=backbone)


def refuse(*args, **kwargs):
    raise AssertionError("quantised again")


class TestPublished:
    def test_uses_the_quantised_backbone_of_the_newest_version(self, backbone, repository, monkeypatch):
        """Versions of other backbones, and versions without a quantised one, are ignored."""
        (backbone.folder / INT8_BACKBONE_FILE).write_bytes(b"own")
        monkeypatch.setattr(int8, "quantise", refuse)
        for fingerprint, content in (
            (backbone.fingerprint, b"old"),
            (backbone.fingerprint, b"new"),
            ("b" * 64, b"other"),
            (backbone.fingerprint, None),
        ):
            publish(repository, fingerprint, content)
        chosen = choose_precision(backbone, IMAGES[:2], repository=repository)
        assert chosen == replace(backbone, precision="int8")
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == b"new"
        assert chosen.describe().precision == "int8"

    @pytest.mark.parametrize("file", [INT8_BACKBONE_FILE, "model.onnx", "manifest.json"])
    def test_ignores_damaged_versions(self, backbone, repository, file):
        publish(repository, backbone.fingerprint, b"sound")
        damaged = publish(repository, backbone.fingerprint, b"other")
        (damaged.path / file).write_bytes(b"whoops!"[: (damaged.path / file).stat().st_size])
        choose_precision(backbone, IMAGES, repository=repository)
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == b"sound"


@pytest.mark.usefixtures("_accept_int8")
class TestVerdict:
    def test_keeps_a_similar_and_faster_backbone(self, backbone, repository, monkeypatch, caplog):
        caplog.set_level("INFO", "trainer")
        chosen = choose_precision(backbone, IMAGES, repository=repository)
        assert chosen.precision == "int8"
        assert not np.array_equal(chosen.compute(IMAGES), backbone.compute(IMAGES))
        assert chosen.key != backbone.key
        assert [path.name for path in chosen.files] == ["backbone.onnx.data", INT8_BACKBONE_FILE]
        assert "int8: used; similarity" in caplog.text
        assert 0.5 < json.loads((backbone.folder / "int8.json").read_text())["likeness"] <= 1
        before = (backbone.folder / INT8_BACKBONE_FILE).read_bytes()
        monkeypatch.setattr(int8, "quantise", refuse)
        monkeypatch.setattr(int8, "MIN_SIMILARITY", 2.0)  # a new comparison would fail
        assert choose_precision(backbone, IMAGES[:3], repository=repository).precision == "int8"
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == before

    @pytest.mark.parametrize("bound", ["MIN_SIMILARITY", "MIN_SPEEDUP"])
    def test_does_not_use_a_dissimilar_or_slower_backbone(self, backbone, repository, monkeypatch, caplog, bound):
        caplog.set_level("INFO", "trainer")
        monkeypatch.setattr(int8, bound, 1e6)
        assert choose_precision(backbone, IMAGES, repository=repository) == backbone
        assert "int8: not used; similarity" in caplog.text

    @pytest.mark.parametrize("lost", ["verdict", "file"])
    def test_quantises_again_if_a_file_is_missing(self, backbone, repository, lost):
        choose_precision(backbone, IMAGES, repository=repository)
        if lost == "verdict":
            (backbone.folder / "int8.json").write_text('{"bet')
        else:
            (backbone.folder / INT8_BACKBONE_FILE).unlink()
        assert choose_precision(backbone, IMAGES, repository=repository).compute(IMAGES[:1]).shape == (1, 64)

    def test_waits_for_enough_calibration_images(self, backbone, repository):
        assert choose_precision(backbone, IMAGES[: MIN_IMAGES - 1], repository=repository) == backbone
        assert not (backbone.folder / INT8_BACKBONE_FILE).exists()
        assert choose_precision(backbone, IMAGES[:MIN_IMAGES], repository=repository).precision == "int8"

    def test_uses_float32_if_quantisation_fails(self, backbone, repository, monkeypatch, caplog):
        """Quantisation is not tried again."""
        failures = []

        def fail(*args, **kwargs):
            failures.append(1)
            raise StopIteration("no convolution")

        monkeypatch.setattr(int8, "quantise", fail)
        for _ in range(2):
            assert choose_precision(backbone, IMAGES, repository=repository) == backbone
        assert len(failures) == 1
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning == "int8: cannot quantise small: no convolution"


def test_similarity_is_the_mean_cosine_of_centred_features():
    rng = np.random.default_rng(0)
    exact = (rng.normal(size=(20, 8)) + 10).astype(np.float32)
    approximate = (exact + rng.normal(size=(20, 8))).astype(np.float32)
    a, b = (each.astype(np.float64) - exact.astype(np.float64).mean(axis=0) for each in (exact, approximate))
    cosines = [x @ y / np.sqrt(x @ x * (y @ y)) for x, y in zip(a, b, strict=True)]
    assert similarity(exact, approximate) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert 0.5 < np.mean(cosines) < 0.9


def test_quantisation_is_deterministic_and_close_to_float32(backbone, tmp_path):
    calibration_images, _ = coloured_images(np.random.default_rng(0), 90)
    images, _ = coloured_images(np.random.default_rng(1), 40)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        int8.quantise(backbone, calibration_images, tmp_path / name / "int8")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["int8"]
    content = (tmp_path / "first" / "int8").read_bytes()
    assert content == (tmp_path / "second" / "int8").read_bytes()
    assert str(tmp_path).encode() not in content
    (features,) = open_session(onnx.load_from_string(content)).run(["features"], {"images": images})
    expected = backbone.compute(images)
    assert (features.dtype, features.shape) == (np.float32, expected.shape)
    assert 0 < np.abs(features - expected).mean() < 0.03 * np.abs(expected).mean()
