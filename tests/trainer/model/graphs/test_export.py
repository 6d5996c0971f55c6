import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from contract.graph.dropouts import dropout_nodes
from contract.graph.masks import draw_masks
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, MODEL_FILE, PORTABLE_FILE
from tests.networks import Engine
from tests.trainer.small import coloured_images, freeze_network, small_network
from trainer.model.backbones import open_backbone
from trainer.model.bayes import dropout_probabilities
from trainer.model.frozen import freeze
from trainer.model.graphs.export import export
from trainer.model.head import build_head, measure, to_onnx
from trainer.model.network import Network
from trainer.model.probe import masked_passes

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 6)


def large(network):
    """Make a fresh network's passes disagree, and its batch statistics matter."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=2 / module.in_features**0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.2, 3)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return large(small_network())


def write(network, folder):
    """Write the network's files into a folder as the trainer does, and return the lowered graph."""
    backbone = freeze_network(network, folder / "backbone")
    shutil.copyfile(backbone.folder / BACKBONE_WEIGHTS_FILE, folder / BACKBONE_WEIGHTS_FILE)
    return export(backbone.graph, network.head, folder)


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return folder, write(network, folder)


def torch_passes(network, masks):
    with torch.no_grad():
        features = network.eval().backbone(torch.from_numpy(IMAGES))
    return masked_passes(network.head, features, masks)


def engine_passes(folder, lowered, masks, images=IMAGES):
    """Run the lowered graph with its weights put in, so that nothing but the graph is looked at."""
    for part in (lowered.backbone, lowered.head):
        onnx.load_external_data_for_model(part, str(folder))
    return Engine(lowered)(images, masks)


def test_every_dropout_is_in_the_graph_and_drops(exported, network):
    """As many active Dropout nodes as the network has, with their probabilities, in their order."""
    folder, lowered = exported
    assert len(dropout_nodes(onnx.load(folder / MODEL_FILE, load_external_data=False))) == 2
    assert [site.probability for site in lowered.sites] == [0.5, 0.25] == list(dropout_probabilities(network))


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_lowered_graph_computes_the_masked_passes_of_torch(exported, network, batch):
    """In evaluation: batch normalisation goes by its running statistics, not by those of the batch."""
    masks = draw_masks("v", exported[1].sites, 9)
    found = engine_passes(*exported, masks, IMAGES[:batch])
    expected = torch_passes(network, masks)[:batch]
    np.testing.assert_allclose(found.pass_probabilities, expected, atol=1e-5)
    assert np.ptp(expected, axis=1).max() > 0.1


def test_a_real_vgg_exports(tmp_path):
    """With batch normalisation, a pooled grid and standardised features, at a size other than 224."""
    torch.manual_seed(0)
    images, _ = coloured_images(np.random.default_rng(1), 4, size=64)
    opened = open_backbone("vgg11_bn", image_size=64, weights="none", grid=2)
    head = build_head(opened.features, opened.channels, classes=3, units=64)
    network = large(Network(opened.module, head)).eval()
    backbone = freeze(opened, tmp_path)
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(images))
    np.testing.assert_allclose(backbone.compute(images), features, rtol=2e-3, atol=2e-3 * features.abs().max())
    measure(head, features)
    lowered = export(backbone.graph, head, tmp_path)
    masks = draw_masks("v", lowered.sites, 5)
    found = engine_passes(tmp_path, lowered, masks, images)
    np.testing.assert_allclose(found.pass_probabilities, masked_passes(head, features, masks), atol=5e-3)
    assert [site.features for site in lowered.sites] == [(64,), (64,)]


def test_nothing_tells_where_it_was_made(exported):
    """No stack trace, file path or module's name is left in the graph."""
    text = (exported[0] / MODEL_FILE).read_bytes()
    assert not [word for word in (b".py", b"torch.nn", b"trainer.", b"stack_trace", b"namespace") if word in text]


def test_weights_are_stored_once_and_beside_the_graph(tmp_path):
    """Those of backbone and head apart, in float32; the graphs hold none of them."""
    network = small_network()
    network.head[0], network.head[3] = nn.Linear(64, 512), nn.Linear(512, 32)
    write(network, tmp_path)
    deep = network.backbone[0][5].weight  # what is smaller than a KiB stays in the graph
    assert (tmp_path / BACKBONE_WEIGHTS_FILE).stat().st_size == 4 * deep.numel()
    large = [each for each in network.head.parameters() if each.numel() > 256]
    assert (tmp_path / HEAD_WEIGHTS_FILE).stat().st_size == 4 * sum(each.numel() for each in large)
    for file in (MODEL_FILE, PORTABLE_FILE):
        assert (tmp_path / file).stat().st_size < 20_000


def test_a_dropout_that_the_export_loses_is_an_error(exported, network, tmp_path, monkeypatch):
    """Though a writer of graphs that loses one is a bug of ours."""
    head = to_onnx(network.head)
    (last,) = [node for node in head.graph.node if node.op_type == "Dropout"][1:]
    last.op_type = "Identity"
    del last.input[1:]
    monkeypatch.setattr("trainer.model.graphs.export.to_onnx", lambda _: head)
    with pytest.raises(TrainingError, match=r"\[0.5, 0.25\], the graph with \[0.5\]"):
        write(network, tmp_path)
