"""How should few labels be trained on? `python -m bench.recipe [--set cifar10-lt|trashnet]`.

Trains the classifier on some labelled sets of a pool with a long tail, on features of frozen convolutions, and changes
one setting of the recipe after the other. The sets are as random labelling and as a good strategy leave them: drawn at
random, and with as equal a number of each class as the pool has. Reported for each, as means over two seeds:

    accuracy, macro-F1, minority F1 (of the rarest third of the classes) and NLL on the test images

Needs the developers' shared folder.
"""

import argparse
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from bench.evidence import Plan, plan_studies
from bench.frame import describe
from bench.model import CACHE
from trainer.evaluation.metrics import measure
from trainer.labels.dataset import Indices
from trainer.model.network import build
from trainer.model.recipe import choose_recipe
from trainer.progress_bar import Bar
from trainer.settings import Training
from trainer.study.dataset import long_tail, read_pool
from trainer.study.features import compute, decode
from trainer.study.model import Dataset, Trainer
from trainer.study.simulate import find_minority

_SEEDS: Final = 2
_DEVICE: Final = torch.device("cpu")

CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "as it is": {},
    "learning rate 0.05": {"learning_rate": 0.05},
    "learning rate 0.2": {"learning_rate": 0.2},
    "weight decay 0.0005": {"weight_decay": 0.0005},
    "weight decay 0.02": {"weight_decay": 0.02},
    "dropout 0.5": {"dropout": 0.5},
    "dropout 0.7": {"dropout": 0.7},
    "512 units": {"units": 512},
    "balance 0.5": {"class_balance": 0.5},
    "balance 0": {"class_balance": 0.0},
    "half the epochs": {"epochs": 0.5},
    "twice the epochs": {"epochs": 2},
}
"""Name to settings of `Training`; epochs are a multiple of the recipe's."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What is trained on."""

    dataset: Dataset
    pool: Indices
    test: Indices
    minority: tuple[int, ...]
    sizes: tuple[int, ...]


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = _parse()
    [plan] = [plan for plan in plan_studies(quick=False) if plan.name == options.set]
    training = Training(weights=plan.weights, image_size=plan.image_size, units=256)
    ground = prepare(plan, training)
    rows = {name: _measure(ground, training, change) for name, change in Bar(CHANGES.items(), unit="change")}
    _print_table(rows)
    print(json.dumps({"bench": "recipe", "set": plan.name, "rows": rows, "machine": describe()}))


def prepare(plan: Plan, training: Training) -> Ground:
    """Compute what all trainings share."""
    images = read_pool(plan.images, plan.manifest)
    decoded = decode(images, image_size=training.image_size, cache=CACHE / "study")
    network, _ = build(
        training.architecture,
        classes=len(images.classes),
        image_size=training.image_size,
        weights=training.weights,
    )
    features = compute(decoded, network=network, device=_DEVICE, cache=CACHE / "study")
    eligible = decoded.readable & ~images.test
    if plan.long_tail:
        eligible = long_tail(images.targets, eligible, plan.long_tail)
    counts = np.bincount(images.targets[eligible], minlength=len(images.classes))
    return Ground(
        Dataset(images.classes, images.targets, decoded.images, np.load(features, mmap_mode="r")),
        np.flatnonzero(eligible),
        np.flatnonzero(decoded.readable & images.test),
        find_minority(counts),
        (plan.initial, plan.initial + 2 * plan.query, plan.initial + plan.rounds * plan.query),
    )


def labelled_sets(ground: Ground, seed: int) -> Iterator[tuple[str, Indices]]:
    """Yield the sets of a seed with their names: rising indices."""
    rng = np.random.default_rng(seed)
    targets = ground.dataset.targets[ground.pool]
    shuffled = rng.permutation(len(ground.pool))
    place = np.empty(len(shuffled), np.int64)  # of each image among those of its class
    for label in range(len(ground.dataset.classes)):
        members = shuffled[targets[shuffled] == label]
        place[members] = np.arange(len(members))
    evenly = shuffled[np.argsort(place[shuffled], kind="stable")]
    for size in ground.sizes:
        yield f"random {size}", np.sort(ground.pool[shuffled[:size]])
        yield f"even {size}", np.sort(ground.pool[evenly[:size]])


def _measure(ground: Ground, training: Training, change: Mapping[str, Any]) -> dict[str, list[float]]:
    found: dict[str, list[list[float]]] = {}
    for seed in range(_SEEDS):
        for name, labelled in labelled_sets(ground, seed):
            changed = replace(training, seed=seed, **_resolve(change, len(labelled)))
            trainer = Trainer(ground.dataset, changed, part="classifier", weights=training.weights, device=_DEVICE)
            with redirect_stderr(io.StringIO()):  # a bar for each training
                model = trainer.train(labelled, f"recipe/{seed}")
            mean = model.score(model.compute_features(ground.test)).probabilities
            metrics = measure(mean, ground.dataset.targets[ground.test])
            minority = float(np.mean([metrics.f1[index] or 0.0 for index in ground.minority]))
            figures = [metrics.accuracy, metrics.macro_f1, minority, metrics.nll]
            found.setdefault(name, []).append([float(figure or 0.0) for figure in figures])
    return {name: np.mean(values, axis=0).round(3).tolist() for name, values in found.items()}


def _resolve(change: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Return the settings of a change, with the number of epochs for so many images in place of a multiple."""
    if "epochs" not in change:
        return dict(change)
    epochs = choose_recipe(Training(), "classifier", images, pretrained=True).epochs
    return {**change, "epochs": max(1, round(epochs * change["epochs"]))}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.recipe", description=__doc__.partition("\n")[0])
    parser.add_argument("--set", choices=("cifar10-lt", "trashnet"), default="cifar10-lt", help="(default: cifar10-lt)")
    return parser.parse_args()


def _print_table(rows: Mapping[str, Mapping[str, list[float]]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"{'accuracy, macro-F1, minority F1, NLL':<38}" + "".join(f"{name:>26}" for name in names))
    for change, values in rows.items():
        print(f"{change:<38}" + "".join("  " + " ".join(f"{value:5.3f}" for value in values[name]) for name in names))


if __name__ == "__main__":
    main()
