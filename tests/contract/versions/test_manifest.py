import dataclasses
import json
import math

import pytest

from contract.errors import ManifestError
from contract.versions.manifest import Backbone, DropoutSite, FileDigest, InputSpec, Manifest
from contract.versions.results import Advice, ComparedVersion, Comparison, Metrics, ProjectState, TrainingRecord
from tests.versions import VERSION

METRICS = Metrics(images=64, accuracy=0.9, macro_f1=0.85, f1=(0.9, None, 0.8), macro_f1_interval=(0.8, 0.9))
RECORD = TrainingRecord(
    images=150,
    images_by_class={"cat": 100, "dog": 50},
    validation="audit",
    project=ProjectState(3, 151, ""),
    recipe={"epochs": 3},
    advice=Advice("label about 120 more", gain=0.02, labels=120, kappa=0.5),
    curve=Comparison(64, (ComparedVersion(VERSION, 150, 0.85, 0.8, 0.9),)),
)
MANIFEST = Manifest(
    version=VERSION,
    created_at="2026-01-02T03:04:05+00:00",
    labels=("cat", "dog", "Wombat 🐾"),
    control="label",
    input=InputSpec(224, 224),
    passes=20,
    dropout_sites=(DropoutSite((4096,), 0.5), DropoutSite((4096,), 0.5)),
    backbone=Backbone("vgg16", "a" * 64, "features", "int8"),
    multiple=True,
    temperature=1.7,
    metrics=METRICS,
    training=RECORD,
    files={"model.onnx": FileDigest("0" * 64, 12), "report/index.html": FileDigest("f" * 64, 0)},
)


def test_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def replace_fields(**fields):
    return json.dumps(json.loads(MANIFEST.to_json()) | fields)


def remove_field(name):
    document = json.loads(MANIFEST.to_json())
    del document[name]
    return json.dumps(document)


REQUIRED = {"contract", *(field.name for field in dataclasses.fields(Manifest))} - {"temperature"}


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_missing_field_is_named(name):
    """All but the temperature are required."""
    with pytest.raises(ManifestError, match=rf"no field '{name}'; publish again"):
        Manifest.from_json(remove_field(name))


def test_default_temperature_is_one():
    """Probabilities of uncalibrated versions are unchanged."""
    assert Manifest.from_json(remove_field("temperature")) == dataclasses.replace(MANIFEST, temperature=1.0)


@pytest.mark.parametrize(("value", "temperature"), [(1, 1.0), (20, 20.0), (0.05, 0.05), (1.7, 1.7)])
def test_temperature_within_its_bounds(value, temperature):
    read = Manifest.from_json(replace_fields(temperature=value)).temperature
    assert (read, type(read)) == (temperature, float)


@pytest.mark.parametrize(
    "fields", [{"contract": 3, "architecture": "vgg16", "backbone": "a" * 64}, {"contract": 5}], ids=["older", "newer"]
)
def test_rejects_another_contract(fields):
    """The error is about the contract, not about other fields."""
    message = f"follows contract {fields['contract']}, this program reads contract 4; publish again with the trainer"
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(replace_fields(**fields))


BACKBONE = dataclasses.asdict(MANIFEST.backbone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "../elsewhere"}, 'version must be a well-formed version name, found "../elsewhere"'),
        ({"passes": 0}, "passes should be greater than or equal to 1, found 0"),
        ({"passes": 10_001}, "passes should be less than or equal to 10000, found 10001"),
        ({"passes": True}, "passes should be a valid integer, found true"),
        ({"labels": ["cat"], "multiple": False}, "labels should be at least 2, found 1"),
        ({"labels": ["cat", "cat"]}, "labels must all be different"),
        ({"labels": []}, "labels Tuple should have at least 1 item"),
        *(
            ({"temperature": value}, "temperature should be")
            for value in (None, True, "1.5", -1.0, 0, 0.049, 20.1, 10**400, math.nan, math.inf)
        ),
        ({"input": {"height": 224}}, "input.width Field required"),
        ({"dropout_sites": [{"features": [4], "probability": 1.0}]}, "dropout_sites.0.probability should be less"),
        ({"dropout_sites": [{"features": [], "probability": 0.5}]}, "dropout_sites.0.features Tuple should have"),
        ({"backbone": "a" * 64}, "backbone should be"),
        ({"backbone": BACKBONE | {"name": ""}}, 'backbone.name String should have at least 1 character, found ""'),
        ({"backbone": BACKBONE | {"fingerprint": "a" * 63}}, "backbone.fingerprint String should match pattern"),
        ({"backbone": BACKBONE | {"tensor": 3}}, "backbone.tensor should be a valid string, found 3"),
        ({"backbone": BACKBONE | {"precision": "fp16"}}, "backbone.precision should be 'fp32' or 'int8', found"),
        ({"metrics": []}, "metrics must be an object, found []"),
        ({"files": {"../../etc/passwd": {}}}, "is not a path within the version's folder"),
        ({"files": {"model.onnx": {"sha256": "ab", "size_bytes": 1}}}, "files.model.onnx.sha256 String should match"),
    ],
)
def test_rejects_invalid_values(fields, message):
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(replace_fields(**fields))
    assert message in str(caught.value)
    assert "publish again" in str(caught.value)


def test_ignores_f1_of_another_number_of_labels():
    assert Manifest.from_json(replace_fields(labels=["cat", "dog"])).metrics.f1 == ()


@pytest.mark.parametrize("text", ["", "{", MANIFEST.to_json()[:-40], "[]", "null"])
def test_rejects_other_texts(text):
    with pytest.raises(ManifestError, match=r"not JSON|must be a JSON object"):
        Manifest.from_json(text)
