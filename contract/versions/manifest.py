"""The manifest of a version: inputs, outputs and training of its graph.

A parsed manifest is complete and well typed; `contract.versions.version` compares it with the files beside it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import from_json

from contract.errors import ManifestError
from contract.versions.results import Metrics, TrainingRecord

CONTRACT_VERSION = 4
"""Incremented when an older server cannot serve a newer trainer's versions, or the reverse."""

DEFAULT_PASSES = 20
TEMPERATURES = (0.05, 20.0)
"""Minimum and maximum temperature of a version."""

_MAX_PASSES = 10_000
"""Limit of T, which determines the memory that masks take."""
_MAX_SIDE = 4096
_REMEDY = "publish again with the trainer that belongs to this server, or roll back to an earlier version"
_VERSION = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{6}")
_MAX_NAME_BYTES = 255
"""Limit of the name of a file or folder on common file systems."""
_OPTIONAL: Final = {"temperature"}
"""Fields that manifests of earlier releases do not have."""


def check_version(name: str) -> bool:
    """Return whether a name is a well-formed version name, and thus safe as the name of a folder."""
    return _VERSION.fullmatch(name) is not None


def _checked(is_valid: Callable[[Any], bool], message: str) -> Callable[[Any], Any]:
    """Return a validator that raises ValueError with a message unless the predicate holds."""

    def check(value: object) -> object:
        if not is_valid(value):
            raise ValueError(message)
        return value

    return check


def _is_path_within(name: str) -> bool:
    parts = name.split("/")
    named = all(part not in ("", ".", "..") and len(part.encode()) <= _MAX_NAME_BYTES for part in parts)
    return named and name.isprintable() and "\\" not in name


_METRICS: Final = TypeAdapter(Metrics)
_TRAINING: Final = TypeAdapter(TrainingRecord)


def _parse_metrics(value: object, info: ValidationInfo) -> Metrics:
    metrics = _METRICS.validate_python(value)
    return metrics if len(metrics.f1) == len(info.data.get("labels", ())) else replace(metrics, f1=())


_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Side = Annotated[int, Field(ge=1, le=_MAX_SIDE)]
_Name = Annotated[str, AfterValidator(_checked(check_version, "must be a well-formed version name"))]
_Path = Annotated[str, AfterValidator(_checked(_is_path_within, "is not a path within the version's folder"))]
_ALL_DIFFERENT = AfterValidator(_checked(lambda labels: len({*labels}) == len(labels), "must all be different"))
_OBJECT = BeforeValidator(_checked(lambda value: isinstance(value, dict), "must be an object"))


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Input images of a graph: uint8 (N, height, width, 3), RGB. Normalisation is part of the graph."""

    height: _Side
    width: _Side


@dataclass(frozen=True, slots=True)
class DropoutSite:
    """An active Dropout node: its input shape without the batch axis, and its drop probability."""

    features: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    probability: Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Backbone:
    """The backbone whose features the head was trained on."""

    name: Annotated[str, Field(min_length=1)]
    """As in `--backbone`."""
    fingerprint: _Sha256
    """Fingerprint of its float32 graph (`contract.graph.fingerprint`): equal if versions compute equal features."""
    tensor: Annotated[str, Field(min_length=1)]
    """The tensor of the literal graph where it ends: float32 (N, F), rounded to float16 precision."""
    precision: Literal["fp32", "int8"]
    """Its precision when the head was trained and the version was measured."""
    last_stage: Annotated[int, Field(ge=1)] | None = None
    """Number of features, the last ones, that near-duplicates are found by; None for all."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Digest and size of a file."""

    sha256: _Sha256
    size_bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader must know about a version before it opens the graph."""

    version: _Name
    created_at: str
    """UTC, ISO 8601."""
    labels: Annotated[tuple[str, ...], Field(min_length=1), _ALL_DIFFERENT]
    """The class names in the order of the logits, as stored by Label Studio."""
    control: str | None
    """The `name` of the Choices tag of the labels; None if they came from folders."""
    input: InputSpec
    passes: Annotated[int, Field(ge=1, le=_MAX_PASSES)]
    """T, the number of stochastic passes in the trainer's evaluation; servers may use another."""
    dropout_sites: tuple[DropoutSite, ...]
    """In the order of the graph."""
    backbone: Backbone
    multiple: bool = False
    """Whether an image may have any number of labels: probabilities are then sigmoids, one per label."""
    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1], allow_inf_nan=False)] = 1.0
    """Temperature for displayed probabilities (`contract.scores.calibration`); scores do not use it."""
    metrics: Annotated[Metrics, PlainValidator(_parse_metrics), _OBJECT] = field(default_factory=Metrics)
    training: Annotated[TrainingRecord, PlainValidator(_TRAINING.validate_python), _OBJECT] = field(
        default_factory=TrainingRecord
    )
    files: dict[_Path, FileDigest] = field(default_factory=dict)
    """Path within the version's folder to digest, for all files but manifest.json."""

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The classes without a labelled image in the training, about which nothing was learnt."""
        counts = self.training.images_by_class
        return tuple(label for label in self.labels if counts.get(label) == 0)

    def to_json(self) -> str:
        """Return the manifest as JSON, which `from_json` parses to an equal value."""
        return json.dumps({"contract": CONTRACT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse a manifest; ManifestError names the field, and what was expected and found."""
        try:
            document = from_json(text)
        except ValueError as err:
            raise ManifestError(f"manifest.json is not JSON ({err}): it was truncated or edited; {_REMEDY}") from err
        if not isinstance(document, dict):
            raise ManifestError(f"manifest.json must be a JSON object, found {type(document).__name__}; {_REMEDY}")
        required = {"contract", *(each.name for each in fields(cls))} - _OPTIONAL
        if missing := sorted(required - document.keys()):
            raise ManifestError(f"manifest.json has no field {missing[0]!r}; {_REMEDY}")
        if (contract := document["contract"]) != CONTRACT_VERSION:
            raise ManifestError(
                f"manifest.json follows contract {contract}, this program reads contract {CONTRACT_VERSION}; {_REMEDY}"
            )
        try:
            manifest = _MANIFEST.validate_json(text, strict=True)
        except ValidationError as err:
            raise ManifestError(f"{_explain(err)}; {_REMEDY}") from err
        if len(manifest.labels) < 2 and not manifest.multiple:
            raise ManifestError(f"manifest.json: labels should be at least 2, found 1; {_REMEDY}")
        return manifest


_MANIFEST: Final = TypeAdapter(Manifest)


def _explain(err: ValidationError) -> str:
    """Return a message with the first invalid field, and what was expected and found."""
    fault: Any = err.errors(include_url=False)[0]
    shown = json.dumps(fault["input"], ensure_ascii=False, default=str)[:80]
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"manifest.json: {'.'.join(map(str, fault['loc']))} {expected}, found {shown}"
