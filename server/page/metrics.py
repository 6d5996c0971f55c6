"""What a manifest says of how good its version is.

Figures are JSON that a trainer wrote, perhaps an older one, and that somebody may have edited since. Each is taken if
it can be one, and is None otherwise: what is shown to people never fails for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from contract.versions.manifest import Manifest

LISTED_CLASSES: Final = 24
"""Up to so many classes are listed whole."""
ENDS: Final = 10
"""Of more, so many stand at either end."""

_MOST = 10**12
"""A count beyond it counts nothing."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """A class of a version."""

    label: str
    images: int | None
    """How many were labelled with it."""
    f1: float | None


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a version; where they are many, the weakest and the strongest stand apart from the others."""

    weakest: tuple[ClassFigures, ...]
    """The least F1 first, and those without one last."""
    strongest: tuple[ClassFigures, ...] = ()
    """The greatest F1 first."""
    others: tuple[ClassFigures, ...] = ()
    """In the order of the labels."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A version's figures; None is what its manifest does not say."""

    labels: int | None
    """Labelled images that it was made from."""
    macro_f1: float | None
    interval: tuple[float, float] | None
    """In which macro-F1 lies at 95 %."""
    accuracy: float | None
    validation_images: int | None
    random: bool
    """Whether the validation images are a random sample of the project, and not only of what was labelled."""
    mean_bald: float | None
    """Of the validation images, in nats."""
    advice: str | None
    """What to do next: a sentence."""
    stop: bool
    """Whether that is to stop."""


def read_figures(manifest: Manifest) -> Figures:
    """Return a version's figures."""
    metrics, training = manifest.metrics, manifest.training
    advice = _mapping(training.get("advice"))
    macro_f1 = _share(metrics.get("macro_f1"))
    return Figures(
        labels=_count(training.get("images")),
        macro_f1=macro_f1,
        interval=_interval(metrics.get("macro_f1_interval"), around=macro_f1),
        accuracy=_share(metrics.get("accuracy")),
        validation_images=_count(metrics.get("images")),
        random=training.get("validation") == "audit",
        mean_bald=_number(metrics.get("mean_bald"), most=_MOST),
        advice=_sentence(advice.get("sentence")),
        stop=advice.get("stop") is True,
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a version came to on images that others were measured on too."""

    macro_f1: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Versions that were measured on the same random images when the last of them was made."""

    images: int
    versions: Mapping[str, Measured]
    """By name."""


def read_yardstick(manifest: Manifest) -> Yardstick | None:
    """Return the versions that were measured on the same images as a version; None where its manifest tells of none."""
    curve = _mapping(manifest.training.get("curve"))
    images, versions = _count(curve.get("images")), curve.get("versions")
    if images is None or not isinstance(versions, list):
        return None
    found = {}
    for each in map(_mapping, versions):
        name, macro_f1 = each.get("version"), _share(each.get("macro_f1"))
        if isinstance(name, str) and macro_f1 is not None:
            found[name] = Measured(macro_f1, _interval([each.get("low"), each.get("high")], around=macro_f1))
    return Yardstick(images, found)


def read_classes(manifest: Manifest) -> Classes:
    """Return a version's classes, each with its figures."""
    images = _mapping(manifest.training.get("images_by_class"))
    f1 = manifest.metrics.get("f1")
    if not isinstance(f1, list) or len(f1) != len(manifest.labels):
        f1 = [None] * len(manifest.labels)
    classes = [
        ClassFigures(label, _count(images.get(label)), _share(value))
        for label, value in zip(manifest.labels, f1, strict=True)
    ]
    return _arrange(classes)


def _arrange(classes: list[ClassFigures]) -> Classes:
    rated = sorted((item for item in classes if item.f1 is not None), key=_by_f1)
    if len(classes) <= LISTED_CLASSES:
        return Classes(weakest=(*rated, *(item for item in classes if item.f1 is None)))
    weakest = rated[:ENDS]
    strongest = rated[ENDS:][-ENDS:][::-1]
    apart = {item.label for item in (*weakest, *strongest)}
    return Classes(tuple(weakest), tuple(strongest), tuple(item for item in classes if item.label not in apart))


def _by_f1(item: ClassFigures) -> float:
    return item.f1 or 0.0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sentence(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _share(value: object) -> float | None:
    return _number(value, most=1)


def _number(value: object, *, most: float) -> float | None:
    """Comparing leaves out NaN, and whole numbers too large for a float."""
    return float(value) if type(value) in (int, float) and 0 <= value <= most else None  # type: ignore[operator,arg-type]  # mypy does not narrow by `in`


def _interval(value: object, *, around: float | None) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2 or around is None:
        return None
    low, high = map(_share, value)
    return (low, high) if low is not None and high is not None and low <= around <= high else None
