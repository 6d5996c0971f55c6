"""The published version of a run: files, manifest and report."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE
from tests.trainer.run.training import CLASSIFIER, TRAINING, environment_in, train
from tests.trainer.small import COLOURS, use_small_backbone, write_folders
from tests.versions import fix_names
from trainer.model.graphs.validation import validate_version
from trainer.settings import Training

pytestmark = pytest.mark.slow  # trains or exports networks


def read_figures(version):
    return json.loads((version.path / "report" / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A version with a trained backbone."""
    root = tmp_path_factory.mktemp("published")
    training = Training(weights="none", image_size=32, epochs=80, learning_rate=0.1, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        fix_names(patch)
        return train(write_folders(root / "images", each=10), training, environment_in(root))


def test_version_is_valid_and_accurate(published):
    published.verify()
    validate_version(published)
    metrics = published.manifest.metrics
    assert metrics.accuracy > 0.8
    assert min(metrics.f1) > 0.5
    assert metrics.images == 6
    assert published.manifest.labels == tuple(COLOURS)


def test_manifest_records_the_training(published):
    training = published.manifest.training
    assert (training.images, training.images_by_class) == (30, {"blue": 10, "green": 10, "red": 10})
    assert (training.validation, training.validation_images, training.refitted) == ("split", 6, False)
    assert (training.seed, training.part, training.weights["origin"]) == (0, "all", "none")
    assert training.recipe["epochs"] == 80
    assert np.isfinite(training.final_loss)
    assert (training.project, training.advice) == (None, None)


def test_report_has_the_metrics_of_the_manifest(published):
    files = {name for name in published.manifest.files if name.startswith("report/")}
    assert files == {"report/index.html", "report/figures.json", "report/classes.csv"}
    figures = read_figures(published)
    assert figures["metrics"] == json.loads(json.dumps(asdict(published.manifest.metrics)))
    assert figures["label_errors"]["judged_by"] == "validation"
    assert published.manifest.training.report_s > 0


def test_trained_backbone_is_neither_quantised_nor_cached(published):
    assert (published.manifest.backbone.precision, published.int8_backbone_path) == ("fp32", None)
    assert not (published.path.parents[2] / "features").exists()


@pytest.mark.parametrize("part", ["all", "classifier"])
def test_seed_determines_the_weights(folders, environment, part):
    first, second = (train(folders, replace(TRAINING, part=part), environment) for _ in range(2))
    for file in ("model.onnx", BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, "portable.onnx"):
        assert first.manifest.files[file] == second.manifest.files[file]
    assert first.manifest.metrics == second.manifest.metrics
    assert [point["version"] for point in read_figures(second)["curve"]] == [first.name, second.name]


def test_report_names_label_errors_among_all_images(environment, tmp_path):
    """With a frozen backbone."""
    folders = write_folders(tmp_path / "swapped", each=12)
    (folders / "red" / "002.png").rename(folders / "blue" / "swapped.png")
    errors = read_figures(train(folders, CLASSIFIER, environment))["label_errors"]
    assert (errors["judged_by"], errors["judged"]) == ("cross-validation", 36)
    assert errors["likeliest"][0]["name"] == "blue/swapped.png"
    assert errors["likeliest"][0]["suggested"] == ["red"]


def test_publishes_without_a_report_if_that_fails(folders, environment, monkeypatch, caplog):
    def fail(inputs, folder):
        folder.mkdir()
        (folder / "index.html").write_text("half")
        raise ValueError("no font")

    monkeypatch.setattr("trainer.publish.write_report", fail)
    version = train(folders, CLASSIFIER, environment)
    version.verify()
    assert not (version.path / "report").exists()
    assert not any(name.startswith("report/") for name in version.manifest.files)
    assert version.manifest.training.report_s is None
    assert "published without a report: no font" in caplog.text


def test_manifest_has_the_fitted_temperature(environment, tmp_path, monkeypatch):
    """With at least 30 validation images, unless all predictions are right."""
    fix_names(monkeypatch)
    folders = write_folders(tmp_path / "images", each=27)
    for number in range(2, 81, 9):  # label errors
        (folders / "red" / f"{number:03}.png").rename(folders / "blue" / f"{number:03}.png")
    version = train(folders, replace(CLASSIFIER, validation=0.5, epochs=40), environment)
    assert version.manifest.metrics.images >= 30
    assert read_figures(version)["temperature"] == version.manifest.temperature != 1
