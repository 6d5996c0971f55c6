import json
import os
import shutil
import signal
from base64 import b64encode
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from contract.errors import ConfigError, LabelError, ProbeMismatch, TrainingError
from contract.scores.holdout import is_held_out
from contract.versions.repository import Repository
from contract.versions.results import ProjectState
from contract.versions.version import INT8_BACKBONE_FILE
from tests.trainer.small import COLOURS, PROVENANCE, coloured_images, lively_network, small_network, write_folders
from tests.trainer.studio import TOKEN, studio
from tests.versions import fix_names, publish
from trainer import run as run_module
from trainer.model.export import export
from trainer.model.quantise import quantise
from trainer.model.validation import validate_version
from trainer.publish import choose_probe_images
from trainer.run import run
from trainer.settings import Environment, Source, Training

pytestmark = pytest.mark.slow  # trains or exports networks

TRAINING = Training(weights="none", image_size=32, epochs=2, device="cpu")
QUICK = replace(TRAINING, epochs=1)
THOROUGH = Training(weights="none", image_size=32, epochs=80, learning_rate=0.1, device="cpu")


@pytest.fixture(scope="module")
def _small():
    """A network that trains in a moment stands in for VGG."""

    def build(architecture, *, classes, image_size, weights, units, dropout):
        return small_network(classes), PROVENANCE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "build", build)
        yield


@pytest.fixture(scope="module")
def published(_small, tmp_path_factory):
    """The version that a run on ten images a class came to."""
    root = tmp_path_factory.mktemp("published")
    folders = write_folders(root / "images", each=10)
    return train(folders, THOROUGH, Environment(models=root / "models", cache=root / "cache"))


@pytest.fixture
def environment(_small, tmp_path):
    return Environment(models=tmp_path / "models", cache=tmp_path / "cache")


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "images", each=10)


def train(folders, training, environment):
    return run(Source(images=folders), training, environment)


def left_behind(environment):
    """Name what a run that failed has left in the repository, its lock aside."""
    return [path.name for path in environment.models.rglob("*") if path.suffix != ".lock" and path.name != "default"]


def test_publishes_a_version_that_is_valid(published):
    """Labels in the order of the source, honest counts, enough to train again, and files that a reader can verify."""
    published.verify()
    validate_version(published)
    manifest, training = published.manifest, published.manifest.training
    assert manifest.labels == tuple(COLOURS)
    assert (training.images, training.images_by_class) == (30, {"blue": 10, "green": 10, "red": 10})
    assert training.validation_images == manifest.metrics.images == 6
    assert (training.seed, training.part, training.weights["origin"]) == (0, "all", "none")
    assert training.recipe["epochs"] == 80
    assert np.isfinite(training.final_loss)


def test_learns_and_keeps_the_order_of_the_classes(published):
    """Held-out images of each class are recognised as that class."""
    assert published.manifest.metrics.accuracy > 0.8
    assert min(published.manifest.metrics.f1) > 0.5


def test_a_seed_gives_the_same_weights_again(folders, environment):
    """Two runs publish files of equal bytes but for what belongs to the version; the second's report has both."""
    first, second = (train(folders, TRAINING, environment) for _ in range(2))
    for file in ("model.onnx", "model.onnx.data", "portable.onnx"):
        assert first.manifest.files[file] == second.manifest.files[file]
    assert first.manifest.metrics == second.manifest.metrics
    document = json.loads((second.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert [point["version"] for point in document["curve"]] == [first.name, second.name]


@pytest.mark.parametrize("part", ["all", "head"])
def test_two_images_a_class_are_enough(tmp_path, environment, part):
    """One of each trains, one of each is held out."""
    folders = write_folders(tmp_path / "few", each=2)
    training = train(folders, replace(TRAINING, part=part), environment).manifest.training
    assert (training.validation_images, training.part) == (3, part)


def test_one_class_is_refused(tmp_path, environment):
    """There is nothing to tell apart."""
    folders = write_folders(tmp_path / "one", each=2)
    for name in ("blue", "green"):
        shutil.rmtree(folders / name)
    with pytest.raises(LabelError):
        train(folders, TRAINING, environment)
    assert left_behind(environment) == []


def test_unreadable_images_are_counted_and_named(folders, environment, caplog):
    """The first few by name, and the rest by number; what can be read is trained on."""
    for number in range(7):
        (folders / "red" / f"broken{number}.png").write_bytes(b"not a picture")
    version = train(folders, QUICK, environment)
    assert (version.manifest.training.images, version.manifest.training.unreadable) == (30, 7)
    assert "7 images cannot be read" in caplog.text
    assert "broken4.png" in caplog.text
    assert "broken5.png" not in caplog.text
    assert "and 2 more" in caplog.text


def test_the_same_files_under_two_labels_are_named_and_nothing_is_measured(folders, environment, caplog):
    """The version is published, and log and report say that it was not measured."""
    for name in [name for name in COLOURS if name != "red"]:
        shutil.rmtree(folders / name)
    shutil.copytree(folders / "red", folders / "scarlet")
    caplog.set_level("INFO", "trainer")
    version = train(folders, QUICK, environment)
    assert "10 images have two labels, for equal files are labelled differently: " in caplog.text
    assert "cannot be held out" in caplog.text
    assert "nothing can be held out, and so nothing is measured" in caplog.text
    assert "Error" not in caplog.text
    assert (version.manifest.training.images, version.manifest.metrics.accuracy) == (20, None)
    assert "This version was not measured" in (version.path / "report/index.html").read_text(encoding="utf-8")


def test_file_names_that_are_no_text_cost_no_report(folders, environment, caplog):
    """Archives made elsewhere have them; what is shown of them is replaced."""
    red = os.fsencode(folders / "red")
    for number, name in enumerate(sorted(os.listdir(red))):
        os.rename(os.path.join(red, name), os.path.join(red, b"caf\xe9%d.png" % number))
    Path(os.fsdecode(os.path.join(red, b"br\xe9.png"))).write_bytes(b"not a picture")
    version = train(folders, QUICK, environment)
    report = version.path / "report/index.html"
    assert "br\ufffd.png" in report.read_text(encoding="utf-8")
    assert "br\ufffd.png" in caplog.text


def test_a_class_folder_without_a_readable_image_is_no_label(folders, environment, caplog):
    """It is named with a warning; the others are trained on."""
    (folders / "empty").mkdir()
    for number in range(3):
        (folders / "empty" / f"{number}.png").write_bytes(b"not a picture")
    version = train(folders, QUICK, environment)
    assert version.manifest.labels == tuple(COLOURS)
    assert "no image can be read, and it is no class of this version: 'empty' (3)" in caplog.text


def refuse(*args, **kwargs):
    raise ProbeMismatch("another engine")


def diverge(*args, **kwargs):
    raise TrainingError("diverged")


@pytest.mark.parametrize(
    ("step", "failure"), [("publish.validate_version", refuse), ("run.fit", diverge), ("publish.export", diverge)]
)
def test_nothing_is_published_when_a_step_fails(folders, environment, monkeypatch, step, failure):
    """What was current stays current, and no staging folder is left."""
    repository = Repository(environment.models)
    before = publish(repository, b"earlier").name
    monkeypatch.setattr(f"trainer.{step}", failure)
    with pytest.raises((ProbeMismatch, TrainingError)):
        train(folders, TRAINING, environment)
    assert (repository.current(), repository.versions()) == (before, [before])
    assert sorted(path.name for path in repository.folder.iterdir()) == sorted([before, "CURRENT"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_staging_folder(folders, environment, monkeypatch, number):
    """Whether by Ctrl-C or by a supervisor, an interrupted run cleans up."""
    before = signal.signal(number, signal.default_int_handler)  # a parent may have had SIGINT ignored
    monkeypatch.setattr("trainer.publish.validate_version", lambda _: os.kill(os.getpid(), number))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(folders, TRAINING, environment)
    finally:
        signal.signal(number, before)
    assert left_behind(environment) == []


HEAD_INT8 = Training(weights="none", image_size=32, epochs=10, learning_rate=0.1, part="head", int8=True, device="cpu")


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Enough images for a probe whose ranks one swap does not turn over."""
    fix_names(monkeypatch)
    return write_folders(tmp_path / "many", each=27)


def test_int8_publishes_the_backbone_in_8_bit_integers_too(many, environment):
    """With its digest in the manifest, and validated; without the option there is none."""
    version = train(many, HEAD_INT8, environment)
    version.verify()
    assert version.manifest.files[INT8_BACKBONE_FILE].size_bytes == version.int8_backbone_path.stat().st_size
    assert validate_version(version, int8=True).largest_difference > validate_version(version).largest_difference
    assert train(many, replace(HEAD_INT8, int8=False), environment).int8_backbone_path is None


def test_a_retrain_of_the_head_publishes_the_very_same_int8_backbone(many, environment):
    """Though there are other images to calibrate on: features that servers keep stay good."""
    first = train(many, HEAD_INT8, environment)
    for path in list(many.rglob("00*.png")):
        path.unlink()
    second, other = train(many, HEAD_INT8, environment), train(many, replace(HEAD_INT8, seed=1), environment)
    digests = [version.manifest.files[INT8_BACKBONE_FILE].sha256 for version in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert first.manifest.backbone == second.manifest.backbone != other.manifest.backbone
    assert first.manifest.files["model.onnx.data"] != second.manifest.files["model.onnx.data"]


def test_an_int8_backbone_that_ranks_otherwise_is_left_out(many, environment, tmp_path, monkeypatch, caplog):
    """The version is published all the same, with a warning and without a trace of it."""

    def quantise_another(folder, images, target):
        export(lively_network(5), tmp_path, image_size=32)
        quantise(tmp_path, images, target)

    monkeypatch.setattr("trainer.publish.quantise", quantise_another)
    version = train(many, HEAD_INT8, environment)
    version.verify()
    validate_version(version)
    assert version.int8_backbone_path is None
    assert not (version.path / INT8_BACKBONE_FILE).exists()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][-1:]
    assert warning.startswith("published without a backbone in int8: in reduced precision BALD ranks")


def test_one_trainer_at_a_time_works_on_a_model(folders, environment):
    """The second is told, at once, and may train another model."""
    environment.models.mkdir()
    with (
        FileLock(environment.models / ".default.lock"),
        pytest.raises(ConfigError, match="another trainer is at work on model 'default'"),
    ):
        train(folders, TRAINING, environment)


def test_the_probe_holds_unseen_images_of_every_class(folders, environment):
    """Sixteen at most, from the validation part."""
    data = run_module._read(Source(images=folders), TRAINING, environment)
    chosen = choose_probe_images(data)
    held_out = {image.tobytes() for image in data.pixels.images[data.parts.validation]}
    assert {image.tobytes() for image in chosen} == held_out
    assert len(chosen) == 6


def test_a_source_that_cannot_be_read_says_what_is_missing(environment):
    """Settings are named by the names they are set by."""
    with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_URL"):
        run(Source(project=1), TRAINING, environment)


CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="label" toName="image">'
    + "".join(f'<Choice value="{colour}"/>' for colour in COLOURS)
    + "</Choices></View>"
)


@pytest.fixture
def project():
    """A Label Studio in which 33 tasks of the random sample are labelled, and 39 others."""
    numbers = np.arange(1, 601)
    audit = is_held_out(5, numbers, 0.1)
    chosen = np.sort(np.concatenate([numbers[audit][:33], numbers[~audit][:39]]))
    images, targets = coloured_images(np.random.default_rng(7), len(chosen))
    with studio(tasks=chosen.max()) as each:
        each.project["label_config"] = CONFIG
        for task, image, target in zip(chosen.tolist(), images, targets, strict=True):
            file = BytesIO()
            Image.fromarray(image).save(file, "PNG")
            each.tasks[task]["data"] = {"image": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}
            each.annotate(task, list(COLOURS)[target])
        yield each


def train_on_project(project, environment, **fields):
    connected = replace(environment, label_studio_url=project.url, label_studio_token=TOKEN)
    return run(Source(project=5), replace(TRAINING, **fields), connected).manifest


def test_a_project_is_measured_on_its_random_sample(project, environment):
    """The manifest says so, with the interval, the mean BALD and what was there before the labels were read."""
    manifest = train_on_project(project, environment)
    assert manifest.training.validation == "audit"
    assert manifest.training.audit_images == manifest.training.validation_images == manifest.metrics.images
    assert manifest.training.audit_images == 33
    assert manifest.training.audit_share == 0.1
    newest = max(task["updated_at"] for task in project.tasks.values())
    assert manifest.training.project == ProjectState(5, 72, newest)
    low, high = manifest.metrics.macro_f1_interval
    assert 0 <= low <= manifest.metrics.macro_f1 <= high <= 1
    assert 0 < manifest.metrics.mean_bald < np.log(3)
    assert manifest.training.advice.sentence.startswith("too early to say: 1 version so far, 3 are needed (macro-F1 ")


def test_successive_versions_are_compared_on_it(project, environment):
    """The first with none, the next with the one before, which is not asked twice."""
    first = train_on_project(project, environment)
    same = train_on_project(project, environment)
    other = train_on_project(project, environment, seed=1, epochs=60, learning_rate=0.1)
    kappas = [manifest.training.advice.kappa for manifest in (first, same, other)]
    assert kappas[0] is None
    assert kappas[1] > 0.5
    assert kappas[2] < 0.5
    curve = other.training.curve
    assert curve.images == 33
    assert [each.version for each in curve.versions] == [each.version for each in (first, same, other)]
    assert [each.macro_f1 for each in curve.versions] == pytest.approx(
        [each.metrics.macro_f1 for each in (first, same, other)]  # no label has come in between
    )
    assert "answers.json" in other.files


def test_a_copy_of_an_image_that_was_trained_on_is_not_measured_on(project, environment):
    """An earlier version may have learnt it by heart, whatever slice its own task is of."""
    sliced, other = (
        next(
            task
            for task in project.tasks
            if project.counts(task)[0] and is_held_out(5, np.array([task]), 0.1)[0] == own
        )
        for own in (True, False)
    )
    project.tasks[sliced]["data"] = project.tasks[other]["data"]
    manifest = train_on_project(project, environment)
    assert (manifest.training.validation_images, manifest.training.curve.images) == (33, 32)


def test_without_a_random_sample_there_is_no_advice(project, environment, folders):
    """A part of each class is held out, as from folders."""
    manifest = train_on_project(project, environment, holdout_share=0.0)
    assert (manifest.training.validation, manifest.training.audit_images) == ("split", 0)
    assert manifest.training.advice is None
    training = train(folders, TRAINING, environment).manifest.training
    assert (training.validation, training.project, training.advice) == ("split", None, None)


def test_a_comparison_that_fails_costs_no_version(project, environment):
    """The version in use may be broken: a new one is what mends it."""
    train_on_project(project, environment)
    repository = Repository(environment.models)
    path = repository.open(repository.current()).model_path
    path.write_bytes(b"x" * path.stat().st_size)
    manifest = train_on_project(project, environment)
    assert manifest.version == repository.current()
    assert manifest.training.advice.kappa is None


def test_a_version_comes_with_its_report(published):
    """Its files are in the manifest and verify; how long they took and the temperature are there too."""
    version = published
    assert {name for name in version.manifest.files if name.startswith("report/")} == {
        "report/index.html",
        "report/figures.json",
        "report/classes.csv",
    }
    document = json.loads((version.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert document["metrics"] == json.loads(json.dumps(asdict(version.manifest.metrics)))
    assert document["label_errors"]["judged_by"] == "validation"
    assert version.manifest.training.report_s > 0
    assert version.manifest.temperature == 1


@pytest.mark.parametrize("part", ["classifier", "head"])
def test_labels_of_all_images_are_judged_by_what_was_frozen(environment, part, tmp_path):
    """A swapped label is found by features that training has computed already."""
    folders = write_folders(tmp_path / "swapped", each=12)
    (folders / "red" / "002.png").rename(folders / "blue" / "swapped.png")
    report = train(folders, replace(TRAINING, part=part), environment).path / "report"
    found = json.loads((report / "figures.json").read_text(encoding="utf-8"))["label_errors"]
    assert (found["judged_by"], found["judged"]) == ("cross-validation", 36)
    assert found["likeliest"][0]["name"] == "blue/swapped.png"
    assert found["likeliest"][0]["suggested"] == ["red"]


def test_a_report_that_fails_costs_no_version(folders, environment, monkeypatch, caplog):
    """It is published with a warning, and without a trace of the report."""

    def fail(inputs, folder):
        folder.mkdir()
        (folder / "index.html").write_text("half")
        raise ValueError("no ink")

    monkeypatch.setattr("trainer.publish.write_report", fail)
    version = train(folders, TRAINING, environment)
    version.verify()
    assert not (version.path / "report").exists()
    assert not any(name.startswith("report/") for name in version.manifest.files)
    assert version.manifest.training.report_s is None
    assert "published without a report: no ink" in caplog.text


def test_the_temperature_that_was_found_is_in_the_manifest(many, environment):
    """From 30 validation images on, unless all of them are right."""
    version = train(many, replace(TRAINING, validation=0.5, learning_rate=1e-4), environment)
    document = json.loads((version.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert version.manifest.metrics.images >= 30
    assert document["temperature"] == version.manifest.temperature != 1
