"""Runs with the backbone in 8-bit integers."""

import shutil
from dataclasses import replace

import pytest

from contract.graph import probe
from contract.versions.repository import Repository
from contract.versions.version import HEAD_WEIGHTS_FILE, INT8_BACKBONE_FILE
from tests.trainer.run.training import CLASSIFIER, environment_in, train
from tests.trainer.small import lively_network, quantise_network, use_small_backbone, write_folders
from tests.versions import fix_names
from trainer.model.bayes import PROBE_IMAGES
from trainer.model.graphs import int8
from trainer.model.graphs.validation import validate_version

pytestmark = pytest.mark.slow  # trains or exports networks

INT8 = replace(CLASSIFIER, precision="auto")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Enough images for a probe whose rank correlation tolerates a swap."""
    fix_names(monkeypatch)
    return write_folders(tmp_path / "images", each=27)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The small network, whose int8 variant is used although it may not be faster; the cache of backbones is empty."""
    use_small_backbone(monkeypatch)
    monkeypatch.setattr(int8, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(int8, "MIN_SIMILARITY", -1.0)
    monkeypatch.setattr(probe, "MIN_RANK_CORRELATION", 0.5)  # few images, most of them certain
    return environment_in(tmp_path)


def test_publishes_the_int8_backbone_and_trains_on_its_features(folders, environment, computed):
    version = train(folders, INT8, environment)
    version.verify()
    assert version.manifest.backbone.precision == "int8"
    assert version.manifest.files[INT8_BACKBONE_FILE].size_bytes == version.int8_backbone_path.stat().st_size
    assert validate_version(version, int8=True).largest_difference > validate_version(version).largest_difference
    exact = train(folders, CLASSIFIER, environment)
    assert exact.int8_backbone_path is None
    assert exact.manifest.backbone == replace(version.manifest.backbone, precision="fp32")
    assert computed == [81, 81 - PROBE_IMAGES]  # float32 features of the probe are cached


def test_retraining_publishes_the_same_int8_backbone(folders, environment):
    """Despite other calibration images and an empty cache, so that features in servers stay valid."""
    version = train(folders, INT8, environment)
    for path in list(folders.rglob("00*.png")):
        path.unlink()
    shutil.rmtree(environment.cache_dir)
    retrained = train(folders, INT8, environment)
    assert retrained.manifest.files[INT8_BACKBONE_FILE] == version.manifest.files[INT8_BACKBONE_FILE]
    assert retrained.manifest.backbone == version.manifest.backbone
    assert retrained.manifest.files[HEAD_WEIGHTS_FILE] != version.manifest.files[HEAD_WEIGHTS_FILE]


def test_trains_on_float32_if_int8_changes_the_ranking(folders, environment, tmp_path, monkeypatch, caplog):
    def quantise_another(backbone, images, target):
        shutil.copyfile(quantise_network(lively_network(5), images, tmp_path), target)

    monkeypatch.setattr(int8, "quantise", quantise_another)
    version = train(folders, INT8, environment)
    version.verify()
    validate_version(version)
    assert version.manifest.backbone.precision == "fp32"
    assert version.int8_backbone_path is None
    assert not (version.path / INT8_BACKBONE_FILE).exists()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "int8: not used, since it ranks this version's probe differently: " in warning
    assert {path.name for path in Repository(environment.models).folder.iterdir()} == {version.name, "CURRENT"}
    exact = train(folders, CLASSIFIER, environment)
    assert exact.manifest.metrics.macro_f1 == pytest.approx(version.manifest.metrics.macro_f1, abs=0.05)
