"""Results of a study: its rounds, and the reference curves of another study."""

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
    """One round of a run: the labels so far, and test metrics of a model trained on them."""

    strategy: str
    seed: int
    round: int
    """0 for the initial labels."""
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
    """(C,): 0 for a class that is neither true nor predicted."""
    train_s: float
    score_s: float
    """Seconds spent on predictions for the pool; 0 if the strategy needs none."""
    choose_s: float
    """Seconds spent on selecting the next images; 0 in the last round."""


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Reference:
    """Curves of another study, such as random labelling with an earlier learner."""

    source: str
    """Description of the study, and where its rounds are stored."""
    labels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    """(R,), ascending."""
    macro_f1: _Curves
    minority_f1: _Curves
    accuracy: _Curves

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.labels) != sorted(set(self.labels)):
            raise ValueError("labels must be ascending")
        if any(len(each) != len(self.labels) for name in CURVES for each in getattr(self, name)):
            raise ValueError(f"each curve must have a value for each of {len(self.labels)} numbers of labels")
        return self

    @property
    def levels(self) -> Mapping[str, float]:
        """The mean over seeds of each measure's final value."""
        return {name: float(np.mean([each[-1] for each in getattr(self, name)])) for name in CURVES}


CURVES: Final = ("macro_f1", "minority_f1", "accuracy")
"""Measures of a reference."""


def read_reference(path: Path) -> Reference:
    """Read a reference from a JSON file; an invalid one raises ConfigError."""
    try:
        return TypeAdapter(Reference).validate_json(path.read_bytes())
    except OSError as err:
        raise ConfigError(f"--reference {path} cannot be read ({err.strerror}); check the path") from err
    except ValidationError as err:
        faults = "; ".join(f"{name or 'it'}: {expected}" for name, expected in explain_errors(err))
        raise ConfigError(
            f"expected a reference in {path}, with source, labels and curves of {', '.join(CURVES)}: {faults}; "
            "see the examples in bench/references"
        ) from err


@dataclass(frozen=True, slots=True)
class Study:
    """A study's data, settings and rounds."""

    name: str
    classes: tuple[str, ...]
    minority: tuple[int, ...]
    """Indices of the rarest third of the classes in the pool."""
    pool_by_class: tuple[int, ...]
    """(C,): images in the pool."""
    test_by_class: tuple[int, ...]
    settings: Mapping[str, Any]
    """Everything that the results depend on, as JSON: the command's options, resolved."""
    runs: Mapping[str, tuple[tuple[Round, ...], ...]]
    """Rounds by strategy, in the order of `--strategies`, and seed; all runs have the same numbers of labels."""
    reference: Reference | None = None
