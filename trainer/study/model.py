"""Trains the model of each round, and exports, lowers and runs it as in production.

Features of a frozen backbone are read from a file. With `--train all` the backbone is trained again in each round and
torch computes its features; the passes run in onnxruntime either way.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from contract.graph.lowering import FEATURES, PassOutputs, lower
from contract.graph.masks import draw_masks
from contract.scores.embedding import embed
from trainer.labels.dataset import Indices, count_images
from trainer.model.backbones import LoadedBackbone
from trainer.model.bayes import BaalBALD, ModelWrapper, TrainingArgs
from trainer.model.build import Network, build_head_for, open_backbone_for, sample_features
from trainer.model.fit import fit
from trainer.model.fit_head import fit_head
from trainer.model.graphs.validation import open_head
from trainer.model.head import fit_standardisation, to_onnx
from trainer.model.recipe import choose_recipe
from trainer.ordering.strategies import Candidates
from trainer.settings import Training

Floats = npt.NDArray[np.float32]

_CHUNK_IMAGES = 128


@dataclass(frozen=True, slots=True)
class Dataset:
    """The N images that the models of a study are trained and tested on."""

    classes: tuple[str, ...]
    targets: Indices
    """(N,)"""
    images: npt.NDArray[np.uint8]
    """(N, S, S, 3)"""
    features: Floats | None
    """(N, F), of a frozen backbone; None if the backbone is trained."""
    cache: Path
    """Folder for frozen backbones."""

    def count(self, images: Indices) -> tuple[int, ...]:
        """Return the number of images of each class among the given images, (C,)."""
        return tuple(count_images(self.targets[images], len(self.classes)).tolist())


def open_dataset(
    classes: tuple[str, ...], targets: Indices, *, images: Path, features: Path | None, cache: Path
) -> Dataset:
    """Memory-map a dataset's images and features from .npy files, so that processes share them.

    Raises OSError if a file cannot be read.
    """
    mapped = None if features is None else np.load(features, mmap_mode="r")
    return Dataset(classes, targets, np.load(images, mmap_mode="r"), mapped, cache)


class Trainer:
    """Trains the models of one run, each from the same initial weights."""

    def __init__(self, dataset: Dataset, training: Training, *, device: torch.device) -> None:
        """Build the network; `training.seed` seeds its fresh weights and the training.

        Raises ConfigError if backbone or head cannot be built.
        """
        self.dataset = dataset
        self.training = training
        self.device = device
        torch.manual_seed(training.seed)
        self._backbone = open_backbone_for(training, cache=dataset.cache)
        self.last_stage = self._backbone.last_stage
        self.head, _ = build_head_for(training, self._backbone, classes=len(dataset.classes))
        trained = self._backbone.module if isinstance(self._backbone, LoadedBackbone) else None
        self._network = Network(trained, self.head) if trained is not None else None
        self._initial_state = copy.deepcopy(self._trained.state_dict())

    @property
    def _trained(self) -> nn.Module:
        return self._network or self.head

    def train(self, labelled: Indices, name: str, *, unlabelled: Indices | None = None) -> "Model":
        """Return a model trained on the labelled images; its name seeds its masks.

        On a frozen backbone, the head is also trained on pseudo-labels of the unlabelled images. Raises TrainingError
        if training diverges.
        """
        training, device = self.training, self.device
        self._trained.load_state_dict(self._initial_state)
        targets, classes = self.dataset.targets[labelled], len(self.dataset.classes)
        if self._network is None:
            others = None if unlabelled is None else self.compute_features(unlabelled)
            features = self.compute_features(labelled)
            fit_head(self.head, features, targets, training, classes=classes, device=device, unlabelled=others)
        else:
            images = self.dataset.images[labelled]
            self._network.to(device)
            torch.manual_seed(training.seed)
            fit_standardisation(self.head, sample_features(self._network.backbone, images, device=device))
            pretrained = bool(self._backbone.provenance.loaded)
            recipe = choose_recipe(training, "all", len(labelled), pretrained=pretrained)
            fit(self._network, torch.from_numpy(images), targets, classes=classes, recipe=recipe, device=device)
        return Model(self, name)

    def compute_features(self, indices: Indices) -> Floats:
        """Return the features of n images under the backbone's current weights: (n, F)."""
        if self._network is None:
            return cast(Floats, self.dataset.features)[indices]
        backbone = self._network.to(self.device).backbone.eval()
        with torch.no_grad():
            chunks = (torch.from_numpy(self.dataset.images[chunk]) for chunk in _chunks(indices))
            return np.concatenate([backbone(each.to(self.device)).cpu().numpy() for each in chunks])

    def embed(self, indices: Indices) -> Floats:
        """Return embeddings of n images under the initial weights, rounded to float16 as in the server: (n, 256)."""
        self._trained.load_state_dict(self._initial_state)
        return _round_to_float16(embed(self.compute_features(indices), last=self.last_stage))


class Model:
    """A trained model; onnxruntime runs the passes of its lowered graph."""

    def __init__(self, trainer: Trainer, name: str) -> None:
        """Lower the trainer's current head and open a session for it.

        Raises InvalidVersion if the graph cannot be lowered or loaded.
        """
        self._trainer = trainer
        self.dataset = trainer.dataset
        self.name = name
        lowered = lower(to_onnx(trainer.head.eval()), cut=FEATURES)
        self._head = open_head(lowered.head, Path(), threads=torch.get_num_threads())
        self.masks = draw_masks(name, lowered.sites, trainer.training.passes)

    def compute_features(self, indices: Indices) -> Floats:
        """Return the features of n images: (n, F)."""
        return self._trainer.compute_features(indices)

    def embed(self, features: Floats) -> Floats:
        """Return embeddings of features (n, F): (n, 256)."""
        return embed(features, last=self._trainer.last_stage)

    def embed_rounded(self, features: Floats) -> Floats:
        """Return embeddings of features (n, F), rounded to float16 as in the server: (n, 256)."""
        return _round_to_float16(self.embed(features))

    def score(self, images: Indices, features: Floats) -> Candidates:
        """Return candidates from the passes on features (n, F); the task id of an image is its index."""
        outputs = self._run(features)
        names = ("mean_probabilities", "bald", "entropy")
        mean, bald, nats = (np.concatenate([getattr(each, name) for each in outputs]) for name in names)
        return Candidates(images, mean, bald, nats, self.embed_rounded(features), multiple=False)

    def passes(self, features: Floats) -> Floats:
        """Return the probabilities of the passes: (n, F) to (n, T, C)."""
        return np.concatenate([each.pass_probabilities for each in self._run(features)])

    def rank_by_baal(self, features: Floats) -> Indices:
        """Return the indices of features (n, F) in descending order of BALD, as baal computes and ranks it.

        torch computes the passes, with new masks for each batch, as in baal's tutorials.
        """
        wrapper = ModelWrapper(self._trainer.head, TrainingArgs(use_cuda=self._trainer.device.type == "cuda"))
        wrapper.eval()
        passes, chunks = self._trainer.training.passes, map(torch.from_numpy, _chunks(features))
        logits = [wrapper.predict_on_batch(chunk, iterations=passes).cpu().numpy() for chunk in chunks]  # (n, C, T)
        ranks, _ = BaalBALD().get_ranks(np.concatenate(logits))
        return np.asarray(ranks, np.int64)

    def _run(self, features: Floats) -> list[PassOutputs]:
        return [self._head(chunk, self.masks) for chunk in _chunks(features)]


def _round_to_float16(embeddings: Floats) -> Floats:
    return embeddings.astype(np.float16).astype(np.float32)


def _chunks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (values[start : start + _CHUNK_IMAGES] for start in range(0, len(values), _CHUNK_IMAGES))
