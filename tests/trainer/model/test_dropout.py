import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from trainer.model.dropout import activate_dropout, dropout_probabilities


def test_every_dropout_is_alive_in_evaluation():
    """Two passes in evaluation mode differ."""
    module = nn.Sequential(nn.Linear(4, 64), nn.Sequential(nn.Dropout(0.5)))
    activate_dropout(module)
    module.eval()
    inputs = torch.ones(1, 4)
    assert not torch.equal(module(inputs), module(inputs))


def test_probabilities_are_in_the_order_of_the_layers():
    """Whether a Dropout is alive or not."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.25)), nn.Dropout(0.1))
    assert dropout_probabilities(module) == (0.5, 0.25, 0.1)
    activate_dropout(module)
    assert dropout_probabilities(module) == (0.5, 0.25, 0.1)


@pytest.mark.parametrize("dropout", [nn.Dropout1d(), nn.Dropout2d(), nn.AlphaDropout(), nn.Dropout(0.0)])
def test_dropout_that_would_stay_dead_is_refused(dropout):
    """A layer that baal passes over, that the export loses or that drops nothing is named."""
    with pytest.raises(TrainingError, match=r"leaves these dropout layers dead: 1 \("):
        activate_dropout(nn.Sequential(nn.Dropout(0.5), dropout))


def test_a_network_without_dropout_is_refused():
    """There would be nothing to tell passes apart."""
    with pytest.raises(TrainingError, match="has no Dropout"):
        activate_dropout(nn.Sequential(nn.Linear(2, 2)))
