"""Fitting a head on fixed features, with pseudo-labels for unlabelled images.

A first head is fitted to the labels. Its most confident predictions become pseudo-labels (Lee 2013, ICML workshop on
challenges in representation learning), in proportion to the labels of each class, so that a common class does not
dominate. Then the head is fitted again, from the same initial weights, to labels and pseudo-labels.
"""

import copy
import logging
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.labels.dataset import Indices, Targets, count_images
from trainer.model.bayes import ActiveDropout, one_thread_if_small
from trainer.model.fit import FitResult, SampleWeights, fit
from trainer.model.head import fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.settings import Training

Features = npt.NDArray[np.float32]

PSEUDO_LABELS_PER_LABEL: Final = 4
"""Maximum number of pseudo-labels of a class, per label."""
MAX_PSEUDO_LABELS: Final = 1_000
"""Maximum number of pseudo-labels in total: with many labels they help little and make epochs longer."""
MIN_EPOCHS_WITH_PSEUDO_LABELS: Final = 10
"""Half of the minimum without pseudo-labels, since there are several times as many images."""
PSEUDO_LABEL_WEIGHT: Final = 0.5
"""Weight of an image with a pseudo-label in the loss; an annotated image has weight 1."""

_log = logging.getLogger(__name__)


def fit_head(
    head: nn.Sequential,
    features: Features,
    targets: Targets,
    training: Training,
    *,
    classes: int,
    device: torch.device,
    unlabelled: Features | None = None,
) -> FitResult:
    """Fit a fresh head in place to features (N, F) and targets, (N,) or (N, C); deterministic.

    Moves the head to `device` and seeds torch's global generator. Features (U, F) of `unlabelled` images get
    pseudo-labels, unless targets are (N, C). Raises TrainingError if training diverges twice.
    """
    inputs = torch.from_numpy(features)
    fit_standardisation(head, inputs)
    start = copy.deepcopy(head.state_dict())
    head.to(device)

    def fit_to(inputs: torch.Tensor, targets: Targets, weights: SampleWeights | None = None) -> FitResult:
        torch.manual_seed(training.seed)
        min_epochs = None if weights is None else MIN_EPOCHS_WITH_PSEUDO_LABELS
        recipe = choose_recipe(training, "classifier", len(targets), min_epochs=min_epochs)
        with one_thread_if_small(head):
            return fit(head, inputs, targets, classes=classes, recipe=recipe, device=device, sample_weights=weights)

    fitted = fit_to(inputs, targets)
    if unlabelled is None or not training.uses_pseudo_labels or targets.ndim == 2:
        return fitted
    rows, labels = choose_pseudo_labels(predict(head, unlabelled, device=device), count_images(targets, classes))
    if not len(rows):
        return fitted
    _log.info("pseudo-labels for %d of %d unlabelled images whose features are cached", len(rows), len(unlabelled))
    head.load_state_dict(start)
    inputs = torch.from_numpy(np.concatenate([features, unlabelled[rows]]))
    weights = np.repeat(np.array([1, PSEUDO_LABEL_WEIGHT], np.float32), (len(targets), len(rows)))
    return fit_to(inputs, np.concatenate([targets, labels]), weights)


def predict(head: nn.Sequential, features: Features, *, device: torch.device) -> npt.NDArray[np.float64]:
    """Return the probabilities of one pass without dropout, (N, F) to (N, C), which is T times as fast as T passes."""
    layers = nn.Sequential(*(layer for layer in head if not isinstance(layer, ActiveDropout)))
    with torch.no_grad(), one_thread_if_small(head):
        logits = layers(torch.from_numpy(features).to(device))
        return np.asarray(logits.double().softmax(dim=1).cpu().numpy())


def choose_pseudo_labels(probabilities: npt.NDArray[np.floating], labels_by_class: Indices) -> tuple[Indices, Indices]:
    """Return which of U unlabelled images get a pseudo-label, (K,), and their classes, (K,).

    An image can only get the class with the highest probability, (U, C). A class gets at most
    `PSEUDO_LABELS_PER_LABEL` times as many pseudo-labels as it has labels, (C,), and fewer if the total would exceed
    `MAX_PSEUDO_LABELS`.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.lexsort((-confidence, predicted))  # by class, the most confident first
    rank = np.arange(len(order)) - np.searchsorted(predicted[order], predicted[order])  # within the class
    quota = np.floor(min(PSEUDO_LABELS_PER_LABEL, MAX_PSEUDO_LABELS / max(1, labels_by_class.sum())) * labels_by_class)
    rows = order[rank < quota[predicted[order]]]
    return rows, predicted[rows]
