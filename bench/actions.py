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
`--quick` takes one seed, small images and a part of the pool; `--save` puts the table below bench/results.
"""

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from bench.harness.frame import describe, print_table, say
from bench.subjects.model import CACHE, SHARED, WEIGHTS
from contract.scores.embedding import embed
from contract.scores.holdout import holdout_order, is_held_out
from contract.scores.sure import DEFAULT_PRECISION, Sure
from demo.product import CHECKOUT
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.model.build import open_backbone_of
from trainer.model.frozen import FrozenBackbone
from trainer.ordering import coldstart
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, Candidates
from trainer.ranking.sureness import Asked, Labelled, find_sure, tasks_to_score
from trainer.scoring.scores import Score
from trainer.settings import Environment, Training
from trainer.study.dataset import read_pool
from trainer.study.features import compute, decode
from trainer.study.model import Dataset, Floats, Model, Scores, Trainer

_RESULTS: Final = CHECKOUT / "bench" / "results"
LITE0: Final = "efficientnet_lite0"
_PAGE: Final = 30
"""Images of a page of the Data Manager's grid."""
_LEAST_GROUP: Final = 10
"""Images for which a group is worth a confirmation."""
_BARS: Final = {"trashnet": 1 / 3, "cifar10-lt": 1 / 5}
"""Actions over images that are aimed at."""
_SHOWN: Final = (
    "images",
    "pool",
    "backbone",
    "sure",
    "attentive",
    "actions",
    "labels",
    "random_labels",
    "unticks",
    "confirmations",
    "confirmed",
    "looks",
    "purity",
    "purity_of_confirmed",
    "seconds",
)


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
    """So often each, with its own chance."""


@dataclass(slots=True)
class Tally:
    """What an annotator has done."""

    labels: int = 0
    random_labels: int = 0
    """Of the random holdout."""
    unticks: int = 0
    confirmations: int = 0
    confirmed: int = 0
    confirmed_wrong: int = 0
    looks: int = 0

    @property
    def actions(self) -> int:
        """Labels, unticks and confirmations."""
        return self.labels + self.unticks + self.confirmations


class Play:
    """A project from its first label to its last one."""

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        pool: Indices,
        *,
        last_stage: int | None,
        seed: int,
        attentive: bool,
        precision: float,
        known: dict[bytes, Model],
    ) -> None:
        """Take a data set, of which the images of the pool are to be labelled, and models of the same seed."""
        self._plan, self._pool, self._attentive, self._precision = plan, pool, attentive, precision
        self._last_stage, self._known = last_stage, known
        self._truth, self._features = dataset.targets, cast(Floats, dataset.features)
        self._given = dataset.targets.copy()
        """What images are labelled as, where they are; what was confirmed may be wrong."""
        self._dataset = replace(dataset, targets=self._given)
        self._seed = seed
        self._trainer = Trainer(self._dataset, training_of(plan, seed), device=torch.device("cpu"))
        self._by_people = np.zeros(len(dataset.targets), bool)
        self._confirmed = np.zeros(len(dataset.targets), bool)
        self._groups = Counter[tuple[str, int]]()
        self._sure: Sure | None = None
        self.tally = Tally()

    @property
    def _left(self) -> Indices:
        return np.setdiff1d(self._pool, self._labelled)

    def go(self) -> dict[str, Any]:
        """Label all, and return what it took."""
        started = time.perf_counter()
        self._label(self._cold_start()[: self._plan.first])
        number = 0
        while len(self._left) and self.tally.labels < self._plan.until * len(self._pool):
            self._round(f"actions/{self._seed}/{number}")
            number += 1
        self._label(self._left)
        tally, images = self.tally, len(self._pool)
        wrong = int((self._given != self._truth)[self._pool].sum())
        return {
            **asdict(tally),
            "pool": images,
            "rounds": number,
            "actions": tally.actions / images,
            "purity": 1 - wrong / images,
            "purity_of_confirmed": 1 - tally.confirmed_wrong / tally.confirmed if tally.confirmed else None,
            "seconds": time.perf_counter() - started,
        }

    def _cold_start(self) -> Indices:
        """Return the pool in the order before there is a model."""
        order = coldstart.arrange(
            self._pool,
            embed(self._features[self._pool], last=self._last_stage),
            project=self._seed,
            holdout_share=self._plan.holdout_share,
            batch_size=self._plan.first,
        ).order
        return self._pool[order]

    def _round(self, name: str) -> None:
        """Train, confirm what is offered, and label what comes first."""
        judged = self._judged
        measured = self._train(self._training_part(held_out=False), f"{name}/measured") if judged else None
        model = self._train(self._training_part(held_out=True), name)
        left = self._left
        candidates = as_candidates(left, model.score(self._features[left]))
        wanted = max(self._plan.first, round(self._plan.growth * np.count_nonzero(self._by_people)))
        order = arrange(
            candidates,
            strategy=DEFAULT_STRATEGY,
            project=self._seed,
            name=name,
            labels_by_class=np.bincount(self._given[self._by_people], minlength=len(self._dataset.classes)).tolist(),
            holdout_share=self._plan.holdout_share,
            batch_size=wanted,
        ).order
        self._sure = self._find_sure(model, measured, candidates, name)
        self._confirm(self._sure)
        queue = left[order]
        queue = queue[~(self._confirmed | self._by_people)[queue]]
        more = min(self._sure.wanted, wanted) if self._plan.follow else 0
        drawn = self._held_out(queue)
        at_random = queue[drawn][np.argsort(holdout_order(self._seed, queue[drawn]))][:more]
        self._label(np.concatenate([at_random, np.setdiff1d(queue[:wanted], at_random)]))

    def _train(self, images: Indices, name: str) -> Model:
        """Train on images as they are labelled; what was trained on them before is the same."""
        left = np.setdiff1d(self._pool, images)  # what was confirmed among it
        parts = (images, self._given[images], left)
        key = hashlib.sha256(name.encode() + b"".join(part.tobytes() for part in parts)).digest()
        if key not in self._known:
            self._known[key] = self._trainer.train(images, name, unlabelled=left)
        return self._known[key]

    @property
    def _labelled(self) -> Indices:
        return np.flatnonzero(self._by_people | self._confirmed)

    def _held_out(self, images: Indices) -> npt.NDArray[np.bool_]:
        return is_held_out(self._seed, images, self._plan.holdout_share)

    @property
    def _judged(self) -> bool:
        """Whether versions are measured on the random holdout."""
        by_people = np.flatnonzero(self._by_people)
        return bool(np.count_nonzero(self._held_out(by_people)) >= LEAST_IMAGES)

    def _training_part(self, *, held_out: bool) -> Indices:
        by_people = np.flatnonzero(self._by_people)
        return by_people if held_out else by_people[~self._held_out(by_people)]

    def _find_sure(self, model: Model, measured: Model | None, candidates: Candidates, name: str) -> Sure:
        """Return what is offered, on the evidence of a model that has not seen the labelled random holdout."""
        by_people = np.flatnonzero(self._by_people)
        labelled = Labelled({int(image): frozenset({self._name(image)}) for image in by_people}, self._groups)
        drawn = by_people[self._held_out(by_people)]
        asked = Asked(
            self._precision,
            self._seed,
            self._plan.holdout_share,
            len(drawn),
            self._dataset.classes,
            multiple=False,
        )
        witnesses = asked.read(self._score(measured, drawn)) if measured else []
        scored = self._score(model, np.array(tasks_to_score(labelled, witnesses, asked), np.int64))
        pool = self._as_scores(candidates)
        return find_sure(pool, witnesses, labelled, asked, name=name, scored=scored, former=self._sure).sure

    def _score(self, model: Model, images: Indices) -> list[Score]:
        return self._as_scores(as_candidates(images, model.score(self._features[images]))) if len(images) else []

    def _name(self, image: int) -> str:
        return str(self._dataset.classes[self._given[image]])

    def _as_scores(self, candidates: Candidates) -> list[Score]:
        classes = self._dataset.classes
        results = [[{"value": {"choices": [name]}}] for name in classes]
        likeliest = candidates.probabilities.argmax(axis=1) if len(candidates.task_ids) else []
        return [
            Score(int(task), results[label], probabilities, float(bald), float(entropy), embedding)
            for task, label, probabilities, bald, entropy, embedding in zip(
                candidates.task_ids,
                likeliest,
                candidates.probabilities,
                candidates.bald,
                candidates.entropy,
                candidates.embeddings,
                strict=True,
            )
        ]

    def _confirm(self, sure: Sure) -> None:
        """Look over the groups that are worth it, untick what is seen to be wrong, confirm the others, and label it."""
        tasks, labels = np.array([*sure.tasks], np.int64), np.array([*sure.tasks.values()], np.int64)
        for label in np.unique(labels):
            group = tasks[labels == label]
            if len(group) < _LEAST_GROUP:
                continue
            wrong = self._truth[group] != label if self._attentive else np.zeros(len(group), bool)
            kept = group[~wrong]
            self._label(group[wrong])
            self._given[kept], self._confirmed[kept] = label, True
            self._groups[sure.ranking, int(label)] += len(kept)
            self.tally.looks += math.ceil(len(group) / _PAGE)
            self.tally.unticks += int(np.count_nonzero(wrong))
            self.tally.confirmations += 1
            self.tally.confirmed += len(kept)
            self.tally.confirmed_wrong += int((self._truth[kept] != label).sum())

    def _label(self, images: Indices) -> None:
        self._by_people[images] = True
        self.tally.labels += len(images)
        self.tally.random_labels += int(np.count_nonzero(self._held_out(images)))


def as_candidates(images: Indices, scores: Scores) -> Candidates:
    """Return what a model says of images, each of which is a task of its own number."""
    return Candidates(images, scores.probabilities, scores.bald, scores.entropy, scores.embeddings, multiple=False)


# ---- what is played on


def training_of(plan: Plan, seed: int) -> Training:
    """Return how versions are trained."""
    weights = str(WEIGHTS) if plan.backbone == "vgg16" else "imagenet"
    return Training(weights=weights, backbone=plan.backbone, image_size=plan.image_size, part="classifier", seed=seed)


def open_dataset(plan: Plan) -> tuple[Dataset, Indices, int | None]:
    """Return a plan's images with their features, which of them are the pool, and where the last stage begins."""
    folder = SHARED / "data" / plan.images
    zipped = folder / "pool.zip"
    found = read_pool(zipped if zipped.is_file() else folder, folder / "manifest.csv")
    rows = np.flatnonzero(~found.test)
    references = tuple(found.references[row] for row in rows)
    found = replace(found, references=references, targets=found.targets[rows], test=found.test[rows])
    environment = Environment(cache=CACHE / "images", cache_dir=CACHE / "features")
    backbone = open_backbone_of(training_of(plan, 0), cache=environment.cache_dir)
    assert isinstance(backbone, FrozenBackbone)
    decoded = decode(found, image_size=backbone.spec.height, cache=CACHE / "study")
    with open_store(environment) as store:
        path = compute(found, decoded, backbone=backbone, store=store, cache=CACHE / "study")
    features = np.load(path, mmap_mode="r")
    dataset = Dataset(found.classes, found.targets, decoded.images, features, environment.cache_dir)
    return dataset, np.flatnonzero(decoded.readable), backbone.last_stage


def plan_projects(*, quick: bool, only: str | None = None, backbone: str | None = None) -> list[Plan]:
    """Return what is played."""
    trashnet = Plan("trashnet", LITE0, 224, first=20)
    if quick:
        return [trashnet]
    plans = [
        replace(trashnet, precisions=(DEFAULT_PRECISION, 0.9, 0.7), seeds=4),
        replace(trashnet, backbone="vgg16", image_size=112, precisions=(DEFAULT_PRECISION, 0.9), seeds=2),
        Plan("cifar10-lt", LITE0, 224, first=100),
    ]
    return [plan for plan in plans if only in (None, plan.images) and backbone in (None, plan.backbone)]


def play(plan: Plan) -> list[dict[str, Any]]:
    """Play a plan under each precision, by both annotators, and return and print what came of it."""
    dataset, pool, last_stage = open_dataset(plan)
    rows = []
    for seed in range(plan.seeds):
        known: dict[bytes, Model] = {}
        for precision in plan.precisions:
            for attentive in (True, False):
                project = Play(
                    plan,
                    dataset,
                    pool,
                    last_stage=last_stage,
                    seed=seed,
                    attentive=attentive,
                    precision=precision,
                    known=known,
                )
                found = {**asdict(plan), "sure": precision, "seed": seed, "attentive": attentive, **project.go()}
                say(json.dumps(found))
                rows.append(found)
    print_table([{name: row[name] for name in _SHOWN} for row in rows])
    return rows


def main() -> None:
    """Play all projects, print a table of each and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.actions", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute, for a first impression")
    parser.add_argument("--save", action="store_true", help="put the figures below bench/results")
    parser.add_argument("--only", choices=[*_BARS], help="one of the two")
    parser.add_argument("--backbone", choices=[LITE0, "vgg16"], help="one of the two")
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.error(f"expected images in {SHARED / 'data'}, there are none; the bench needs the developers' folder")
    torch.set_num_threads(1)  # a small head, for which two threads mostly wait for each other
    for plan in plan_projects(quick=options.quick, only=options.only, backbone=options.backbone):
        say(f"{plan.images}, {plan.backbone} at {plan.image_size} pixels")
        rows = play(plan)
        line = json.dumps({"bench": "actions", "bar": _BARS[plan.images], "projects": rows, "machine": describe()})
        if options.save:
            name = f"{datetime.now(UTC).date().isoformat()}-actions-{plan.images}-{plan.backbone}.json"
            (_RESULTS / name).write_text(line + "\n", encoding="utf-8")
        print(line)


if __name__ == "__main__":
    main()
