"""The manifest of a version: what its graph takes, gives and was made from.

Knows JSON, not the disk. A manifest that parses is complete and well typed; whether the files beside it are the ones it
describes is the repository's business.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from contract.errors import ManifestError
from contract.versions.results import Metrics, TrainingRecord

CONTRACT_VERSION = 3
"""Raised when an older server could not serve a newer trainer's versions, or the reverse."""

DEFAULT_PASSES = 20

MOST_PASSES = 10_000
"""T may not be larger in a manifest: what it takes in memory would be somebody else's to choose."""

MOST_PIXELS_A_SIDE = 4096

TEMPERATURES = (0.05, 20.0)
"""The least and the greatest temperature that a version may have."""

_T = TypeVar("_T")

_REMEDY = "publish again with the trainer that belongs to this server, or roll back to an earlier version"
_VERSION = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{6}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_NAME_BYTES = 255
"""Of a file or folder, on every common file system."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The images a graph takes: uint8 (N, height, width, 3), RGB. Normalisation is part of the graph."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class DropoutSite:
    """One active Dropout node: the shape of its input without the batch axis, and its probability of dropping."""

    features: tuple[int, ...]
    probability: float


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file of the version must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader needs to know of a version before it opens the graph."""

    version: str
    created_at: str
    """UTC, ISO 8601."""
    labels: tuple[str, ...]
    """The class names in the order of the logits, as Label Studio stores them."""
    control: str | None
    """The `name` of the Choices tag that was trained on; None where the labels came from folders."""
    input: InputSpec
    passes: int
    """T, the number of stochastic passes that the trainer evaluated with; the server may be set to another."""
    dropout_sites: tuple[DropoutSite, ...]
    """In the order of the graph."""
    architecture: str
    trunk: str
    """The trunk's fingerprint (`contract.graph.fingerprint`): equal in versions that compute equal features."""
    multiple: bool = False
    """Whether several labels may hold of an image, and none: its probabilities are then sigmoids, one a label."""
    temperature: float = 1.0
    """What the mean probabilities are tempered with (`contract.scores.calibration`) before they are shown to people.

    Scores, BALD, entropy and rankings are of the probabilities as they are. A manifest without this field means 1.
    """
    metrics: Metrics = field(default_factory=Metrics)
    training: TrainingRecord = field(default_factory=TrainingRecord)
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    """Path within the version's folder to digest; all files but manifest.json itself."""

    def to_json(self) -> str:
        """Return the manifest as indented JSON that `from_json` reads back to an equal value."""
        return json.dumps({"contract": CONTRACT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse a manifest.

        Raises:
            ManifestError: naming the field, what was expected and what was found.
        """
        fields = _Fields(_parse(text), where="manifest.json")
        found = fields.take("contract", int)
        if found != CONTRACT_VERSION:
            raise ManifestError(
                f"manifest.json follows contract {found}, this program reads contract {CONTRACT_VERSION}; {_REMEDY}"
            )
        labels = _parse_labels(fields)
        return cls(
            version=fields.take_text("version", check_version),
            created_at=fields.take("created_at", str),
            labels=labels,
            multiple=fields.take("multiple", bool),
            temperature=_parse_temperature(fields),
            control=fields.take_optional("control", str),
            input=_parse_input(fields.child("input")),
            passes=fields.take_positive("passes", most=MOST_PASSES),
            dropout_sites=tuple(_parse_site(child) for child in fields.children("dropout_sites")),
            architecture=fields.take("architecture", str),
            trunk=fields.take_text("trunk", lambda text: _SHA256.fullmatch(text) is not None),
            metrics=Metrics.parse(fields.take("metrics", dict), classes=len(labels)),
            training=TrainingRecord.parse(fields.take("training", dict)),
            files=_parse_files(fields.child("files")),
        )


def check_version(name: str) -> bool:
    """Say whether `name` is a well-formed version name, and so safe to use as the name of a folder."""
    return _VERSION.fullmatch(name) is not None


class _Fields:
    """One JSON object being read, with its place in the document for messages."""

    def __init__(self, values: Mapping[str, Any], *, where: str) -> None:
        self.values = values
        self.where = where

    def take(self, name: str, kind: type[_T]) -> _T:
        if name not in self.values:
            raise ManifestError(f"{self.where} has no field {name!r} ({kind.__name__} expected); {_REMEDY}")
        value = self.values[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fault(name, kind.__name__, value)
        return value

    def take_optional(self, name: str, kind: type[_T]) -> _T | None:
        return None if name in self.values and self.values[name] is None else self.take(name, kind)

    def take_text(self, name: str, accept: Callable[[str], bool]) -> str:
        value = self.take(name, str)
        if not accept(value):
            raise self.fault(name, f"a well-formed {name}", value)
        return value

    def take_positive(self, name: str, *, most: int) -> int:
        value = self.take(name, int)
        if not 1 <= value <= most:
            raise self.fault(name, f"a whole number from 1 to {most}", value)
        return value

    def child(self, name: str) -> "_Fields":
        return _Fields(self.take(name, dict), where=f"{self.where}: {name}")

    def children(self, name: str) -> list["_Fields"]:
        items = self.take(name, list)
        if not all(isinstance(item, dict) for item in items):
            raise self.fault(name, "a list of objects", items)
        return [_Fields(item, where=f"{self.where}: {name}[{i}]") for i, item in enumerate(items)]

    def fault(self, name: str, expected: str, found: object) -> ManifestError:
        shown = json.dumps(found, ensure_ascii=False)[:80]
        return ManifestError(f"{self.where}: {name!r} must be {expected}, found {shown}; {_REMEDY}")


def _parse(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()  # a surrogate by itself has no bytes to be stored or sent as
    except (ValueError, RecursionError) as err:
        raise ManifestError(f"manifest.json is not JSON ({err}): it was cut short or edited; {_REMEDY}") from err
    if not isinstance(document, dict):
        raise ManifestError(f"manifest.json must hold an object, found {type(document).__name__}; {_REMEDY}")
    return document


def _parse_labels(fields: _Fields) -> tuple[str, ...]:
    labels = fields.take("labels", list)
    least = 1 if fields.take("multiple", bool) else 2
    if len(labels) < least or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise fields.fault("labels", f"a list of at least {least} different strings", labels)
    return tuple(labels)


def _parse_temperature(fields: _Fields) -> float:
    if "temperature" not in fields.values:
        return 1.0  # of a trainer that did not calibrate
    temperature, (least, greatest) = fields.values["temperature"], TEMPERATURES
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise fields.fault("temperature", "a number", temperature)
    if not least <= temperature <= greatest:  # not so for NaN either
        raise fields.fault("temperature", f"between {least} and {greatest}", temperature)
    return float(temperature)


def _parse_input(fields: _Fields) -> InputSpec:
    height, width = (fields.take_positive(name, most=MOST_PIXELS_A_SIDE) for name in ("height", "width"))
    return InputSpec(height, width)


def _parse_site(fields: _Fields) -> DropoutSite:
    features = fields.take("features", list)
    probability = fields.take("probability", float)
    if not features or not all(type(n) is int and n > 0 for n in features):
        raise fields.fault("features", "a list of positive whole numbers", features)
    if not 0 < probability < 1:
        raise fields.fault("probability", "a number between 0 and 1", probability)
    return DropoutSite(tuple(features), probability)


def _parse_files(fields: _Fields) -> dict[str, FileDigest]:
    return {name: _parse_digest(name, fields.child(name)) for name in fields.values}


def _is_file_name(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode()) <= _MOST_NAME_BYTES


def _parse_digest(name: str, fields: _Fields) -> FileDigest:
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or not all(map(_is_file_name, parts)):
        raise ManifestError(f"{fields.where}: not a path within the version's folder; {_REMEDY}")
    sha256 = fields.take_text("sha256", lambda text: _SHA256.fullmatch(text) is not None)
    size = fields.take("size_bytes", int)
    if size < 0:
        raise fields.fault("size_bytes", "a number of bytes", size)
    return FileDigest(sha256, size)
