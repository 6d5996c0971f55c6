"""Runs on faulty images and labels, and runs that fail."""

import os
import shutil
from dataclasses import replace

import pytest
from filelock import FileLock

from contract.errors import ConfigError, TrainingError
from contract.versions.repository import Repository
from tests.trainer.run.training import CLASSIFIER, TRAINING, train
from tests.trainer.small import small_backbone
from tests.versions import publish
from trainer.model import build

pytestmark = pytest.mark.slow  # trains or exports networks


def test_names_unreadable_images(folders, environment, caplog):
    (folders / "empty").mkdir()
    for path in ("empty/1.png", "empty/2.png", os.fsdecode(b"red/br\xe9.png")):
        (folders / path).write_bytes(b"not a picture")
    version = train(folders, replace(TRAINING, epochs=1), environment)
    assert (version.manifest.training.images, version.manifest.training.unreadable) == (30, 3)
    assert version.manifest.labels == ("blue", "green", "red")
    assert "3 unreadable images: " in caplog.text
    assert "labels without a readable image: 'empty' (2); not classes of this version" in caplog.text
    assert "br\ufffd.png" in caplog.text
    assert "br\ufffd.png" in (version.path / "report/index.html").read_text(encoding="utf-8")


def test_publishes_without_evaluation_if_nothing_can_be_held_out(folders, environment, caplog):
    """If all images have copies in another class."""
    shutil.rmtree(folders / "blue")
    shutil.rmtree(folders / "green")
    shutil.copytree(folders / "red", folders / "scarlet")
    version = train(folders, replace(TRAINING, epochs=1), environment)
    assert version.manifest.training.images == 20
    assert version.manifest.metrics.accuracy is None
    assert "10 groups of identical images with different labels: " in caplog.text
    assert "no validation part, so the version is not measured" in caplog.text
    assert "Error" not in caplog.text
    assert "This version was not evaluated" in (version.path / "report/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("step", ["publish.validate_version", "model.fit_head.fit", "publish.export"])
def test_publishes_nothing_if_a_step_fails(folders, environment, monkeypatch, step):
    def fail(*args, **kwargs):
        raise TrainingError("diverged")

    repository = Repository(environment.models)
    previous = publish(repository, b"earlier").name
    monkeypatch.setattr(f"trainer.{step}", fail)
    with pytest.raises(TrainingError):
        train(folders, CLASSIFIER, environment)
    assert (repository.current(), repository.versions()) == (previous, [previous])
    assert sorted(path.name for path in repository.folder.iterdir()) == sorted([previous, "CURRENT"])


def test_rejects_concurrent_runs_for_one_model(folders, environment):
    environment.models.mkdir()
    with (
        FileLock(environment.models / ".default.lock"),
        pytest.raises(ConfigError, match="another process is training model 'default'"),
    ):
        train(folders, TRAINING, environment)


def test_rejects_training_of_onnx_files(folders, environment, monkeypatch):
    loaded = replace(small_backbone(), name="own.onnx", module=None)
    monkeypatch.setattr(build, "load_backbone", lambda *_, **__: loaded)
    with pytest.raises(ConfigError, match=r"--train all cannot train an ONNX file, got --backbone own\.onnx"):
        train(folders, replace(TRAINING, part="all"), environment)
