import pytest
import torch

from tests.networks import build_small, end_backbone, export, first_input


@pytest.fixture(scope="session")
def small():
    """A convolution and two Dropouts, on (N, 3, 8, 8) floats, with 4 classes."""
    return build_small()


@pytest.fixture(scope="session")
def small_graph(small):
    """The small network's literal graph, of which what the first Dropout gets is called `features`."""
    graph = export(small, torch.rand(2, 3, 8, 8))
    return end_backbone(graph, first_input(graph, "Dropout"))
