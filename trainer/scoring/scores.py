"""What a version says of one image, as servers send it and as it is kept on disk until a ranking is whole.

Owns the file that lets a ranking which was killed go on where it was. Knows neither servers nor Label Studio.
"""

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
    """One image's scores."""

    task: int
    result: Sequence[Mapping[str, Any]]
    """The regions of the prediction; none where no label can be told."""
    probabilities: _Singles
    """(C,); empty before there is a version."""
    bald: float
    """In nats."""
    entropy: float
    """In nats."""
    embedding: _Halves
    """(E,)."""
    passes: _Singles | None = None
    """(T, C), where they were asked for; not kept."""


_SCORE: Final = TypeAdapter(Score)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no scores."""

    task: int
    code: str
    detail: str
    later: bool = False
    """Whether the reason is one that passes."""


def parse_score(document: Mapping[str, Any]) -> Score | Failure:
    """Read one element of a server's answer; raises ValueError, LookupError or TypeError if it is none."""
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
    """Name a value that JSON can hold: equal for equal values, in 16 letters."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class ScoreLog:
    """Scores on disk, one a line, each as good as written once `append` has returned; the file need not be there yet.

    Raises ConfigError if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, digests: Mapping[int, str]) -> dict[int, Score]:
        """Return what is there of these tasks: of each its number and the digest of its data.

        A line that was cut short by the end of its writer is taken off, with all behind it.
        """
        with self._explaining():
            lines = recover_lines(self._path, _parse_line)
        return {score.task: score for key, score in lines if digests.get(score.task) == key}

    def append(self, scores: Iterable[Score], digests: Mapping[int, str]) -> None:
        """Add scores, and return when they are on disk."""
        known = ({"key": digests[score.task], **_SCORE.dump_python(score, exclude={"passes"})} for score in scores)
        with self._explaining():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.writelines(json.dumps(each).encode() + b"\n" for each in known)
                file.flush()
                os.fsync(file.fileno())

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining("scores", self._path.parent, remedy="set LABELNEXT_CACHE to a folder with room")


def _parse_line(line: bytes) -> tuple[str, Score]:
    document = json.loads(line)
    return document["key"], _SCORE.validate_python(document)
