"""Dropout that baal keeps alive, and the certainty that none was passed over."""

import warnings

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from contract.errors import TrainingError
from trainer.model.bayes import ActiveDropout, patch_module


def dropout_probabilities(module: nn.Module) -> tuple[float, ...]:
    """Return the probability of each Dropout in a module, in the order they are met."""
    return tuple(child.p for child in module.modules() if isinstance(child, _DropoutNd))


def activate_dropout(module: nn.Module) -> None:
    """Replace every Dropout by baal's, which drops in evaluation as well, and make sure that none was passed over.

    Raises:
        TrainingError: if there is no Dropout, or one of a kind that baal or the export does not keep alive.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No layer was modified", UserWarning)  # an error below, or patched before
        patch_module(module)
    dropouts = {name: child for name, child in module.named_modules() if isinstance(child, _DropoutNd)}
    if not dropouts:
        raise TrainingError("the network has no Dropout layer, so its passes would all be equal: use one that has")
    alive = {name for name, child in dropouts.items() if isinstance(child, ActiveDropout) and 0 < child.p < 1}
    if dead := [f"{name} ({type(child).__name__})" for name, child in dropouts.items() if name not in alive]:
        raise TrainingError(
            f"baal leaves these dropout layers dead: {', '.join(dead)}; use torch.nn.Dropout, 0 < p < 1"
        )
