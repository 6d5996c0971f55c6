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

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Final

import numpy as np
import torch

from bench.actions.simulation import Plan, Simulation, training_of
from bench.harness.frame import describe, log, print_table, read_options, save
from bench.subjects.model import CACHE, SHARED
from contract.scores.sure import DEFAULT_PRECISION
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.model.build import open_backbone_for
from trainer.model.frozen import FrozenBackbone
from trainer.settings import Environment
from trainer.study.dataset import read_pool
from trainer.study.features import compute_features, decode
from trainer.study.model import Dataset, Model, open_dataset

_LITE0: Final = "efficientnet_lite0"
_TARGETS: Final = {"trashnet": 1 / 3, "cifar10-lt": 1 / 5}
"""Target of actions per image."""
_OPTIONS: Mapping[str, tuple[object, str]] = {
    "quick": (False, "take a minute, for a first impression"),
    "only": (("all", *_TARGETS), "a single set"),
    "backbone": (("all", _LITE0, "vgg16"), "a single backbone"),
}
_SHOWN: Final = (
    "images", "pool", "backbone", "sure", "attentive", "actions", "labels", "random_labels", "unticks",
    "confirmations", "confirmed", "looks", "purity", "purity_of_confirmed", "seconds",
)  # fmt: skip


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
    trashnet = Plan("trashnet", _LITE0, 224, first=20)
    if quick:
        return [trashnet]
    plans = [
        replace(trashnet, precisions=(DEFAULT_PRECISION, 0.9, 0.7), seeds=4),
        replace(trashnet, backbone="vgg16", image_size=112, precisions=(DEFAULT_PRECISION, 0.9), seeds=2),
        Plan("cifar10-lt", _LITE0, 224, first=100),
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
