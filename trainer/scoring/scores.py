"""The scores of an image, as servers send them, and their log on disk, from which an interrupted ranking continues."""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from contract.files import explaining, recover_lines

Floats = npt.NDArray[np.float32]

_HALF: Final = "<f2"
_SINGLE: Final = "<f4"


def _encode(array: Floats, kind: str) -> str:
    return base64.b64encode(array.astype(kind).tobytes()).decode()


def _decode(text: str, kind: str) -> Floats:
    return np.frombuffer(base64.b64decode(text, validate=True), kind).astype(np.float32)


_Singles = Annotated[
    Floats, PlainValidator(lambda text: _decode(text, _SINGLE)), PlainSerializer(lambda array: _encode(array, _SINGLE))
]
_Halves = Annotated[
    Floats, PlainValidator(lambda text: _decode(text, _HALF)), PlainSerializer(lambda array: _encode(array, _HALF))
]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The scores of an image."""

    task: int
    result: Sequence[Mapping[str, Any]]
    """The regions of the prediction; empty if no label is predicted."""
    probabilities: _Singles
    """(C,), or empty before there is a version."""
    bald: float
    """In nats."""
    entropy: float
    """In nats."""
    embedding: _Halves
    """(E,)"""
    passes: _Singles | None = None
    """(T, C), if requested; not logged."""


_SCORE: Final = TypeAdapter(Score)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason for which an image has no scores."""

    task: int
    code: str
    detail: str
    later: bool = False
    """Whether the reason is temporary."""


def parse_score(document: Mapping[str, Any]) -> Score | Failure:
    """Parse one element of a server's reply; raises ValueError, LookupError or TypeError if it is invalid."""
    task = document["task"]
    if "error" in document:
        error = document["error"]
        return Failure(task, str(error["code"]), str(error["detail"]), later=error.get("later") is True)
    probabilities = np.asarray(document["probabilities"], np.float32)
    passes = document.get("passes")
    return Score(
        task=task,
        result=list(document["prediction"]["result"]),
        probabilities=probabilities,
        bald=float(document["bald"]),
        entropy=float(document["entropy"]),
        embedding=_decode(document.get("embedding", ""), _HALF),
        passes=None if passes is None else _decode(passes, _SINGLE).reshape(-1, len(probabilities)),  # (T, C)
    )


def digest(value: object) -> str:
    """Return a digest of a JSON value: 16 hexadecimal digits."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class ScoreLog:
    """A file of scores, one per line. Methods raise ConfigError if it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, digests: Mapping[int, str]) -> dict[int, Score]:
        """Return the scores of tasks, given the digest of each task's data.

        An incomplete line, left by a killed process, is removed with all that follow.
        """
        with self._explaining():
            lines = recover_lines(self._path, _parse_line)
        return {score.task: score for key, score in lines if digests.get(score.task) == key}

    def append(self, scores: Iterable[Score], digests: Mapping[int, str]) -> None:
        """Append scores, and sync the file."""
        documents = ({"key": digests[score.task], **_SCORE.dump_python(score, exclude={"passes"})} for score in scores)
        with self._explaining():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.writelines(json.dumps(each).encode() + b"\n" for each in documents)
                file.flush()
                os.fsync(file.fileno())

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining("scores", self._path.parent, remedy="set LABELNEXT_CACHE to a folder with room")


def _parse_line(line: bytes) -> tuple[str, Score]:
    document = json.loads(line)
    return document["key"], _SCORE.validate_python(document)
