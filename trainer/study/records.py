"""What a study comes to: its rounds, and curves of another study that it is held against."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from contract.errors import ConfigError
from contract.settings import explain_errors

_Height = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Curves = Annotated[tuple[tuple[_Height, ...], ...], Field(min_length=1)]
"""By seed and round."""


@checked(frozen=True, slots=True)
class Round:
    """One round of one run: what was labelled by then, and how good a model trained on it is on the test images."""

    strategy: str
    seed: int
    round: int
    """0 is the initial set."""
    labels: int
    labels_by_class: tuple[int, ...]
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    minority_f1: float
    """Mean F1 of the rarest third of the classes."""
    nll: float
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


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Reference:
    """Curves of another study, such as what random labels came to with an earlier learner."""

    source: str
    """For people: what was studied, and where its rounds are."""
    labels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    """(R,), rising."""
    macro_f1: _Curves
    minority_f1: _Curves
    accuracy: _Curves

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.labels) != sorted(set(self.labels)):
            raise ValueError("labels must rise")
        if any(len(each) != len(self.labels) for name in CURVES for each in getattr(self, name)):
            raise ValueError(f"each curve must have a value for each of {len(self.labels)} numbers of labels")
        return self

    @property
    def levels(self) -> Mapping[str, float]:
        """The final level of each measure, as a mean over the seeds."""
        return {name: float(np.mean([each[-1] for each in getattr(self, name)])) for name in CURVES}


CURVES: Final = ("macro_f1", "minority_f1", "accuracy")
"""The measures that a reference has."""


def read_reference(path: Path) -> Reference:
    """Read a reference from a file of JSON; one that is none is a ConfigError."""
    try:
        return TypeAdapter(Reference).validate_json(path.read_bytes())
    except OSError as err:
        raise ConfigError(f"--reference {path} cannot be read ({err.strerror}); check the path") from err
    except ValidationError as err:
        faults = "; ".join(f"{name or 'it'}: {expected}" for name, expected in explain_errors(err))
        raise ConfigError(
            f"expected a reference in {path}, with source, labels and curves of {', '.join(CURVES)}: {faults}; "
            "name one of bench/references, or make it like these"
        ) from err


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
    settings: Mapping[str, Any]
    """Everything that the figures hang on, as JSON: the command's options and what they stood for."""
    runs: Mapping[str, tuple[tuple[Round, ...], ...]]
    """By strategy, in the order in which these were asked for, and seed: all alike in rounds and labels."""
    agreement: tuple[PassAgreement, ...] = ()
    reference: Reference | None = None
