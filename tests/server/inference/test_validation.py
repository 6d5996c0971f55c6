import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.subjects.tiny_model import TinyModel, draw_images, publish, save_graph
from contract.errors import DigestError, DropoutDead, LabelnextError, LoweringError, ProbeMismatch
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from contract.versions.version import INT8_BACKBONE_FILE, PROBE_FILE
from server.inference.engine import Engine
from server.inference.validation import admit
from server.opening import engine_loader
from server.settings import Precision
from tests.malicious import MALICIOUS, update_digests
from tests.server.inference.conftest import OPTIONS, load
from tests.trainer.small import coloured_images, lively_network, publish_small
from tests.versions import fix_names


def publish_with_graph(repository, graph, *, update=True):
    """Publish a version, then replace its graph, and update its digests or not."""
    name = publish(repository)
    save_graph(graph, repository.folder / name)
    if update:
        update_digests(repository.folder / name)
    return name


def test_a_digest_error_names_removed_dropout(repository):
    name = publish_with_graph(repository, TinyModel.draw().graph(dropouts=0), update=False)
    with pytest.raises(DigestError, match=r"model.onnx has 0 active Dropout nodes, manifest.json says 2"):
        admit(repository, name, load)


@pytest.mark.parametrize(("dropouts", "error"), [(0, DropoutDead), (1, LoweringError)])
def test_removed_dropout_is_refused_even_with_correct_digests(repository, dropouts, error):
    with pytest.raises(error, match="ropout"):
        admit(repository, publish_with_graph(repository, TinyModel.draw().graph(dropouts=dropouts)), load)


def test_a_changed_dropout_ratio_is_refused_even_with_correct_digests(repository):
    """Graph and manifest must agree."""
    graph = TinyModel.draw().graph()
    ratio = next(tensor for tensor in graph.graph.initializer if tensor.name == "ratio_1")
    ratio.CopyFrom(numpy_helper.from_array(np.float32(0.75), "ratio_1"))
    with pytest.raises(LoweringError, match=r"0\.75.*0\.25"):
        admit(repository, publish_with_graph(repository, graph), load)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("backbone.onnx.data", lambda whole: whole[:-100], r"backbone.onnx.data .* bytes, manifest.json says \d+"),
        ("backbone.onnx.data", lambda whole: whole[:-1] + bytes([whole[-1] ^ 0xFF]), r"backbone\.onnx\.data"),
        (INT8_BACKBONE_FILE, lambda whole: whole[:-1] + b"?", r"backbone\.int8\.onnx"),
        (PROBE_FILE, None, r"probe\.npz"),
    ],
)
def test_changed_files_are_refused(repository, file, damage, message):
    name = publish(repository, int8_of=TinyModel.draw())
    path = repository.folder / name / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DigestError, match=message):
        admit(repository, name, load)


def test_a_shared_backbone_is_validated_again(repository, settings):
    """A version with another head shares it, but a probe with wrong numbers is detected."""
    model, other = TinyModel.draw(0), TinyModel.draw(1)
    first, second = (publish(repository, model=model.with_head_of(each)) for each in (model, other))
    load = engine_loader(settings, threads=1)
    in_use = admit(repository, first, load).engine
    assert admit(repository, second, load).engine.backbone is in_use.backbone
    wrong = publish(repository, model=model, probe_of=other.with_head_of(model))
    with pytest.raises(ProbeMismatch):
        admit(repository, wrong, load)


IMAGES, _ = coloured_images(np.random.default_rng(0), 16)


def load_int8(version):
    return Engine(version, dataclasses.replace(OPTIONS, precision=Precision.INT8))


@pytest.mark.slow
def test_an_int8_backbone_that_ranks_as_torch_does_is_served(repository, monkeypatch, caplog):
    fix_names(monkeypatch)
    network = lively_network(1)
    name = publish_small(repository, network, IMAGES, int8_of=network).name
    caplog.clear()
    admitted = admit(repository, name, load_int8)
    assert admitted.engine.precision == "int8"
    assert admitted.validation.largest_difference > 1e-3
    assert admitted.validation.rank_correlation > 0.98
    assert not caplog.records


def test_a_version_with_an_invalid_int8_backbone_is_served_in_fp32(repository, caplog):
    """Even if its digest is correct."""
    name = publish(repository, int8_of=TinyModel.draw())
    path = repository.folder / name / INT8_BACKBONE_FILE
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Concat", ["features", "features"], ["twice"], axis=1))
    model.graph.output[0].name = "twice"
    onnx.save_model(model, path)
    update_digests(repository.folder / name)
    caplog.clear()
    assert admit(repository, name, load_int8).engine.precision == "fp32"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "served in fp32")]


def publish_one(repository):
    return publish(repository, int8_of=TinyModel.draw(), report={"index.html": b"<p>"})


MALICIOUS_INT8 = [each for each in MALICIOUS if each.name.startswith("int8-")]
DETECTED_BY_ENGINE = [each for each in MALICIOUS if each.detected_by == "engine"]
"""The others are in the tests of contract."""


@pytest.mark.parametrize("case", DETECTED_BY_ENGINE, ids=lambda case: case.name)
def test_a_malicious_version_is_refused(repository, case):
    name = publish_one(repository)
    case.apply(repository.folder / name)
    with pytest.raises(LabelnextError) as caught:
        admit(repository, name, load)
    assert issubclass(caught.type, case.error), caught.value


@pytest.mark.parametrize("case", MALICIOUS_INT8, ids=lambda case: case.name)
def test_a_malicious_int8_backbone_is_not_opened(repository, caplog, case):
    name = publish_one(repository)
    case.apply(repository.folder / name)
    assert admit(repository, name, load_int8).engine.precision is Precision.FP32
    (record,) = (record for record in caplog.records if record.message == "served in fp32")
    assert "weights must be in" in record.reason or "claims bytes" in record.reason or "loops" in record.reason


@pytest.fixture
def signed(repository, tmp_path):
    """A repository that signs and verifies."""
    secret, _ = generate_keys(tmp_path / "keys")
    return Repository(repository.root, keys=Keys.read(signing=secret))


def test_a_signed_version_runs_after_its_private_copy_is_removed(signed, monkeypatch, tmp_path):
    """The engine reads weights only while it is loaded."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    admitted = admit(signed, publish_one(signed), load)
    assert list(private.iterdir()) == []
    assert admitted.engine.run(draw_images(3)).bald.shape == (3,)


def test_replacing_files_while_loading_has_no_effect(signed):
    """The engine loads a private copy of the verified files."""
    name, other = publish_one(signed), publish(Repository(signed.root), seed=7)

    def load_late(version):
        for file in ("model.onnx", "backbone.onnx.data", "head.onnx.data", "probe.npz"):
            (signed.folder / name / file).write_bytes((signed.folder / other / file).read_bytes())
        return load(version)

    assert admit(signed, name, load_late).engine.version == name
    with pytest.raises(DigestError):
        admit(signed, name, load_late)


def test_a_graph_with_a_wrong_digest_is_not_parsed_with_signatures(signed, monkeypatch):
    """It may be an attacker's. Without signatures it is parsed to explain the difference."""
    name = publish_one(signed)
    path = signed.folder / name / "model.onnx"
    path.write_bytes(bytes(len(path.read_bytes())))
    monkeypatch.setattr("server.inference.validation.load_graph", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(DigestError):
        admit(signed, name, load)
