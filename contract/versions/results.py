"""How good a version is, and what it was trained on: what its manifest says beside what a server must know.

A trainer wrote it as JSON, perhaps an older one, and somebody may have edited it since. Each value is taken if it can
be one, and is None or empty otherwise: nothing fails for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

AUDIT: Final = "audit"
"""`TrainingRecord.validation` of a version that was measured on the random holdout of its project."""

_MOST: Final = 10**12
"""A count beyond it counts nothing."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures on the validation part; None where it is empty, or where the manifest does not say."""

    images: int | None = None
    """That were measured on."""
    accuracy: float | None = None
    """Share of the images whose label is right; of several labels, all of them."""
    macro_f1: float | None = None
    """Mean over the classes that have a true or a predicted image."""
    f1: tuple[float | None, ...] = ()
    """Of each class, in the order of the labels, None where it has neither; empty where nothing is known of any."""
    nll: float | None = None
    """Negative log likelihood of an image, in nats; of several labels, the sum over them."""
    ece: float | None = None
    """Expected calibration error over 15 bins of confidence; of several labels, over the decisions on each of them."""
    macro_f1_interval: tuple[float, float] | None = None
    """In which macro-F1 lies at 95 %."""
    mean_bald: float | None = None
    """In nats."""

    @classmethod
    def parse(cls, fields: Mapping[str, object], *, classes: int) -> "Metrics":
        """Read what a manifest says of a version with so many labels."""
        macro_f1 = _share(fields.get("macro_f1"))
        f1 = fields.get("f1")
        return cls(
            images=_count(fields.get("images")),
            accuracy=_share(fields.get("accuracy")),
            macro_f1=macro_f1,
            f1=tuple(map(_share, f1)) if isinstance(f1, list | tuple) and len(f1) == classes else (),
            nll=_number(fields.get("nll")),
            ece=_share(fields.get("ece")),
            macro_f1_interval=_interval(fields.get("macro_f1_interval"), around=macro_f1),
            mean_bald=_number(fields.get("mean_bald")),
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether to go on labelling, and what for."""

    sentence: str
    stop: bool = False
    gain: float | None = None
    """Macro-F1 that `labels` more labels are expected to gain."""
    labels: int | None = None
    kappa: float | None = None
    """Cohen's, between the version's predictions and those of the one before; None where they were not compared."""

    @classmethod
    def parse(cls, value: object) -> "Advice | None":
        """Read what a manifest says; None without a sentence."""
        fields = _object(value)
        sentence = fields.get("sentence")
        if not isinstance(sentence, str) or not sentence.strip():
            return None
        return cls(
            sentence,
            stop=fields.get("stop") is True,
            gain=_number(fields.get("gain")),
            labels=_count(fields.get("labels")),
            kappa=_number(fields.get("kappa"), least=-1, most=1),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """What a version came to on images that others were measured on too."""

    version: str
    labels: int
    """Labelled images that it was made from."""
    macro_f1: float
    low: float
    """Of the 95 % interval."""
    high: float

    @classmethod
    def parse(cls, value: object) -> "Compared | None":
        """Read one; None unless it is complete."""
        fields = _object(value)
        version, labels, macro_f1 = fields.get("version"), _count(fields.get("labels")), _share(fields.get("macro_f1"))
        interval = _interval([fields.get("low"), fields.get("high")], around=macro_f1)
        if not isinstance(version, str) or labels is None or macro_f1 is None or interval is None:
            return None
        return cls(version, labels, macro_f1, *interval)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Versions that were measured on the same random images when the last of them was made."""

    images: int
    """How many, the same for all."""
    versions: tuple[Compared, ...]
    """The oldest first, the new one last."""

    @classmethod
    def parse(cls, value: object) -> "Comparison | None":
        """Read one; None where there is none."""
        fields = _object(value)
        images, versions = _count(fields.get("images")), fields.get("versions")
        if images is None or not isinstance(versions, list | tuple):
            return None
        return cls(images, tuple(found for each in versions if (found := Compared.parse(each))))


@dataclass(frozen=True, slots=True)
class ProjectState:
    """How a Label Studio project stood before its labels were read: of what came in since, some may be among them."""

    id: int
    annotations: int
    """In all."""
    updated_at: str
    """When a task with annotations had last changed, as Label Studio wrote it; empty if there was none."""

    @classmethod
    def parse(cls, value: object) -> "ProjectState | None":
        """Read one; None unless it is complete."""
        fields = _object(value)
        project, annotations = _count(fields.get("id")), _count(fields.get("annotations"))
        updated_at = _text(fields.get("updated_at"))
        if project is None or annotations is None or updated_at is None:
            return None
        return cls(project, annotations, updated_at)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a version was made from and how."""

    images: int | None = None
    """Labelled ones that were used, those held out included."""
    images_by_class: Mapping[str, int] = field(default_factory=dict)
    confirmed: int | None = None
    """Further ones whose labels somebody confirmed in bulk, which were neither trained nor measured on."""
    validation: str | None = None
    """`audit` or `split`: what was held out."""
    validation_images: int | None = None
    refitted: bool = False
    """Whether the network was trained on them too, after another one, trained without, was measured on them."""
    audit_images: int | None = None
    """Labelled ones of the random holdout."""
    audit_share: float | None = None
    """Of the project's tasks, at least 0 and below 1."""
    project: ProjectState | None = None
    """None where the labels came from files."""
    unreadable: int | None = None
    """Images that could not be read."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Tasks or files, by the reason."""
    lost_labels: Mapping[str, int] = field(default_factory=dict)
    """Tasks by a label that the labelling config no longer has."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Where the first weights came from: origin, sha256, loaded and fresh layers."""
    part: str | None = None
    """Of the network, that was trained."""
    seed: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    attempts: int | None = None
    final_loss: float | None = None
    advice: Advice | None = None
    curve: Comparison | None = None
    report_s: float | None = None
    """Seconds that writing the report took."""

    @property
    def is_on_random_sample(self) -> bool:
        """Whether what was held out is a random sample of the project, and not only of what was labelled."""
        return self.validation == AUDIT

    @classmethod
    def parse(cls, fields: Mapping[str, object]) -> "TrainingRecord":
        """Read what a manifest says."""
        share = _share(fields.get("audit_share"))
        return cls(
            images=_count(fields.get("images")),
            images_by_class=_counts(fields.get("images_by_class")),
            confirmed=_count(fields.get("confirmed")),
            validation=_text(fields.get("validation")),
            validation_images=_count(fields.get("validation_images")),
            refitted=fields.get("refitted") is True,
            audit_images=_count(fields.get("audit_images")),
            audit_share=share if share != 1 else None,
            project=ProjectState.parse(fields.get("project")),
            unreadable=_count(fields.get("unreadable")),
            left_out=_counts(fields.get("left_out")),
            lost_labels=_counts(fields.get("lost_labels")),
            weights=_object(fields.get("weights")),
            part=_text(fields.get("part")),
            seed=_count(fields.get("seed")),
            recipe=_object(fields.get("recipe")),
            attempts=_count(fields.get("attempts")),
            final_loss=_number(fields.get("final_loss")),
            advice=Advice.parse(fields.get("advice")),
            curve=Comparison.parse(fields.get("curve")),
            report_s=_number(fields.get("report_s")),
        )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _counts(value: object) -> Mapping[str, int]:
    return {name: count for name, each in _object(value).items() if (count := _count(each)) is not None}


def _share(value: object) -> float | None:
    return _number(value, most=1)


def _number(value: object, *, least: float = 0, most: float = _MOST) -> float | None:
    """Comparing leaves out NaN, and whole numbers too large for a float."""
    return float(value) if type(value) in (int, float) and least <= value <= most else None  # type: ignore[operator,arg-type]  # mypy does not narrow by `in`


def _interval(value: object, *, around: float | None) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2 or around is None:
        return None
    low, high = map(_share, value)
    return (low, high) if low is not None and high is not None and low <= around <= high else None
