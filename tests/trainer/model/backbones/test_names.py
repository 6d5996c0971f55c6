import pytest

from contract.errors import ConfigError
from trainer.model.backbones import load_backbone


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet19", {}, r"is not known; did you mean .*resnet1.*vgg.*ONNX files, which end in \.onnx"),
        ("efficientnet-lite0", {}, "did you mean .*efficientnet_lite0"),
        ("Vgg16", {}, "did you mean .*vgg16"),
        ("timm:vgg61", {}, "timm has no network 'vgg61'"),
        ("vgg16", {"image_size": 0}, "--image-size must be at least 1, got 0"),
    ],
)
def test_unsupported_names_and_options_are_refused(name, options, says):
    with pytest.raises(ConfigError, match=says):
        load_backbone(name, **options)
