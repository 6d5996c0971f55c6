"""Hostile cases with their expected outcomes, and the loop that runs them against a server."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from urllib3.exceptions import HTTPError

from bench.hostile import pictures
from bench.hostile.site import SAME, Escaped, Site

MEBIBYTE = 1 << 20

_THREADS = 16

Result = Mapping[str, Any]
"""The element of /score's answer for one image."""


class Kind(StrEnum):
    """The hostile part of a request."""

    IMAGE = "image"
    ADDRESS = "address"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Case:
    """An attack, and the check of its outcome."""

    name: str
    kind: Kind
    attack: Callable[[Site, Any], None]
    """Sends the payload; raises Escaped unless the outcome is as expected."""
    make: Callable[[Site], Any] = lambda _: None
    """Makes the payload, which is not part of the measured time."""
    seconds: float = 10.0
    """Time limit of the attack."""
    patient: bool = False
    """Whether it mostly waits, so that it can run in parallel with other patient cases."""
    outcome: "Outcome | None" = None
    """The expected outcome of a file; None for other attacks."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The image gets this error instead of a prediction."""

    code: str
    """A regular expression that matches the whole code."""
    reason: str
    """A regular expression that occurs in the detail."""

    def check(self, _: Site, result: Result) -> None:
        """Raise Escaped for another result."""
        error = result.get("error")
        if error is None:
            raise Escaped("the image was scored")
        if not re.fullmatch(self.code, error["code"]) or not re.search(self.reason, error["detail"]):
            raise Escaped(f"expected a {self.code} error with {self.reason!r}, got {error}")


@dataclass(frozen=True, slots=True)
class Scored:
    """The image is scored like a harmless file with the same pixels."""

    like: Callable[[], bytes]
    """Makes the harmless file."""
    tolerance: float = SAME
    """Absolute tolerance of the probabilities; higher for lossy codecs."""

    def check(self, site: Site, result: Result) -> None:
        """Raise Escaped for another result."""
        if "error" in result:
            raise Escaped(f"expected a score, got {result['error']}")
        expected = site.probabilities(self.like())
        difference = max(abs(one - other) for one, other in zip(result["probabilities"], expected, strict=True))
        if difference > self.tolerance:
            raise Escaped(f"probabilities differ by {difference:.2g}, at most {self.tolerance:.2g} is allowed")


Outcome = Refused | Scored

PLAIN = Scored(pictures.plain)
LOSSY = 0.05
"""Tolerance of a probability after lossy compression; a mirrored image differs by more."""
PLAIN_LOSSY = Scored(pictures.plain, tolerance=LOSSY)

refused_fetch = partial(Refused, "fetch")
"""The outcome of a reference that is not fetched, for a reason."""
refused_decode = partial(Refused, "decode")
"""The outcome of a file that is not decoded, for a reason."""


def printable(text: str, length: int = 40) -> str:
    """Return a text for the name of a case: escaped, shortened to `length` characters, and never empty."""
    escaped = re.sub(r"[^ -~]", lambda match: match[0].encode("unicode_escape").decode(), text) or "empty"
    return escaped if len(escaped) <= length else f"{escaped[: length - 3]}..."


def scored_as(colour: str) -> Scored:
    """Return the outcome of an image of one colour."""
    return Scored(partial(pictures.flat, colour))


def file_case(
    name: str, outcome: Outcome, make: Callable[[], bytes], *, content_type: str = "image/png", seconds: float = 10
) -> Case:
    """Return a case of a file on an allowed host."""

    def attack(site: Site, data: bytes) -> None:
        url = site.images.serve(f"/{name}", data, content_type=content_type, connection="close")
        outcome.check(site, site.score_among_good(url))

    return Case(name, Kind.IMAGE, attack, lambda _: make(), seconds, outcome=outcome)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a case."""

    case: Case
    seconds: float
    escape: str | None
    """The effect of the attack, or of its batch; None if it was contained."""


def run(site: Site, cases: Sequence[Case], *, batch: int = 20) -> Iterator[Verdict]:
    """Run cases one after another, and check after each batch that the server is unharmed.

    Harm is attributed to every case of its batch; use batches of 1 to find the case. Patient cases run last, at the
    same time.
    """
    quick = [case for case in cases if not case.patient]
    patient = [case for case in cases if case.patient]
    for start in range(0, len(quick), batch):
        yield from _run_batch(site, quick[start : start + batch], threads=1)
    if patient:
        yield from _run_batch(site, patient, threads=_THREADS)


def _run_batch(site: Site, cases: Sequence[Case], *, threads: int) -> list[Verdict]:
    verdicts: list[Verdict] = []
    try:
        with site.unharmed(), ThreadPoolExecutor(threads) as pool:
            verdicts += pool.map(lambda case: _attack(case, site), cases)
    except Escaped as err:
        harm = f"after a batch of {len(cases)}: {err}"
        return [replace(each, escape="; ".join(filter(None, (each.escape, harm)))) for each in verdicts]
    return verdicts


def _attack(case: Case, site: Site) -> Verdict:
    payload = case.make(site)
    escape: str | None = None
    started = time.perf_counter()
    try:
        case.attack(site, payload)
    except (Escaped, OSError, ValueError, HTTPError) as err:
        escape = f"{type(err).__name__}: {err}"
    seconds = time.perf_counter() - started
    if escape is None and seconds > case.seconds:
        escape = f"it took {seconds:.1f} s, at most {case.seconds:.0f} s is allowed"
    return Verdict(case, seconds, escape)
