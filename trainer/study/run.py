"""One chain of a study: a strategy and a seed, from the initial set to the last round.

Each round that ended is on disk, with what it chose, so that a chain that was interrupted goes on after it and comes to
the same end as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from contract.scores.acquisition import rank_correlation
from contract.scores.holdout import DEFAULT_SHARE, is_held_out
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.evaluation.metrics import measure
from trainer.labels.dataset import Indices, count_images
from trainer.model.network import Weights
from trainer.ordering.strategies import descending
from trainer.settings import Part, Training
from trainer.study.choosing import Chooser, Situation
from trainer.study.model import Learner, Material, Model
from trainer.study.options import PRODUCT
from trainer.study.records import PassAgreement, Round, append, recover

MANY_PASSES = 200
"""What T passes are compared with."""
_FIRST = 100


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is done in every chain."""

    pool: Indices
    """Images that may be labelled, rising."""
    test: Indices
    """Images that every model is measured on, and none is trained on."""
    minority: tuple[int, ...]
    initial: int
    query: int
    rounds: int
    training: Training
    """Its seed is replaced by the chain's."""
    part: Part
    weights: Weights


def draw_initial(pool: Indices, *, count: int, seed: int) -> Indices:
    """Return the initial set of a seed, the same for all strategies: int64 (count,), rising."""
    return np.sort(np.random.default_rng([seed, 0]).choice(pool, count, replace=False))


class Chain:
    """One strategy with one seed."""

    def __init__(
        self, strategy: str, seed: int, *, material: Material, protocol: Protocol, path: Path, device: torch.device
    ) -> None:
        """Read from the chain's file, which may not exist yet, how far it is."""
        self._strategy = strategy
        self._seed = seed
        self._material = material
        self._protocol = protocol
        self._path = path
        self._device = device

    def run(self, tell: Callable[[], None]) -> None:
        """Run the rounds that are missing, and call `tell` after each.

        Raises:
            TrainingError: if a training diverges.
        """
        lines = recover(self._path)
        initial = draw_initial(self._protocol.pool, count=self._protocol.initial, seed=self._seed)
        labelled: Indices = np.concatenate([initial, *(np.array(line["chosen"], np.int64) for line in lines)])
        if len(lines) > self._protocol.rounds:
            return
        protocol = self._protocol
        learner = Learner(
            self._material,
            replace(protocol.training, seed=self._seed),
            part=protocol.part,
            weights=protocol.weights,
            device=self._device,
        )
        for number in range(len(lines), protocol.rounds + 1):
            chosen = self._run_round(learner, number, labelled)
            labelled = np.concatenate([labelled, chosen])
            tell()

    def _run_round(self, learner: Learner, number: int, labelled: Indices) -> Indices:
        """Train, measure, choose, write down; return what was chosen."""
        protocol, name = self._protocol, f"study/{self._seed}/{number}"
        trained_on = self._leave_out_audit(labelled)
        started = time.perf_counter()
        model = learner.train(np.sort(trained_on), name)
        trained = time.perf_counter()
        found = self._measure(model, labelled, trained_on, number=number, train_s=trained - started)
        chosen: Indices = np.empty(0, np.int64)
        agreement = None
        if number < protocol.rounds:
            found, chosen = self._choose(model, labelled, found)
        elif self._strategy == PRODUCT and len(left := self._left(labelled)):
            agreement = compare_passes(model, left, seed=self._seed, passes=protocol.training.passes)
        append(self._path, {"round": found.to_json(), "chosen": chosen.tolist(), "agreement": agreement})
        return chosen

    def _leave_out_audit(self, labelled: Indices) -> Indices:
        """Return what is trained on: as in production, the audit slice is held out once it is large enough."""
        if self._strategy != PRODUCT:
            return labelled
        audit = is_held_out(self._seed, labelled, DEFAULT_SHARE)
        return labelled[~audit] if np.count_nonzero(audit) >= LEAST_IMAGES else labelled

    def _left(self, labelled: Indices) -> Indices:
        return np.setdiff1d(self._protocol.pool, labelled)

    def _measure(self, model: Model, labelled: Indices, trained_on: Indices, *, number: int, train_s: float) -> Round:
        targets = self._material.targets
        test = self._protocol.test
        mean = model.score(model.compute_features(test)).probabilities  # (M, C)
        metrics = measure(mean, targets[test])
        f1 = tuple(value or 0.0 for value in metrics.f1)
        return Round(
            strategy=self._strategy,
            seed=self._seed,
            round=number,
            labels=len(labelled),
            trained_on=len(trained_on),
            labels_by_class=tuple(count_images(targets[labelled], len(self._material.classes)).tolist()),
            accuracy=float(metrics.accuracy or 0.0),
            balanced_accuracy=float(balanced_accuracy_score(targets[test], mean.argmax(axis=1))),
            macro_f1=float(np.mean(f1)),
            minority_f1=float(np.mean([f1[index] for index in self._protocol.minority])),
            nll=float(metrics.nll or 0.0),
            ece=float(metrics.ece or 0.0),
            f1=f1,
            train_s=round(train_s, 3),
            score_s=0.0,
            choose_s=0.0,
        )

    def _choose(self, model: Model, labelled: Indices, found: Round) -> tuple[Round, Indices]:
        protocol = self._protocol
        situation = Situation(
            left=self._left(labelled),
            labelled=labelled,
            labels_by_class=found.labels_by_class,
            project=self._seed,
            name=model.name,
        )
        started = time.perf_counter()
        chooser = Chooser(self._strategy, model, situation, passes=protocol.training.passes)
        scored = time.perf_counter()
        chosen = chooser.choose(protocol.query)
        ended = time.perf_counter()
        return replace(found, score_s=round(scored - started, 3), choose_s=round(ended - scored, 3)), chosen


def compare_passes(model: Model, left: Indices, *, seed: int, passes: int) -> dict[str, float]:
    """Return how alike T and 200 passes rank images, as a JSON object: a `PassAgreement`."""
    features = model.compute_features(left)
    few, many = (model.bald(features, model.draw_masks(each)) for each in (passes, MANY_PASSES))
    tops = [set(descending(each.astype(np.float64))[:_FIRST].tolist()) for each in (few, many)]
    agreement = PassAgreement(
        seed=seed,
        passes=passes,
        images=len(left),
        spearman=rank_correlation(few, many),
        top100=len(tops[0] & tops[1]) / min(_FIRST, len(left)),
    )
    return asdict(agreement)
