"""A project with hidden labels, from its first to its last label, and its simulated annotator."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from bench.subjects.model import WEIGHTS
from contract.scores.holdout import DEFAULT_SHARE, holdout_order, is_held_out
from contract.scores.sure import DEFAULT_PRECISION, Sure
from trainer.evaluation.advice import MIN_IMAGES
from trainer.labels.dataset import Indices
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, LabelledImages
from trainer.ranking.bulk_confirmation import Criteria, find_offers, tasks_to_score
from trainer.ranking.given_labels import GivenLabels
from trainer.ranking.predictions import to_candidates
from trainer.scoring.scores import Score
from trainer.settings import Training
from trainer.study.model import Dataset, Floats, Model, Trainer
from trainer.study.run import select_initial

_PAGE: Final = 30
"""Images on a page of the Data Manager's grid."""
_MIN_GROUP: Final = 10
"""Smallest group that the annotator confirms in bulk."""
_GROWTH: Final = 0.25
"""Labels between two trainings, as a share of the labels so far."""
_TRAINED_SHARE: Final = 0.65
"""Share of the pool labelled one by one, after which training ends and the remaining images are labelled."""
_COUNTERS: Final = ("labels", "random_labels", "unticks", "confirmations", "confirmed", "confirmed_wrong", "looks")
"""Counts of the annotator's work; `random_labels` are labels of the random holdout."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A project to simulate."""

    images: str
    """Subfolder of `data` in the developers' shared folder."""
    backbone: str
    image_size: int
    first: int
    """Labels before the first training, and minimum between two trainings."""
    holdout_share: float = DEFAULT_SHARE
    precisions: tuple[float, ...] = (DEFAULT_PRECISION,)
    """Required precisions of offered labels, one project each."""
    seeds: int = 1


def training_of(plan: Plan, seed: int) -> Training:
    """Return the training settings of a plan."""
    weights = str(WEIGHTS) if plan.backbone == "vgg16" else "imagenet"
    return Training(weights=weights, backbone=plan.backbone, image_size=plan.image_size, part="classifier", seed=seed)


class Simulation:
    """A project from its first to its last label."""

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        pool: Indices,
        *,
        seed: int,
        attentive: bool,
        precision: float,
        models: dict[bytes, Model],
    ) -> None:
        """Begin without labels.

        The dataset's targets are the hidden labels, `pool` the images to label, and `models` a cache of trained models
        for this dataset and seed.
        """
        self.plan, self.pool, self.seed = plan, pool, seed
        self.attentive, self.precision, self.models = attentive, precision, models
        self.tally = dict.fromkeys(_COUNTERS, 0)
        self._truth, self._features = dataset.targets, cast(Floats, dataset.features)
        self._given = self._truth.copy()
        """Labels given so far; confirmed ones may be wrong."""
        self._classes = dataset.classes
        dataset = replace(dataset, targets=self._given)
        self._trainer = Trainer(dataset, training_of(plan, seed), device=torch.device("cpu"))
        self._by_people, self._confirmed = np.zeros((2, len(self._truth)), bool)
        self._groups = Counter[tuple[str, int]]()
        self._sure: Sure | None = None

    @property
    def _unlabelled(self) -> Indices:
        return np.setdiff1d(self.pool, np.flatnonzero(self._by_people | self._confirmed))

    def run(self) -> dict[str, Any]:
        """Label all images, and return the results."""
        started, tally, images = time.perf_counter(), self.tally, len(self.pool)
        first, share = self.plan.first, self.plan.holdout_share
        self._label(select_initial(self.pool, self._trainer, count=first, seed=self.seed, holdout_share=share))
        rounds = 0
        while len(self._unlabelled) and tally["labels"] < _TRAINED_SHARE * images:
            self._round(f"actions/{self.seed}/{rounds}")
            rounds += 1
        self._label(self._unlabelled)
        confirmed, wrong = tally["confirmed"], int((self._given != self._truth)[self.pool].sum())
        return {
            **tally,
            "pool": images,
            "rounds": rounds,
            "actions": (tally["labels"] + tally["unticks"] + tally["confirmations"]) / images,
            "purity": 1 - wrong / images,
            "purity_of_confirmed": 1 - tally["confirmed_wrong"] / confirmed if confirmed else None,
            "seconds": time.perf_counter() - started,
        }

    def _round(self, name: str) -> None:
        """Train, confirm offered labels, and label the first images of the order."""
        by_people = np.flatnonzero(self._by_people)
        model, unlabelled = self._train(by_people, name), self._unlabelled
        scores = self._score(model, unlabelled)
        count = max(self.plan.first, round(_GROWTH * len(by_people)))
        order = arrange(
            to_candidates(scores, multiple=False),
            strategy=DEFAULT_STRATEGY,
            project=self.seed,
            name=name,
            labels_by_class=np.bincount(self._given[by_people], minlength=len(self._classes)).tolist(),
            holdout_share=self.plan.holdout_share,
            batch_size=count,
            labelled=LabelledImages(model.embed_rounded(self._features[by_people]), self._given[by_people]),
        ).order
        self._sure = self._find_sure(model, scores, self._score_holdout(by_people, name), name)
        self._confirm(self._sure)
        queue = unlabelled[order]
        queue = queue[~(self._confirmed | self._by_people)[queue]]
        # As the product advises, first the random images that are needed before more labels can be offered.
        held_out = queue[self._held_out(queue)]
        at_random = held_out[np.argsort(holdout_order(self.seed, held_out))][: min(self._sure.wanted, count)]
        self._label(np.concatenate([at_random, np.setdiff1d(queue[:count], at_random)]))

    def _score_holdout(self, by_people: Indices, name: str) -> list[Score]:
        """Return scores of the labelled holdout by a model not trained on it; as in production, none if it is small."""
        held_out = self._held_out(by_people)
        if np.count_nonzero(held_out) < MIN_IMAGES:
            return []
        return self._score(self._train(by_people[~held_out], f"{name}/measured"), by_people[held_out])

    def _train(self, images: Indices, name: str) -> Model:
        """Return a model trained on the labelled images, cached by its training data."""
        unlabelled = np.setdiff1d(self.pool, images)  # including confirmed images
        parts = (images, self._given[images], unlabelled)
        key = hashlib.sha256(name.encode() + b"".join(part.tobytes() for part in parts)).digest()
        if key not in self.models:
            self.models[key] = self._trainer.train(images, name, unlabelled=unlabelled)
        return self.models[key]

    def _held_out(self, images: Indices) -> npt.NDArray[np.bool_]:
        return is_held_out(self.seed, images, self.plan.holdout_share)

    def _find_sure(self, model: Model, pool: Sequence[Score], holdout_scores: Sequence[Score], name: str) -> Sure:
        """Return the offered labels, given scores of the unlabelled pool and of the labelled holdout."""
        by_people, classes = np.flatnonzero(self._by_people), self._classes
        labels = {image: frozenset({classes[self._given[image]]}) for image in by_people.tolist()}
        given, random_labels = GivenLabels(labels, self._groups), int(np.count_nonzero(self._held_out(by_people)))
        criteria = Criteria(self.precision, self.seed, self.plan.holdout_share, random_labels, classes, multiple=False)
        holdout_predictions = criteria.to_predictions(holdout_scores)
        scored = self._score(model, np.array(tasks_to_score(given, holdout_predictions, criteria), np.int64))
        return find_offers(pool, holdout_predictions, given, criteria, name=name, scored=scored, former=self._sure).sure

    def _score(self, model: Model, images: Indices) -> list[Score]:
        """Return a model's scores; the task id of an image is its index."""
        if not len(images):
            return []
        candidates = model.score(images, self._features[images])
        return [
            Score(
                int(image),
                [{"value": {"choices": [self._classes[candidates.probabilities[row].argmax()]]}}],
                candidates.probabilities[row],
                float(candidates.bald[row]),
                float(candidates.entropy[row]),
                candidates.embeddings[row],
            )
            for row, image in enumerate(images)
        ]

    def _confirm(self, sure: Sure) -> None:
        """Review the offered groups that are large enough: untick and label wrong images, confirm the others."""
        tasks, labels = np.array([*sure.tasks], np.int64), np.array([*sure.tasks.values()], np.int64)
        for label in np.unique(labels):
            group = tasks[labels == label]
            if len(group) < _MIN_GROUP:
                continue
            wrong = (self._truth[group] != label) & self.attentive
            kept = group[~wrong]
            self._label(group[wrong])
            self._given[kept], self._confirmed[kept] = label, True
            self._groups[sure.ranking, int(label)] += len(kept)
            self.tally["looks"] += math.ceil(len(group) / _PAGE)
            self.tally["unticks"] += int(np.count_nonzero(wrong))
            self.tally["confirmations"] += 1
            self.tally["confirmed"] += len(kept)
            self.tally["confirmed_wrong"] += int((self._truth[kept] != label).sum())

    def _label(self, images: Indices) -> None:
        self._by_people[images] = True
        self.tally["labels"] += len(images)
        self.tally["random_labels"] += int(np.count_nonzero(self._held_out(images)))
