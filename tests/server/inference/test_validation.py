import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.subjects.tiny_model import TinyModel, publish, save_graph
from contract.errors import DigestError, DropoutDead, LoweringError, ProbeMismatch
from contract.versions.manifest import Manifest
from contract.versions.version import INT8_BACKBONE_FILE, MANIFEST_FILE, PROBE_FILE, digest_file
from server.inference.engine import Engine
from server.inference.validation import admit
from server.opening import engine_loader
from server.settings import Precision
from tests.server.inference.conftest import OPTIONS, load
from tests.trainer.small import coloured_images, lively_network, publish_small
from tests.versions import fix_names


def sign_again(repository, name):
    """Write the digests of the files as they are now, as somebody who covers their tracks would."""
    folder = repository.folder / name
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text())
    files = {file: digest_file(folder / file) for file in manifest.files}
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json())


def test_a_sound_version_is_admitted(repository):
    """It comes out warm and validated, with its BALD on the probe."""
    name = publish(repository)
    admitted = admit(repository, name, load)
    assert admitted.engine.version == name
    assert admitted.validation.mean_bald > 0.01
    assert admitted.validation.largest_difference < 1e-4


def test_removed_dropout_is_named_with_the_digest(repository):
    """A graph without its Dropout nodes is said to be one."""
    name = publish(repository)
    save_graph(TinyModel.draw().graph(dropouts=0), repository.folder / name)
    with pytest.raises(DigestError, match=r"model.onnx has 0 active Dropout nodes, manifest.json says 2"):
        admit(repository, name, load)


@pytest.mark.parametrize(("left", "error"), [(0, DropoutDead), (1, LoweringError)])
def test_removed_dropout_is_refused_even_with_right_digests(repository, left, error):
    """With one of two left the passes still differ, and BALD would be plausible and wrong."""
    name = publish(repository)
    save_graph(TinyModel.draw().graph(dropouts=left), repository.folder / name)
    sign_again(repository, name)
    with pytest.raises(error, match="ropout"):
        admit(repository, name, load)


def test_another_probability_is_refused_even_with_right_digests(repository):
    """Masks are served as the graph says and validated as the manifest says: both must say the same."""
    name = publish(repository)
    graph = TinyModel.draw().graph()
    ratio = next(tensor for tensor in graph.graph.initializer if tensor.name == "ratio_1")
    ratio.CopyFrom(numpy_helper.from_array(np.float32(0.75), "ratio_1"))
    save_graph(graph, repository.folder / name)
    sign_again(repository, name)
    with pytest.raises(LoweringError, match=r"0\.75.*0\.25"):
        admit(repository, name, load)


def test_files_that_are_not_those_that_were_published_are_refused(repository):
    """Weights cut short or with a flipped byte, an int8 backbone that this server would not use, a missing probe."""
    name = publish(repository, int8_of=TinyModel.draw())
    weights, int8, probe = (
        repository.folder / name / each for each in ("backbone.onnx.data", INT8_BACKBONE_FILE, PROBE_FILE)
    )
    whole = weights.read_bytes()
    for path, content, message in (
        (weights, whole[:-100], f"backbone.onnx.data .* has {len(whole) - 100} bytes, manifest.json says {len(whole)}"),
        (weights, whole[:-1] + bytes([whole[-1] ^ 0xFF]), r"backbone\.onnx\.data"),
        (int8, int8.read_bytes()[:-1] + b"?", r"backbone\.int8\.onnx"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(DigestError, match=message):
            admit(repository, name, load)
        path.write_bytes(before)
    probe.unlink()
    with pytest.raises(DigestError, match=r"probe\.npz"):
        admit(repository, name, load)


def test_the_backbone_of_the_version_in_use_is_taken_and_validated_again(repository, settings):
    """Another head on it needs no second one; a probe of other numbers is noticed all the same."""
    model, other = TinyModel.draw(0), TinyModel.draw(1)
    first, second = (publish(repository, model=model.with_head_of(each)) for each in (model, other))
    load = engine_loader(settings, threads=1)
    in_use = admit(repository, first, load).engine
    assert admit(repository, second, load).engine._backbone is in_use._backbone
    wrong = publish(repository, model=model, probe_of=other.with_head_of(model))
    with pytest.raises(ProbeMismatch):
        admit(repository, wrong, load)


IMAGES, _ = coloured_images(np.random.default_rng(0), 16)


def load_int8(version):
    return Engine(version, dataclasses.replace(OPTIONS, precision=Precision.INT8))


@pytest.mark.slow
def test_a_backbone_in_8_bit_integers_that_ranks_as_torch_does_is_served(repository, monkeypatch, caplog):
    """A real one: its features are not those of fp32, its ranks are."""
    fix_names(monkeypatch)
    network = lively_network(1)
    name = publish_small(repository, network, IMAGES, int8_of=network).name
    caplog.clear()
    admitted = admit(repository, name, load_int8)
    assert admitted.engine.precision == "int8"
    assert admitted.validation.largest_difference > 1e-3
    assert admitted.validation.rank_correlation > 0.98
    assert not caplog.records


@pytest.mark.slow
def test_a_backbone_in_8_bit_integers_that_ranks_otherwise_is_served_in_fp32(repository, caplog):
    """Of another network, say; the version is as good as without it, and the log says what happened."""
    name = publish_small(repository, lively_network(0), IMAGES, int8_of=lively_network(1)).name
    caplog.clear()
    admitted = admit(repository, name, load_int8)
    assert (admitted.engine.version, admitted.engine.precision) == (name, "fp32")
    assert admitted.validation.largest_difference < 1e-4
    (record,) = caplog.records
    assert (record.levelname, record.message, record.model_version) == ("WARNING", "served in fp32", name)
    assert "ranks the probe's images with a correlation of" in record.reason


def test_a_reduced_backbone_excuses_no_fault_of_the_head(repository):
    """What fp32 would not mend is refused at once."""
    name = publish(repository, probe_of=TinyModel.draw(seed=5), int8_of=TinyModel.draw())
    with pytest.raises(ProbeMismatch):
        admit(repository, name, load_int8)


def garbage(path):
    path.write_bytes(b"no graph")


def weights_elsewhere(path):
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="elsewhere", size_threshold=0)


def of_another_shape(path):
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Concat", ["features", "features"], ["twice"], axis=1))
    model.graph.output[0].name = "twice"
    onnx.save_model(model, path)


@pytest.mark.parametrize("spoil", [garbage, weights_elsewhere, of_another_shape])
def test_a_backbone_in_8_bit_integers_that_cannot_be_used_is_served_in_fp32(repository, caplog, spoil):
    """Even if its digest says that it was published so: without it the version is sound."""
    name = publish(repository, int8_of=TinyModel.draw())
    spoil(repository.folder / name / INT8_BACKBONE_FILE)
    sign_again(repository, name)
    caplog.clear()
    assert admit(repository, name, load_int8).engine.precision == "fp32"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "served in fp32")]
