from pathlib import Path

import pytest

from demo import network
from demo.network import choose_network
from trainer.__main__ import parse_arguments


def test_the_default_network_is_pretrained_and_needs_no_download(tmp_path: Path):
    """The weights of EfficientNet-Lite0 are installed; other networks are chosen by options."""
    assert choose_network(None).options[:4] == ("--weights", "imagenet", "--backbone", "efficientnet_lite0")
    file, graph = tmp_path / "vgg16.pth", tmp_path / "net.onnx"
    file.touch()
    graph.touch()
    assert choose_network("imagenet").options[:4] == ("--weights", "imagenet", "--backbone", "vgg16")
    assert choose_network("none").options[:4] == ("--weights", "none", "--backbone", "vgg11_bn")
    assert choose_network(str(file)).options[:4] == ("--weights", str(file), "--backbone", "vgg16")
    assert choose_network(None, "resnet18").options == ("--backbone", "resnet18")
    assert choose_network(str(file), "resnet18").options == ("--backbone", "resnet18", "--weights", str(file))
    assert choose_network(None, str(graph)).options == ("--backbone", str(graph))
    for missing in ((str(tmp_path / "missing.pth"), None), (None, str(tmp_path / "missing.onnx"))):
        with pytest.raises(FileNotFoundError):
            choose_network(*missing)


def test_the_trainer_accepts_the_options_of_the_demo():
    for options in (network._VGG, network._LITE0, network._FROM_SCRATCH):
        parse_arguments(["run", "--images", "folder", *options])
