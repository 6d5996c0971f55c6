"""Monte Carlo dropout with baal: stochastic passes through a head, with random or given masks.

The only module that imports baal, because the import configures structlog to write to stdout; that is undone here, and
baal's warnings go to stderr.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from contract.errors import TrainingError
from contract.graph.masks import Masks, draw_masks, mask_name
from contract.graph.probe import Probe
from contract.versions.manifest import Manifest

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

__all__ = ["ActiveDropout", "BaalBALD", "ModelWrapper", "TrainingArgs"]  # re-exported from baal

PROBE_IMAGES: Final = 16
_REFERENCE_PASSES: Final = 500
"""Enough to detect a wrong dropout probability despite sampling noise."""
_BATCH_ROWS: Final = 640
_MAX_ONE_THREAD: Final = 2_000_000
"""Number of parameters up to which a module runs in one thread."""


def dropout_probabilities(module: nn.Module) -> tuple[float, ...]:
    """Return the probability of each Dropout in a module, in the order of `modules()`."""
    return tuple(child.p for child in module.modules() if isinstance(child, _DropoutNd))


def activate_dropout(module: nn.Module) -> None:
    """Replace every Dropout by baal's, which stays active in evaluation mode.

    Raises TrainingError if there is no Dropout, or one that baal or the export does not support.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No layer was modified", UserWarning)  # checked below; may be patched already
        patch_module(module)
    dropouts = {name: child for name, child in module.named_modules() if isinstance(child, _DropoutNd)}
    if not dropouts:
        raise TrainingError("the network has no Dropout layer, so all its passes would be equal; add one")
    active = {name for name, child in dropouts.items() if isinstance(child, ActiveDropout) and 0 < child.p < 1}
    if inactive := [f"{name} ({type(child).__name__})" for name, child in dropouts.items() if name not in active]:
        raise TrainingError(
            f"expected every Dropout to be torch.nn.Dropout with 0 < p < 1, got {', '.join(inactive)}; replace these"
        )


@contextmanager
def one_thread_if_small(module: nn.Module) -> Iterator[None]:
    """Context manager that limits torch to one thread if the module is small.

    On small matrices threads spend more time waiting for each other than computing, above all on a busy machine: 154
    steps of a head of 256 units on 1,280 features took 0.7 s of CPU time with one thread, and 13.6 s with two threads
    among a dozen other processes.
    """
    threads = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in module.parameters()) <= _MAX_ONE_THREAD
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def probabilities_of(logits: Tensor, *, multiple: bool) -> Tensor:
    """Return the softmax over the classes (N, C, ...) or, if `multiple`, the sigmoids."""
    return logits.sigmoid() if multiple else logits.softmax(dim=1)


def sample_passes(
    head: nn.Module, features: Tensor, *, passes: int, device: torch.device, multiple: bool, mean: bool = False
) -> npt.NDArray[np.float32]:
    """Return the probabilities of T stochastic passes, or their mean: features (N, ...) to (N, T, C) or (N, C)."""
    head.eval()
    batches = []
    with torch.no_grad(), one_thread_if_small(head):
        for rows in torch.split(features, _BATCH_ROWS):
            on_device = rows.to(device)
            sampled = [probabilities_of(head(on_device), multiple=multiple) for _ in range(passes)]
            batch = torch.stack(sampled, dim=1).cpu()  # (n, T, C)
            batches.append((batch.mean(dim=1) if mean else batch).numpy())
    return np.concatenate(batches)


def masked_passes(
    head: nn.Sequential, features: Tensor, masks: Masks, *, multiple: bool = False
) -> npt.NDArray[np.float32]:
    """Return the probabilities under T given dropout masks: features (N, F) to (N, T, C)."""
    logits = []
    with torch.no_grad(), one_thread_if_small(head):
        for index in range(len(masks[mask_name(0)])):
            values, sites = features, count()
            for layer in head:
                if isinstance(layer, ActiveDropout):
                    values = values * torch.from_numpy(masks[mask_name(next(sites))][index])
                else:
                    values = layer(values)
            logits.append(values)
    return probabilities_of(torch.stack(logits, dim=2), multiple=multiple).numpy().transpose(0, 2, 1)  # (N, T, C)


def compute_probe(
    head: nn.Sequential, images: npt.NDArray[np.uint8], features: npt.NDArray[np.float32], manifest: Manifest
) -> Probe:
    """Compute a version's probe, the reference outputs for its validation; moves the head to the CPU.

    `images` are (N, H, W, 3); `features` (N, F) are computed by the backbone in float32. Raises LoweringError if the
    masks for all passes would take too much memory.
    """
    head.cpu().eval()
    rows, cpu, multiple = torch.from_numpy(features), torch.device("cpu"), manifest.multiple
    sampled = sample_passes(head, rows, passes=_REFERENCE_PASSES, device=cpu, multiple=multiple)  # (N, R, C)
    masks = draw_masks(manifest.version, manifest.dropout_sites, manifest.passes)
    return Probe(
        images=images,
        features=features,
        passes=_REFERENCE_PASSES,
        mean=sampled.mean(axis=1),
        variance=sampled.var(axis=1, ddof=1),
        masked_probabilities=masked_passes(head, rows, masks, multiple=multiple),
    )
