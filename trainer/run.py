"""One training run, from labels to a published version.

Owns the order of the steps, and that nothing is published unless all of them succeed. Each step is another module's.
"""

import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from contract.errors import ConfigError
from contract.graph.fingerprint import fingerprint
from contract.graph.lowering import Lowered
from contract.scores.acquisition import bald
from contract.scores.embedding import EMBEDDING, embed
from contract.versions.manifest import InputSpec, Manifest
from contract.versions.repository import Repository, StagedVersion
from contract.versions.results import Metrics, ProjectState, TrainingRecord
from contract.versions.version import INT8_TRUNK_FILE, PROBE_FILE, REPORT_FOLDER, Version
from trainer import labelstudio
from trainer.evaluation.history import compare, describe_advice, earlier
from trainer.evaluation.holdout import Decisions, HeldOut, as_decisions, decide, hold_out, macro_f1_interval
from trainer.evaluation.metrics import format_table, measure
from trainer.evaluation.yardstick import ANSWERS_FILE, Exam, draw_up, dump
from trainer.labels import oddities
from trainer.labels import sources as labels
from trainer.labels.dataset import Pixels, count_images, load_pixels, open_fetcher, strata
from trainer.labels.image_cache import open_cache
from trainer.locks import exclusive
from trainer.model.bayes import sample_passes
from trainer.model.export import export
from trainer.model.fit import Fitted, compute_features, fit, prepare, recipe_of
from trainer.model.network import Network, Provenance, build, choose_device, parse_weights
from trainer.model.probe import PROBE_IMAGES, compute_probe
from trainer.model.quantise import copy_int8_trunk, quantise
from trainer.model.validation import validate_version
from trainer.report.calibration import fit_temperature
from trainer.report.data import Inputs
from trainer.report.page import write_report
from trainer.settings import Environment, Part, Source, Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to: its last line."""

    version: str
    labels: int
    """Labelled images that were used, those held out included."""
    classes: int
    accuracy: float | None
    macro_f1: float | None
    nll: float | None
    ece: float | None
    seconds: float
    advice: str | None = None
    """Whether to go on labelling, in a sentence; None where the labels are of no project."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object, its numbers rounded to what they are worth."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class _Data:
    """Readable images, and which of them train and validate."""

    pool: labels.LabelledPool
    pixels: Pixels
    parts: HeldOut
    project: ProjectState | None


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What the validation part says."""

    metrics: Metrics
    probabilities: npt.NDArray[np.float32]
    """Mean over the passes, (V, C)."""
    bald: npt.NDArray[np.floating]
    """In nats, (V,)."""
    embeddings: npt.NDArray[np.float32] | None
    """Of what the frozen part of the network makes of the images, (V, E); None where no part is frozen."""
    temperature: float = 1.0
    """What the probabilities are tempered with before people see them."""


@dataclass(frozen=True, slots=True)
class _Learnt:
    """A network, and how it came about."""

    network: Network
    provenance: Provenance
    part: Part
    fitted: Fitted
    embeddings: npt.NDArray[np.float32] | None
    """Of what the frozen part of the network makes of the images that train, (N_train, E); None without such a part."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """What was learnt, and how good it is."""

    learnt: _Learnt
    evaluation: _Evaluation
    embeddings: npt.NDArray[np.float32] | None
    """As in the evaluation, of all images, (N, E); rows of those that neither train nor validate are 0."""


def run(source: Source, training: Training, environment: Environment) -> Summary:
    """Train on the labels of a source, and publish the outcome.

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
        learnt = _train(data, training, device)
        evaluation = _evaluate(learnt.network, data, training, part=learnt.part, device=device)
        trained = _Trained(learnt, evaluation, _embeddings(data, learnt, evaluation))
        version = _publish(repository, data, trained, training)
    seconds = time.monotonic() - started
    logger.info("published %s as the current version of %s, %.0f s", version.name, repository.location, seconds)
    return _summarise(version, data, seconds)


def _read(source: Source, training: Training, environment: Environment) -> _Data:
    with open_fetcher(environment) as fetcher:
        pool, project = _read_labels(source, environment)
        _say_pool(pool)
        spec = InputSpec(training.image_size, training.image_size)
        pixels = load_pixels(
            pool,
            spec=spec,
            fetcher=fetcher,
            cache=open_cache(environment),
            max_megapixels=environment.max_megapixels,
        )
    for sentence in (*oddities.describe_unreadable(pixels), *oddities.describe_lost(pool, pixels)):
        logger.warning("%s", sentence)
    pool, pixels = oddities.drop_empty_classes(pool, pixels)
    parts = hold_out(
        pixels,
        project=source.project,
        share=training.holdout_share,
        fraction=training.validation,
        seed=training.seed,
    )
    for sentence in oddities.describe_contradictions(pool, pixels, split=parts.sample == "split"):
        logger.warning("%s", sentence)
    _say_parts(parts)
    return _Data(pool, pixels, parts, project)


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


def _say_pool(pool: labels.LabelledPool) -> None:
    logger.info("labels from %s", pool.origin)
    for sentence in labels.describe_left_out(pool):
        logger.info("left out: %s", sentence)


def _say_parts(parts: HeldOut) -> None:
    sample = "of the random sample" if parts.sample == "audit" else "held out"
    logger.info("training on %d images, measuring on %d %s", len(parts.train), len(parts.validation), sample)
    if not len(parts.validation):
        logger.warning(
            "nothing can be held out, and so nothing is measured: no class has two images that are of no other class; "
            "label more images, or correct those that have two labels"
        )


def _train(data: _Data, training: Training, device: torch.device) -> _Learnt:
    torch.manual_seed(training.seed)
    part, classes = training.trained_part, len(data.pool.labels)
    network, provenance = build(
        training.architecture,
        classes=classes,
        image_size=training.image_size,
        weights=parse_weights(training.weights),
        units=training.units,
        dropout=training.dropout,
    )
    _say_network(training.architecture, provenance, part, device)
    network.to(device)
    images, targets = data.pixels.images[data.parts.train], data.pixels.targets[data.parts.train]
    module, inputs = prepare(network, images, part=part, device=device)
    recipe = recipe_of(training, part, len(targets), pretrained=bool(provenance.loaded))
    fitted = fit(module, inputs, targets, classes=classes, recipe=recipe, device=device)
    embeddings = embed(inputs.numpy()) if part != "all" else None
    return _Learnt(network, provenance, part, fitted, embeddings)


def _say_network(architecture: str, provenance: Provenance, part: Part, device: torch.device) -> None:
    logger.info("%s on %s, training: %s; %s", architecture, device, part, provenance)
    if part == "head" and "classifier.0" in provenance.fresh:
        logger.warning(
            "the first linear layer starts fresh and --train head leaves it as it is; --train classifier does better"
        )


def _evaluate(network: Network, data: _Data, training: Training, *, part: Part, device: torch.device) -> _Evaluation:
    held_out, targets = data.pixels.images[data.parts.validation], data.pixels.targets[data.parts.validation]
    multiple, classes = data.pool.multiple, len(data.pool.labels)
    no_passes = np.zeros((0, classes), np.float32)
    evaluation = _Evaluation(Metrics(images=0), probabilities=no_passes, bald=no_passes[:, 0], embeddings=None)
    if len(targets):
        before = network.backbone if part == "classifier" else network.trunk
        features = compute_features(before, torch.from_numpy(held_out), device=device, title="validation")
        embeddings = None if part == "all" else embed(features.numpy())
        if part == "classifier":
            features = compute_features(network.neck, features, device=device, title="neck")
        passes = sample_passes(network.head, features, passes=training.passes, device=device, multiple=multiple)
        mean, nats = passes.mean(axis=1), bald(passes, multiple=multiple)  # (N, C), (N,)
        decided, true = decide(mean, multiple=multiple), as_decisions(targets, classes)
        interval = macro_f1_interval(decided, true)
        evaluation = _Evaluation(
            replace(measure(mean, targets), macro_f1_interval=interval, mean_bald=float(nats.mean())),
            probabilities=mean,
            bald=nats,
            embeddings=embeddings,
            temperature=fit_temperature(mean, targets, multiple=multiple),
        )
    logger.info("%s", format_table(evaluation.metrics, data.pool.labels, targets))
    return evaluation


def _embeddings(data: _Data, learnt: _Learnt, evaluation: _Evaluation) -> npt.NDArray[np.float32] | None:
    """Put what was trained on and what was held out together."""
    if learnt.embeddings is None or evaluation.embeddings is None:
        return None
    embeddings = np.zeros((len(data.pixels.images), EMBEDDING), np.float32)
    embeddings[data.parts.train] = learnt.embeddings
    embeddings[data.parts.validation] = evaluation.embeddings
    return embeddings


def _publish(repository: Repository, data: _Data, trained: _Trained, training: Training) -> Version:
    with repository.stage(datetime.now(UTC)) as staged:
        lowered = export(trained.learnt.network, staged.path, image_size=training.image_size)
        manifest = _describe(staged, lowered, data=data, trained=trained, training=training)
        probe = compute_probe(
            trained.learnt.network,
            _choose_probe_images(data),
            version=staged.version,
            sites=lowered.sites,
            passes=training.passes,
            multiple=manifest.multiple,
        )
        probe.save(staged.path / PROBE_FILE)
        described = staged.describe(manifest)
        validation = validate_version(described)
        logger.info(
            "validated in onnxruntime: mean BALD %.4f nats, at most %.1e from torch",
            validation.mean_bald,
            validation.largest_difference,
        )
        if data.project is not None and training.holdout_share:
            manifest = _add_advice(repository, described, data, decided=_decide(trained.evaluation, manifest))
        if training.int8:
            _add_int8_trunk(staged, manifest, repository=repository, images=data.pixels.images[data.parts.train])
        return staged.publish(_add_report(repository, staged, manifest, data=data, trained=trained))


def _add_int8_trunk(
    staged: StagedVersion, manifest: Manifest, *, repository: Repository, images: npt.NDArray[np.uint8]
) -> None:
    """Put the trunk in 8-bit integers beside the graph, or say why not: the version is whole without it.

    An earlier version's is taken if it was made of the same trunk. Made anew on other images it would give other
    features, and all that servers have cached would be lost.
    """
    path = staged.path / INT8_TRUNK_FILE
    try:
        if not copy_int8_trunk(repository, manifest.trunk, path):
            quantise(staged.path, images, path)
        validation = validate_version(staged.describe(manifest), int8=True)
    except Exception as err:  # of a tool with many, and what was trained is not to be lost for it
        path.unlink(missing_ok=True)
        logger.warning("published without a trunk in int8: %s", err)
        return
    logger.info("int8: BALD ranks the probe with a correlation of %.4f with fp32", validation.rank_correlation)


def _add_report(
    repository: Repository, staged: StagedVersion, manifest: Manifest, *, data: _Data, trained: _Trained
) -> Manifest:
    """Write the version's report, or say why not: the version is whole without it."""
    started, folder = time.monotonic(), staged.path / REPORT_FOLDER
    try:
        inputs = Inputs(
            manifest=manifest,
            earlier=earlier(repository, manifest),
            origin=data.pool.origin,
            pixels=data.pixels,
            parts=data.parts,
            probabilities=trained.evaluation.probabilities,
            bald=trained.evaluation.bald,
            embeddings=trained.embeddings,
        )
        write_report(inputs, folder)
    except Exception as err:  # of libraries with many, and what was trained is not to be lost for it
        shutil.rmtree(folder, ignore_errors=True)
        logger.warning("published without a report: %s", err)
        return manifest
    seconds = time.monotonic() - started
    logger.info("report: %.1f s", seconds)
    return replace(manifest, training=replace(manifest.training, report_s=round(seconds, 2)))


def _choose_probe_images(data: _Data) -> npt.NDArray[np.uint8]:
    """Take images that the network is less sure of than of those it has learnt, spread over the classes."""
    chosen = data.parts.validation if len(data.parts.validation) else data.parts.train
    spread = np.linspace(0, len(chosen) - 1, num=min(PROBE_IMAGES, len(chosen)), dtype=np.int64)
    by_class = chosen[np.argsort(strata(data.pixels.targets[chosen]), kind="stable")]
    return data.pixels.images[by_class[spread]]


def _describe(
    staged: StagedVersion, lowered: Lowered, *, data: _Data, trained: _Trained, training: Training
) -> Manifest:
    spec = InputSpec(training.image_size, training.image_size)
    return Manifest(
        version=staged.version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=data.pool.labels,
        control=data.pool.control,
        input=spec,
        passes=training.passes,
        dropout_sites=lowered.sites,
        architecture=training.architecture,
        trunk=fingerprint(lowered.trunk, staged.path, spec),
        multiple=data.pool.multiple,
        temperature=trained.evaluation.temperature,
        metrics=trained.evaluation.metrics,
        training=_describe_training(data, trained, training),
    )


def _decide(evaluation: _Evaluation, manifest: Manifest) -> Decisions:
    return decide(evaluation.probabilities, multiple=manifest.multiple)


def _add_advice(repository: Repository, described: Version, data: _Data, *, decided: Decisions) -> Manifest:
    """Measure earlier versions on what the new one was, where that is the audit slice, and say whether to go on."""
    manifest, kappa, unseen, curve = described.manifest, None, list[str](), None
    before = earlier(repository, manifest)
    if data.parts.sample == "audit":
        kappa = compare(repository, described, data.pixels.images[data.parts.validation])
        tested = count_images(data.pixels.targets[data.parts.validation], len(manifest.labels))
        unseen = [label for label, images in zip(manifest.labels, tested, strict=True) if not images]
        curve, answers = draw_up(repository, manifest, before, _set_exam(data, decided))
        (described.path / ANSWERS_FILE).write_text(dump(answers), encoding="utf-8")
    advice = describe_advice(before, manifest, curve, kappa=kappa, unseen=unseen)
    logger.info("%s", advice.sentence)
    return replace(manifest, training=replace(manifest.training, advice=advice, curve=curve))


def _set_exam(data: _Data, decided: Decisions) -> Exam:
    """Take the validation part, but for images that are labelled outside of it too: an earlier version learnt them."""
    held_out, pixels = data.parts.validation, data.pixels
    others = np.setdiff1d(np.arange(len(pixels.groups)), held_out)
    unseen = ~np.isin(pixels.groups[held_out], pixels.groups[others])
    rows = held_out[unseen]
    return Exam(
        tasks=pixels.task_ids[rows].tolist(),
        images=pixels.images[rows],
        true=as_decisions(pixels.targets[rows], decided.shape[1]),
        decided=decided[unseen],
    )


def _describe_training(data: _Data, trained: _Trained, training: Training) -> TrainingRecord:
    counts = count_images(data.pixels.targets, len(data.pool.labels))
    return TrainingRecord(
        images=len(data.pixels.targets),
        images_by_class=dict(zip(data.pool.labels, map(int, counts), strict=True)),
        validation=data.parts.sample,
        validation_images=len(data.parts.validation),
        audit_images=data.parts.audit_images,
        audit_share=training.holdout_share,
        project=data.project,
        unreadable=len(data.pixels.unreadable),
        left_out={reason: len(those) for reason, those in data.pool.left_out.items()},
        lost_labels={label: len(tasks) for label, tasks in data.pool.lost_labels.items()},
        weights=asdict(trained.learnt.provenance),
        part=trained.learnt.part,
        seed=training.seed,
        recipe=asdict(trained.learnt.fitted.recipe),
        attempts=trained.learnt.fitted.attempts,
        final_loss=trained.learnt.fitted.losses[-1],
    )


def _summarise(version: Version, data: _Data, seconds: float) -> Summary:
    metrics, advice = version.manifest.metrics, version.manifest.training.advice
    return Summary(
        version=version.name,
        labels=len(data.pixels.targets),
        classes=len(data.pool.labels),
        accuracy=metrics.accuracy,
        macro_f1=metrics.macro_f1,
        nll=metrics.nll,
        ece=metrics.ece,
        seconds=seconds,
        advice=advice.sentence if advice else None,
    )
