"""Weights files, for a network structured like torchvision's."""

import hashlib
import urllib.error

import pytest
import torch
from torch import nn

from contract.errors import ConfigError
from trainer.model.weights import choose_weights, load_weights


def make_network():
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    classifier = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))
    return nn.ModuleDict({"features": features, "classifier": classifier})


@pytest.fixture
def state():
    torch.manual_seed(0)
    return make_network().state_dict()


def save(state, folder):
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def load(path):
    network = make_network()
    return network, load_weights(network, path, "vgg11", fresh=("classifier.2",))


def test_provenance_lists_loaded_and_fresh_layers(state, tmp_path):
    path = save(state, tmp_path)
    network, provenance = load(path)
    for name in ("features.0.weight", "features.1.running_var", "classifier.0.bias"):
        torch.testing.assert_close(network.state_dict()[name], state[name], rtol=0, atol=0)
    assert not torch.equal(network.state_dict()["classifier.2.weight"], state["classifier.2.weight"])
    assert (provenance.origin, provenance.sha256) == ("weights.pth", hashlib.sha256(path.read_bytes()).hexdigest())
    assert provenance.loaded == ("features.0", "features.1", "classifier.0")
    assert provenance.fresh == ("classifier.2",)
    assert str(provenance) == "weights weights.pth: 3 layers loaded, freshly initialised: classifier.2"


def _without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "features.7.weight": torch.zeros(1)}, "unexpected keys: features.7.weight"),
        (lambda state: {**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, "other shapes: features.0.weight"),
        (lambda state: _without(state, "features.0.bias"), "missing keys: features.0.bias"),
        (lambda state: _without(state, "features.1.running_mean"), "missing keys: features.1.running_mean"),
        (lambda state: _without(state, "classifier.0.bias"), "missing keys: classifier.0.bias"),
        (lambda state: {}, "empty"),
        (lambda state: [1, 2], "state dict of tensors, got list"),
        (lambda state: {"state": 1}, "state dict of tensors"),
    ],
)
def test_rejects_weights_that_do_not_fit(state, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load(save(change(state), tmp_path))


def test_rejects_a_file_that_is_not_a_state_dict(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 not weights")
    with pytest.raises(ConfigError, match=r"expected a state dict of tensors, as written by torch\.save"):
        load(tmp_path / "photo.jpg")


def test_failed_download_names_the_alternatives(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        ConfigError,
        match=r"no route to host.*download https://\S+/vgg11-\S+\.pth .*--weights FILE.*--backbone efficientnet_lite0"
        ".*--weights none",
    ):
        load("imagenet")


def test_uses_the_first_published_weights():
    """Later weights give worse features for a frozen backbone."""
    assert [choose_weights(name).name for name in ("resnet50", "vgg16")] == ["IMAGENET1K_V1", "IMAGENET1K_V1"]
