"""A head on features that stay: fitted to labels, and once more to these and to pseudo-labels of unlabelled images.

Labels are few and images many. A head that has learnt the labels says of each unlabelled image what it shows; those it
is surest of become pseudo-labels (Lee 2013, ICML workshop on challenges in representation learning), of each class in
proportion to its labels, which keeps a common class from drowning out the others. The head is then trained anew, from
the same start, on both.
"""

import copy
import logging
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.labels.dataset import Indices, Targets, count_images
from trainer.model.bayes import ActiveDropout, few_threads
from trainer.model.fit import FitResult, SampleWeights, fit
from trainer.model.head import fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.settings import Training

Features = npt.NDArray[np.float32]

PSEUDO_LABELS_PER_LABEL: Final = 4
"""Pseudo-labels of a class at most, over its labels."""
MOST_PSEUDO_LABELS: Final = 1_000
"""Pseudo-labels in all: with many labels they help little, and an epoch takes as long as it has images."""
PSEUDO_LABEL_EPOCHS: Final = 10
"""Of a large set with pseudo-labels, half as many as of one without: it has several times the images."""
PSEUDO_LABEL_WEIGHT: Final = 0.5
"""What an image with a pseudo-label counts for in the loss, over one with a label."""

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
    """Fit a fresh head in place to features (N, F) and what holds of them; the same ones give the same head.

    Its layers are on `device` afterwards, and torch's global generator is seeded. Features (U, F) of `unlabelled`
    images are for pseudo-labels, which targets (N, C) go without. Raises TrainingError if training diverges twice.
    """
    inputs = torch.from_numpy(features)
    fit_standardisation(head, inputs)
    start = copy.deepcopy(head.state_dict())
    head.to(device)

    def fit_to(inputs: torch.Tensor, targets: Targets, sample_weights: SampleWeights | None = None) -> FitResult:
        torch.manual_seed(training.seed)
        least = None if sample_weights is None else PSEUDO_LABEL_EPOCHS
        recipe = choose_recipe(training, "classifier", len(targets), least_epochs=least)
        with few_threads(head):
            return fit(
                head, inputs, targets, classes=classes, recipe=recipe, device=device, sample_weights=sample_weights
            )

    fitted = fit_to(inputs, targets)
    if unlabelled is None or not training.uses_pseudo_labels or targets.ndim == 2:
        return fitted
    rows, labels = choose_pseudo_labels(predict(head, unlabelled, device=device), count_images(targets, classes))
    if not len(rows):
        return fitted
    _log.info("pseudo-labels: %d of %d unlabelled images whose features are known", len(rows), len(unlabelled))
    head.load_state_dict(start)
    both = torch.from_numpy(np.concatenate([features, unlabelled[rows]]))
    sample_weights = np.repeat(np.array([1, PSEUDO_LABEL_WEIGHT], np.float32), (len(targets), len(rows)))
    return fit_to(both, np.concatenate([targets, labels]), sample_weights)


def predict(head: nn.Sequential, features: Features, *, device: torch.device) -> npt.NDArray[np.float64]:
    """Return probabilities by one pass that drops nothing: (N, F) to (N, C). Passes by chance cost T times as much."""
    layers = nn.Sequential(*(layer for layer in head if not isinstance(layer, ActiveDropout)))
    with torch.no_grad(), few_threads(head):
        logits = layers(torch.from_numpy(features).to(device))
        return np.asarray(logits.double().softmax(dim=1).cpu().numpy())


def choose_pseudo_labels(probabilities: npt.NDArray[np.floating], labels_by_class: Indices) -> tuple[Indices, Indices]:
    """Return which of U unlabelled images get a pseudo-label, (K,), and their classes, (K,).

    A class gets at most `PSEUDO_LABELS_PER_LABEL` times as many pseudo-labels as it has labels, (C,), fewer if the sum
    would exceed `MOST_PSEUDO_LABELS`. An image can only get its likeliest class by the probabilities, (U, C).
    """
    predicted, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    in_turn = np.lexsort((-sureness, predicted))  # class by class, the surest first
    place = np.arange(len(in_turn)) - np.searchsorted(predicted[in_turn], predicted[in_turn])
    quota = np.floor(min(PSEUDO_LABELS_PER_LABEL, MOST_PSEUDO_LABELS / max(1, labels_by_class.sum())) * labels_by_class)
    rows = in_turn[place < quota[predicted[in_turn]]]
    return rows, predicted[rows]
