"""How the versions of a project have come on: what the advice is built on.

Finds the earlier versions, and has the version in use predict what the new one was validated on. Whatever fails here
costs a figure, never a version.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

from contract.errors import NothingPublished, RepositoryError
from contract.scores.acquisition import greatest_bald
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.results import Advice, Comparison
from contract.versions.version import Version
from trainer.evaluation.advice import Measured, advise
from trainer.evaluation.holdout import Decisions, decide
from trainer.model.frozen import Features
from trainer.model.validation import predict

logger = logging.getLogger(__name__)

_VERSIONS = 20
"""The most manifests that are read."""

_COMPARED_IMAGES = 400
"""More make kappa no surer than it has to be, and each takes a tenth of a second of two processors."""

_COMPARED_PASSES = 200
"""Of one version with itself under other masks, 20 passes give a kappa of 0.91 to 0.96 on photos, 100 one of 0.96 to
0.99: what versions disagree in must not be the draw."""


def find_agreement(
    repository: Repository, version: Version, images: npt.NDArray[np.uint8], *, known: Mapping[str, Features]
) -> float | None:
    """Return Cohen's kappa between what the version in use and a new one predict; labels are compared by name.

    None if nothing is published, if the two are of another input or kind or share no label, or if one of them fails.

    Args:
        repository: whose current version is asked.
        version: the new one.
        images: uint8 (N, H, W, 3).
        known: features of the images, (N, F), by the fingerprint of the backbone that they are of.
    """
    try:
        with repository.open_verified(repository.current()) as before:
            if not len(images) or not _comparable(before.manifest, version.manifest):
                logger.info("the predictions are not compared with those of %s, which is of another kind", before.name)
                return None
            some = np.linspace(0, len(images) - 1, num=min(_COMPARED_IMAGES, len(images)), dtype=np.int64)
            features = {backbone: rows[some] for backbone, rows in known.items()}
            both = (before, version)
            return kappa(*(_decide(each, images[some], both, features) for each in both))
    except NothingPublished:
        return None
    except Exception as err:  # onnxruntime's errors share no base class, and what was trained is not to be lost for it
        logger.warning("the predictions could not be compared with those of the version in use: %s", err)
        return None


def _comparable(before: Manifest, now: Manifest) -> bool:
    return before.input == now.input and before.multiple == now.multiple and bool({*before.labels} & {*now.labels})


def _decide(
    version: Version, images: npt.NDArray[np.uint8], versions: Iterable[Version], known: Mapping[str, Features]
) -> Decisions:
    """What a version predicts, in columns of all labels that one of the versions has, in order of their names."""
    columns = sorted({label for each in versions for label in each.manifest.labels})
    decided = np.zeros((len(images), len(columns)), bool)
    places = [columns.index(label) for label in version.manifest.labels]
    probabilities = predict(version, images, passes=_COMPARED_PASSES, known=known)
    decided[:, places] = decide(probabilities, multiple=version.manifest.multiple)
    return decided


def kappa(first: Decisions, second: Decisions) -> float:
    """Return Cohen's kappa between two sets of decisions (N, C); 1 where all are alike.

    One label an image is one rating; of multiple, each label of an image is.
    """
    if (first == second).all():
        return 1.0
    single = (first.sum(axis=1) == 1).all() and (second.sum(axis=1) == 1).all()
    ratings = (first.argmax(axis=1), second.argmax(axis=1)) if single else (first.ravel(), second.ravel())
    return float(cohen_kappa_score(*ratings))


def describe_advice(
    before: Sequence[Manifest],
    manifest: Manifest,
    curve: Comparison | None,
    *,
    kappa: float | None,
    unseen: Sequence[str],
) -> Advice:
    """Return the advice that belongs into a new version's manifest.

    Args:
        before: manifests of the versions of the same kind.
        manifest: of the new one, complete but for the advice.
        curve: those of them that were measured on the same random images; None where the new one was not.
        kappa: its agreement with the version before.
        unseen: labels without a random image.
    """
    agreements = {each.version: (each, each.training.advice.kappa if each.training.advice else None) for each in before}
    agreements[manifest.version] = (manifest, kappa)
    advice = advise(
        _measured(curve, agreements) if curve else [],
        images=manifest.training.audit_images or 0,
        greatest_bald=greatest_bald(len(manifest.labels), multiple=manifest.multiple),
        unseen=unseen,
    )
    return replace(advice, kappa=kappa)


def earlier(repository: Repository, manifest: Manifest) -> list[Manifest]:
    """Return the manifests of versions that differ from this one in little but their labels, oldest first."""
    found = []
    for name in repository.history()[-_VERSIONS:]:
        try:
            found.append(repository.read_manifest(name))
        except RepositoryError as err:
            logger.info("version %s is passed over: %s", name, err)
    return [each for each in found if _kind(each) == _kind(manifest)]


def _kind(manifest: Manifest) -> tuple[object, ...]:
    project = manifest.training.project
    return (
        project.id if project else None,
        manifest.labels,
        manifest.multiple,
        manifest.control,
        manifest.input,
        manifest.backbone.name,
        manifest.training.part,
    )


def _measured(curve: Comparison, agreements: Mapping[str, tuple[Manifest, float | None]]) -> list[Measured]:
    """What versions came to on the common images, but for those that do not say how uncertain they were."""
    found = []
    for each in curve.versions:
        manifest, kappa = agreements[each.version]
        if manifest.metrics.mean_bald is not None:
            found.append(
                Measured(
                    labels=each.labels,
                    images=curve.images,
                    macro_f1=each.macro_f1,
                    low=each.low,
                    high=each.high,
                    mean_bald=manifest.metrics.mean_bald,
                    kappa=kappa,
                )
            )
    return found
