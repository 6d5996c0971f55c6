"""How good a version is, and what it was trained on, as its manifest says.

Perhaps an older trainer wrote it, and somebody may have edited it since. Each value is taken if it can be one, and is
None or empty otherwise: nothing fails for it.
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

_MOST: Final = 10**12
"""A count beyond it counts nothing."""

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
"""Of a field with a default."""
_Flag = _Lenient[Annotated[bool, Field(strict=True)]]
_Text = _Lenient[str | None]
_Count = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_MaybeCount = _Lenient[_Count | None]
_MaybeShare = _Lenient[_Share | None]
_MaybeNumber = _Lenient[Annotated[float, Field(strict=True, ge=0, le=_MOST)] | None]
_Counts = _Lenient[Mapping[str, OnErrorOmit[_Count]]]
_Object = _Lenient[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures on the validation part; None where it is empty, or where the manifest does not say."""

    images: _MaybeCount = None
    accuracy: _MaybeShare = None
    """Share of the images whose label is right; of several labels, all of them."""
    macro_f1: _MaybeShare = None
    """Mean over the classes that have a true or a predicted image."""
    f1: _Lenient[tuple[Annotated[_Share | None, WrapValidator(_or_none)], ...]] = ()
    """Of each class, in the order of the labels, None where it has neither; empty where nothing is known of any."""
    nll: _MaybeNumber = None
    """Negative log likelihood of an image, in nats; of several labels, the sum over them."""
    ece: _MaybeShare = None
    """Expected calibration error over 15 bins of confidence; of several labels, over the decisions on each of them."""
    macro_f1_interval: _Lenient[Annotated[tuple[_Share, _Share], AfterValidator(_check_encloses)] | None] = None
    """In which macro-F1 lies at 95 %."""
    mean_bald: _MaybeNumber = None
    """In nats."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether to go on labelling, and what for."""

    sentence: Annotated[str, Field(pattern=r"\S")]
    stop: _Flag = False
    gain: _MaybeNumber = None
    """Macro-F1 that `labels` more labels are expected to gain."""
    labels: _MaybeCount = None
    kappa: _Lenient[Annotated[float, Field(strict=True, ge=-1, le=1)] | None] = None
    """Cohen's, between the version's predictions and those of the one before; None where they were not compared."""


@dataclass(frozen=True, slots=True)
class ComparedVersion:
    """What a version, made from so many labelled images, came to on images that others were measured on too."""

    version: str
    labels: _Count
    macro_f1: _Share
    low: _Share
    """Of the 95 % interval."""
    high: Annotated[_Share, AfterValidator(_check_upper_end)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Versions that were measured on the same random images when the last of them was made."""

    images: _Count
    versions: tuple[OnErrorOmit[ComparedVersion], ...]
    """The oldest first, the new one last."""


@dataclass(frozen=True, slots=True)
class ProjectState:
    """How a Label Studio project stood before its labels were read: of what came in since, some may be among them."""

    id: _Count
    annotations: _Count
    updated_at: str
    """When a task with annotations had last changed, as Label Studio wrote it; empty if there was none."""


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a version was made from and how."""

    images: _MaybeCount = None
    """Labelled ones that were used, those held out included."""
    images_by_class: _Counts = field(default_factory=dict)
    confirmed: _MaybeCount = None
    """Further ones whose labels somebody confirmed in bulk, which were neither trained nor measured on."""
    validation: _Text = None
    """What was held out: `audit`, the random holdout of its project, or `split`."""
    validation_images: _MaybeCount = None
    refitted: _Flag = False
    """Whether the network was trained on them too, after another one, trained without, was measured on them."""
    audit_images: _MaybeCount = None
    """Labelled ones of the random holdout."""
    audit_share: _Lenient[Annotated[float, Field(strict=True, ge=0, lt=1)] | None] = None
    """Of the project's tasks."""
    project: _Lenient[ProjectState | None] = None
    """None where the labels came from files."""
    unreadable: _MaybeCount = None
    """Images."""
    left_out: _Counts = field(default_factory=dict)
    """Tasks or files, by the reason."""
    lost_labels: _Counts = field(default_factory=dict)
    """Tasks by a label that the labelling config no longer has."""
    weights: _Object = field(default_factory=dict)
    """Where the first weights came from: origin, sha256, loaded and fresh layers."""
    part: _Text = None
    """Of the network, that was trained."""
    seed: _MaybeCount = None
    recipe: _Object = field(default_factory=dict)
    attempts: _MaybeCount = None
    final_loss: _MaybeNumber = None
    advice: _Lenient[Advice | None] = None
    curve: _Lenient[Comparison | None] = None
    report_s: _MaybeNumber = None
    """How long writing the report took."""

    @property
    def is_on_random_sample(self) -> bool:
        """Whether what was held out is a random sample of the project, and not only of what was labelled."""
        return self.validation == "audit"
