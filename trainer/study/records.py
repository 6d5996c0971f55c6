"""What a study writes down, and reads again when it goes on: one line for each round of each run.

A run is one strategy with one seed. Its file holds a line of JSON for each round that ended, so that a study that was
interrupted loses the rounds under way and no others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from contract.files import recover_lines
from trainer.study.reference import Reference


@checked(frozen=True, slots=True)
class Round:
    """One round of one run: what was labelled by then, and how good a model trained on it is on the test images."""

    strategy: str
    seed: int
    round: int
    """0 is the initial set."""
    labels: int
    """Given by then."""
    labels_by_class: tuple[int, ...]
    """(C,)"""
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    minority_f1: float
    """Mean F1 of the rarest third of the classes."""
    nll: float
    """In nats."""
    ece: float
    f1: tuple[float, ...]
    """(C,): a class that is neither true nor predicted has 0."""
    train_s: float
    score_s: float
    """Seconds spent on the passes over the pool; 0 where the strategy needs none."""
    choose_s: float
    """Seconds spent on choosing what is labelled next; 0 in the last round."""


@dataclass(frozen=True, slots=True)
class PassAgreement:
    """How alike BALD from T passes and BALD from 200 rank the images of the pool that are left; 1 is the same."""

    seed: int
    passes: int
    images: int
    spearman: float
    top100: float
    """Share of the first 100 in common."""


Rounds = tuple[Round, ...]
"""Those of a whole run, in order."""


@dataclass(frozen=True, slots=True)
class Study:
    """What was studied, and all rounds."""

    name: str
    classes: tuple[str, ...]
    minority: tuple[int, ...]
    """The rarest third of the classes in the pool, by index."""
    pool_by_class: tuple[int, ...]
    """(C,): images that could be labelled."""
    test_by_class: tuple[int, ...]
    """(C,)"""
    settings: Mapping[str, Any]
    """Everything that the figures hang on, as JSON: the command's options and what they stood for."""
    runs: Mapping[str, tuple[Rounds, ...]]
    """By strategy, in the order in which these were asked for, and seed: all alike in rounds and labels."""
    agreement: tuple[PassAgreement, ...] = ()
    reference: Reference | None = None
    """Curves whose final level is to be reached, too."""


def recover(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's file; one that was cut short is taken out of the file, with all that follows it."""
    return recover_lines(path, json.loads)
