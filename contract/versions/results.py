"""Metrics and training record of a version, as parts of its manifest.

An older trainer may have written them, or somebody edited them: invalid values become None or empty, and never an
error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    OnErrorOmit,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticUseDefault

_MAX: Final = 10**12
"""Larger counts are invalid."""

_T = TypeVar("_T")


def _or_default(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticUseDefault from None


def _or_none(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    try:
        return validate(value)
    except ValidationError:
        return None


def _check_encloses(interval: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
    macro_f1 = info.data.get("macro_f1")
    if macro_f1 is None or not interval[0] <= macro_f1 <= interval[1]:
        raise ValueError("must enclose macro_f1")
    return interval


def _check_upper_end(high: float, info: ValidationInfo) -> float:
    return _check_encloses((info.data.get("low", 0.0), high), info)[1]


_Lenient = Annotated[_T, WrapValidator(_or_default)]
"""Type of a field whose invalid values are replaced by its default."""
_Flag = _Lenient[Annotated[bool, Field(strict=True)]]
_Text = _Lenient[str | None]
_Count = Annotated[int, Field(strict=True, ge=0, le=_MAX)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_MaybeCount = _Lenient[_Count | None]
_MaybeShare = _Lenient[_Share | None]
_MaybeNumber = _Lenient[Annotated[float, Field(strict=True, ge=0, le=_MAX)] | None]
_Counts = _Lenient[Mapping[str, OnErrorOmit[_Count]]]
_Object = _Lenient[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics on the validation images; None without images, or if unknown."""

    images: _MaybeCount = None
    accuracy: _MaybeShare = None
    """Share of images with the right label; with multiple labels, with all labels right."""
    macro_f1: _MaybeShare = None
    """Mean over the classes with a true or predicted image."""
    f1: _Lenient[tuple[Annotated[_Share | None, WrapValidator(_or_none)], ...]] = ()
    """F1 of each class, in the order of the labels; None without true and predicted images; empty if unknown."""
    nll: _MaybeNumber = None
    """Negative log likelihood per image, in nats; with multiple labels the sum over labels."""
    ece: _MaybeShare = None
    """Expected calibration error over 15 bins of confidence; with multiple labels over all binary decisions."""
    macro_f1_interval: _Lenient[Annotated[tuple[_Share, _Share], AfterValidator(_check_encloses)] | None] = None
    """95 % interval of macro-F1."""
    mean_bald: _MaybeNumber = None
    """In nats."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Advice whether to go on labelling, and the expected gain."""

    sentence: Annotated[str, Field(pattern=r"\S")]
    stop: _Flag = False
    gain: _MaybeNumber = None
    """Expected gain in macro-F1 from `labels` more labels."""
    labels: _MaybeCount = None
    kappa: _Lenient[Annotated[float, Field(strict=True, ge=-1, le=1)] | None] = None
    """Cohen's kappa between predictions of this and the previous version; None if not compared."""


@dataclass(frozen=True, slots=True)
class ComparedVersion:
    """Macro-F1 of a version on images that other versions were measured on too."""

    version: str
    labels: _Count
    macro_f1: _Share
    low: _Share
    """Lower bound of the 95 % interval."""
    high: Annotated[_Share, AfterValidator(_check_upper_end)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Versions measured on the same random images when the last of them was trained."""

    images: _Count
    versions: tuple[OnErrorOmit[ComparedVersion], ...]
    """Oldest first; the last is the new one."""


@dataclass(frozen=True, slots=True)
class ProjectState:
    """State of a Label Studio project just before its labels were read; some later ones may be included."""

    id: _Count
    annotations: _Count
    updated_at: str
    """When a task with annotations last changed, as Label Studio writes it; empty without one."""


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """How a version was trained."""

    images: _MaybeCount = None
    """Labelled images used, including those held out."""
    images_by_class: _Counts = field(default_factory=dict)
    confirmed: _MaybeCount = None
    """Further images whose labels were confirmed in bulk: neither trained nor measured on."""
    validation: _Text = None
    """What was held out: `audit`, the project's random holdout, or `split`."""
    validation_images: _MaybeCount = None
    refitted: _Flag = False
    """Whether the network was trained on them too, after one trained without them was measured on them."""
    audit_images: _MaybeCount = None
    """Labelled images of the random holdout."""
    audit_share: _Lenient[Annotated[float, Field(strict=True, ge=0, lt=1)] | None] = None
    """Share of the project's tasks in the random holdout."""
    project: _Lenient[ProjectState | None] = None
    """None if the labels came from files."""
    unreadable: _MaybeCount = None
    """Images that could not be read."""
    left_out: _Counts = field(default_factory=dict)
    """Skipped tasks or files by reason."""
    lost_labels: _Counts = field(default_factory=dict)
    """Tasks by a label that was removed from the labelling config."""
    weights: _Object = field(default_factory=dict)
    """Initial weights: origin, sha256, loaded and fresh layers."""
    part: _Text = None
    """The part of the network that was trained."""
    seed: _MaybeCount = None
    recipe: _Object = field(default_factory=dict)
    attempts: _MaybeCount = None
    final_loss: _MaybeNumber = None
    advice: _Lenient[Advice | None] = None
    curve: _Lenient[Comparison | None] = None
    report_s: _MaybeNumber = None
    """Seconds spent writing the report."""

    @property
    def is_on_random_sample(self) -> bool:
        """Whether the validation images are a random sample of the project, not only of its labels."""
        return self.validation == "audit"
