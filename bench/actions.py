"""How many human actions do all labels of a pool take? `python -m bench.actions [--quick] [--save]`.

On real images whose labels are hidden, an oracle plays the annotator of a project from nothing to the last label: it
labels what the product's order brings up, and confirms what the product offers to be confirmed in bulk. Models, scores,
order, random holdout and what is offered are the product's own. Counted are

    actions    labels given one by one, wrong ones unticked, and confirmations, one for each group of a label; over the
               number of images
    looks      pages of 30 images that were looked over before a group was confirmed
    purity     share of all labels in the end that are the hidden ones, and of those that were confirmed

by two annotators: one unticks every wrong label that it is shown, and labels these as soon as the others are confirmed,
and one unticks none, so that its purity shows what the guarantee is worth. What was computed stays below .cache/bench.
`--quick` takes one set, one precision and one seed; `--save` puts the table below bench/results.
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
from contract.scores.holdout import holdout_order, is_held_out
from contract.scores.sure import DEFAULT_PRECISION, Sure
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.model.build import open_backbone_for
from trainer.model.frozen import FrozenBackbone
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, LabelledImages
from trainer.ranking.predictions import to_candidates
from trainer.ranking.sureness import Asked, Labelled, find_sure, tasks_to_score
from trainer.scoring.scores import Score
from trainer.settings import Environment, Training
from trainer.study.dataset import read_pool
from trainer.study.features import compute_features, decode
from trainer.study.model import Dataset, Floats, Model, Trainer, open_dataset
from trainer.study.run import select_initial

LITE0: Final = "efficientnet_lite0"
_PAGE: Final = 30
"""Images of a page of the Data Manager's grid."""
_LEAST_GROUP: Final = 10
"""Images for which a group is worth a confirmation."""
_BARS: Final = {"trashnet": 1 / 3, "cifar10-lt": 1 / 5}
"""Actions over images that are aimed at."""
_OPTIONS: Mapping[str, tuple[object, str]] = {
    "quick": (False, "a minute, for a first impression"),
    "only": (("all", *_BARS), "one of the two"),
    "backbone": (("all", LITE0, "vgg16"), "one of the two"),
}
_COUNTED: Final = ("labels", "random_labels", "unticks", "confirmations", "confirmed", "confirmed_wrong", "looks")
"""What an annotator has done; `random_labels` are of the random holdout."""
_SHOWN: Final = (
    "images", "pool", "backbone", "sure", "attentive", "actions", "labels", "random_labels", "unticks",
    "confirmations", "confirmed", "looks", "purity", "purity_of_confirmed", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """One project: which images, by which backbone, and how it is run."""

    images: str
    """The folder of the developers' that holds them."""
    backbone: str
    image_size: int
    first: int
    """Labels before the first training, and between two at least."""
    growth: float = 0.25
    """Share of the labels so far that are made between two trainings."""
    holdout_share: float = 0.1
    until: float = 0.65
    """Share of the pool that is labelled by people, after which nothing is trained and they label what is left."""
    follow: bool = True
    """Whether the random labels are made that would do for something to be offered."""
    precisions: tuple[float, ...] = (DEFAULT_PRECISION,)
    """What is asked of labels that are offered, one project after the other."""
    seeds: int = 1


class Play:
    """A project from its first label to its last one."""

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        pool: Indices,
        *,
        seed: int,
        attentive: bool,
        precision: float,
        known: dict[bytes, Model],
    ) -> None:
        """Label nothing yet.

        The dataset's targets are the hidden labels, the pool are the images that are to be labelled, and `known` holds
        models that were trained for the same data set and seed.
        """
        self.plan, self.pool, self.seed = plan, pool, seed
        self.attentive, self.precision, self.known = attentive, precision, known
        self.tally = dict.fromkeys(_COUNTED, 0)
        self._truth, self._features = dataset.targets, cast(Floats, dataset.features)
        self._given = self._truth.copy()
        """What images are labelled as, where they are; what was confirmed may be wrong."""
        self._classes = dataset.classes
        dataset = replace(dataset, targets=self._given)
        self._trainer = Trainer(dataset, training_of(plan, seed), device=torch.device("cpu"))
        self._by_people, self._confirmed = np.zeros((2, len(self._truth)), bool)
        self._groups = Counter[tuple[str, int]]()
        self._sure: Sure | None = None

    @property
    def _left(self) -> Indices:
        return np.setdiff1d(self.pool, np.flatnonzero(self._by_people | self._confirmed))

    def go(self) -> dict[str, Any]:
        """Label all, and return what it took."""
        started, plan, tally, images = time.perf_counter(), self.plan, self.tally, len(self.pool)
        share = plan.holdout_share
        self._label(select_initial(self.pool, self._trainer, count=plan.first, seed=self.seed, holdout_share=share))
        number = 0
        while len(self._left) and tally["labels"] < plan.until * images:
            self._round(f"actions/{self.seed}/{number}")
            number += 1
        self._label(self._left)
        confirmed, wrong = tally["confirmed"], int((self._given != self._truth)[self.pool].sum())
        return {
            **tally,
            "pool": images,
            "rounds": number,
            "actions": (tally["labels"] + tally["unticks"] + tally["confirmations"]) / images,
            "purity": 1 - wrong / images,
            "purity_of_confirmed": 1 - tally["confirmed_wrong"] / confirmed if confirmed else None,
            "seconds": time.perf_counter() - started,
        }

    def _round(self, name: str) -> None:
        """Train, confirm what is offered, and label what comes first."""
        by_people = np.flatnonzero(self._by_people)
        held_out = self._held_out(by_people)
        witnesses: list[Score] = []
        if np.count_nonzero(held_out) >= LEAST_IMAGES:  # else versions are not measured on the random holdout
            measured = self._train(by_people[~held_out], f"{name}/measured")
            witnesses = self._score(measured, by_people[held_out])
        model, left = self._train(by_people, name), self._left
        scores = self._score(model, left)
        wanted = max(self.plan.first, round(self.plan.growth * len(by_people)))
        order = arrange(
            to_candidates(scores, multiple=False),
            strategy=DEFAULT_STRATEGY,
            project=self.seed,
            name=name,
            labels_by_class=np.bincount(self._given[by_people], minlength=len(self._classes)).tolist(),
            holdout_share=self.plan.holdout_share,
            batch_size=wanted,
            labelled=LabelledImages(model.embed_rounded(self._features[by_people]), self._given[by_people]),
        ).order
        self._sure = self._find_sure(model, scores, witnesses, name)
        self._confirm(self._sure)
        queue = left[order]
        queue = queue[~(self._confirmed | self._by_people)[queue]]
        more = min(self._sure.wanted, wanted) if self.plan.follow else 0
        drawn = queue[self._held_out(queue)]
        at_random = drawn[np.argsort(holdout_order(self.seed, drawn))][:more]
        self._label(np.concatenate([at_random, np.setdiff1d(queue[:wanted], at_random)]))

    def _train(self, images: Indices, name: str) -> Model:
        """Train on images as they are labelled; what was trained on them before is the same."""
        left = np.setdiff1d(self.pool, images)  # what was confirmed among it
        parts = (images, self._given[images], left)
        key = hashlib.sha256(name.encode() + b"".join(part.tobytes() for part in parts)).digest()
        if key not in self.known:
            self.known[key] = self._trainer.train(images, name, unlabelled=left)
        return self.known[key]

    def _held_out(self, images: Indices) -> npt.NDArray[np.bool_]:
        return is_held_out(self.seed, images, self.plan.holdout_share)

    def _find_sure(self, model: Model, pool: Sequence[Score], witnesses: Sequence[Score], name: str) -> Sure:
        """Return what is offered, on the evidence of a model that has not seen the labelled random holdout."""
        by_people, classes = np.flatnonzero(self._by_people), self._classes
        labels = {image: frozenset({classes[self._given[image]]}) for image in by_people.tolist()}
        labelled, random_labels = Labelled(labels, self._groups), int(np.count_nonzero(self._held_out(by_people)))
        asked = Asked(self.precision, self.seed, self.plan.holdout_share, random_labels, classes, multiple=False)
        seen = asked.read(witnesses)
        scored = self._score(model, np.array(tasks_to_score(labelled, seen, asked), np.int64))
        return find_sure(pool, seen, labelled, asked, name=name, scored=scored, former=self._sure).sure

    def _score(self, model: Model, images: Indices) -> list[Score]:
        """Return what a model says of images, each of which is a task of its own number."""
        if not len(images):
            return []
        found = model.score(images, self._features[images])
        return [
            Score(
                int(image),
                [{"value": {"choices": [self._classes[found.probabilities[row].argmax()]]}}],
                found.probabilities[row],
                float(found.bald[row]),
                float(found.entropy[row]),
                found.embeddings[row],
            )
            for row, image in enumerate(images)
        ]

    def _confirm(self, sure: Sure) -> None:
        """Look over the groups that are worth it, untick what is seen to be wrong, confirm the others, and label it."""
        tasks, labels = np.array([*sure.tasks], np.int64), np.array([*sure.tasks.values()], np.int64)
        for label in np.unique(labels):
            group = tasks[labels == label]
            if len(group) < _LEAST_GROUP:
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


# ---- what is played on


def training_of(plan: Plan, seed: int) -> Training:
    """Return how versions are trained."""
    weights = str(WEIGHTS) if plan.backbone == "vgg16" else "imagenet"
    return Training(weights=weights, backbone=plan.backbone, image_size=plan.image_size, part="classifier", seed=seed)


def load_dataset(plan: Plan) -> tuple[Dataset, Indices]:
    """Return a plan's images with their features, and which of them are the pool."""
    folder = SHARED / "data" / plan.images
    zipped = folder / "pool.zip"
    found = read_pool(zipped if zipped.is_file() else folder, folder / "manifest.csv")
    found = found.take(~found.test)
    environment = Environment(cache=CACHE / "images", cache_dir=CACHE / "features")
    backbone = open_backbone_for(training_of(plan, 0), cache=environment.cache_dir)
    assert isinstance(backbone, FrozenBackbone)
    decoded = decode(found, image_size=backbone.spec.height, cache=CACHE / "study")
    with open_store(environment) as store:
        features = compute_features(found, decoded, backbone=backbone, store=store, cache=CACHE / "study")
    files = {"images": decoded.path, "features": features, "cache": environment.cache_dir}
    return open_dataset(found.classes, found.targets, **files), np.flatnonzero(decoded.readable)


def plan_projects(*, quick: bool, only: str, backbone: str) -> list[Plan]:
    """Return what is played; of the sets and backbones one or "all"."""
    trashnet = Plan("trashnet", LITE0, 224, first=20)
    if quick:
        return [trashnet]
    plans = [
        replace(trashnet, precisions=(DEFAULT_PRECISION, 0.9, 0.7), seeds=4),
        replace(trashnet, backbone="vgg16", image_size=112, precisions=(DEFAULT_PRECISION, 0.9), seeds=2),
        Plan("cifar10-lt", LITE0, 224, first=100),
    ]
    return [plan for plan in plans if only in ("all", plan.images) and backbone in ("all", plan.backbone)]


def play(plan: Plan) -> list[dict[str, Any]]:
    """Play a plan under each precision, by both annotators, and return and print what came of it."""
    dataset, pool = load_dataset(plan)
    rows = []
    for seed in range(plan.seeds):
        known: dict[bytes, Model] = {}
        for precision, attentive in product(plan.precisions, (True, False)):
            project = Play(plan, dataset, pool, seed=seed, attentive=attentive, precision=precision, known=known)
            found = {**asdict(plan), "sure": precision, "seed": seed, "attentive": attentive, **project.go()}
            log(json.dumps(found))
            rows.append(found)
    print_table([{name: row[name] for name in _SHOWN} for row in rows])
    return rows


def main() -> None:
    """Play all projects, print a table of each and one line of JSON."""
    options = read_options("actions", __doc__, _OPTIONS)
    if not (SHARED / "data").is_dir():
        sys.exit(f"expected images in {SHARED / 'data'}, there are none; the bench needs the developers' folder")
    torch.set_num_threads(1)  # a small head, for which two threads mostly wait for each other
    for plan in plan_projects(quick=options.quick, only=options.only, backbone=options.backbone):
        log(f"{plan.images}, {plan.backbone} at {plan.image_size} pixels")
        rows = play(plan)
        line = json.dumps({"bench": "actions", "bar": _BARS[plan.images], "projects": rows, "machine": describe()})
        if options.save:
            save(f"actions-{plan.images}-{plan.backbone}", line)
        print(line)


if __name__ == "__main__":
    main()
