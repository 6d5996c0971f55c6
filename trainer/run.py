"""One training run, from labels to a published version.

Owns the order of the steps, and that nothing is published unless all of them succeed. Each step is another module's.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from contract.errors import ConfigError
from contract.scores.acquisition import bald
from contract.scores.embedding import EMBEDDING, embed
from contract.versions.manifest import InputSpec
from contract.versions.results import Metrics, ProjectState
from contract.versions.version import Version
from trainer import labelstudio
from trainer.evaluation.holdout import HeldOut, as_decisions, decide, hold_out, macro_f1_interval
from trainer.evaluation.metrics import format_table, measure
from trainer.labels import checks
from trainer.labels import sources as labels
from trainer.labels.dataset import load_pixels, open_fetcher
from trainer.labels.image_cache import open_cache
from trainer.locks import exclusive
from trainer.model.bayes import sample_passes
from trainer.model.features import compute_features, prepare
from trainer.model.fit import fit
from trainer.model.network import Network, build, choose_device
from trainer.model.recipe import choose_recipe
from trainer.model.weights import Provenance
from trainer.publish import Data, Evaluation, Trained, publish
from trainer.report.calibration import fit_temperature
from trainer.settings import Environment, Part, Source, Training

_log = logging.getLogger(__name__)


def run(source: Source, training: Training, environment: Environment) -> Version:
    """Train on the labels of a source, and return the version that was published.

    Raises:
        LabelnextError: if any step fails; then nothing is published, and what was current stays current.
    """
    started = time.monotonic()
    repository = environment.repository()
    device = choose_device(training.device)
    busy = (
        f"another trainer is at work on model {repository.model!r} in {repository.root}; wait for it to end, or "
        "set LABELNEXT_MODEL to train another model beside it"
    )
    environment.keys().check_publishing()
    with exclusive(repository, refusal=busy):
        data = _read(source, training, environment)
        version = publish(repository, _train(data, training, device))
    took_s = time.monotonic() - started
    _log.info("published %s as the current version of %s, %.0f s", version.name, repository.location, took_s)
    return version


def _read(source: Source, training: Training, environment: Environment) -> Data:
    with open_fetcher(environment) as fetcher:
        pool, project = _read_labels(source, environment)
        _log_pool(pool)
        spec = InputSpec(training.image_size, training.image_size)
        pixels = load_pixels(
            pool,
            spec=spec,
            fetcher=fetcher,
            cache=open_cache(environment),
            max_megapixels=environment.max_megapixels,
        )
    for sentence in (*checks.describe_unreadable(pixels), *checks.describe_lost(pool, pixels)):
        _log.warning("%s", sentence)
    pool, pixels = checks.drop_empty_classes(pool, pixels)
    parts = hold_out(
        pixels,
        project=source.project,
        share=training.holdout_share,
        fraction=training.validation,
        seed=training.seed,
    )
    for sentence in checks.describe_contradictions(pool, pixels, split=parts.sample == "split"):
        _log.warning("%s", sentence)
    _log_parts(parts)
    return Data(pool, pixels, parts, project)


def _read_labels(source: Source, environment: Environment) -> tuple[labels.LabelledPool, ProjectState | None]:
    if source.images is not None:
        return labels.from_folder(source.images), None
    if source.export is not None:
        return labels.from_export(source.export, _read_text(source.label_config), source.control), None
    number = cast(int, source.project)  # for a source has one of the three
    client = labelstudio.connect(*environment.label_studio())
    state = labelstudio.project_state(client, number)
    project = ProjectState(number, state.total_annotations, state.newest_updated_at)
    return labels.from_project(number, client, source.control), project


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(
            f"--label-config {path} cannot be read: {err.strerror}; give the labelling config's file"
        ) from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"--label-config {path}: expected a labelling config in UTF-8 ({err})") from err


def _log_pool(pool: labels.LabelledPool) -> None:
    _log.info("labels from %s", pool.origin)
    for sentence in labels.describe_left_out(pool):
        _log.info("left out: %s", sentence)


def _log_parts(parts: HeldOut) -> None:
    sample = "of the random sample" if parts.sample == "audit" else "held out"
    _log.info("training on %d images, measuring on %d %s", len(parts.train), len(parts.validation), sample)
    if not len(parts.validation):
        _log.warning(
            "nothing can be held out, and so nothing is measured: no class has two images that are of no other class; "
            "label more images, or correct those that have two labels"
        )


def _train(data: Data, training: Training, device: torch.device) -> Trained:
    torch.manual_seed(training.seed)
    part, classes = training.trained_part, len(data.pool.labels)
    network, provenance = build(
        training.architecture,
        classes=classes,
        image_size=training.image_size,
        weights=training.weights,
        units=training.units,
        dropout=training.dropout,
    )
    _log_network(training.architecture, provenance, part, device)
    network.to(device)
    images, targets = data.pixels.images[data.parts.train], data.pixels.targets[data.parts.train]
    module, inputs = prepare(network, images, part=part, device=device)
    recipe = choose_recipe(training, part, len(targets), pretrained=bool(provenance.loaded))
    fitted = fit(module, inputs, targets, classes=classes, recipe=recipe, device=device)
    evaluation, validation_embeddings = _evaluate(network, data, training, device=device)
    embeddings = None
    if part != "all" and validation_embeddings is not None:
        embeddings = np.zeros((len(data.pixels.images), EMBEDDING), np.float32)
        embeddings[data.parts.train] = embed(inputs.numpy())
        embeddings[data.parts.validation] = validation_embeddings
    return Trained(data, training, network, provenance, fitted, evaluation, embeddings)


def _log_network(architecture: str, provenance: Provenance, part: Part, device: torch.device) -> None:
    _log.info("%s on %s, training: %s; %s", architecture, device, part, provenance)
    if part == "head" and "classifier.0" in provenance.fresh:
        _log.warning(
            "the first linear layer starts fresh and --train head leaves it as it is; --train classifier does better"
        )


def _evaluate(
    network: Network, data: Data, training: Training, *, device: torch.device
) -> tuple[Evaluation, npt.NDArray[np.float32] | None]:
    """Measure on the V images held out; return embeddings of what frozen layers make of them too, (V, E) or None."""
    multiple, classes, targets = data.pool.multiple, len(data.pool.labels), data.validation_targets
    if not len(targets):
        no_passes = np.zeros((0, classes), np.float32)
        evaluation, embeddings = Evaluation(Metrics(images=0), no_passes, no_passes[:, 0]), None
    else:
        features, embeddings = _compute_head_inputs(network, data, training.trained_part, device)
        passes = sample_passes(network.head, features, passes=training.passes, device=device, multiple=multiple)
        mean, nats = passes.mean(axis=1), bald(passes, multiple=multiple)  # (V, C), (V,)
        interval = macro_f1_interval(decide(mean, multiple=multiple), as_decisions(targets, classes))
        metrics = replace(measure(mean, targets), macro_f1_interval=interval, mean_bald=float(nats.mean()))
        evaluation = Evaluation(metrics, mean, nats, fit_temperature(mean, targets, multiple=multiple))
    _log.info("%s", format_table(evaluation.metrics, data.pool.labels, targets))
    return evaluation, embeddings


def _compute_head_inputs(
    network: Network, data: Data, part: Part, device: torch.device
) -> tuple[torch.Tensor, npt.NDArray[np.float32] | None]:
    before = network.backbone if part == "classifier" else network.trunk
    features = compute_features(before, torch.from_numpy(data.validation_images), device=device, title="validation")
    embeddings = None if part == "all" else embed(features.numpy())
    if part == "classifier":
        features = compute_features(network.neck, features, device=device, title="neck")
    return features, embeddings
