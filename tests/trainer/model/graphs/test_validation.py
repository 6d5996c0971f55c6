import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest
import torch

from contract.errors import DropoutDead, InvalidVersion, LabelnextError, ManifestError, ProbeMismatch
from contract.graph.dropouts import dropout_nodes
from contract.graph.probe import Probe
from contract.scores.acquisition import bald
from contract.versions.repository import Repository
from contract.versions.version import BACKBONE_WEIGHTS_FILE, MODEL_FILE, PROBE_FILE
from tests.trainer.small import coloured_images, freeze_network, lively_network, small_network, stage_files
from trainer.model.graphs import sessions
from trainer.model.graphs.export import export
from trainer.model.graphs.validation import validate_version

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 4)


@pytest.fixture
def staged(tmp_path):
    """A version staged as the trainer does, and its manifest."""
    with Repository(tmp_path).stage(datetime(2026, 1, 2, tzinfo=UTC)) as staged:
        yield staged, stage_files(staged, lively_network(), IMAGES)


def edit(staged, change):
    """Change the staged graph, as a broken exporter would."""
    path = staged.path / MODEL_FILE
    graph = onnx.load(path, load_external_data=False)
    change(graph.graph)
    path.write_bytes(graph.SerializeToString())


def test_an_export_is_valid(staged):
    """Under equal masks, onnxruntime and torch agree to rounding, and the passes differ."""
    stage, manifest = staged
    validation = validate_version(stage.describe(manifest))
    assert validation.largest_difference < 1e-5
    assert validation.mean_bald > 0.005


def test_an_export_of_several_labels_is_valid(tmp_path):
    """The manifest says that the graph is to end in sigmoids; read as of one label, the same files are refused."""
    with Repository(tmp_path).stage(datetime(2026, 1, 2, tzinfo=UTC)) as stage:
        manifest = stage_files(stage, lively_network(), IMAGES, multiple=True)
        validation = validate_version(stage.describe(manifest))
        assert validation.largest_difference < 1e-5
        probe = Probe.load(stage.path / PROBE_FILE)
        assert validation.mean_bald == pytest.approx(bald(probe.masked_probabilities, multiple=True).mean(), rel=1e-3)
        with pytest.raises(ProbeMismatch):
            validate_version(stage.describe(replace(manifest, multiple=False)))


def silence(graph):
    """Feed each Dropout's readers its input."""
    for node in dropout_nodes(onnx.helper.make_model(graph)):
        for reader in graph.node:
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
    for node in [node for node in graph.node if node.op_type == "Dropout"]:
        graph.node.remove(node)


def test_a_graph_without_its_dropout_is_refused(staged):
    """All passes would be equal."""
    stage, manifest = staged
    edit(stage, silence)
    with pytest.raises(DropoutDead):
        validate_version(stage.describe(manifest))


def write_graph(network, folder):
    """Write another network's graph and weights over those that are there."""
    backbone = freeze_network(network, folder / "other")
    shutil.copyfile(backbone.folder / BACKBONE_WEIGHTS_FILE, folder / BACKBONE_WEIGHTS_FILE)
    export(backbone.graph, network.head, folder)
    shutil.rmtree(backbone.folder)


def test_a_manifest_of_another_graph_is_refused(staged):
    """Masks are drawn after the manifest, so its sites must be the graph's."""
    stage, manifest = staged
    network = small_network()
    network.head[5].p = 0.4
    write_graph(network, stage.path)
    with pytest.raises(ManifestError, match=r"0\.25.*0\.4"):
        validate_version(stage.describe(manifest))


def test_other_weights_are_refused(staged):
    """A probe belongs to one set of weights."""
    stage, manifest = staged
    torch.manual_seed(1)
    write_graph(small_network(), stage.path)
    with pytest.raises(ProbeMismatch):
        validate_version(stage.describe(manifest))


def test_weights_that_are_cut_short_are_refused(staged):
    """A file that the graph would read beyond its end is an error of ours, not onnxruntime's."""
    stage, manifest = staged
    with (stage.path / BACKBONE_WEIGHTS_FILE).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InvalidVersion, match=r"backbone\.onnx\.data, which has 100"):
        validate_version(stage.describe(manifest))


@pytest.mark.parametrize("name", [MODEL_FILE, PROBE_FILE])
def test_files_that_are_no_such_files_are_refused(staged, name):
    """Neither a graph nor a probe that cannot be read ends in another library's error."""
    stage, manifest = staged
    (stage.path / name).write_bytes(b"not what it says")
    with pytest.raises(LabelnextError):
        validate_version(stage.describe(manifest))


def test_where_features_are_known_the_backbone_is_run_on_two_images(staged, monkeypatch):
    """The same comes of it; that the weights are others shows on these two all the same."""
    stage, manifest = staged
    described = stage.describe(manifest)
    known = Probe.load(stage.path / PROBE_FILE).features
    whole, images = validate_version(described), []

    def run(session, outputs, feeds):
        images.extend(len(feeds[name]) for name in feeds if name == "images")
        return sessions.run(session, outputs, feeds)

    monkeypatch.setattr("trainer.model.graphs.validation.run", run)
    found = validate_version(described, known=known)
    assert found.mean_bald == pytest.approx(whole.mean_bald, rel=1e-4)
    assert images == [2]
    torch.manual_seed(1)
    other = freeze_network(small_network(), stage.path / "other")
    shutil.copyfile(other.folder / BACKBONE_WEIGHTS_FILE, stage.path / BACKBONE_WEIGHTS_FILE)
    shutil.rmtree(other.folder)
    with pytest.raises(ProbeMismatch):
        validate_version(stage.describe(manifest), known=known)
