"""Versions made to do harm are not admitted, and the version in use stays in use."""

import pytest

from bench.subjects.tiny_model import TinyModel, draw_images, publish
from contract.errors import DigestError, LabelnextError
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from server.inference.engine import Engine, EngineOptions
from server.inference.validation import admit
from server.settings import Device, Precision
from tests.malicious import MALICIOUS

pytestmark = pytest.mark.timeout(60)

IN_INT8 = [each for each in MALICIOUS if each.name.startswith("int8-")]
OTHERS = [each for each in MALICIOUS if each not in IN_INT8 and each.seen_by != "contract"]
"""Those that contract refuses before an engine sees them are refused in its tests."""


def publish_one(repository):
    return publish(repository, int8_of=TinyModel.draw(), report={"index.html": b"<p>"})


def load_in(precision):
    options = EngineOptions(device=Device.CPU, threads=1, max_batch_images=8, precision=precision)
    return lambda version: Engine(version, options)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_it_is_refused(repository, case):
    """With an error for the operator to read, whichever library met it first."""
    name = publish_one(repository)
    case.apply(repository.folder / name)
    with pytest.raises(LabelnextError) as caught:
        admit(repository, name, load_in(Precision.FP32))
    assert issubclass(caught.type, case.error), caught.value


@pytest.mark.parametrize("case", IN_INT8, ids=lambda case: case.name)
def test_a_backbone_in_8_bit_integers_that_reaches_out_is_not_opened(repository, caplog, case):
    """The version is sound without it, and the log says why it is served so."""
    name = publish_one(repository)
    case.apply(repository.folder / name)
    assert admit(repository, name, load_in(Precision.INT8)).engine.precision is Precision.FP32
    (record,) = (record for record in caplog.records if record.message == "served in fp32")
    assert "weights must lie" in record.reason or "takes bytes" in record.reason or "loops" in record.reason


@pytest.fixture
def signed(repository, tmp_path):
    """A repository that signs and verifies."""
    secret, _ = generate_keys(tmp_path / "keys")
    return Repository(repository.root, keys=Keys.read(signing=secret))


def test_a_signed_version_is_admitted_and_computes_after_its_copy_is_gone(signed, monkeypatch, tmp_path):
    """The engine reads weights while it is loaded, and none later."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    admitted = admit(signed, publish_one(signed), load_in(Precision.FP32))
    assert list(private.iterdir()) == []
    assert admitted.engine.run(draw_images(3)).bald.shape == (3,)


def test_a_file_that_is_swapped_while_it_is_loaded_changes_nothing(signed):
    """What is loaded is a private copy of what was verified."""
    name, other = publish_one(signed), publish(Repository(signed.root), seed=7)

    def load_late(version):
        for file in ("model.onnx", "backbone.onnx.data", "head.onnx.data", "probe.npz"):
            (signed.folder / name / file).write_bytes((signed.folder / other / file).read_bytes())
        return load_in(Precision.FP32)(version)

    assert admit(signed, name, load_late).engine.version == name
    with pytest.raises(DigestError):
        admit(signed, name, load_late)


def test_a_graph_of_an_attacker_is_not_parsed_to_explain_its_digest(signed, monkeypatch):
    """Without signatures the message says what the graph lacks; with them it is not looked at."""
    name = publish_one(signed)
    path = signed.folder / name / "model.onnx"
    path.write_bytes(bytes(len(path.read_bytes())))

    parsed = []
    monkeypatch.setattr("server.inference.validation.load_graph", lambda *_, **__: parsed.append(1))
    with pytest.raises(DigestError):
        admit(signed, name, load_in(Precision.FP32))
    assert not parsed
