import pytest

from contract.errors import ConfigError
from trainer.model.backbones import load_backbone


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet19",
            {},
            r"unknown --backbone 'resnet19'; did you mean .*resnet1.*\? Supported are .*vgg.*suffix \.onnx",
        ),
        ("xyz", {}, r"unknown --backbone 'xyz'\. Supported are networks of torchvision"),
        ("efficientnet-lite0", {}, "did you mean .*efficientnet_lite0"),
        ("Vgg16", {}, "did you mean .*vgg16"),
        ("timm:vgg61", {}, "unknown timm network 'vgg61'"),
        ("vgg16", {"image_size": 0}, "--image-size must be at least 1, got 0"),
    ],
)
def test_rejects_unsupported_names_and_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        load_backbone(name, **options)
