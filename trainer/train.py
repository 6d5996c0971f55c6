"""Training of a head on the features of a frozen backbone, or of head and backbone together.

A head trains in seconds, so it is trained twice: first without the validation images, to be measured on them, and then
on all images, to be published. If the backbone is trained too, the measured network is published.
"""

import copy
import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from contract.errors import ConfigError, PrecisionRejected
from contract.features.store import FeatureStore
from contract.scores.acquisition import bald
from contract.versions.repository import Repository
from contract.versions.results import Metrics
from contract.versions.version import Version
from trainer.evaluation.comparison import COMPARED_PASSES
from trainer.evaluation.holdout import macro_f1_interval, predict_labels, to_label_matrix
from trainer.evaluation.metrics import compute_metrics, format_table
from trainer.features import open_store
from trainer.labels.unlabelled import draw_as_unlabelled, read_known_features
from trainer.model.backbones import LoadedBackbone
from trainer.model.bayes import sample_passes
from trainer.model.build import Network, build_head_for, choose_device, sample_features
from trainer.model.fit import fit
from trainer.model.fit_head import fit_head
from trainer.model.frozen import Features, FrozenBackbone, freeze
from trainer.model.graphs.int8 import choose_precision
from trainer.model.head import fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.model.weights import Provenance
from trainer.publish import Evaluation, TrainedNetwork, TrainingData, choose_probe, publish
from trainer.report.calibration import fit_temperature
from trainer.settings import Environment, Training
from trainer.stages import stage

_log = logging.getLogger(__name__)


def train(
    data: TrainingData,
    training: Training,
    environment: Environment,
    *,
    repository: Repository,
    backbone: FrozenBackbone | LoadedBackbone,
) -> Version:
    """Train on images of the backbone's size and publish a version; a LoadedBackbone is trained too.

    Fresh layers and Dropout draw from torch's global generator. If a step fails, nothing is published.

    Raises:
        LabelnextError: if a step fails.
        OSError: if the repository cannot be read or written.
    """
    choose_device(training.device)  # fails early if there is no such device
    if isinstance(backbone, LoadedBackbone):
        return _train_all(data, training, repository, backbone)
    with open_store(environment) as store:
        return _train_head(data, training, repository, exact=backbone, store=store)


def _train_head(
    data: TrainingData, training: Training, repository: Repository, *, exact: FrozenBackbone, store: FeatureStore
) -> Version:
    """Train a head on features of a frozen backbone, in the precision that servers use."""
    backbone, fit_on = exact, partial(_fit_head, data, training, exact=exact, store=store)
    if training.precision == "auto":
        with stage("backbone"):
            backbone = choose_precision(exact, data.pixels.images[data.parts.train], repository=repository)
    try:
        return publish(repository, fit_on(backbone))
    except PrecisionRejected as err:
        _log.warning("int8: not used, since it ranks this version's probe differently: %s", err)
        return publish(repository, fit_on(exact))


def _fit_head(
    data: TrainingData, training: Training, backbone: FrozenBackbone, *, exact: FrozenBackbone, store: FeatureStore
) -> TrainedNetwork:
    """Train and measure a head on features of a backbone; `exact` is the same backbone in float32."""
    probe, pixels, device = choose_probe(data), data.pixels, choose_device(training.device)
    with stage("features"):
        features = backbone.compute_cached(pixels.images, pixels.digests, store)
        digests = [pixels.digests[row] for row in probe]
        probe_features = exact.compute_cached(pixels.images[probe], digests, store, title="probe")
    head, provenance = build_head_for(training, backbone, classes=len(data.pool.labels))
    start = copy.deepcopy(head.state_dict())
    _log_network(training, provenance)
    with stage("features"):
        unlabelled = read_known_features(
            data.unlabelled.sources, store, backbone.key, backbone.features, excluding=pixels.digests
        )
    fit_to = stage("fit")(partial(fit_head, classes=len(data.pool.labels), device=device))
    train_rows, held_out = data.parts.train, data.parts.validation
    if len(held_out):
        as_unlabelled = held_out[draw_as_unlabelled(pixels.task_ids[held_out], data.unlabelled, len(unlabelled))]
        without_labels = np.concatenate([unlabelled, features[as_unlabelled]])
        fit_to(head, features[train_rows], pixels.targets[train_rows], training, unlabelled=without_labels)
    evaluation = _evaluate(head, features[held_out], data, training)
    head.load_state_dict(start)
    _log.info("training the published head on all %d images", len(features))
    fitted = fit_to(head, features, pixels.targets, training, unlabelled=unlabelled)
    return TrainedNetwork(
        data, training, backbone, head, provenance, fitted, evaluation, features, probe, probe_features
    )


def _train_all(data: TrainingData, training: Training, repository: Repository, loaded: LoadedBackbone) -> Version:
    """Train backbone and head together; no other version has this backbone."""
    device = choose_device(training.device)
    if loaded.module is None:
        raise ConfigError(
            f"--train all cannot train an ONNX file, got --backbone {loaded.name}; use --train classifier"
        )
    head, provenance = build_head_for(training, loaded, classes=len(data.pool.labels))
    network = Network(loaded.module, head).to(device)
    images, targets = data.pixels.images[data.parts.train], data.pixels.targets[data.parts.train]
    fit_standardisation(head, sample_features(network.backbone, images, device=device))
    _log_network(training, provenance)
    recipe = choose_recipe(training, "all", len(targets), pretrained=bool(loaded.provenance.loaded))
    inputs = torch.from_numpy(images)
    with stage("fit"):
        fitted = fit(network, inputs, targets, classes=len(data.pool.labels), recipe=recipe, device=device)
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        backbone = freeze(loaded, Path(folder))
        features = backbone.compute(data.pixels.images[data.parts.validation], title="validation")
        evaluation, probe = _evaluate(head, features, data, training), choose_probe(data)
        exact = backbone.compute(data.pixels.images[probe], title="probe")
        trained = TrainedNetwork(data, training, backbone, head, provenance, fitted, evaluation, None, probe, exact)
        return publish(repository, trained)


def _log_network(training: Training, provenance: Provenance) -> None:
    device = choose_device(training.device)
    _log.info("%s on %s, training: %s; %s", training.backbone, device, training.trained_part, provenance)


@stage("measure")
def _evaluate(head: nn.Sequential, features: Features, data: TrainingData, training: Training) -> Evaluation:
    """Measure a head on the features (V, F) of the validation images."""
    device = choose_device(training.device)
    multiple, classes, targets = data.pool.multiple, len(data.pool.labels), data.validation_targets
    if not len(targets):
        no_passes = np.zeros((0, classes), np.float32)
        evaluation = Evaluation(Metrics(images=0), no_passes, no_passes[:, 0], to_label_matrix(targets, classes))
    else:
        sample = partial(sample_passes, head, torch.from_numpy(features), device=device, multiple=multiple)
        passes = sample(passes=training.passes)
        mean, uncertainty = passes.mean(axis=1), bald(passes, multiple=multiple)  # (V, C), (V,)
        interval = macro_f1_interval(predict_labels(mean, multiple=multiple), to_label_matrix(targets, classes))
        metrics = replace(
            compute_metrics(mean, targets), macro_f1_interval=interval, mean_bald=float(uncertainty.mean())
        )
        predicted = predict_labels(sample(passes=COMPARED_PASSES, mean=True), multiple=multiple)
        evaluation = Evaluation(
            metrics, mean, uncertainty, predicted, fit_temperature(mean, targets, multiple=multiple)
        )
    _log.info("%s", format_table(evaluation.metrics, data.pool.labels, targets))
    return evaluation
