"""One round's model: trained, exported, lowered and run as in production, on features that were computed once.

What is frozen in `--train classifier` and `head` gives the same features whatever is labelled: these come from a file,
and the classifier alone is exported. With `--train all` the convolutions are trained anew in each round, and what they
compute is computed by torch, on its device; the passes are onnxruntime's all the same.
"""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from contract.errors import TrainingError
from contract.graph.lowering import Lowered, PassOutputs, lower
from contract.graph.masks import Masks, draw_masks
from contract.scores.embedding import embed
from contract.versions.version import MODEL_FILE
from trainer.labels.dataset import Indices
from trainer.model.bayes import BaalBALD, ModelWrapper, TrainingArgs
from trainer.model.export import export_module
from trainer.model.features import prepare, prepare_frozen
from trainer.model.fit import fit
from trainer.model.network import Network, build
from trainer.model.recipe import choose_recipe
from trainer.model.validation import open_passes
from trainer.settings import Training

Floats = npt.NDArray[np.float32]
_Number = TypeVar("_Number", bound=np.generic)

_IMAGES_AT_ONCE = 128
"""In a run of the passes."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What every model of a study is trained and tested on: N images."""

    classes: tuple[str, ...]
    targets: Indices
    """(N,)"""
    images: npt.NDArray[np.uint8]
    """(N, S, S, 3)"""
    features: Floats | None
    """(N, F), of the backbone; None where it is trained."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says about n images."""

    probabilities: Floats
    """(n, C): mean over the passes."""
    bald: Floats
    """(n,), in nats."""
    entropy: Floats
    """(n,), in nats."""
    embeddings: Floats
    """(n, 256)"""


class Trainer:
    """Trains the models of one run, each from the same start."""

    def __init__(self, dataset: Dataset, training: Training, *, device: torch.device) -> None:
        """Build the network; `training.seed` decides what is fresh in it, and how it is trained."""
        self._dataset = dataset
        self._training = training
        self._device = device
        torch.manual_seed(training.seed)
        self._network, self._provenance = build(
            training.architecture,
            classes=len(dataset.classes),
            image_size=dataset.images.shape[1],
            weights=training.weights,
            units=training.units,
            dropout=training.dropout,
        )
        self._start = copy.deepcopy(self._network.state_dict())
        self._graph: ModelProto | None = None

    def train(self, labelled: Indices, name: str) -> "Model":
        """Return a model trained on some of the images; its name decides its masks.

        Raises:
            TrainingError: if training diverges; no model comes of it.
        """
        dataset, training, network = self._dataset, self._training, self._network
        part = training.trained_part
        network.load_state_dict(self._start)
        network.to(self._device)
        torch.manual_seed(training.seed)
        if dataset.features is None:
            images = dataset.images[labelled]
            module, inputs = prepare(network, images, part=part, device=self._device)
        else:
            features = torch.from_numpy(dataset.features[labelled])
            size = dataset.images.shape[1]
            module, inputs = prepare_frozen(network, features, part=part, image_size=size, device=self._device)
        recipe = choose_recipe(training, part, len(labelled), pretrained=bool(self._provenance.loaded))
        targets = dataset.targets[labelled]
        fit(module, inputs, targets, classes=len(dataset.classes), recipe=recipe, device=self._device)
        classifier = copy.deepcopy(network.eval().classifier).cpu()
        if self._graph is None:  # which takes torch a second; the weights of the models that follow fit in
            self._graph = export_classifier(classifier)
        set_weights(self._graph, classifier)
        return Model(network, dataset, lower(self._graph), name=name, passes=training.passes, device=self._device)


class Model:
    """A trained model, whose passes onnxruntime computes from its lowered graph."""

    def __init__(
        self, network: Network, dataset: Dataset, lowered: Lowered, *, name: str, passes: int, device: torch.device
    ) -> None:
        """Open what the network's classifier was lowered to."""
        self._network = network
        self.dataset = dataset
        self._device = device
        self.name = name
        self._sites = lowered.sites
        self._neck, self._head = open_passes(lowered, Path(), threads=torch.get_num_threads())
        self._masks = self.draw_masks(passes)

    def draw_masks(self, passes: int) -> Masks:
        """Return the model's masks for T passes."""
        return draw_masks(self.name, self._sites, passes)

    def compute_features(self, indices: Indices) -> Floats:
        """Return what the passes start from, for n images: (n, D)."""
        return np.concatenate([self._neck(self._backbone(chunk)) for chunk in _chunks(indices)])

    def score(self, features: Floats) -> Scores:
        """Run the passes on features (n, D)."""
        outputs = self._run(features, self._masks)
        return Scores(
            np.concatenate([each.mean_probabilities for each in outputs]),
            np.concatenate([each.bald for each in outputs]),
            np.concatenate([each.entropy for each in outputs]),
            embed(features).astype(np.float16).astype(np.float32),  # as they travel
        )

    def bald(self, features: Floats, masks: Masks) -> Floats:
        """Return BALD in nats under other masks: (n, D) to (n,)."""
        return np.concatenate([each.bald for each in self._run(features, masks)])

    def passes(self, features: Floats) -> Floats:
        """Return the probabilities of the passes: (n, D) to (n, T, C)."""
        return np.concatenate([each.pass_probabilities for each in self._run(features, self._masks)])

    def rank_by_baal(self, features: Floats, *, passes: int) -> Indices:
        """Return the indices of features (n, D) by BALD, the highest first, as baal itself computes and ranks it.

        Passes are torch's, with masks drawn anew for each batch, as in baal's tutorials.
        """
        wrapper = ModelWrapper(self._network.head, TrainingArgs(use_cuda=self._device.type == "cuda"))
        wrapper.eval()
        logits = [
            wrapper.predict_on_batch(torch.from_numpy(chunk), iterations=passes).cpu().numpy()  # (n, C, T)
            for chunk in _chunks(features)
        ]
        ranks, _ = BaalBALD().get_ranks(np.concatenate(logits))
        return np.asarray(ranks, np.int64)

    def _backbone(self, indices: Indices) -> Floats:
        if self.dataset.features is not None:
            return self.dataset.features[indices]
        with torch.no_grad():
            images = torch.from_numpy(self.dataset.images[indices])
            features: Floats = self._network.backbone(images.to(self._device)).cpu().numpy()
        return features

    def _run(self, features: Floats, masks: Masks) -> list[PassOutputs]:
        return [self._head(chunk, masks) for chunk in _chunks(features)]


def export_classifier(classifier: nn.Sequential) -> ModelProto:
    """Return the literal graph of classifiers of a form, with weights that are nobody's; draws no random number.

    Raises:
        TrainingError: if the exporter fails.
    """
    width = next(layer for layer in classifier if isinstance(layer, nn.Linear)).in_features
    template = copy.deepcopy(classifier)
    generator = torch.Generator().manual_seed(0)
    for value in template.state_dict().values():  # of equal weights, such as biases of 0, one would be left out
        value.normal_(generator=generator)
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        export_module(template, Path(folder), sample=torch.zeros(2, width), input_name="inputs")
        return onnx.load(Path(folder) / MODEL_FILE)


def set_weights(graph: ModelProto, classifier: nn.Sequential) -> None:
    """Replace a graph's weights by those of a classifier on the CPU.

    Raises:
        TrainingError: if a weight has no place in the graph.
    """
    places = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name, value in classifier.state_dict().items():
        if name not in places or tuple(places[name].dims) != tuple(value.shape):
            raise TrainingError(f"the exported graph has no place for {name} of shape {tuple(value.shape)}")
        places[name].CopyFrom(numpy_helper.from_array(value.numpy(), name))


def _chunks(values: npt.NDArray[_Number]) -> Iterator[npt.NDArray[_Number]]:
    return (values[start : start + _IMAGES_AT_ONCE] for start in range(0, len(values), _IMAGES_AT_ONCE))
