"""One run of a study: a strategy and a seed, from the initial set to the last round.

A run that was interrupted goes on after the last round that ended, and comes to the same end as one that was not.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from contract.files import recover_lines
from contract.scores.acquisition import rank_correlation
from contract.scores.holdout import DEFAULT_SHARE
from trainer.evaluation.metrics import compute_metrics
from trainer.labels.dataset import Indices
from trainer.ordering import coldstart
from trainer.ordering.order import places_before_holdout
from trainer.ordering.strategies import descending
from trainer.settings import Training
from trainer.study.choosing import Choice, choose
from trainer.study.model import Dataset, Model, Trainer
from trainer.study.options import PRODUCT, START, begins_chosen
from trainer.study.records import PassAgreement, Round

MANY_PASSES = 200
"""What T passes are compared with."""
_RANKED = 2000
_FIRST = 100


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is done in every run."""

    pool: Indices
    """Images that may be labelled, rising."""
    test: Indices
    """Images that every model is measured on, and none is trained on."""
    minority: tuple[int, ...]
    initial: int
    queries: tuple[int, ...]
    """(R,): labels that each round asks for."""
    training: Training
    """Its seed is replaced by the run's."""
    device: torch.device

    @property
    def rounds(self) -> int:
        """R, after the initial set."""
        return len(self.queries)


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy with one seed."""

    strategy: str
    seed: int
    path: Path
    """A line of JSON for each round that ended, so that what interrupts a study loses only the rounds under way."""

    def lines(self) -> list[dict[str, Any]]:
        """Return the rounds that ended; a line that was cut short is taken out of the file, with all that follows."""
        return recover_lines(self.path, json.loads)


def draw_initial(pool: Indices, *, count: int, seed: int) -> Indices:
    """Return the initial set of a seed, the same for all strategies that do not choose it: int64 (count,), rising."""
    return np.sort(np.random.default_rng([seed, 0]).choice(pool, count, replace=False))


def choose_initial(
    pool: Indices, trainer: Trainer, *, count: int, seed: int, holdout_share: float = DEFAULT_SHARE
) -> Indices:
    """Return what production would have labelled first, while there is no version: int64 (count,), rising."""
    order = coldstart.arrange(
        pool,
        trainer.embed(pool),
        project=seed,
        holdout_share=holdout_share,
        before_holdout=places_before_holdout(len(pool), labels=0, classes=len(trainer.dataset.classes)),
        batch_size=count,
    ).order
    return np.sort(pool[order[:count]])


def complete(run: Run, dataset: Dataset, protocol: Protocol) -> None:
    """Do the rounds that are missing, and write each down when it has ended, until a training diverges."""
    lines = run.lines()
    if len(lines) > protocol.rounds:
        return
    trainer = Trainer(dataset, replace(protocol.training, seed=run.seed), device=protocol.device)
    if begins_chosen(run.strategy):
        initial = choose_initial(protocol.pool, trainer, count=protocol.initial, seed=run.seed)
    else:
        initial = draw_initial(protocol.pool, count=protocol.initial, seed=run.seed)
    labelled: Indices = np.concatenate([initial, *(np.array(line["chosen"], np.int64) for line in lines)])
    for number in range(len(lines), protocol.rounds + 1):
        labelled = np.concatenate([labelled, _do_round(run, trainer, protocol, number=number, labelled=labelled)])


def _do_round(run: Run, trainer: Trainer, protocol: Protocol, *, number: int, labelled: Indices) -> Indices:
    """Train, measure, choose, write down; return what was chosen."""
    left: Indices = np.setdiff1d(protocol.pool, labelled)
    started = time.perf_counter()
    model = trainer.train(np.sort(labelled), f"study/{run.seed}/{number}", unlabelled=left)
    train_s = round(time.perf_counter() - started, 3)
    choice, agreement = Choice(np.empty(0, np.int64), 0.0, 0.0), None
    if number < protocol.rounds:
        strategy, query = run.strategy.removesuffix(START), protocol.queries[number]
        choice = choose(strategy, model, left, labelled, project=run.seed, query=query)
    elif run.strategy == PRODUCT and len(left):
        agreement = asdict(compare_passes(model, left, seed=run.seed, passes=protocol.training.passes))
    found = Round(
        strategy=run.strategy,
        seed=run.seed,
        round=number,
        labels=len(labelled),
        labels_by_class=model.dataset.count(labelled),
        **_measure(model, protocol),
        train_s=train_s,
        score_s=choice.score_s,
        choose_s=choice.choose_s,
    )
    line = {"round": asdict(found), "chosen": choice.images.tolist(), "agreement": agreement}
    with run.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return choice.images


def _measure(model: Model, protocol: Protocol) -> dict[str, Any]:
    targets = model.dataset.targets[protocol.test]
    mean = model.score(protocol.test, model.compute_features(protocol.test)).probabilities  # (M, C)
    metrics = compute_metrics(mean, targets)
    f1 = tuple(value or 0.0 for value in metrics.f1)
    return {
        "accuracy": float(metrics.accuracy or 0.0),
        "balanced_accuracy": float(balanced_accuracy_score(targets, mean.argmax(axis=1))),
        "macro_f1": float(np.mean(f1)),
        "minority_f1": float(np.mean([f1[index] for index in protocol.minority])),
        "nll": float(metrics.nll or 0.0),
        "ece": float(metrics.ece or 0.0),
        "f1": f1,
    }


def compare_passes(model: Model, left: Indices, *, seed: int, passes: int) -> PassAgreement:
    """Return how alike T and 200 passes rank images; of more than 2,000, so many by chance."""
    left = np.sort(np.random.default_rng(seed).permutation(left)[:_RANKED])
    features = model.compute_features(left)
    few, many = (model.bald(features, each) for each in (passes, MANY_PASSES))
    tops = [set(descending(each.astype(np.float64))[:_FIRST].tolist()) for each in (few, many)]
    return PassAgreement(
        seed=seed,
        passes=passes,
        images=len(left),
        spearman=rank_correlation(few, many),
        top100=len(tops[0] & tops[1]) / min(_FIRST, len(left)),
    )
