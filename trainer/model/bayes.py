"""baal: Dropout that it keeps alive, and what free-running passes say.

The one place that imports it: importing baal sets up logging for the whole process, to stdout and through a part of
structlog that is deprecated. Here that is undone; what baal warns of goes to stderr, and stdout stays the caller's.
"""

import logging
import sys
import warnings
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from contract.errors import TrainingError
from trainer.model.threads import few_threads

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`structlog.threadlocal` is deprecated", DeprecationWarning)
    from baal.active.heuristics import BALD as BaalBALD
    from baal.bayesian.dropout import Dropout as ActiveDropout
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs

structlog.reset_defaults()
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)

__all__ = ["ActiveDropout", "BaalBALD", "ModelWrapper", "TrainingArgs"]  # what of baal is handed on

_ROWS_A_FORWARD: Final = 640
"""Images that the head computes at once."""


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


def probabilities_of(logits: Tensor, *, multiple: bool) -> Tensor:
    """Return softmax over the classes (N, C, ...), or sigmoids where several labels may hold."""
    return logits.sigmoid() if multiple else logits.softmax(dim=1)


def sample_passes(
    head: nn.Module, features: Tensor, *, passes: int, device: torch.device, multiple: bool, mean: bool = False
) -> npt.NDArray[np.float32]:
    """Return the probabilities of T free-running passes, or their mean: features (N, ...) to (N, T, C), or (N, C)."""
    head.eval()
    found = []
    with torch.no_grad(), few_threads(head):
        for rows in torch.split(features, _ROWS_A_FORWARD):
            on_device = rows.to(device)
            sampled = [probabilities_of(head(on_device), multiple=multiple) for _ in range(passes)]
            of_passes = torch.stack(sampled, dim=1).cpu()  # (n, T, C)
            found.append((of_passes.mean(dim=1) if mean else of_passes).numpy())
    return np.concatenate(found)
