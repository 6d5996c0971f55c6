import pytest
import torch

from tests.networks import build_small, end_backbone, export, first_input


@pytest.fixture(scope="session")
def small():
    """A network of a convolution and two Dropouts, for floats (N, 3, 8, 8), with 4 classes."""
    return build_small()


@pytest.fixture(scope="session")
def small_graph(small):
    """The literal graph of the small network, with the input of the first Dropout as `features`."""
    graph = export(small, torch.rand(2, 3, 8, 8))
    return end_backbone(graph, first_input(graph, "Dropout"))
