import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from contract.graph.dropouts import dropout_nodes
from contract.graph.fingerprint import fingerprint
from contract.graph.masks import draw_masks
from contract.versions.manifest import InputSpec
from contract.versions.version import MODEL_FILE, WEIGHTS_FILE
from tests.networks import Engine
from tests.trainer.small import coloured_images, small_network
from trainer.model.bayes import patch_module
from trainer.model.export import export, export_module
from trainer.model.network import build, dropout_probabilities
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


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return folder, export(network, folder, image_size=32)


def torch_passes(network, masks):
    with torch.no_grad():
        features = network.eval().backbone(torch.from_numpy(IMAGES))
    return masked_passes(network, features, masks)


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


def test_dropout_that_works_in_place_is_in_the_graph_too(tmp_path):
    """As convolutional networks have it, on maps and on features; torch alone would export random numbers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.Dropout(0.3, inplace=True), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    layers += [nn.Dropout(0.5, inplace=True), nn.Linear(24, 3)]
    network = patch_module(nn.Sequential(*layers).eval(), inplace=False)
    lowered = export_module(network, tmp_path, sample=torch.rand(2, 3, 8, 8), input_name="images")
    assert [site.probability for site in lowered.sites] == pytest.approx([0.3, 0.5])
    assert [site.features for site in lowered.sites] == [(6, 6, 6), (24,)]


def test_the_graph_takes_images_and_gives_logits(exported):
    """uint8 (N, 32, 32, 3) in, float32 (N, 3) out, under the names that servers ask for."""
    graph = onnx.load(exported[0] / MODEL_FILE, load_external_data=False).graph
    (images,), (logits,) = graph.input, graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in (images, logits)
    ]
    assert (images.name, logits.name) == ("images", "logits")
    assert shapes == [["N", 32, 32, 3], ["N", 3]]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_lowered_graph_computes_the_masked_passes_of_torch(exported, network, batch):
    """In evaluation: batch normalisation goes by its running statistics, not by those of the batch."""
    masks = draw_masks("v", exported[1].sites, 9)
    found = engine_passes(*exported, masks, IMAGES[:batch])
    expected = torch_passes(network, masks)[:batch]
    np.testing.assert_allclose(found.pass_probabilities, expected, atol=1e-5)
    assert np.ptp(expected, axis=1).max() > 0.1


def test_a_real_vgg_exports(tmp_path):
    """With batch normalisation, pooling folded away and standardised features, at a size other than 224."""
    torch.manual_seed(0)
    network, _ = build("vgg11_bn", classes=3, image_size=32, weights="none", units=4096, dropout=0.5)
    large(network)
    assert network.standardise is not None
    network.eval()
    with torch.no_grad():
        network.standardise.measure(network.backbone(torch.from_numpy(IMAGES)))
    lowered = export(network, tmp_path, image_size=32)
    masks = draw_masks("v", lowered.sites, 5)
    found = engine_passes(tmp_path, lowered, masks)
    np.testing.assert_allclose(found.pass_probabilities, torch_passes(network, masks), atol=1e-4)
    assert [site.features for site in lowered.sites] == [(4096,), (4096,)]


def test_nothing_tells_where_it_was_made(exported):
    """No stack trace, file path or module's name is left in the graph."""
    text = (exported[0] / MODEL_FILE).read_bytes()
    assert not [word for word in (b".py", b"torch.nn", b"trainer.", b"stack_trace", b"namespace") if word in text]


def test_weights_are_stored_once_and_beside_the_graph(tmp_path):
    """The data file is as large as the float32 weights, and the graph holds none of them."""
    network = small_network()
    network.classifier[0] = nn.Linear(64, 4096)
    network.classifier[3] = nn.Linear(4096, 32)
    export(network, tmp_path, image_size=32)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == pytest.approx(weights, rel=0.05)
    assert (tmp_path / MODEL_FILE).stat().st_size < 20_000


def test_equal_networks_export_to_equal_bytes(exported, network, tmp_path):
    """Nothing of the process or the time is in the files."""
    export(network, tmp_path, image_size=32)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (exported[0] / name).read_bytes()


def test_a_dropout_that_the_export_loses_is_an_error(tmp_path):
    """One that is replaced after the network was made exports as nothing in evaluation."""
    network = small_network()
    network.classifier[5] = nn.Dropout(0.25)
    with pytest.raises(TrainingError, match=r"\[0.5, 0.25\], the exported graph with \[0.5\]"):
        export(network, tmp_path, image_size=32)


def test_a_retrain_of_the_head_keeps_the_backbones_fingerprint(exported, network, tmp_path):
    """Exported anew, with another head and into another place; any training of the backbone is noticed."""
    spec = InputSpec(32, 32)
    expected = fingerprint(exported[1].backbone, exported[0], spec)
    retrained = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in retrained.head.parameters():
            parameter.add_(0.1)
    retrained.classifier[-1] = nn.Linear(32, 7)
    (tmp_path / "head").mkdir()
    assert (
        fingerprint(export(retrained, tmp_path / "head", image_size=32).backbone, tmp_path / "head", spec) == expected
    )
    with torch.no_grad():
        retrained.neck[0].bias[0] += 1e-4
    (tmp_path / "backbone").mkdir()
    assert (
        fingerprint(export(retrained, tmp_path / "backbone", image_size=32).backbone, tmp_path / "backbone", spec)
        != expected
    )
