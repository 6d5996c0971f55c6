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
from trainer.model.graphs.int8 import LEAST_IMAGES, choose_precision, similarity

pytestmark = pytest.mark.slow  # exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return freeze_network(lively_network(), tmp_path_factory.mktemp("int8") / "backbone")


@pytest.fixture
def backbone(exported, tmp_path):
    """A copy, since files are written beside it."""
    shutil.copytree(exported.folder, tmp_path / "backbone")
    return replace(exported, folder=tmp_path / "backbone")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def fast(monkeypatch):
    """A quantised backbone that counts as faster: for such a small network that depends on the machine."""
    monkeypatch.setattr(int8, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(int8, "LEAST_SIMILARITY", 0.5)


def publish(repository, fingerprint, content):
    """Publish a version of a backbone, with the given content as int8 file or without one."""
    backbone = Backbone("none", fingerprint, "features", "fp32")
    return versions.publish(repository, b"weights", int8=content, backbone=backbone)


def refuse(*args, **kwargs):
    raise AssertionError("not to be made")


class TestPublished:
    def test_the_quantised_backbone_of_the_newest_version_is_used(self, backbone, repository, monkeypatch):
        """It replaces the cached file and is not calibrated again.

        Versions of other backbones, and those without a quantised one, are ignored.
        """
        (backbone.folder / INT8_BACKBONE_FILE).write_bytes(b"own")
        monkeypatch.setattr(int8, "quantise", refuse)
        for fingerprint, content in (
            (backbone.fingerprint, b"old"),
            (backbone.fingerprint, b"new"),
            ("b" * 64, b"other"),
            (backbone.fingerprint, None),
        ):
            publish(repository, fingerprint, content)
        found = choose_precision(backbone, IMAGES[:2], repository=repository)
        assert found == replace(backbone, precision="int8")
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == b"new"
        assert found.describe().precision == "int8"

    @pytest.mark.parametrize("file", [INT8_BACKBONE_FILE, "model.onnx", "manifest.json"])
    def test_damaged_versions_are_ignored(self, backbone, repository, file):
        publish(repository, backbone.fingerprint, b"sound")
        damaged = publish(repository, backbone.fingerprint, b"other")
        (damaged.path / file).write_bytes(b"whoops!"[: (damaged.path / file).stat().st_size])
        choose_precision(backbone, IMAGES, repository=repository)
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == b"sound"


class TestVerdict:
    def test_a_similar_and_faster_backbone_is_used_and_kept(self, backbone, repository, fast, monkeypatch, caplog):
        caplog.set_level("INFO", "trainer")
        found = choose_precision(backbone, IMAGES, repository=repository)
        assert found.precision == "int8"
        assert not np.array_equal(found.compute(IMAGES), backbone.compute(IMAGES))
        assert found.key != backbone.key
        assert [path.name for path in found.files] == ["backbone.onnx.data", INT8_BACKBONE_FILE]
        assert "times as fast: used" in caplog.text
        assert 0.5 < json.loads((backbone.folder / "int8.json").read_text())["likeness"] <= 1
        before = (backbone.folder / INT8_BACKBONE_FILE).read_bytes()
        monkeypatch.setattr(int8, "quantise", refuse)
        monkeypatch.setattr(int8, "LEAST_SIMILARITY", 2.0)  # a new comparison would fail
        assert choose_precision(backbone, IMAGES[:3], repository=repository).precision == "int8"
        assert (backbone.folder / INT8_BACKBONE_FILE).read_bytes() == before

    @pytest.mark.parametrize("bound", ["LEAST_SIMILARITY", "LEAST_SPEEDUP"])
    def test_a_worse_or_not_faster_backbone_is_not_used(self, backbone, repository, fast, monkeypatch, caplog, bound):
        caplog.set_level("INFO", "trainer")
        monkeypatch.setattr(int8, bound, 1e6)
        assert choose_precision(backbone, IMAGES, repository=repository) == backbone
        assert "not used" in caplog.text

    @pytest.mark.parametrize("lost", ["verdict", "file"])
    def test_missing_files_are_made_again(self, backbone, repository, fast, lost):
        choose_precision(backbone, IMAGES, repository=repository)
        if lost == "verdict":
            (backbone.folder / "int8.json").write_text('{"bet')
        else:
            (backbone.folder / INT8_BACKBONE_FILE).unlink()
        assert choose_precision(backbone, IMAGES, repository=repository).compute(IMAGES[:1]).shape == (1, 64)

    def test_with_too_few_images_there_is_no_quantised_backbone_yet(self, backbone, repository, fast):
        """A later run, or batch of a cold start, with more images makes it."""
        assert choose_precision(backbone, IMAGES[: LEAST_IMAGES - 1], repository=repository) == backbone
        assert not (backbone.folder / INT8_BACKBONE_FILE).exists()
        assert choose_precision(backbone, IMAGES[:LEAST_IMAGES], repository=repository).precision == "int8"

    def test_a_quantiser_that_fails_costs_a_warning(self, backbone, repository, fast, monkeypatch, caplog):
        """Float32 is used, and quantisation is not tried again."""
        failures = []

        def fail(*args, **kwargs):
            failures.append(1)
            raise StopIteration("no convolution")

        monkeypatch.setattr(int8, "quantise", fail)
        for _ in range(2):
            assert choose_precision(backbone, IMAGES, repository=repository) == backbone
        assert len(failures) == 1
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning == "int8: not to be had of small: no convolution"


def test_similarity_is_the_mean_cosine_of_centred_features():
    """Half of the length of the features is their common mean; the reference is centred in double precision."""
    rng = np.random.default_rng(0)
    exact = (rng.normal(size=(20, 8)) + 10).astype(np.float32)
    found = (exact + rng.normal(size=(20, 8))).astype(np.float32)
    a, b = (each.astype(np.float64) - exact.astype(np.float64).mean(axis=0) for each in (exact, found))
    cosines = [x @ y / np.sqrt(x @ x * (y @ y)) for x, y in zip(a, b, strict=True)]
    assert similarity(exact, found) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert 0.5 < np.mean(cosines) < 0.9


def test_features_are_close_to_fp32_and_equal_images_give_equal_files(backbone, tmp_path):
    given, _ = coloured_images(np.random.default_rng(0), 90)
    images, _ = coloured_images(np.random.default_rng(1), 40)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        int8.quantise(backbone, given, tmp_path / name / "int8")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["int8"]
    content = (tmp_path / "first" / "int8").read_bytes()
    assert content == (tmp_path / "second" / "int8").read_bytes()
    assert str(tmp_path).encode() not in content
    (found,) = open_session(onnx.load_from_string(content)).run(["features"], {"images": images})
    expected = backbone.compute(images)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert 0 < np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()
