"""How the versions of a project have come on: what the advice is built on.

Finds the earlier versions, and says how far the newest of them agrees with the new one. Whatever fails here costs a
figure, never a version.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import cohen_kappa_score

from contract.errors import RepositoryError
from contract.scores.acquisition import greatest_bald
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.results import Advice, Comparison
from trainer.evaluation.advice import Measured, advise
from trainer.evaluation.comparison import Predicted
from trainer.evaluation.holdout import Decisions

logger = logging.getLogger(__name__)

_VERSIONS = 20
"""The most manifests that are read."""


def find_agreement(
    predictions: Mapping[str, Predicted], before: Sequence[Manifest], manifest: Manifest
) -> float | None:
    """Return Cohen's kappa between what a new version predicts and the newest before it, of images new to both.

    None if none before it was measured on the same images.

    Args:
        predictions: by version, as `compare_versions` returns them.
        before: of the same kind and with the same labels, oldest first.
        manifest: of the new version.
    """
    compared = [predictions[each.version] for each in before if each.version in predictions]
    if not compared:
        return None
    now = predictions[manifest.version]
    decided = np.zeros((2, len(now), len(manifest.labels)), np.bool_)
    for row, task in enumerate(now):
        decided[0, row, compared[-1][task]] = True
        decided[1, row, now[task]] = True
    return kappa(*decided)


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
