"""One run of a study: a strategy and a seed, from the initial labels to the last round.

An interrupted run continues after its last finished round, with the same results as one without interruption.
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
from contract.scores.holdout import DEFAULT_SHARE
from trainer.evaluation.metrics import compute_metrics
from trainer.labels.dataset import Indices
from trainer.ordering import coldstart
from trainer.ordering.order import places_before_holdout
from trainer.settings import Training
from trainer.study.choosing import Choice, choose
from trainer.study.model import Dataset, Model, Trainer
from trainer.study.options import START, selects_initial
from trainer.study.records import Round


@dataclass(frozen=True, slots=True)
class Protocol:
    """The settings shared by all runs."""

    pool: Indices
    """Images that may be labelled, ascending."""
    test: Indices
    """Images that every model is tested on."""
    minority: tuple[int, ...]
    initial: int
    queries: tuple[int, ...]
    """(R,): labels queried in each round."""
    training: Training
    """Its seed is replaced by the run's."""
    device: torch.device

    @property
    def rounds(self) -> int:
        """R, without the initial labels."""
        return len(self.queries)


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy with one seed."""

    strategy: str
    seed: int
    path: Path
    """A JSON line for each finished round, so that an interruption loses only the rounds in progress."""

    def read_rounds(self) -> list[dict[str, Any]]:
        """Return the lines of finished rounds; truncates the file at the first incomplete line.

        Raises OSError if the file exists but cannot be read and written.
        """
        return recover_lines(self.path, json.loads)


def draw_initial(pool: Indices, *, count: int, seed: int) -> Indices:
    """Return random initial images, equal for all strategies of a seed: int64 (count,), ascending."""
    return np.sort(np.random.default_rng([seed, 0]).choice(pool, count, replace=False))


def select_initial(
    pool: Indices, trainer: Trainer, *, count: int, seed: int, holdout_share: float = DEFAULT_SHARE
) -> Indices:
    """Return the images production labels first, before there is a version: int64 (count,), ascending.

    Raises ConfigError if `holdout_share` is not in [0, 1), ValueError if an embedding is not finite.
    """
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
    """Run the missing rounds, and append each to the run's file; raises TrainingError if training diverges."""
    lines = run.read_rounds()
    if len(lines) > protocol.rounds:
        return
    trainer = Trainer(dataset, replace(protocol.training, seed=run.seed), device=protocol.device)
    if selects_initial(run.strategy):
        initial = select_initial(protocol.pool, trainer, count=protocol.initial, seed=run.seed)
    else:
        initial = draw_initial(protocol.pool, count=protocol.initial, seed=run.seed)
    labelled: Indices = np.concatenate([initial, *(np.array(line["chosen"], np.int64) for line in lines)])
    for number in range(len(lines), protocol.rounds + 1):
        labelled = np.concatenate([labelled, _run_round(run, trainer, protocol, number=number, labelled=labelled)])


def _run_round(run: Run, trainer: Trainer, protocol: Protocol, *, number: int, labelled: Indices) -> Indices:
    """Train, test, select the next images and append the round to the file; return the selected images."""
    unlabelled: Indices = np.setdiff1d(protocol.pool, labelled)
    started = time.perf_counter()
    model = trainer.train(np.sort(labelled), f"study/{run.seed}/{number}", unlabelled=unlabelled)
    train_s = round(time.perf_counter() - started, 3)
    choice = Choice(np.empty(0, np.int64), 0.0, 0.0)
    if number < protocol.rounds:
        strategy, query = run.strategy.removesuffix(START), protocol.queries[number]
        choice = choose(strategy, model, unlabelled, labelled, project=run.seed, query=query)
    result = Round(
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
    line = {"round": asdict(result), "chosen": choice.images.tolist()}
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
