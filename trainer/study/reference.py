"""Curves of another study that this one is held against: what random labels came to with an earlier learner.

A file of JSON with `source`, which says for people what was studied and where its rounds are, `labels` of each round,
and for each measure a list of its curves, one a seed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from contract.errors import ConfigError
from contract.settings import explain

_Height = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Curves = Annotated[tuple[tuple[_Height, ...], ...], Field(min_length=1)]
"""By seed and round."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Reference:
    """Curves of one strategy of a study."""

    source: str
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


def read(path: Path) -> Reference:
    """Read a reference; a file that is none is a ConfigError."""
    try:
        return TypeAdapter(Reference).validate_json(path.read_bytes())
    except OSError as err:
        raise ConfigError(f"--reference {path} cannot be read ({err.strerror}); check the path") from err
    except ValidationError as err:
        faults = "; ".join(f"{name or 'it'}: {expected}" for name, expected in explain(err))
        raise ConfigError(
            f"expected a reference in {path}, with source, labels and curves of {', '.join(CURVES)}: {faults}; "
            "name one of bench/references, or make it like these"
        ) from err
