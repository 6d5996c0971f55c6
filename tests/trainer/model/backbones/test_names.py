"""What `--backbone` takes, and what is said of anything else."""

import pytest

from contract.errors import ConfigError
from trainer.model.backbones import default_image_size, open_backbone


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet1"), ("efficientnet-lite0", "efficientnet_lite0"), ("Vgg16", "vgg16")]
)
def test_unknown_names_are_told_from_near_ones(name, near):
    """With what is meant, and all kinds that there are."""
    with pytest.raises(
        ConfigError, match=rf"is not known; did you mean .*{near}.*vgg.*ONNX files, which end in \.onnx"
    ):
        open_backbone(name)


def test_a_name_like_none_is_just_unknown():
    """Nothing is guessed; sizes are asked of the same names."""
    with pytest.raises(ConfigError, match=r"'my own network' is not known\. It takes"):
        default_image_size("my own network")


def test_an_unknown_name_of_timms_is_refused():
    """The prefix says whose it is."""
    with pytest.raises(ConfigError, match="timm has no network 'vgg61'"):
        open_backbone("timm:vgg61")


def test_no_image_is_smaller_than_a_pixel():
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="--image-size must be at least 1, got 0"):
        open_backbone("vgg16", image_size=0)
