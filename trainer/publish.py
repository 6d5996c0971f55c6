"""Publication of a trained network: exports and validates it, and writes its manifest, advice and report."""

import logging
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from torch import nn

from contract.graph.lowering import LoweredGraph
from contract.scores.embedding import embed
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.results import Metrics, ProjectState, TrainingRecord
from contract.versions.version import PROBE_FILE, REPORT_FOLDER, StagedVersion, Version
from trainer.evaluation import comparison
from trainer.evaluation.holdout import HeldOut, LabelMatrix, to_label_matrix
from trainer.evaluation.holdout_predictions import save_holdout_predictions
from trainer.labels.annotations import CONFIRMED
from trainer.labels.dataset import Indices, Pixels, count_images, strata
from trainer.labels.sources import LabelledPool
from trainer.labels.unlabelled import Unlabelled
from trainer.model.bayes import PROBE_IMAGES, compute_probe
from trainer.model.fit import FitResult
from trainer.model.frozen import Features, FrozenBackbone
from trainer.model.graphs.export import export
from trainer.model.graphs.validation import validate_version
from trainer.model.weights import Provenance
from trainer.report.data import Inputs
from trainer.report.page import write_report
from trainer.settings import Training
from trainer.stages import stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """N readable images, split into a training and a validation part."""

    pool: LabelledPool
    pixels: Pixels
    parts: HeldOut
    project: ProjectState | None
    unlabelled: Unlabelled = field(default_factory=Unlabelled)
    """Unlabelled tasks, for pseudo-labels."""

    @property
    def validation_targets(self) -> npt.NDArray[np.integer]:
        """Targets of the validation images: (V,), or (V, C) with several labels per image."""
        return self.pixels.targets[self.parts.validation]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics and predictions of a network on V validation images."""

    metrics: Metrics
    probabilities: npt.NDArray[np.float32]
    """Mean over the passes, (V, C)."""
    bald: npt.NDArray[np.floating]
    """In nats, (V,)."""
    predicted: LabelMatrix
    """Predicted labels, (V, C), from so many passes that they hardly vary."""
    temperature: float = 1.0
    """Temperature for the calibration of displayed probabilities."""


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A trained network, its data, options and evaluation."""

    data: TrainingData
    training: Training
    backbone: FrozenBackbone
    head: nn.Sequential
    provenance: Provenance
    fitted: FitResult
    evaluation: Evaluation
    features: Features | None
    """Features of all images, (N, F), if the backbone is frozen; the head is then refitted on all images, including the
    validation part. None if the backbone was trained."""
    probe: Indices
    """Rows of the images that validate the version."""
    probe_features: Features
    """Features of the probe images, from the backbone in float32."""


def publish(repository: Repository, trained: TrainedNetwork) -> Version:
    """Write and validate a version, and make it the current one.

    If a step fails, nothing is published, and the current version stays current.

    Raises:
        LabelnextError: if a step fails, such as export or validation; PrecisionRejected if only the int8 backbone
            fails it.
        OSError: if the repository cannot be read or written.
    """
    data, training, backbone, head = trained.data, trained.training, trained.backbone, trained.head
    with repository.stage(datetime.now(UTC)) as staged:
        with stage("export"):
            for file in backbone.files:
                shutil.copyfile(file, staged.path / file.name)
            lowered = export(backbone.graph, head, staged.path, multiple=data.pool.multiple)
        manifest = _describe(staged, lowered, trained)
        with stage("probe"):
            images, features = data.pixels.images[trained.probe], trained.probe_features
            compute_probe(head, images, features, manifest).save(staged.path / PROBE_FILE)
        described = staged.describe(manifest)
        _validate(described, trained)
        if data.parts.sample == "audit":
            held_out, probabilities = data.pixels.task_ids[data.parts.validation], trained.evaluation.probabilities
            save_holdout_predictions(
                staged.path, held_out.tolist(), probabilities, manifest.labels, multiple=manifest.multiple
            )
        if data.project is not None and training.holdout_share:
            manifest = _add_advice(repository, described, trained)
        manifest = _add_report(repository, staged, manifest, trained)
        with stage("publish"):
            return staged.publish(manifest)


@stage("validate")
def _validate(described: Version, trained: TrainedNetwork) -> None:
    known = None if trained.features is None else trained.probe_features
    validation = validate_version(described, known=known)
    message = "validated in onnxruntime: mean BALD %.4f nats, largest difference to torch %.1e"
    _log.info(message, validation.mean_bald, validation.largest_difference)
    if trained.backbone.precision == "int8":
        known = None if trained.features is None else trained.features[trained.probe]
        validation = validate_version(described, int8=True, known=known)
        _log.info("int8: rank correlation of BALD with float32 on the probe %.4f", validation.rank_correlation)


@stage("report")
def _add_report(repository: Repository, staged: StagedVersion, manifest: Manifest, trained: TrainedNetwork) -> Manifest:
    """Add the version's report; if that fails, log the error and continue without a report."""
    started, folder = time.monotonic(), staged.path / REPORT_FOLDER
    try:
        inputs = Inputs(
            manifest=manifest,
            earlier=comparison.earlier_versions(repository, manifest),
            origin=trained.data.pool.origin,
            pixels=trained.data.pixels,
            parts=trained.data.parts,
            probabilities=trained.evaluation.probabilities,
            bald=trained.evaluation.bald,
            embeddings=None if trained.features is None else embed(trained.features),
        )
        write_report(inputs, folder)
    except Exception as err:  # a failed report must not lose the training
        shutil.rmtree(folder, ignore_errors=True)
        _log.warning("published without a report: %s", err)
        return manifest
    seconds = round(time.monotonic() - started, 2)
    _log.info("report: %.1f s", seconds)
    return replace(manifest, training=replace(manifest.training, report_s=seconds))


def choose_probe(data: TrainingData) -> Indices:
    """Choose images from each class in turn, by ascending digest, so that the probe changes little between rounds."""
    classes = strata(data.pixels.targets)
    rank = np.empty(len(classes), np.int64)  # within the class
    counts = Counter[int]()
    for row in sorted(range(len(classes)), key=lambda row: data.pixels.digests[row]):
        rank[row] = counts[classes[row]]
        counts[classes[row]] += 1
    order: Indices = np.lexsort((classes, rank))
    return order[:PROBE_IMAGES]


def _describe(staged: StagedVersion, lowered: LoweredGraph, trained: TrainedNetwork) -> Manifest:
    pool = trained.data.pool
    return Manifest(
        version=staged.version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=pool.labels,
        control=pool.control,
        input=trained.backbone.spec,
        passes=trained.training.passes,
        dropout_sites=lowered.sites,
        backbone=trained.backbone.describe(),
        multiple=pool.multiple,
        temperature=trained.evaluation.temperature,
        metrics=trained.evaluation.metrics,
        training=_describe_training(trained),
    )


@stage("advice")
def _add_advice(repository: Repository, described: Version, trained: TrainedNetwork) -> Manifest:
    """Add the advice and the learning curve, on which all versions are measured on the same random holdout."""
    data, manifest = trained.data, described.manifest
    kappa, unseen, curve, before = None, list[str](), None, comparison.earlier_versions(repository, manifest)
    if data.parts.sample == "audit":
        counts = count_images(data.validation_targets, len(manifest.labels))
        unseen = [label for label, count in zip(manifest.labels, counts, strict=True) if not count]
        curve, predictions = comparison.compare_versions(repository, manifest, before, _common_images(trained))
        kappa = comparison.find_agreement(predictions, before, manifest)
        comparison.save_predictions(predictions, described.path)
    advice = comparison.describe_advice(before, manifest, curve, kappa=kappa, unseen=unseen)
    _log.info("%s", advice.sentence)
    return replace(manifest, training=replace(manifest.training, advice=advice, curve=curve))


def _common_images(trained: TrainedNetwork) -> comparison.CommonImages:
    """Return the validation images, except copies of training images, which earlier versions may have learnt."""
    held_out, pixels, predicted = trained.data.parts.validation, trained.data.pixels, trained.evaluation.predicted
    others = np.setdiff1d(np.arange(len(pixels.groups)), held_out)
    unseen = ~np.isin(pixels.groups[held_out], pixels.groups[others])
    rows = held_out[unseen]
    return comparison.CommonImages(
        tasks=pixels.task_ids[rows].tolist(),
        images=pixels.images[rows],
        known={} if trained.features is None else {trained.backbone.fingerprint: trained.features[rows]},
        true=to_label_matrix(pixels.targets[rows], predicted.shape[1]),
        predicted=predicted[unseen],
    )


def _describe_training(trained: TrainedNetwork) -> TrainingRecord:
    data, training, fitted = trained.data, trained.training, trained.fitted
    counts = count_images(data.pixels.targets, len(data.pool.labels))
    return TrainingRecord(
        images=len(data.pixels.targets),
        images_by_class=dict(zip(data.pool.labels, map(int, counts), strict=True)),
        confirmed=len(data.pool.left_out.get(CONFIRMED, ())),
        validation=data.parts.sample,
        validation_images=len(data.parts.validation),
        refitted=trained.features is not None,
        audit_images=data.parts.audit_images,
        audit_share=training.holdout_share,
        project=data.project,
        unreadable=len(data.pixels.unreadable),
        left_out={reason: len(left_out) for reason, left_out in data.pool.left_out.items()},
        lost_labels={label: len(tasks) for label, tasks in data.pool.lost_labels.items()},
        weights=asdict(trained.provenance),
        part=training.trained_part,
        seed=training.seed,
        recipe=asdict(fitted.recipe),
        attempts=fitted.attempts,
        final_loss=fitted.losses[-1],
    )
