"""Which weights the demo starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import weights
from demo.weights import choose_start


def test_weights_that_cannot_be_fetched_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch):
    """Without ImageNet's weights the demo goes on without any, and says so."""
    monkeypatch.setattr(weights, "_imagenet_can_be_had", lambda: False)
    start = choose_start(None)
    assert start.options[:2] == ("--weights", "none")
    assert "cannot be fetched here" in start.explanation


def test_weights_that_can_be_fetched_are_used(monkeypatch: pytest.MonkeyPatch):
    """ImageNet's weights are the default where they can be had."""
    monkeypatch.setattr(weights, "_imagenet_can_be_had", lambda: True)
    assert choose_start(None).options[:2] == ("--weights", "imagenet")


def test_a_weights_file_is_handed_on(tmp_path: Path):
    """A person's own file is used, and must be there."""
    (tmp_path / "vgg16.pth").touch()
    assert choose_start(str(tmp_path / "vgg16.pth")).options[:2] == ("--weights", str(tmp_path / "vgg16.pth"))
    with pytest.raises(FileNotFoundError):
        choose_start(str(tmp_path / "gone.pth"))
