"""How many actions does it take to label a whole pool? `python -m bench.actions [--quick] [--save]`.

Simulates a project on real images with hidden labels, from the first to the last label. The simulated annotator labels
images in the product's order and confirms the labels that the product offers in bulk. Models, scores, order, random
holdout and offers are the product's own. Reported are

    actions    labels, unticked wrong offers and confirmations (one per label and round), divided by the number of
               images
    looks      pages of 30 images reviewed before confirmations
    purity     share of correct labels at the end, among all and among confirmed ones

for two annotators: one unticks and labels every wrong offer, the other confirms everything, so that its purity shows
whether the guaranteed precision holds. Features are cached in .cache/bench. `--quick` uses one set, one precision and
one seed; `--save` writes the table to bench/results.
"""

import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from bench.harness.frame import describe, log, print_table, read_options, save
from bench.subjects.model import CACHE, SHARED, WEIGHTS
from contract.scores.holdout import DEFAULT_SHARE, holdout_order, is_held_out
from contract.scores.sure import DEFAULT_PRECISION, Sure
from trainer.evaluation.advice import MIN_IMAGES
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.model.build import open_backbone_for
from trainer.model.frozen import FrozenBackbone
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, LabelledImages
from trainer.ranking.bulk_confirmation import Criteria, find_offers, tasks_to_score
from trainer.ranking.given_labels import GivenLabels
from trainer.ranking.predictions import to_candidates
from trainer.scoring.scores import Score
from trainer.settings import Environment, Training
from trainer.study.dataset import read_pool
from trainer.study.features import compute_features, decode
from trainer.study.model import Dataset, Floats, Model, Trainer, open_dataset
from trainer.study.run import select_initial

LITE0: Final = "efficientnet_lite0"
_PAGE: Final = 30
"""Images on a page of the Data Manager's grid."""
_MIN_GROUP: Final = 10
"""Smallest group that the annotator confirms in bulk."""
_GROWTH: Final = 0.25
"""Labels between two trainings, as a share of the labels so far."""
_TRAINED_SHARE: Final = 0.65
"""Share of the pool labelled one by one, after which training ends and the remaining images are labelled."""
_TARGETS: Final = {"trashnet": 1 / 3, "cifar10-lt": 1 / 5}
"""Target of actions per image."""
_OPTIONS: Mapping[str, tuple[object, str]] = {
    "quick": (False, "take a minute, for a first impression"),
    "only": (("all", *_TARGETS), "a single set"),
    "backbone": (("all", LITE0, "vgg16"), "a single backbone"),
}
_COUNTERS: Final = ("labels", "random_labels", "unticks", "confirmations", "confirmed", "confirmed_wrong", "looks")
"""Counts of the annotator's work; `random_labels` are labels of the random holdout."""
_SHOWN: Final = (
    "images", "pool", "backbone", "sure", "attentive", "actions", "labels", "random_labels", "unticks",
    "confirmations", "confirmed", "looks", "purity", "purity_of_confirmed", "seconds",
)  # fmt: skip


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


# ---- data sets and models


def training_of(plan: Plan, seed: int) -> Training:
    """Return the training settings of a plan."""
    weights = str(WEIGHTS) if plan.backbone == "vgg16" else "imagenet"
    return Training(weights=weights, backbone=plan.backbone, image_size=plan.image_size, part="classifier", seed=seed)


def load_dataset(plan: Plan) -> tuple[Dataset, Indices]:
    """Return a plan's images with their features, and the indices of the pool."""
    folder = SHARED / "data" / plan.images
    zipped = folder / "pool.zip"
    images = read_pool(zipped if zipped.is_file() else folder, folder / "manifest.csv")
    images = images.take(~images.test)
    environment = Environment(cache=CACHE / "images", cache_dir=CACHE / "features")
    backbone = open_backbone_for(training_of(plan, 0), cache=environment.cache_dir)
    assert isinstance(backbone, FrozenBackbone)
    decoded = decode(images, image_size=backbone.spec.height, cache=CACHE / "study")
    with open_store(environment) as store:
        features = compute_features(images, decoded, backbone=backbone, store=store, cache=CACHE / "study")
    files = {"images": decoded.path, "features": features, "cache": environment.cache_dir}
    return open_dataset(images.classes, images.targets, **files), np.flatnonzero(decoded.readable)


def plan_projects(*, quick: bool, only: str, backbone: str) -> list[Plan]:
    """Return the plans for a set and a backbone; "all" selects all of them."""
    trashnet = Plan("trashnet", LITE0, 224, first=20)
    if quick:
        return [trashnet]
    plans = [
        replace(trashnet, precisions=(DEFAULT_PRECISION, 0.9, 0.7), seeds=4),
        replace(trashnet, backbone="vgg16", image_size=112, precisions=(DEFAULT_PRECISION, 0.9), seeds=2),
        Plan("cifar10-lt", LITE0, 224, first=100),
    ]
    return [plan for plan in plans if only in ("all", plan.images) and backbone in ("all", plan.backbone)]


def simulate(plan: Plan) -> list[dict[str, Any]]:
    """Simulate a plan with each seed, precision and annotator; return and print the results."""
    dataset, pool = load_dataset(plan)
    rows = []
    for seed in range(plan.seeds):
        models: dict[bytes, Model] = {}
        for precision, attentive in product(plan.precisions, (True, False)):
            simulation = Simulation(
                plan, dataset, pool, seed=seed, attentive=attentive, precision=precision, models=models
            )
            row = {**asdict(plan), "sure": precision, "seed": seed, "attentive": attentive, **simulation.run()}
            log(json.dumps(row))
            rows.append(row)
    print_table([{name: row[name] for name in _SHOWN} for row in rows])
    return rows


def main() -> None:
    """Simulate all plans; print a table and a line of JSON for each."""
    options = read_options("actions", __doc__, _OPTIONS)
    if not (SHARED / "data").is_dir():
        sys.exit(f"no folder {SHARED / 'data'}; this benchmark needs the developers' shared folder")
    torch.set_num_threads(1)  # the head is too small for several threads
    for plan in plan_projects(quick=options.quick, only=options.only, backbone=options.backbone):
        log(f"{plan.images}, {plan.backbone} at {plan.image_size} pixels")
        rows = simulate(plan)
        line = json.dumps({"bench": "actions", "bar": _TARGETS[plan.images], "projects": rows, "machine": describe()})
        if options.save:
            save(f"actions-{plan.images}-{plan.backbone}", line)
        print(line)


if __name__ == "__main__":
    main()
