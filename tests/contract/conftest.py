"""A small network, its graph, and a version that holds it."""

import pytest
import torch

from tests.networks import build_small, export


@pytest.fixture(scope="session")
def small():
    """A convolution and two Dropouts, on (N, 3, 8, 8) floats, with 4 classes."""
    return build_small()


@pytest.fixture(scope="session")
def small_graph(small):
    """The small network's literal graph."""
    return export(small, torch.rand(2, 3, 8, 8))
