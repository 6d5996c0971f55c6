"""What `--backbone` takes, and what is said of anything else."""

import pytest

from contract.errors import ConfigError
from trainer.model.backbones import default_image_size, open_backbone


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
def test_what_cannot_be_opened_is_refused(name, options, says):
    """With what may be meant, and all kinds that there are."""
    with pytest.raises(ConfigError, match=says):
        open_backbone(name, **options)


def test_a_name_like_none_is_just_unknown():
    """Nothing is guessed; sizes are asked of the same names."""
    with pytest.raises(ConfigError, match=r"'my own network' is not known\. It takes"):
        default_image_size("my own network")
