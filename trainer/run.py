"""A training run: reads labels and images, holds out a validation part, trains and publishes."""

import logging
import time
from pathlib import Path
from typing import cast

import torch

from contract.errors import ConfigError
from contract.images.fetch import Fetcher
from contract.versions.manifest import InputSpec
from contract.versions.results import ProjectState
from contract.versions.version import Version
from trainer import labelstudio
from trainer.evaluation.holdout import hold_out
from trainer.labels import checks
from trainer.labels import sources as labels
from trainer.labels.dataset import count_images, load_pixels
from trainer.labels.image_cache import open_cache
from trainer.labels.unlabelled import Unlabelled, find_unlabelled
from trainer.labelstudio.task_lists import cache_folder
from trainer.locks import lock_model
from trainer.model.build import open_backbone_for
from trainer.publish import TrainingData
from trainer.settings import Environment, Source, Training
from trainer.stages import stage
from trainer.train import train

_log = logging.getLogger(__name__)


def run(source: Source, training: Training, environment: Environment) -> Version:
    """Train on the labels of a source and return the published version; if any step fails, nothing is published.

    Raises:
        LabelnextError: if a step fails, such as reading the labels, training or validation.
        OSError: if the repository cannot be read or written.
    """
    started = time.monotonic()
    repository = environment.repository()
    refusal = (
        f"another process is training model {repository.model!r} in {repository.root}; wait for it to finish, or set "
        "LABELNEXT_MODEL to another model"
    )
    environment.keys().check_publishing()
    with lock_model(repository, refusal=refusal):
        torch.manual_seed(training.seed)
        with stage("backbone"):
            backbone = open_backbone_for(training, cache=environment.cache_dir)
        data = _read(source, training, environment, backbone.spec)
        version = train(data, training, environment, repository=repository, backbone=backbone)
    message = "published %s as the current version of %s, %.0f s"
    _log.info(message, version.name, repository.location, time.monotonic() - started)
    return version


def _read(source: Source, training: Training, environment: Environment, spec: InputSpec) -> TrainingData:
    unlabelled = Unlabelled()
    with Fetcher(environment.fetch_settings()) as fetcher:
        pool, project = _read_labels(source, environment)
        if project is not None and training.uses_pseudo_labels and not pool.multiple:
            with stage("unlabelled"):
                unlabelled = find_unlabelled(pool, project.id, cache_folder(environment, project.id), fetcher)
        _log.info("labels from %s", pool.origin)
        for sentence in labels.describe_left_out(pool):
            _log.info("left out: %s", sentence)
        with stage("images"):
            cache, max_megapixels = open_cache(environment), environment.max_megapixels
            pixels = load_pixels(pool, spec=spec, fetcher=fetcher, cache=cache, max_megapixels=max_megapixels)
    for sentence in (*checks.describe_unreadable(pixels), *checks.describe_lost(pool, pixels)):
        _log.warning("%s", sentence)
    pool, pixels = checks.drop_empty_classes(pool, pixels)
    for sentence in checks.describe_unlabelled(pool.labels, count_images(pixels.targets, len(pool.labels)).tolist()):
        _log.info("%s", sentence)
    share, fraction = training.holdout_share, training.validation
    parts = hold_out(pixels, project=source.project, share=share, fraction=fraction, seed=training.seed)
    for sentence in checks.describe_contradictions(pool, pixels, split=parts.sample == "split"):
        _log.warning("%s", sentence)
    sample = "random holdout" if parts.sample == "audit" else "stratified split"
    _log.info("training on %d images, validating on %d (%s)", len(parts.train), len(parts.validation), sample)
    if not len(parts.validation):
        _log.warning(
            "no validation part, so the version is not measured: no class has two different images; label more images, "
            "or correct the labels of identical images"
        )
    return TrainingData(pool, pixels, parts, project, unlabelled)


@stage("labels")
def _read_labels(source: Source, environment: Environment) -> tuple[labels.LabelledPool, ProjectState | None]:
    if source.images is not None:
        return labels.from_folder(source.images), None
    if source.export is not None:
        return labels.from_export(source.export, _read_text(source.label_config), source.control), None
    number = cast(int, source.project)  # a source has one of the three
    client = labelstudio.connect(*environment.label_studio(), number)
    state = labelstudio.read_status(client)
    project = ProjectState(number, state.total_annotations, state.newest_updated_at)
    cache = cache_folder(environment, number)
    return labels.from_project(client, source.control, cache=cache), project


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(
            f"cannot read --label-config {path}: {err.strerror}; check that it exists and is readable"
        ) from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"--label-config {path}: expected a labelling config in UTF-8 ({err})") from err
