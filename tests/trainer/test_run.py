import json
import os
import shutil
from base64 import b64encode
from dataclasses import asdict, replace
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from contract.errors import ConfigError, TrainingError
from contract.graph import probe
from contract.images.download import Validators
from contract.scores.holdout import is_held_out
from contract.versions.manifest import InputSpec
from contract.versions.repository import Repository
from contract.versions.results import ProjectState
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, INT8_BACKBONE_FILE
from tests.trainer.small import (
    COLOURS,
    coloured_images,
    lively_network,
    quantise_network,
    small_backbone,
    use_small_backbone,
    write_folders,
)
from tests.trainer.studio import TOKEN, label_config, studio
from tests.versions import fix_names, publish
from trainer import run as run_module
from trainer.features import open_store
from trainer.labelstudio import connect
from trainer.labelstudio.task_lists import cache_folder, list_unlabelled
from trainer.model import build
from trainer.model.bayes import PROBE_IMAGES
from trainer.model.fit import fit
from trainer.model.frozen import FrozenBackbone
from trainer.model.graphs import int8
from trainer.model.graphs.validation import validate_version
from trainer.model.head import to_onnx
from trainer.publish import choose_probe
from trainer.run import run
from trainer.settings import Environment, Source, Training
from trainer.study.model import Dataset, Trainer

pytestmark = pytest.mark.slow  # trains or exports networks

TRAINING = Training(weights="none", image_size=32, epochs=2, device="cpu")
QUICK = replace(TRAINING, epochs=1)
THOROUGH = Training(weights="none", image_size=32, epochs=80, learning_rate=0.1, device="cpu")


@pytest.fixture(scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def environment_in(root):
    return Environment(models=root / "models", cache=root / "cache", cache_dir=root / "features")


@pytest.fixture(scope="module")
def published(_small, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        fix_names(patch)
        return train(write_folders(root / "images", each=10), THOROUGH, environment_in(root))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Cache of the frozen backbone, shared by the tests of this module."""
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture
def environment(_small, tmp_path, backbones, request):
    settings = environment_in(tmp_path)
    if "_accepted" not in request.fixturenames:  # the verdict on int8 is kept beside the backbone
        settings.cache_dir.mkdir()
        (settings.cache_dir / "backbones").symlink_to(backbones)
    return settings


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "images", each=10)


def train(folders, training, environment):
    return run(Source(images=folders), training, environment)


def test_publishes_a_valid_and_accurate_version(published):
    published.verify()
    validate_version(published)
    manifest, training = published.manifest, published.manifest.training
    assert manifest.labels == tuple(COLOURS)
    assert (training.images, training.images_by_class) == (30, {"blue": 10, "green": 10, "red": 10})
    assert training.validation_images == manifest.metrics.images == 6
    assert (training.seed, training.part, training.weights["origin"]) == (0, "all", "none")
    assert (training.recipe["epochs"], training.refitted) == (80, False)
    assert np.isfinite(training.final_loss)
    assert manifest.metrics.accuracy > 0.8
    assert min(manifest.metrics.f1) > 0.5
    assert (training.validation, training.project, training.advice) == ("split", None, None)
    report = {name for name in manifest.files if name.startswith("report/")}
    assert report == {"report/index.html", "report/figures.json", "report/classes.csv"}
    document = json.loads((published.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert document["metrics"] == json.loads(json.dumps(asdict(manifest.metrics)))
    assert document["label_errors"]["judged_by"] == "validation"
    assert training.report_s > 0
    assert manifest.temperature == 1
    assert (manifest.backbone.precision, published.int8_backbone_path) == ("fp32", None)
    assert not (published.path.parents[2] / "features").exists()


@pytest.mark.parametrize("part", ["all", "classifier"])
def test_a_seed_gives_the_same_weights(folders, environment, part):
    first, second = (train(folders, replace(TRAINING, part=part), environment) for _ in range(2))
    for file in ("model.onnx", BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, "portable.onnx"):
        assert first.manifest.files[file] == second.manifest.files[file]
    assert first.manifest.metrics == second.manifest.metrics
    document = json.loads((second.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert [point["version"] for point in document["curve"]] == [first.name, second.name]


def test_unreadable_images_and_contradictions_are_named_and_the_validation_part_may_be_empty(
    folders, environment, caplog
):
    for name in [name for name in COLOURS if name != "red"]:
        shutil.rmtree(folders / name)
    shutil.copytree(folders / "red", folders / "scarlet")
    (folders / "empty").mkdir()
    for path in ("empty/1.png", "empty/2.png", os.fsdecode(b"red/br\xe9.png")):
        (folders / path).write_bytes(b"not a picture")
    caplog.set_level("INFO", "trainer")
    version = train(folders, QUICK, environment)
    training, report = version.manifest.training, (version.path / "report/index.html").read_text(encoding="utf-8")
    assert (training.images, training.unreadable, version.manifest.labels) == (20, 3, ("red", "scarlet"))
    assert "3 unreadable images: " in caplog.text
    assert "labels without a readable image: 'empty' (2); not classes of this version" in caplog.text
    assert "br\ufffd.png" in caplog.text
    assert "br\ufffd.png" in report
    assert "10 groups of identical images with different labels: " in caplog.text
    assert "no validation part, so the version is not measured" in caplog.text
    assert "Error" not in caplog.text
    assert version.manifest.metrics.accuracy is None
    assert "This version was not evaluated" in report


@pytest.mark.parametrize("step", ["publish.validate_version", "model.fit_head.fit", "publish.export"])
def test_nothing_is_published_when_a_step_fails(folders, environment, monkeypatch, step):
    def fail(*args, **kwargs):
        raise TrainingError("diverged")

    repository = Repository(environment.models)
    before = publish(repository, b"earlier").name
    monkeypatch.setattr(f"trainer.{step}", fail)
    with pytest.raises(TrainingError):
        train(folders, CLASSIFIER, environment)
    assert (repository.current(), repository.versions()) == (before, [before])
    assert sorted(path.name for path in repository.folder.iterdir()) == sorted([before, "CURRENT"])


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Enough images for a probe whose rank correlation tolerates a swap."""
    fix_names(monkeypatch)
    return write_folders(tmp_path / "many", each=27)


CLASSIFIER = replace(TRAINING, part="classifier", precision="fp32", epochs=10)
HEAD_INT8 = replace(CLASSIFIER, precision="auto")


@pytest.fixture
def computed(monkeypatch):
    """Batch sizes of the computed features, without those of the validation."""
    counts, compute = [], FrozenBackbone.compute

    def record(self, images, *, title="features"):
        if title == "features":
            counts.append(len(images))
        return compute(self, images, title=title)

    monkeypatch.setattr(FrozenBackbone, "compute", record)
    return counts


@pytest.fixture
def _accepted(monkeypatch):
    """Accepts any quantised backbone: the speed of a small network depends on the machine."""
    monkeypatch.setattr(int8, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(int8, "MIN_SIMILARITY", -1.0)
    monkeypatch.setattr(probe, "MIN_RANK_CORRELATION", 0.5)  # few images, most of them certain


def test_a_retrain_computes_features_of_new_images_only(folders, environment, computed):
    """Only the head changes: it is measured without the held-out images, and published with them."""
    first = train(folders, CLASSIFIER, environment)
    images, targets = coloured_images(np.random.default_rng(99), 6, size=40)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        Image.fromarray(image).save(folders / list(COLOURS)[target] / f"new{number:03}.png")
    training = first.manifest.training
    assert (training.images, training.validation_images, training.refitted) == (30, 6, True)
    second = train(folders, replace(CLASSIFIER, epochs=60), environment)
    assert second.manifest.metrics.accuracy > 0.8
    assert computed == [30, 6]
    assert first.manifest.backbone == second.manifest.backbone
    assert (first.manifest.backbone.name, first.manifest.backbone.precision) == ("small", "fp32")
    files = [version.manifest.files for version in (first, second)]
    assert files[0][BACKBONE_WEIGHTS_FILE] == files[1][BACKBONE_WEIGHTS_FILE]
    assert files[0][HEAD_WEIGHTS_FILE] != files[1][HEAD_WEIGHTS_FILE]
    assert (second.manifest.training.images, second.manifest.training.part) == (36, "classifier")
    validate_version(second)


def test_studies_train_the_same_head_as_versions(folders, environment, monkeypatch):
    begun = []

    def note(module, inputs, targets, **options):
        begun.append((to_onnx(module).SerializeToString(deterministic=True), inputs, targets))
        return fit(module, inputs, targets, **options)

    monkeypatch.setattr("trainer.model.fit_head.fit", note)
    training = replace(CLASSIFIER, seed=4, units=16)
    train(folders, training, environment)
    _, (version, features, targets) = begun
    dataset = Dataset(tuple(COLOURS), targets, np.empty(0), features.numpy(), environment.cache_dir)
    Trainer(dataset, training, device=torch.device("cpu")).train(np.arange(len(targets)), "study/4/0")
    assert begun[2][0] == version
    Trainer(dataset, replace(training, seed=5), device=torch.device("cpu")).train(np.arange(len(targets)), "study/5/0")
    assert begun[3][0] != version


@pytest.mark.usefixtures("_accepted")
def test_a_backbone_in_8_bit_integers_is_published_and_trained_on(many, environment, computed):
    """A retrain publishes the same file despite other calibration images, so stored features stay valid."""
    version = train(many, HEAD_INT8, environment)
    version.verify()
    assert version.manifest.backbone.precision == "int8"
    assert version.manifest.files[INT8_BACKBONE_FILE].size_bytes == version.int8_backbone_path.stat().st_size
    assert validate_version(version, int8=True).largest_difference > validate_version(version).largest_difference
    exact = train(many, CLASSIFIER, environment)
    assert exact.int8_backbone_path is None
    assert exact.manifest.backbone == replace(version.manifest.backbone, precision="fp32")
    assert computed == [81, 81 - PROBE_IMAGES]  # those of the probe are known
    Repository(environment.models).rollback(version.name)
    for path in list(many.rglob("00*.png")):
        path.unlink()
    shutil.rmtree(environment.cache_dir)
    retrained = train(many, HEAD_INT8, environment)
    assert retrained.manifest.files[INT8_BACKBONE_FILE] == version.manifest.files[INT8_BACKBONE_FILE]
    assert retrained.manifest.backbone == version.manifest.backbone
    assert retrained.manifest.files[HEAD_WEIGHTS_FILE] != version.manifest.files[HEAD_WEIGHTS_FILE]


@pytest.mark.usefixtures("_accepted")
def test_if_int8_changes_the_ranking_the_head_is_trained_on_float32(many, environment, tmp_path, monkeypatch, caplog):
    def quantise_another(backbone, images, target):
        shutil.copyfile(quantise_network(lively_network(5), images, tmp_path), target)

    monkeypatch.setattr(int8, "quantise", quantise_another)
    version = train(many, HEAD_INT8, environment)
    version.verify()
    validate_version(version)
    assert version.manifest.backbone.precision == "fp32"
    assert version.int8_backbone_path is None
    assert not (version.path / INT8_BACKBONE_FILE).exists()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "ranks this version's probe differently: in reduced precision BALD ranks" in warning
    assert {path.name for path in Repository(environment.models).folder.iterdir()} == {version.name, "CURRENT"}
    exact = train(many, CLASSIFIER, environment)
    assert exact.manifest.metrics.macro_f1 == pytest.approx(version.manifest.metrics.macro_f1, abs=0.05)


def test_untrainable_backbones_and_concurrent_trainers_are_refused(folders, environment, monkeypatch):
    environment.models.mkdir()
    with (
        FileLock(environment.models / ".default.lock"),
        pytest.raises(ConfigError, match="another process is training model 'default'"),
    ):
        train(folders, TRAINING, environment)
    opened = replace(small_backbone(), name="own.onnx", module=None)
    monkeypatch.setattr(build, "load_backbone", lambda *_, **__: opened)
    with pytest.raises(ConfigError, match=r"--train all cannot train an ONNX file, got --backbone own\.onnx"):
        train(folders, replace(TRAINING, part="all"), environment)


def test_the_probe_changes_little_between_rounds(folders, environment):
    """So its features are known. Classes are balanced, and images are replaced only by new ones of smaller digest."""
    data = run_module._read(Source(images=folders), TRAINING, environment, InputSpec(32, 32))
    rng = np.random.default_rng(0)
    digests = tuple(rng.bytes(32) for _ in range(200))
    targets = rng.integers(0, 3, 200)
    chosen = []
    for count in (180, 200):
        pixels = replace(data.pixels, digests=digests[:count], targets=targets[:count])
        chosen.append(choose_probe(replace(data, pixels=pixels)))
    before, now = ({digests[row] for row in rows} for rows in chosen)
    assert len(before) == len(now) == PROBE_IMAGES
    assert len(before & now) >= PROBE_IMAGES - 4
    assert np.ptp(np.bincount(targets[chosen[1]])) <= 1


@pytest.fixture
def project():
    """A project with 33 labelled tasks of the random holdout, and 39 others."""
    numbers = np.arange(1, 601)
    audit = is_held_out(5, numbers, 0.1)
    chosen = np.sort(np.concatenate([numbers[audit][:33], numbers[~audit][:39]]))
    images, targets = coloured_images(np.random.default_rng(7), len(chosen))
    with studio(tasks=chosen.max()) as each:
        each.project["label_config"] = label_config(*COLOURS)
        for task, image, target in zip(chosen.tolist(), images, targets, strict=True):
            file = BytesIO()
            Image.fromarray(image).save(file, "PNG")
            each.tasks[task]["data"] = {"image": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}
            each.annotate(task, list(COLOURS)[target])
        yield each


def train_on_project(project, environment, **fields):
    connected = replace(environment, label_studio_url=project.url, label_studio_token=TOKEN)
    return run(Source(project=5), replace(TRAINING, precision="fp32", **fields), connected).manifest


@pytest.mark.parametrize("part", ["classifier", "all"])
def test_versions_of_a_project_are_measured_and_compared_on_the_random_holdout(project, environment, part):
    first, same = (train_on_project(project, environment, epochs=20, part=part) for _ in range(2))
    other = train_on_project(project, environment, seed=1, epochs=1, learning_rate=1e-5, part=part)
    training, metrics = first.training, first.metrics
    assert (training.validation, training.audit_share) == ("audit", 0.1)
    assert training.audit_images == training.validation_images == metrics.images == 33
    assert training.project == ProjectState(5, 72, max(task["updated_at"] for task in project.tasks.values()))
    low, high = metrics.macro_f1_interval
    assert 0 <= low <= metrics.macro_f1 <= high <= 1
    assert 0 < metrics.mean_bald < np.log(3)
    assert training.advice.sentence.startswith("too early to say: 1 version so far, 3 are needed (macro-F1 ")
    kappas = [manifest.training.advice.kappa for manifest in (first, same, other)]
    assert kappas[0] is None
    assert kappas[1] > 0.5
    assert kappas[2] < kappas[1] - 0.3
    curve = other.training.curve
    assert curve.images == 33
    assert [each.version for each in curve.versions] == [each.version for each in (first, same, other)]
    assert [each.macro_f1 for each in curve.versions] == pytest.approx(
        [each.metrics.macro_f1 for each in (first, same, other)],  # no new labels
        abs=0.1,  # 200 passes, not 20
    )
    assert "answers.json" in other.files


def test_copies_of_training_images_are_not_measured_on(project, environment):
    """An earlier version may have been trained on the image in another task."""
    sliced, other = (
        next(
            task
            for task in project.tasks
            if project.counts(task)[0] and is_held_out(5, np.array([task]), 0.1)[0] == own
        )
        for own in (True, False)
    )
    project.tasks[sliced]["data"] = project.tasks[other]["data"]
    training = train_on_project(project, environment, part="classifier").training
    assert (training.validation_images, training.curve.images) == (33, 32)
    without = train_on_project(project, environment, part="classifier", holdout_share=0.0).training
    assert (without.validation, without.audit_images, without.advice) == ("split", 0, None)


def test_unlabelled_images_with_known_features_are_learnt_from(project, environment, monkeypatch, caplog):
    """The measured head treats the random holdout like unlabelled images, so that its metrics apply to those."""
    caplog.set_level("INFO", "trainer")
    connected = replace(environment, label_studio_url=project.url, label_studio_token=TOKEN)
    tasks = list_unlabelled(connect(project.url, TOKEN, 5), cache_folder(connected, 5))
    images, _ = coloured_images(np.random.default_rng(8), len(tasks))
    shown = []

    def note(module, inputs, targets, *, sample_weights=None, **options):
        shown.append((inputs.numpy(), len(targets) if sample_weights is None else int((sample_weights == 1).sum())))
        return fit(module, inputs, targets, sample_weights=sample_weights, **options)

    monkeypatch.setattr("trainer.model.fit_head.fit", note)
    train_on_project(project, environment, part="classifier", epochs=20)
    assert [len(inputs) for inputs, _ in shown] == [39, 72]
    frozen_backbone = build.open_frozen_for(replace(TRAINING, part="classifier"), cache=connected.cache_dir)
    digests = [sha256(str(task.id).encode()).digest() for task in tasks]
    with open_store(connected) as store:
        rows = frozen_backbone.compute_cached(images, digests, store)
        for task, digest in zip(tasks, digests, strict=True):
            store.put_download(task.data["image"], Validators("", None, None), digest, at=0)
    shown.clear()
    train_on_project(project, environment, part="classifier", epochs=20)
    assert [labelled for _, labelled in shown] == [39, 39, 72, 72]
    others = {row.tobytes() for row in rows}
    seen, labelled = ({row.tobytes() for row in shown[fit][0]} for fit in (0, 2))
    measured, published = ({row.tobytes() for row in shown[fit][0][shown[fit][1] :]} for fit in (1, 3))
    assert measured - others
    assert measured - others <= labelled - seen
    assert len(measured & others) > len(seen)
    assert published <= others
    assert len(published) > len(labelled)
    assert f"features of {len(others)} of {len(others)} unlabelled images are cached" in caplog.text
    shown.clear()
    train_on_project(project, environment, part="classifier", epochs=20, pseudo_labels=False)
    assert [len(inputs) for inputs, _ in shown] == [39, 72]


def test_label_errors_of_all_images_are_found_on_frozen_features(environment, tmp_path):
    folders = write_folders(tmp_path / "swapped", each=12)
    (folders / "red" / "002.png").rename(folders / "blue" / "swapped.png")
    report = train(folders, CLASSIFIER, environment).path / "report"
    found = json.loads((report / "figures.json").read_text(encoding="utf-8"))["label_errors"]
    assert (found["judged_by"], found["judged"]) == ("cross-validation", 36)
    assert found["likeliest"][0]["name"] == "blue/swapped.png"
    assert found["likeliest"][0]["suggested"] == ["red"]


def test_without_its_report_a_version_is_published(folders, environment, monkeypatch, caplog):
    def fail(inputs, folder):
        folder.mkdir()
        (folder / "index.html").write_text("half")
        raise ValueError("no ink")

    monkeypatch.setattr("trainer.publish.write_report", fail)
    version = train(folders, CLASSIFIER, environment)
    version.verify()
    assert not (version.path / "report").exists()
    assert not any(name.startswith("report/") for name in version.manifest.files)
    assert version.manifest.training.report_s is None
    assert "published without a report: no ink" in caplog.text


def test_the_fitted_temperature_is_in_the_manifest(many, environment):
    """With at least 30 validation images, unless all predictions are right."""
    for number in range(2, 81, 9):  # label errors
        (many / "red" / f"{number:03}.png").rename(many / "blue" / f"{number:03}.png")
    version = train(many, replace(CLASSIFIER, validation=0.5, epochs=40), environment)
    document = json.loads((version.path / "report" / "figures.json").read_text(encoding="utf-8"))
    assert version.manifest.metrics.images >= 30
    assert document["temperature"] == version.manifest.temperature != 1
